"""The gradient of a loss by the weights of the default network, without second derivatives.

A loss L knows energies E of systems, forces F and virials W, which are derivatives of the energy.
The usual way to its gradient differentiates them once more. But to first order

    dL = sum_s dL/dE_s dE_s + D_u dE,   u[n] = -dL/dF[n] + x[n] · dL/dW

where D_u is the derivative as atoms move along u and cells follow: that of forces by the weights is
that of energies, by the weights, along a line. It is taken as the difference between two points
that are hardly apart,

    D_u dE_s = (dE_s(x + ε u) - dE_s(x)) / ε + O(ε),

and no second derivative is formed (B. A. Pearlmutter, Neural Comput. 6, 147, 1994, section 2, has
this for products with a Hessian). The difference is that of the loss with its errors at x, and its
features between the two points, half of `DISPLACEMENT` away; the sign of ε alternates.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlearn.jit import HELPER, keep_blas_on_one_thread, place_of
from mdlearn.lanes import aligned, zeros
from mdlearn.matrices import packed, panels
from mdlearn.meeting import Meeting, meeting_of
from mdlearn.neighbors import Neighbors
from mdlearn.potentials import equivariant
from mdlearn.potentials.beforehand import SUMS, begin
from mdlearn.potentials.equivariant import DEGREE, Equivariant, Message, Product
from mdlearn.potentials.evaluate import Frozen
from mdlearn.potentials.frozen_equivariant import couplings, harmonic_table
from mdlearn.potentials.frozen_network import as_arrays, share_blocks
from mdlearn.potentials.kernels import learning as kernel
from mdlearn.potentials.kernels import learning_layout as layout
from mdlearn.potentials.kernels.atoms import Inputs, total
from mdlearn.potentials.kernels.layout import BUNDLE, LANES
from mdlearn.potentials.kernels.learning_sums import add_gradient, displace
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.sphere import HARMONICS
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.pairs import ChebyshevBasis
from mdlearn.potentials.spherical import degrees
from mdlearn.potentials.wall import STIFFNESS
from mdlearn.system import Evaluation, System

DISPLACEMENT = 1e-3
"""Å, how far a pair vector moves at most. Features change by their own size over about 0.1 Å, and
energies in float32 have seven digits: the gradient is right to half a percent."""
WIDTH = 32
"""Atoms whose linear maps are one matrix product, at most."""


def loops_of(potential: ParametricPotential) -> Loops | None:
    """The loops that a potential can be trained in, if there are any.

    They are for the default network on a CPU, with one parity and messages, and for energies. In
    float64 a difference would cost digits that somebody wants.
    """
    settings = potential.settings
    fits = (
        isinstance(potential, Equivariant)
        and settings.parity == "o3"
        and not settings.dipole
        and settings.interactions > 1
        and settings.radial <= LANES
        and settings.features % LANES == 0
        and potential.wall.start.dtype == torch.float32
        and potential.wall.start.device.type == "cpu"
    )
    return Loops(potential) if fits and isinstance(potential, Equivariant) else None


class Loops(Frozen):
    """A network that is being trained, in compiled loops that look up its parameters each time.

    So it is never out of date, unlike what `freeze` makes. Parameters are to be changed in place.
    """

    def __init__(self, network: Equivariant) -> None:
        """Settles what training does not change."""
        super().__init__()
        self.cutoff, self.species = network.cutoff, network.species
        self.network = network
        self.products = [each for each in network.products if isinstance(each, Product)]
        self.messages = [each for each in network.messages if isinstance(each, Message)]
        self.degree = np.array(degrees(DEGREE))
        couples, coupling = couplings()
        energies = network.elements.energies()
        keep_blas_on_one_thread()
        dtype = network.wall.start.numpy().dtype
        frequency = network.smoothness.double().numpy()
        fixed: dict[str, Any] = {
            "cutoff": network.cutoff,
            "stretch": ChebyshevBasis.stretch,
            "near": equivariant.NEAR,
            "radial": network.settings.radial,
            "norm": network.norm,
            "scale": network.settings.scale,
            "frequency_weight": np.pad(frequency, (0, LANES - len(frequency))),
            "table": harmonic_table(network).astype(dtype),
            "degree": self.degree,
            "coupling": coupling.astype(dtype),
            "couples": couples,
            "wall": network.wall.start.double().numpy(),
            "stiffness": STIFFNESS,
            "reference": np.array([energies[z] for z in network.species]),
        }
        learned, _ = _zeros(network)
        channels = learned.first.shape[1]
        matrices = {
            "first": learned.first,
            "mix": learned.mix,
            "speak": learned.speak,
            "gate": learned.gate.swapaxes(-1, -2),
            "hidden": learned.hidden.T,
            "first_back": learned.first.swapaxes(-1, -2),
            "seen_back": learned.mix[:, :, :channels].swapaxes(-1, -2),
            "told_back": learned.mix[:, :, channels:].swapaxes(-1, -2),
            "speak_back": learned.speak.swapaxes(-1, -2),
            "gate_back": learned.gate,
            "hidden_back": learned.hidden,
        }
        ready: dict[str, Any] = {name: aligned(packed(each)) for name, each in matrices.items()}
        self.panels = [
            part for name, each in matrices.items() for part in panels(each, ready[name])
        ]
        """Parts of packed matrices, and where they come from."""
        self.weights = layout.Weights(**{**fixed, **learned._asdict(), **ready})
        """What loops read; `look_up` renews it."""
        self.halves = (_zeros(network), _zeros(network))
        """The gradient, as it comes from the first half of the atoms and from the second."""
        sides = zip(self._places(learned), self._places(self.halves[0][0]), strict=True)
        self.places = [
            _Place(each, place, to_place, factor)
            for (each, place, factor), (_, to_place, _) in sides
        ]
        self.work: layout.Pass | None = None
        """Room of the last pass, for the next one of its shape."""
        self.compiled = False

    def _places(self, learned: layout.Gradient) -> list[tuple[Tensor, Array, float]]:
        """Each parameter, where loops have it, and what it is multiplied by there."""
        head, radial = self.network.energy_head, self.network.settings.radial
        places: list[tuple[Tensor, Array, float]] = [
            (head.hidden.weight, learned.hidden, 1.0),
            (head.bias, learned.hidden_bias, 1.0),
            (head.out.weight, learned.out, 1.0),
            (head.linear.weight, learned.linear, 1.0),
        ]
        for layer, product in enumerate(self.products):
            mix = learned.mix[layer - 1] if layer else learned.first
            places.append((product.mix.weight, mix, 1.0))
            places.append((product.element, learned.element[layer], 1.0))
        for layer, message in enumerate(self.messages):
            bundles = learned.filters[layer].reshape(-1, 2, LANES, LANES).transpose(1, 0, 3, 2)
            places += [
                (message.speak.weight, learned.speak[layer], 1.0),
                (message.gate.weight, learned.gate[layer], 1.0),
                (message.gate.bias, learned.gate_bias[layer], 1.0),
                (message.element, learned.said[layer], 1.0),
                (message.radial.weight, bundles[..., :radial], self.network.norm),
            ]
        return places

    def look_up(self) -> None:
        """Has loops read the parameters as they are now."""
        for each in self.places:
            np.multiply(each.value, each.factor, out=each.place)
        for place, view in self.panels:
            np.copyto(place, view)

    def evaluate(self, system: System, neighbors: Neighbors) -> Evaluation:
        """See `Frozen`."""
        return self.begin(system, neighbors).evaluation

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`."""
        return sum(each.nbytes for each in _room(self.weights, n_atoms, capacity))

    def run(self, inputs: Inputs, *, forces: bool) -> layout.Pass:
        """One pass over a batch, which threads share; overwrites what the one before has left."""
        n_atoms, capacity = inputs.j.shape
        if self.work is None or self.work.slots.shape != (n_atoms, capacity):
            self.work = None  # before there is another one
            self.work = _room(self.weights, n_atoms, capacity)
        work = self.work
        if not self.compiled:
            self._compile(inputs, work)
        width = _width(n_atoms)
        # The last stage has nothing but forces to do.
        stages = (0, 2 * len(self.products) + forces)

        def sweep(blocks: tuple[int, int], meeting: Meeting) -> None:
            kernel.sweep(stages, blocks, width, forces, inputs, self.weights, work, meeting)

        share_blocks(self.team, -(-n_atoms // width), sweep)
        return work

    def _compile(self, inputs: Inputs, work: layout.Pass) -> None:
        """Compiles the pass, or loads it; another process does the sums meanwhile, if it can."""
        begin(SUMS, "float32")
        known = (inputs, self.weights, work, meeting_of(1))
        place_of(kernel.sweep, (0, 0), (0, 0), 1, True, *known)
        HELPER.wait(add_gradient)
        self.compiled = True

    def begin(self, system: System, neighbors: Neighbors) -> Point:
        """Energies, forces and virials of a batch, and what their gradient takes."""
        self.look_up()
        inputs = as_arrays(system, neighbors, self.network.elements.index(system.numbers))
        work = self.run(inputs, forces=True)
        energy, stress = total(inputs.system, inputs.cell, work.energies, work.virials)
        rows = (each.copy() for each in (work.forces, work.energies, work.virials))
        forces, energies, virials = map(torch.from_numpy, rows)
        sums = (torch.from_numpy(energy), forces, torch.from_numpy(stress))
        return Point(self, inputs, Evaluation(*sums, energies, virials))

    def clear(self) -> None:
        """Begins a gradient, unless parameters hold a part of it."""
        first, second = (whole for _, whole in self.halves)
        if all(each.parameter.grad is None for each in self.places):
            first.fill(0.0)
        second.fill(0.0)

    def hand_over(self) -> None:
        """Has the parameters hold the gradient that loops have left."""
        self.halves[0][1][:] += self.halves[1][1]
        for each in self.places:
            each.hand_over()


class _Place:
    """A parameter, and where loops have it."""

    def __init__(self, parameter: Tensor, place: Array, to_place: Array, factor: float) -> None:
        """A part of `Weights`, which is the parameter times a factor, and that of `Gradient`."""
        self.parameter, self.place, self.to_place, self.factor = parameter, place, to_place, factor
        self.value = parameter.detach().numpy().reshape(place.shape)
        self.is_same = factor == 1.0 and to_place.flags.c_contiguous
        """Whether the gradient is in loops as it is in torch."""
        values = to_place if self.is_same else np.empty(place.shape, place.dtype)
        self.to_value = values
        self.gradient = torch.from_numpy(values.reshape(parameter.shape))

    def hand_over(self) -> None:
        """Has the parameter hold the gradient that loops have."""
        if not self.parameter.requires_grad:
            return
        if not self.is_same:
            np.multiply(self.to_place, self.factor, out=self.to_value)
        self.parameter.grad = self.gradient


class Point:
    """A batch at one point, from which the gradient can be had, until loops see another one."""

    def __init__(self, loops: Loops, inputs: Inputs, evaluation: Evaluation) -> None:
        self.loops, self.inputs, self.evaluation = loops, inputs, evaluation

    def add_gradient(
        self, by_energy: Tensor, by_forces: Tensor, by_virials: Tensor, sign: float
    ) -> None:
        """Adds the gradient of a loss to what loops have left in the parameters; see the module.

        Args:
            by_energy: (n_systems,) derivative of the loss by energies.
            by_forces: (n_atoms, 3) by forces.
            by_virials: (n_systems, 3, 3) by sums of virials.
            sign: of the displacement.
        """
        loops, inputs = self.loops, self.inputs
        slopes = (each.numpy() for each in (by_energy, by_forces, by_virials))
        positions, cell, here, there = displace(
            inputs, sign * DISPLACEMENT, loops.cutoff, loops.weights.out, *slopes
        )
        loops.clear()
        assert loops.work is not None
        self._add(loops.work, here)
        self._add(loops.run(inputs._replace(positions=positions, cell=cell), forces=False), there)
        loops.hand_over()

    def _add(self, work: layout.Pass, factors: Array) -> None:
        """Adds that of the energies of atoms, times factors (N,)."""
        loops, n_atoms, count = self.loops, len(factors), 10 * len(work.raw) - 4
        # Two threads see to the atoms that they have seen to before, which their caches may know.
        width = _width(n_atoms)
        middle = width * (-(-n_atoms // width) // 2)
        halves = zip(loops.halves, ((0, middle), (middle, n_atoms)), (0, count), strict=True)
        known = (factors, self.inputs.species, loops.weights, work)
        rows = [(atoms, start, gradient) for (gradient, _), atoms, start in halves]

        def part(parts: tuple[int, int]) -> None:
            for atoms, start, gradient in rows:
                mine = (max(parts[0] - start, 0), min(parts[1] - start, count))
                if mine[0] < mine[1] and atoms[0] < atoms[1]:
                    add_gradient(mine, atoms, *known, gradient)

        loops.team.share(2 * count, part)


def _width(n_atoms: int) -> int:
    """Atoms of a block: all of one size and an even number, so that two threads do the same."""
    pairs_of_blocks = -(-n_atoms // (2 * WIDTH))
    return -(-n_atoms // (2 * pairs_of_blocks))


def _zeros(network: Equivariant) -> tuple[layout.Gradient, Array]:
    """Zeros, where loops have what is learned, one array after another; and all of them."""
    n, more, species = network.settings.features, len(network.messages), len(network.species)
    channels = network.settings.radial * species
    hidden, invariants = network.energy_head.hidden.weight.shape
    shapes = {
        "filters": (more, n // LANES, 2, BUNDLE),
        "first": (DEGREE + 1, channels, 3 * n),
        "mix": (more, DEGREE + 1, channels + n, 3 * n),
        "element": (more + 1, species, 3 * n),
        "speak": (more, DEGREE + 1, 2 * n, 2 * n),
        "gate": (more, 2 * n, 3 * n),
        "gate_bias": (more, 2 * n),
        "said": (more, species, 2 * n),
        "hidden": (hidden, invariants),
        "hidden_bias": (species, hidden),
        "out": (1, hidden),
        "linear": (1, invariants),
    }
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    # Each begins where a vector register does, as all of them together; see `_room`.
    ends = list(accumulate(size + -size % LANES for size in sizes.values()))
    whole = zeros((ends[-1],), network.energy_head.bias.detach().numpy().dtype)
    starts = dict(zip(shapes, [0, *ends], strict=False))
    parts = {
        name: whole[starts[name] : starts[name] + sizes[name]].reshape(shape)
        for name, shape in shapes.items()
    }
    return layout.Gradient(**parts), whole


def _room(weights: layout.Weights, n_atoms: int, capacity: int) -> layout.Pass:
    """Room for a pass; what it does not fill is not looked at."""
    layers = len(weights.element)
    channels, n = weights.first.shape[2], weights.element.shape[2] // 3
    parts, invariants = n // LANES, weights.linear.shape[1]

    # How a library adds up a product of matrices may depend on where they begin.
    def room(*shape: int) -> Array:
        return zeros(shape, weights.out.dtype)

    return layout.Pass(
        within=np.empty(n_atoms, np.int64),
        slots=np.empty((n_atoms, capacity), np.int64),
        pairs=np.empty((n_atoms, capacity, 4)),
        basis=room(n_atoms, capacity, 32),
        seen=room(HARMONICS, n_atoms, channels),
        told=room(layers - 1, HARMONICS, n_atoms, n),
        raw=room(layers, HARMONICS, n_atoms, 3 * n),
        functions=room(layers, HARMONICS, n_atoms, 2 * n),
        plain=room(layers - 1, HARMONICS, n_atoms, 2 * n),
        gates=room(layers - 1, n_atoms, 2, 2 * n),
        spoken=room(layers - 1, n_atoms, parts, 2 * BUNDLE),
        invariants=room(n_atoms, invariants),
        hidden=room(n_atoms, weights.out.shape[1]),
        to_seen=room(HARMONICS, n_atoms, channels),
        to_element=room(layers, n_atoms, 3 * n),
        to_gate=room(layers - 1, n_atoms, 2 * n),
        to_said=room(layers - 1, n_atoms, 2 * n),
        heard=room(layers - 1, n_atoms, parts, BUNDLE),
        to_invariants=room(n_atoms, invariants),
        slope=np.empty((n_atoms, capacity, 3)),
        energies=np.empty(n_atoms),
        forces=np.empty((n_atoms, 3)),
        virials=np.empty((n_atoms, 3, 3)),
    )
