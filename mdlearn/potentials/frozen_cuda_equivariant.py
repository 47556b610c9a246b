"""The default network frozen for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.equivariant import NEAR, Equivariant
from mdlearn.potentials.frozen_cuda import (
    SLOT,
    FrozenOnGPU,
    blocks_of,
    collect,
    crew,
    power_of_two,
    run,
    share,
)
from mdlearn.potentials.frozen_cuda_weights import device_weights
from mdlearn.potentials.kernels import triton_atoms as atom
from mdlearn.potentials.kernels import triton_geometry as geometry
from mdlearn.potentials.kernels import triton_pairs as pair
from mdlearn.potentials.kernels.triton_layout import RADIAL, Workspace, make_workspace
from mdlearn.potentials.pairs import ChebyshevBasis
from mdlearn.potentials.wall import STIFFNESS
from mdlearn.system import Evaluation, System

COLUMNS = 16
"""Features of atoms that one program multiplies on the sphere."""


class FrozenEquivariantOnGPU(FrozenOnGPU):
    """The default network in kernels: `triton_geometry`, `triton_pairs` and `triton_atoms`."""

    def __init__(self, network: Equivariant) -> None:
        """Takes over the network's weights, in its precision, where they are."""
        super().__init__()
        self.cutoff = network.cutoff
        self.species = network.species
        self.elements = network.elements
        self.radial = network.settings.radial
        self.weights = device_weights(network)

    def room(self, n_atoms: int, capacity: int) -> Workspace:
        """See `FrozenOnGPU`."""
        return make_workspace(self.weights, n_atoms, capacity)

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`. The list is copied to where recordings read it: of this, and of a step."""
        of_atom = sum(each.nbytes for each in make_workspace(self.weights, 1, capacity))
        return n_atoms * (of_atom + 2 * capacity * SLOT)

    def launch(self, work: Workspace, system: System, neighbors: Neighbors) -> Evaluation:
        """See `FrozenOnGPU`."""
        index = self.elements.index(system.numbers)
        self._look(work, system, index, neighbors)
        n_layers = len(work.mixed)
        for layer in range(n_layers):
            self._forward(layer, work, index, neighbors)
        self._read(work, index)
        for layer in reversed(range(n_layers)):
            self._backward(layer, work, index, neighbors)
        self._expand_back(work, neighbors)
        return collect(work, work.energies, system, neighbors)

    def _look(self, work: Workspace, system: System, index: Tensor, neighbors: Neighbors) -> None:
        """Who is near whom, and the first density."""
        weights, (n_atoms, capacity) = self.weights, neighbors.j.shape
        run(
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
            power_of_two(capacity),
        )
        blocks, shape = crew(n_atoms, RADIAL)
        run(
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
            *shape[:2],
        )

    def _forward(self, layer: int, work: Workspace, index: Tensor, neighbors: Neighbors) -> None:
        """From densities to invariants, and to what atoms say; see `kernels.equivariant`."""
        weights, (n_atoms, capacity) = self.weights, neighbors.j.shape
        features = work.heard.shape[2]
        channels = work.density.shape[2] - features
        blocks, shape = crew(n_atoms, features)
        density, mix = work.density, weights.mix[layer]
        if layer == 0:
            density, mix = density[..., :channels], mix[:, :channels]
        else:
            run(
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
        run(
            atom.multiply,
            blocks_of(n_atoms * features, COLUMNS),
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
        of_spoken, shape_of_spoken = share(n_atoms, 2 * features)
        run(
            atom.speak,
            (of_spoken,),
            work.plain[layer],
            work.gates[layer],
            weights.said[layer],
            index,
            work.spoken[layer],
            n_atoms,
            2 * features,
            *shape_of_spoken,
        )

    def _read(self, work: Workspace, index: Tensor) -> None:
        """Energies; invariants become the adjoints of these."""
        weights, n_atoms = self.weights, len(index)
        torch.mm(work.invariants, weights.hidden, out=work.hidden)
        blocks, shape = share(n_atoms, len(weights.out))
        run(
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
        blocks, shape = crew(n_atoms, features)
        last = layer == len(work.plain)
        if last:
            work.to_functions.zero_()
        else:
            run(
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
            of_spoken, shape_of_spoken = share(n_atoms, 2 * features)
            run(
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
        run(
            atom.multiply_back,
            blocks_of(n_atoms * features, COLUMNS),
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

    def _expand_back(self, work: Workspace, neighbors: Neighbors) -> None:
        """Derivatives of the first density."""
        n_atoms, capacity = neighbors.j.shape
        blocks, shape = crew(n_atoms, RADIAL)
        run(
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
            *shape[:2],
        )
