"""The default network frozen for a GPU: a fixed sequence of launches, replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdlearn.graph import capture, is_recording, place_for, put
from mdlearn.neighbors import Neighbors
from mdlearn.potentials.equivariant import NEAR, Equivariant
from mdlearn.potentials.evaluate import Frozen
from mdlearn.potentials.frozen_cuda_weights import device_weights
from mdlearn.potentials.kernels import triton_atoms as atom
from mdlearn.potentials.kernels import triton_geometry as geometry
from mdlearn.potentials.kernels import triton_pairs as pair
from mdlearn.potentials.kernels.triton_layout import RADIAL, KernelError, Workspace, make_workspace
from mdlearn.potentials.pairs import ChebyshevBasis
from mdlearn.potentials.wall import STIFFNESS
from mdlearn.system import Evaluation, System, sum_by_system, volume

THREADS = 128
"""Of a program, one for each feature of each of its atoms."""
COLUMNS = 16
"""Features of atoms that one program multiplies on the sphere."""

SLOT = 41
"""Bytes of a slot of a neighbor list: neighbor, translation, reverse, and whether it is one."""


class Recording(NamedTuple):
    """The launches of an evaluation on inputs that stay where they are."""

    shape: tuple[int, int, int]
    """Systems, atoms, and neighbors of an atom."""
    work: Workspace
    system: System
    neighbors: Neighbors
    replay: Callable[[], Evaluation]


class FrozenEquivariantOnGPU(Frozen):
    """The default network in the kernels of `triton_geometry`, `triton_pairs` and `triton_atoms`.

    What is launched, and in which order, depends on shapes alone, and nothing waits for a value. So
    on a GPU the launches are recorded once for a shape, and replayed from then on.
    """

    def __init__(self, network: Equivariant) -> None:
        """Takes over the network's weights, in its precision, where they are."""
        super().__init__()
        self.cutoff = network.cutoff
        self.species = network.species
        self.elements = network.elements
        self.radial = network.settings.radial
        self.weights = device_weights(network)
        self.recording: Recording | None = None
        self.listed: Neighbors | None = None

    def evaluate(self, system: System, neighbors: Neighbors) -> Evaluation:
        """See `Frozen`.

        Raises:
            RuntimeError: kernels cannot be compiled, or a graph cannot be recorded.
        """
        shape = (len(system.cell), *neighbors.j.shape)
        if self.recording is None or self.recording.shape != shape:
            try:
                self.recording = self.record(system, neighbors)
            except KernelError as error:  # which is no RuntimeError, unlike what torch raises
                raise RuntimeError(f"no kernels for this GPU: {error}") from error
            self.listed = neighbors
        if is_recording():  # all of a step, on inputs that stay where they are, too
            return self.launch(self.recording.work, system, neighbors)
        if self.listed is not neighbors:
            put(neighbors, self.recording.neighbors)
            self.listed = neighbors
        put(system, self.recording.system)
        return place_for(self.recording.replay())

    def record(self, system: System, neighbors: Neighbors) -> Recording:
        """The launches for a shape; a graph, but where Triton is interpreted."""
        n_systems, (n_atoms, capacity) = len(system.cell), neighbors.j.shape
        work = make_workspace(self.weights, n_atoms, capacity)
        inputs, lists = place_for(system), place_for(neighbors)

        def launch() -> Evaluation:
            return self.launch(work, inputs, lists)

        replay = capture(launch, inputs.positions.device)
        return Recording((n_systems, n_atoms, capacity), work, inputs, lists, replay)

    def choose_threads(self, system: System, neighbors: Neighbors) -> None:
        """See `Frozen`. A GPU needs none of the processor's."""

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`. The list is copied to where recordings read it: of this, and of a step."""
        of_atom = sum(each.nbytes for each in make_workspace(self.weights, 1, capacity))
        return n_atoms * (of_atom + 2 * capacity * SLOT)

    def launch(self, work: Workspace, system: System, neighbors: Neighbors) -> Evaluation:
        """One evaluation; the result may be part of the workspace."""
        index = self.elements.index(system.numbers)
        self._look(work, system, index, neighbors)
        n_layers = len(work.mixed)
        for layer in range(n_layers):
            self._forward(layer, work, index, neighbors)
        self._read(work, index)
        for layer in reversed(range(n_layers)):
            self._backward(layer, work, index, neighbors)
        self._push(work, neighbors)
        energy = sum_by_system(work.energies, system)
        space = volume(system)[:, None, None]
        stress = sum_by_system(work.virials, system) / torch.where(space > 0.0, space, torch.nan)
        return Evaluation(energy, work.forces, stress, work.energies, work.virials)

    def _look(self, work: Workspace, system: System, index: Tensor, neighbors: Neighbors) -> None:
        """Who is near whom, and the first density."""
        weights, (n_atoms, capacity) = self.weights, neighbors.j.shape
        _run(
            geometry.look,
            (n_atoms,),
            system.positions,
            system.cell,
            system.system,
            index,
            neighbors.j,
            neighbors.shift,
            neighbors.valid,
            weights.wall,
            weights.frequency_weight,
            weights.reference,
            work.pairs,
            work.basis,
            work.slots,
            work.bounds,
            work.slope,
            work.energies,
            capacity,
            self.cutoff,
            ChebyshevBasis.stretch,
            NEAR,
            STIFFNESS,
            self.radial,
            len(self.species),
            _power_of_two(capacity),
        )
        blocks, shape = _share(n_atoms, RADIAL)
        _run(
            pair.expand,
            (blocks, len(self.species)),
            work.pairs,
            work.basis,
            work.bounds,
            work.density,
            n_atoms,
            capacity,
            work.density.shape[2],
            self.radial,
            len(self.species),
            shape[0],
        )

    def _forward(self, layer: int, work: Workspace, index: Tensor, neighbors: Neighbors) -> None:
        """From densities to invariants, and to what atoms say; see `kernels.equivariant`."""
        weights, (n_atoms, capacity) = self.weights, neighbors.j.shape
        features = work.heard.shape[2]
        channels = work.density.shape[2] - features
        blocks, shape = _share(n_atoms, features)
        density, mix = work.density, weights.mix[layer]
        if layer == 0:
            density, mix = density[..., :channels], mix[:, :channels]
        else:
            _run(
                pair.hear,
                (blocks,),
                work.pairs,
                work.basis,
                work.slots,
                work.bounds,
                neighbors.j,
                work.spoken[layer - 1],
                weights.filters[layer - 1],
                density[..., channels:],
                n_atoms,
                capacity,
                density.shape[2],
                self.radial,
                len(self.species),
                features,
                *shape,
            )
        torch.bmm(density, mix, out=work.mixed[layer])
        given = work.invariants[:, 3 * features * layer :]
        _run(
            atom.multiply,
            _blocks(n_atoms * features, COLUMNS),
            work.mixed[layer],
            weights.element[layer],
            index,
            weights.evaluate,
            weights.project,
            work.functions[layer],
            given,
            n_atoms,
            given.stride(0),
            features,
            COLUMNS,
        )
        if layer == len(work.plain):
            return
        torch.bmm(work.functions[layer], weights.speak[layer], out=work.plain[layer])
        torch.addmm(
            weights.gate_bias[layer],
            given[:, : 3 * features],
            weights.gate[layer],
            out=work.gates[layer],
        )
        blocks, shape = _share(n_atoms, 2 * features)
        _run(
            atom.speak,
            (blocks,),
            work.plain[layer],
            work.gates[layer],
            weights.said[layer],
            index,
            work.spoken[layer],
            n_atoms,
            2 * features,
            *shape,
        )

    def _read(self, work: Workspace, index: Tensor) -> None:
        """Energies; invariants become the adjoints of these."""
        weights, n_atoms = self.weights, len(index)
        torch.mm(work.invariants, weights.hidden, out=work.hidden)
        blocks, shape = _share(n_atoms, len(weights.out))
        _run(
            atom.read,
            (blocks,),
            work.hidden,
            weights.hidden_bias,
            weights.out,
            index,
            work.energies,
            n_atoms,
            len(weights.out),
            *shape,
        )
        torch.mm(work.hidden, weights.hidden_back, out=work.invariants)

    def _backward(self, layer: int, work: Workspace, index: Tensor, neighbors: Neighbors) -> None:
        """From adjoints of invariants, and of what atoms said, to those of densities."""
        weights, (n_atoms, capacity) = self.weights, neighbors.j.shape
        features, channels = work.heard.shape[2], work.seen.shape[2]
        given = work.invariants[:, 3 * features * layer :]
        blocks, shape = _share(n_atoms, features)
        last = layer == len(work.plain)
        if last:
            work.to_functions.zero_()
        else:
            _run(
                pair.hear_back,
                (blocks,),
                work.pairs,
                work.basis,
                work.slots,
                work.bounds,
                neighbors.j,
                work.spoken[layer],
                weights.filters[layer],
                work.heard,
                work.to_spoken,
                work.slope,
                n_atoms,
                capacity,
                self.radial,
                len(self.species),
                features,
                *shape,
            )
            of_spoken, shape_of_spoken = _share(n_atoms, 2 * features)
            _run(
                atom.speak_back,
                (of_spoken,),
                work.plain[layer],
                work.gates[layer],
                weights.said[layer],
                index,
                work.to_spoken,
                work.to_gates,
                n_atoms,
                2 * features,
                *shape_of_spoken,
            )
            given[:, : 3 * features].addmm_(work.to_gates, weights.gate_back[layer])
            torch.bmm(work.to_spoken, weights.speak_back[layer], out=work.to_functions)
        _run(
            atom.multiply_back,
            _blocks(n_atoms * features, COLUMNS),
            work.mixed[layer],
            weights.element[layer],
            index,
            weights.evaluate,
            weights.project,
            work.functions[layer],
            given,
            work.to_functions,
            work.to_mixed,
            n_atoms,
            given.stride(0),
            features,
            COLUMNS,
        )
        back = weights.mix_back[layer]
        # Of the last layer, which comes first, nothing is there yet to be added to.
        work.seen.baddbmm_(work.to_mixed, back[..., :channels], beta=0.0 if last else 1.0)
        if layer > 0:
            torch.bmm(work.to_mixed, back[..., channels:], out=work.heard)

    def _push(self, work: Workspace, neighbors: Neighbors) -> None:
        """Derivatives of the first density, and with them forces and virials."""
        n_atoms, capacity = neighbors.j.shape
        blocks, shape = _share(n_atoms, RADIAL)
        _run(
            pair.expand_back,
            (blocks, len(self.species)),
            work.pairs,
            work.basis,
            work.slots,
            work.bounds,
            work.seen,
            work.slope,
            n_atoms,
            capacity,
            work.seen.shape[2],
            self.radial,
            len(self.species),
            shape[0],
        )
        _run(
            geometry.push,
            (n_atoms,),
            work.pairs,
            work.slots,
            work.bounds,
            neighbors.reverse,
            work.slope,
            work.forces,
            work.virials,
            capacity,
            len(self.species),
            _power_of_two(capacity),
        )


def _power_of_two(count: int) -> int:
    """The first that is no less."""
    return 1 << (count - 1).bit_length()


def _run(kernel: Any, programs: tuple[int, ...], *arguments: Tensor | float) -> None:
    """Launches a kernel, which may fuse products with sums; Triton from 3.9 on asks for a word."""
    kernel[programs](*arguments, num_warps=THREADS // 32, enable_fp_fusion=True)


def _blocks(count: int, size: int) -> tuple[int]:
    return (-(-count // size),)


def _share(n_atoms: int, width: int) -> tuple[int, tuple[int, int]]:
    """Programs that share out atoms of so many threads each; atoms in one, and threads of each."""
    row = _power_of_two(width)
    block = max(1, THREADS // row)
    return -(-n_atoms // block), (block, row)
