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

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlearn.jit import keep_blas_on_one_thread
from mdlearn.neighbors import Neighbors
from mdlearn.potentials import equivariant
from mdlearn.potentials.equivariant import DEGREE, Equivariant, Message, Product
from mdlearn.potentials.evaluate import Frozen
from mdlearn.potentials.frozen_equivariant import couplings, harmonic_table
from mdlearn.potentials.frozen_network import as_arrays, share_stages
from mdlearn.potentials.kernels import learning as kernel
from mdlearn.potentials.kernels import learning_layout as layout
from mdlearn.potentials.kernels.atoms import total
from mdlearn.potentials.kernels.layout import BUNDLE, LANES
from mdlearn.potentials.kernels.learning_sums import add_gradient
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.sphere import HARMONICS
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.pairs import ChebyshevBasis
from mdlearn.potentials.spherical import degrees
from mdlearn.potentials.wall import STIFFNESS
from mdlearn.system import Evaluation, System, largest_by_system

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
    """A network that is being trained, in compiled loops that read its parameters where they are.

    So it is never out of date, unlike what `freeze` makes.
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
        self.fixed: dict[str, Any] = {
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

    def weights(self) -> layout.Weights:
        """The parameters as they are now."""
        features, head = self.network.settings.features, self.network.energy_head
        filters = []
        for message in self.messages:
            radial = _array(message.radial.weight).T * self.network.norm
            radial = np.pad(radial, ((0, LANES - len(radial)), (0, 0)))
            bundles = radial.reshape(LANES, 2, -1, LANES)
            filters.append(bundles.transpose(2, 1, 0, 3).reshape(-1, 2, BUNDLE))
        mixes = [
            _array(each.mix.weight).reshape(DEGREE + 1, -1, 3 * features) for each in self.products
        ]
        return layout.Weights(
            **self.fixed,
            filters=np.stack(filters),
            first=mixes[0],
            mix=np.stack(mixes[1:]),
            element=np.stack([_array(each.element) for each in self.products]),
            speak=np.stack([_array(each.speak.weight) for each in self.messages]).reshape(
                -1, DEGREE + 1, 2 * features, 2 * features
            ),
            gate=np.stack([_array(each.gate.weight) for each in self.messages]),
            gate_bias=np.stack([_array(each.gate.bias) for each in self.messages]),
            said=np.stack([_array(each.element) for each in self.messages]),
            hidden=_array(head.hidden.weight),
            hidden_bias=_array(head.bias),
            out=_array(head.out.weight),
            linear=_array(head.linear.weight),
        )

    def evaluate(self, system: System, neighbors: Neighbors) -> Evaluation:
        """See `Frozen`."""
        return self.begin(system, neighbors).evaluation

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`."""
        return sum(each.nbytes for each in _room(self.weights(), n_atoms, capacity, forces=True))

    def _run(
        self, system: System, neighbors: Neighbors, weights: layout.Weights, *, forces: bool
    ) -> layout.Pass:
        """One pass over a batch, which threads share."""
        n_atoms, capacity = neighbors.j.shape
        index = self.network.elements.index(system.numbers)
        work = _room(weights, n_atoms, capacity, forces=forces)
        inputs = as_arrays(system, neighbors, index)

        # Of one size and an even number, so that two threads have the same to do.
        pairs_of_blocks = -(-n_atoms // (2 * WIDTH))
        width = -(-n_atoms // (2 * pairs_of_blocks))

        def part(stages: tuple[int, int], blocks: tuple[int, int]) -> None:
            kernel.sweep(stages, blocks, width, forces, inputs, weights, work)

        share_stages(self.team, 2 * len(self.products) + 1, -(-n_atoms // width), part)
        return work

    def begin(self, system: System, neighbors: Neighbors) -> Point:
        """Energies, forces and virials of a batch, and what their gradient takes."""
        weights = self.weights()
        work = self._run(system, neighbors, weights, forces=True)
        index, cell = system.system.numpy(), system.cell.numpy()
        energy, stress = total(index, cell, work.energies, work.virials)
        arrays = (energy, work.forces, stress, work.energies, work.virials)
        evaluation = Evaluation(*map(torch.from_numpy, arrays))
        return Point(self, system, neighbors, weights, work, evaluation)

    def accumulate(self, gradient: layout.Gradient) -> None:
        """Adds a gradient, as loops leave it, to that of the parameters."""
        radial, norm = self.network.settings.radial, self.network.norm
        for layer, product in enumerate(self.products):
            _accumulate(product.mix.weight, gradient.mix[layer - 1] if layer else gradient.first)
            _accumulate(product.element, gradient.element[layer])
        for layer, message in enumerate(self.messages):
            _accumulate(message.speak.weight, gradient.speak[layer])
            _accumulate(message.gate.weight, gradient.gate[layer])
            _accumulate(message.gate.bias, gradient.gate_bias[layer])
            _accumulate(message.element, gradient.said[layer])
            filters = gradient.filters[layer].reshape(-1, 2, LANES, LANES)
            filters = filters.transpose(1, 0, 3, 2).reshape(-1, LANES)[:, :radial]
            _accumulate(message.radial.weight, norm * filters)
        head = self.network.energy_head
        _accumulate(head.hidden.weight, gradient.hidden)
        _accumulate(head.bias, gradient.hidden_bias)
        _accumulate(head.out.weight, gradient.out)
        _accumulate(head.linear.weight, gradient.linear)


class Point:
    """A batch at one point, from which the gradient can be had."""

    def __init__(
        self,
        loops: Loops,
        system: System,
        neighbors: Neighbors,
        weights: layout.Weights,
        work: layout.Pass,
        evaluation: Evaluation,
    ) -> None:
        self.loops, self.system, self.neighbors = loops, system, neighbors
        self.weights, self.work, self.evaluation = weights, work, evaluation

    def add_gradient(
        self, by_energy: Tensor, by_forces: Tensor, by_virials: Tensor, sign: float
    ) -> None:
        """Adds the gradient of a loss to that of the parameters; see the module.

        Args:
            by_energy: (n_systems,) derivative of the loss by energies.
            by_forces: (n_atoms, 3) by forces.
            by_virials: (n_systems, 3, 3) by sums of virials.
            sign: of the displacement.
        """
        system = self.system
        own = system.system
        # What a pair moves by, at most, if its atoms go different ways.
        size = 2.0 * largest_by_system(by_forces.norm(dim=1), system)
        size = size + self.loops.network.cutoff * by_virials.flatten(1).norm(dim=1)
        steep = sign * size / DISPLACEMENT
        small = torch.where(size > 0.0, 1.0 / steep, 0.0)
        along = (system.positions[:, None] @ by_virials[own]).squeeze(1) - by_forces
        there = system._replace(
            positions=system.positions + small[own, None] * along,
            cell=system.cell + small[:, None, None] * (system.cell @ by_virials),
        )
        index = self.loops.network.elements.index(system.numbers)
        gradient = _like(self.weights)
        self._add(self.work, (by_energy - steep)[own], index, gradient)
        del self.work  # the other pass takes its place, which is in the processor's cache
        other = self.loops._run(there, self.neighbors, self.weights, forces=False)
        self._add(other, steep[own], index, gradient)
        self.loops.accumulate(gradient)

    def _add(
        self, work: layout.Pass, factors: Tensor, index: Tensor, gradient: layout.Gradient
    ) -> None:
        """Adds that of the energies of atoms, times factors (N,)."""
        factor, rank = factors.to(self.loops.network.one_hot.dtype).numpy(), index.numpy()

        def part(parts: tuple[int, int]) -> None:
            add_gradient(parts, factor, rank, self.weights, work, gradient)

        self.loops.team.share(10 * len(work.raw) - 4, part)


def _accumulate(parameter: Tensor, gradient: Array) -> None:
    """Adds to the gradient that a parameter has."""
    if not parameter.requires_grad:
        return
    given = torch.from_numpy(gradient).view_as(parameter)
    parameter.grad = given if parameter.grad is None else parameter.grad + given


def _array(parameter: Tensor) -> Array:
    return parameter.detach().numpy()


def _like(weights: layout.Weights) -> layout.Gradient:
    """Zeros of the shapes of weights."""
    kinds = (getattr(weights, name) for name in layout.Gradient._fields)
    return layout.Gradient(*(np.zeros(each.shape, each.dtype) for each in kinds))


def _room(weights: layout.Weights, n_atoms: int, capacity: int, *, forces: bool) -> layout.Pass:
    """Room for a pass; what it does not fill is not looked at."""
    layers, dtype = len(weights.element), torch.from_numpy(weights.out).dtype
    _, channels, columns = weights.first.shape
    n = columns // 3
    parts, invariants = n // LANES, weights.linear.shape[1]

    # Of torch, which begins arrays where a vector register does: how a library adds up a product of
    # matrices may depend on that.
    def room(*shape: int) -> Array:
        return torch.empty(shape, dtype=dtype).numpy()

    return layout.Pass(
        within=np.empty(n_atoms, np.int64),
        slots=np.empty((n_atoms, capacity), np.int64),
        pairs=np.empty((n_atoms, capacity, 4)),
        basis=room(n_atoms, capacity, 32),
        seen=room(HARMONICS, n_atoms, channels),
        density=room(layers - 1, HARMONICS, n_atoms, channels + n),
        raw=room(layers, HARMONICS, n_atoms, 3 * n),
        functions=room(layers, HARMONICS, n_atoms, 2 * n),
        plain=room(layers - 1, HARMONICS, n_atoms, 2 * n),
        gates=room(layers - 1, n_atoms, 2, 2 * n),
        spoken=room(layers - 1, n_atoms, parts, 2 * BUNDLE),
        invariants=room(n_atoms, invariants),
        hidden=room(n_atoms, len(weights.hidden)),
        to_seen=room(HARMONICS, n_atoms, channels) if forces else room(HARMONICS, 0, channels),
        to_raw=room(layers, HARMONICS, n_atoms, 3 * n),
        to_element=room(layers, n_atoms, 3 * n),
        to_plain=room(layers - 1, HARMONICS, n_atoms, 2 * n),
        to_gate=room(layers - 1, n_atoms, 2 * n),
        to_said=room(layers - 1, n_atoms, 2 * n),
        to_filters=room(layers - 1, n_atoms, parts, 2, BUNDLE),
        heard=room(layers - 1, n_atoms, parts, BUNDLE),
        to_invariants=room(n_atoms, invariants),
        slope=np.empty((n_atoms, capacity, 3)),
        energies=np.empty(n_atoms),
        forces=np.empty((n_atoms, 3)),
        virials=np.empty((n_atoms, 3, 3)),
    )
