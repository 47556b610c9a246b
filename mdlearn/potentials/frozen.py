"""Potentials that are no longer trained: the same energies and forces, by compiled loops.

A frozen potential stands for the one that it was made from, which alone can be trained, written and
asked for charges. No derivative is taken of it: the loops give forces themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.jit import keep_blas_on_one_thread
from mdlearn.neighbors import Neighbors, build
from mdlearn.potentials import equivariant
from mdlearn.potentials.architectures import Sum
from mdlearn.potentials.composition import Composition
from mdlearn.potentials.equivariant import DEGREE, Equivariant, Message, Product
from mdlearn.potentials.evaluate import Evaluable, Frozen, evaluate
from mdlearn.potentials.frozen_pairs import PAIRWISE, FrozenPairs, FrozenSum
from mdlearn.potentials.kernels import equivariant as kernel
from mdlearn.potentials.kernels import layout
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.pairs import ChebyshevBasis
from mdlearn.potentials.spherical import SphericalHarmonics, degrees, sphere_grid
from mdlearn.potentials.threads import Team
from mdlearn.potentials.wall import STIFFNESS
from mdlearn.system import Evaluation, System

BLOCK = 16
"""Atoms whose linear maps are one matrix product, and that one thread takes at a time."""
AGREEMENT = {torch.float32: 1e-5, torch.float64: 1e-9}
"""In eV/Å, or as a share of a force that is larger than 1 eV/Å; and in eV/atom."""
OLDEST_TRITON = (3, 7)
"""That the kernels for a GPU were tried with."""
WITHOUT_TRITON = "kernels for a GPU take Triton 3.7 or later, which torch 2.13 brings with it"

Array = NDArray[Any]


def freeze(potential: ParametricPotential) -> Evaluable:
    """The fast form of a potential with its weights as they are now, or itself if it has none.

    There are loops for a CPU: for the default network, unless it is chiral, for functions of
    distances, and for sums of both. On a GPU there are some for that network alone.
    """
    device = potential.wall.start.device.type
    if device == "cuda" and _has_kernels(potential) and _has_triton():
        from mdlearn.potentials.frozen_cuda import FrozenEquivariantOnGPU

        return FrozenEquivariantOnGPU(potential)
    if device != "cpu":
        return potential
    parts = list(potential.parts) if isinstance(potential, Sum) else [potential]
    looped = [part for part in parts if isinstance(part, (*PAIRWISE, Composition))]
    others = [part for part in parts if part not in looped]
    if not others and any(isinstance(part, PAIRWISE) for part in looped):
        return FrozenPairs(potential, looped, whole=True)
    if len(others) == 1 and isinstance(others[0], Equivariant) and _has_loops(others[0]):
        network = FrozenEquivariant(others[0])  # it has energies of isolated atoms, and walls
        pairs = FrozenPairs(potential, looped, whole=False)
        return FrozenSum([network, pairs]) if looped else network
    return potential


def fastest(potential: ParametricPotential, structures: Iterable[System]) -> tuple[Evaluable, str]:
    """The frozen form of a potential, if it has one that agrees with it on some structures.

    To agree is to differ by rounding: then what the certificate says of the potential holds for its
    frozen form. Compiles loops where that has not been done yet.

    Returns:
        What to evaluate; and if that is the potential although there are loops for it, why.
    """
    frozen = freeze(potential)
    if frozen is potential:
        missing = potential.wall.start.device.type == "cuda" and _has_kernels(potential)
        return potential, WITHOUT_TRITON if missing else ""
    off = next(filter(None, (disagreement(frozen, potential, each) for each in structures)), "")
    return (potential if off else frozen), off


def _has_loops(network: Equivariant) -> bool:
    settings = network.settings
    return settings.parity == "o3" and settings.radial <= layout.LANES


def _has_kernels(potential: ParametricPotential) -> TypeGuard[Equivariant]:
    return isinstance(potential, Equivariant) and _has_loops(potential)


def _has_triton() -> bool:
    if find_spec("triton") is None:
        return False
    return tuple(int(each) for each in version("triton").split(".")[:2]) >= OLDEST_TRITON


def disagreement(frozen: Evaluable, potential: ParametricPotential, system: System) -> str:
    """By how much a frozen potential is off, in words; empty if only by rounding."""
    dtype, device = potential.wall.start.dtype, potential.wall.start.device
    system = System(*(each.to(device) for each in system))
    neighbors = build(system, potential.cutoff)
    ours, theirs = (evaluate(each, system, neighbors) for each in (frozen, potential))
    largest = theirs.forces.abs().max().clamp_min(1.0)
    force = float((ours.forces - theirs.forces).abs().max() / largest)
    energy = float((ours.energies - theirs.energies).abs().max())
    if force <= AGREEMENT[dtype] and energy <= AGREEMENT[dtype]:  # neither is NaN
        return ""
    return f"frozen forces are off by {force:.1e} of the largest, energies by {energy:.1e} eV/atom"


class FrozenEquivariant(Frozen):
    """The default network in the loops of `kernels.equivariant`."""

    def __init__(self, network: Equivariant) -> None:
        """Takes over the network's weights, in its precision."""
        self.cutoff = network.cutoff
        self.species = network.species
        self.elements = network.elements
        self.weights = loop_weights(network)
        self.work: layout.Workspace | None = None
        self.team = Team()
        keep_blas_on_one_thread()

    def evaluate(self, system: System, neighbors: Neighbors) -> Evaluation:
        """See `Frozen`. As many threads as torch has share the blocks of atoms."""
        n_atoms, capacity = neighbors.j.shape
        index = self.elements.index(system.numbers)
        if self.work is None or self.work.slots.shape != (n_atoms, capacity):
            self.work = _workspace(self.weights, n_atoms, capacity)
        work = self.work
        arguments = (
            system.positions.numpy(),
            system.cell.numpy(),
            system.system.numpy(),
            index.numpy(),
            neighbors.j.numpy(),
            neighbors.shift.numpy(),
            neighbors.reverse.numpy(),
            neighbors.valid.numpy(),
            self.weights,
            work,
        )
        stages = 2 * len(work.product) + 1
        if torch.get_num_threads() == 1:
            kernel.sweep((0, stages), (0, len(work.seen)), *arguments)
        else:
            for stage in range(stages):

                def part(blocks: tuple[int, int], stage: int = stage) -> None:
                    kernel.sweep((stage, stage + 1), blocks, *arguments)

                self.team.share(len(work.seen), part)
        energy, stress = kernel.total(arguments[2], arguments[1], work.energies, work.virials)
        return Evaluation(
            torch.from_numpy(energy),
            torch.tensor(work.forces),
            torch.from_numpy(stress),
            torch.tensor(work.energies),
            torch.tensor(work.virials),
        )

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`."""
        block = sum(each.nbytes for each in _workspace(self.weights, BLOCK, capacity))
        return block * -(-n_atoms // BLOCK)


def loop_weights(network: Equivariant) -> layout.Weights:
    """The weights of a network in the order and the shapes of the loops."""
    settings = network.settings
    n_layers, n_species, radial = settings.interactions, len(network.species), settings.radial
    features = settings.features
    dtype = network.wall.start.dtype
    n_features = _round_up(features)
    channels = _round_up((n_species - 1) * radial + layout.LANES)
    degree = np.array(degrees(DEGREE))
    n_harmonics = len(degree)

    def array(tensor: Tensor) -> Array:
        return tensor.detach().to(dtype).numpy()

    def parts(values: Array, axis: int, count: int) -> Array:
        """Fills up each of `count` equal parts of an axis to `n_features`."""
        split = np.split(values, count, axis)
        missing = [(0, 0)] * values.ndim
        missing[axis] = (0, n_features - features)
        return np.concatenate([np.pad(each, missing) for each in split], axis)

    mix, element, speak, gate, bias, said, filters = ([] for _ in range(7))
    for layer, product in enumerate(network.products):
        assert isinstance(product, Product)
        weight = array(product.mix.weight).reshape(DEGREE + 1, -1, 3 * features)
        near = weight[:, : radial * n_species] * network.norm
        # From radial functions of elements to elements of radial functions.
        near = near.reshape(DEGREE + 1, radial, n_species, -1).swapaxes(1, 2)
        near = near.reshape(DEGREE + 1, radial * n_species, -1)
        near = np.pad(near, ((0, 0), (0, channels - near.shape[1]), (0, 0)))
        nothing = np.zeros((DEGREE + 1, features, 3 * features), weight.dtype)
        far = weight[:, radial * n_species :] if layer else nothing
        mix.append(parts(np.concatenate([near, parts(far, 1, 1)], 1), 2, 3)[degree])
        element.append(parts(array(product.element), 1, 3))
    for message in network.messages:
        assert isinstance(message, Message)
        weight = array(message.speak.weight).reshape(DEGREE + 1, 2 * features, 2 * features)
        speak.append(parts(parts(weight, 1, 2), 2, 2)[degree])
        gate.append(parts(parts(array(message.gate.weight).T, 0, 3), 1, 2))
        bias.append(parts(array(message.gate.bias), 0, 2))
        said.append(parts(array(message.element), 1, 2))
        weight = array(message.radial.weight).T * network.norm
        weight = np.pad(weight, ((0, layout.LANES - radial), (0, 0)))
        bundles = parts(weight, 1, 2).reshape(layout.LANES, 2, -1, layout.LANES)
        filters.append(bundles.transpose(2, 1, 0, 3).reshape(-1, 2, layout.BUNDLE))

    def stack(values: list[Array], shape: tuple[int, ...]) -> Array:
        empty = np.zeros((0, *shape), near.dtype)
        return np.ascontiguousarray(np.stack(values)) if values else empty

    def turned(values: Array) -> Array:
        return np.ascontiguousarray(values.swapaxes(-1, -2))

    mixing = stack(mix, ())
    spoken = stack(speak, (n_harmonics, 2 * n_features, 2 * n_features))
    gates = stack(gate, (3 * n_features, 2 * n_features))
    head = network.energy_head
    scale = settings.scale
    hidden = parts(array(head.hidden.weight).T, 0, 3 * n_layers)
    couples, coupling = _gaunt()
    root = np.maximum(degree * (degree + 1.0), 1.0) ** -0.5
    damping = network.damping.double().numpy()
    return layout.Weights(
        cutoff=network.cutoff,
        stretch=ChebyshevBasis.stretch,
        near=equivariant.NEAR,
        radial=radial,
        frequency_weight=np.pad(network.smoothness.double().numpy(), (0, layout.LANES - radial)),
        table=np.concatenate([damping, damping * root, degree, (-1.0) ** degree]).astype(
            near.dtype
        ),
        coupling=coupling.astype(near.dtype),
        couples=couples,
        mix=mixing,
        mix_back=turned(mixing),
        element=stack(element, ()),
        speak=np.ascontiguousarray(np.stack(np.split(spoken, 2, -1), 1)),
        speak_back=turned(spoken),
        gate=gates,
        gate_back=turned(gates),
        gate_bias=stack(bias, (2 * n_features,)),
        said=stack(said, (n_species, 2 * n_features)),
        filters=stack(filters, (n_features // layout.LANES, 2, layout.BUNDLE)),
        hidden=np.ascontiguousarray(hidden),
        hidden_back=turned(hidden),
        hidden_bias=array(head.bias),
        out=array(head.out.weight)[0] * scale,
        linear=parts(array(head.linear.weight)[0], 0, 3 * n_layers) * scale,
        wall=network.wall.start.double().numpy(),
        stiffness=STIFFNESS,
        reference=np.array([network.elements.energies()[z] for z in network.species]),
    )


def _round_up(count: int) -> int:
    return -(-count // layout.LANES) * layout.LANES


def _gaunt() -> tuple[NDArray[np.int64], Array]:
    """Which harmonics (G, 3) couple, the product first, and how strongly (G,)."""
    points, weights = sphere_grid()
    harmonics = SphericalHarmonics(DEGREE)(torch.from_numpy(points))[0].numpy()
    couplings = np.einsum("p,pi,pj,pk->ijk", weights, harmonics, harmonics, harmonics)
    couples = np.argwhere(np.abs(couplings) > 1e-10)
    return couples, couplings[tuple(couples.T)]


def _workspace(weights: layout.Weights, n_atoms: int, capacity: int) -> layout.Workspace:
    """Room for the loops over a number of atoms, in the precision of the weights."""
    n_layers, n_harmonics, width, columns = weights.mix.shape
    n, dtype = columns // 3, weights.mix.dtype
    channels, bundles = width - n, n // layout.LANES
    block = min(BLOCK, n_atoms)
    blocks = -(-n_atoms // block)

    def room(*shape: int) -> Array:
        return np.zeros(shape, dtype)

    return layout.Workspace(
        within=np.zeros(n_atoms, np.int64),
        slots=np.zeros((n_atoms, capacity), np.int64),
        pairs=np.zeros((n_atoms, capacity, 4)),
        basis=room(n_atoms, capacity, 32),
        seen=room(blocks, n_harmonics, block, channels),
        mixed=room(n_layers, blocks, 3, n_harmonics, block, n),
        product=room(n_layers, blocks, n_harmonics, block, n),
        plain=room(n_layers - 1, blocks, 2, n_harmonics, block, n),
        gates=room(n_layers - 1, n_atoms, 2, 2 * n),
        spoken=room(n_layers - 1, n_atoms, bundles, 2 * layout.BUNDLE),
        heard=room(n_layers - 1, n_atoms, bundles, layout.BUNDLE),
        invariants=room(blocks, block, 3 * n * n_layers),
        slope=np.zeros((n_atoms, capacity, 3)),
        energies=np.zeros(n_atoms),
        forces=np.zeros((n_atoms, 3)),
        virials=np.zeros((n_atoms, 3, 3)),
    )
