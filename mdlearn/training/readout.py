"""The last layer of a network, solved for when all else has been learned.

The energy of a network is linear in the weights w that its features φ are read with, and so is all
that is derived from it:

    E = E₀ + Σ_n φ_n · w,    F = -∂E/∂x,    W = ∂E/∂ε

For given features the loss is a convex function of w. Steps that suit the rest of a network hardly
come near its minimum in directions that change energies and not forces; here it is solved for, by
least squares whose weights make a sum of squares one of absolute values (P. W. Holland, R. E.
Welsch, Commun. Stat. A 6, 813, 1977). With what energies lack, r, and what forces and virials lack,
s, the change δ of w is where

    Σ c (r - A δ)² + Σ c (s - J δ)²,    c = share / max(|r|, floor) and the same with s,

is lowest. A row of A has the features of a frame. J has a row for every component of every force,
and is never formed: a sum of its rows, J^T v, is the derivative of features as atoms move along v,
a difference between two points. J^T c s takes one for each frame, and J^T c J is the mean of
(J^T v)(J^T v)^T over random v with the covariance c, of which `PROBES` per weight are drawn.
Frames with fewer labels than that have one for each dimension, and then it is J^T c J itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdlearn.neighbors import Neighbors, pair_vectors
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.learning import DISPLACEMENT
from mdlearn.potentials.network import Network, ParametricPotential
from mdlearn.system import System, largest_by_system, sum_by_system, volume
from mdlearn.training.dataset import Example
from mdlearn.training.loss import HUBER_DELTA, Weights, count_labels

PROBES = 8
"""Random directions for each weight, in all frames together."""
FLOOR = 1e-3
"""In units of the typical force times 1 Å: errors of energies per atom below it count as squares.
What is left in them at the end of a training is less than what `HUBER_DELTA` has in mind."""
VIRIALS = 0.3
"""What the weight of virials is multiplied by: with it, energies in two fifths of the molybdenum of
mlearn are 3 % better, and a tenth where labels of the shear were wrong; stresses change by 3 %."""
REWEIGHTED = 10
"""How often energies are weighted anew, which costs nothing."""
RIDGE = 1e-6
"""Share of its diagonal that is added to the matrix."""


def find_readout(potential: ParametricPotential) -> Network | None:
    """The network in a potential whose last layer can be solved for, if there is exactly one.

    Its last layer is among what is learned, and frames need not be turned for it.
    """
    networks = [each for each in potential.modules() if isinstance(each, Network)]
    if len(networks) != 1 or "rotation" not in potential.symmetries:
        return None
    head = networks[0].energy_head
    learned = head.out.weight.requires_grad and head.linear.weight.requires_grad
    return networks[0] if learned else None


@torch.no_grad()
def solve_readout(
    potential: ParametricPotential, network: Network, batches: Iterable[Example], weights: Weights
) -> None:
    """Moves the weights that energies are linear in to where the loss is lowest.

    Once more may be better: what forces count is known from where the weights were before.

    Args:
        potential: one that has been trained.
        network: its network, or itself; changed in place.
        batches: of frames that it was trained on; gone through several times.
        weights: of the loss, in which errors count by their size, but for `mse`.
    """
    out, linear = network.energy_head.out.weight, network.energy_head.linear.weight
    change = _equations(potential, network, batches, weights).solve()
    out += change[: out.numel()].to(out)
    linear += change[out.numel() :].to(linear)


class _Equations(NamedTuple):
    """What the change of weights is to do; see the module."""

    matrix: Tensor
    """(P, P) J^T c J."""
    vector: Tensor
    """(P,) J^T c s."""
    rows: Tensor
    """(n_frames, P) eV, A, divided by numbers of atoms."""
    lacking: Tensor
    """(n_frames,) eV, r, per atom."""
    share: float
    """Of each energy in the loss, over the unit, which is the typical force times 1 Å."""
    floor: float
    """eV; errors of energies per atom below it count as squares."""

    def solve(self) -> Tensor:
        """(P,) the change of weights."""
        # Where there are no forces, energies tell how large a change is.
        square = self.matrix.diagonal()
        square = torch.where(square > 0.0, square, self.rows.square().mean(0))
        size = square.sqrt().clamp_min(1e-30)
        matrix = self.matrix / (size * size[:, None])
        matrix.diagonal().add_(RIDGE)
        rows, change = self.rows / size, torch.zeros_like(size)
        for _ in range(REWEIGHTED):
            error = (self.lacking - rows @ change).abs()
            counted = rows * (self.share / error.clamp_min(self.floor))[:, None]
            right = self.vector / size + counted.T @ self.lacking
            change = torch.linalg.solve(matrix + counted.T @ rows, right)
        return change / size


def _equations(
    potential: ParametricPotential, network: Network, batches: Iterable[Example], weights: Weights
) -> _Equations:
    """Sums over all frames, with the weights as they are."""
    unit, head = network.settings.scale, network.energy_head
    numbers = [(len(each.labels.energy), count_labels(each)) for each in batches]
    counts = torch.stack([each for _, each in numbers]).sum(0).clamp_min(1.0)
    n_weights = head.out.weight.numel() + head.linear.weight.numel()
    probes = math.ceil(PROBES * n_weights / sum(count for count, _ in numbers))
    energies, forces, stresses, _ = (counts * unit).tolist()
    shares = Weights(
        weights.energy / energies, weights.forces / forces, VIRIALS * weights.stress / stresses
    )
    # All errors of any size are squares for `mse`.
    squares = weights.penalty == "mse"
    floor, energy_floor = (unit, unit) if squares else (HUBER_DELTA * unit, FLOOR * unit)
    random = np.random.default_rng(0)
    vector = torch.zeros(n_weights, dtype=torch.float64, device=counts.device)
    matrix = vector.new_zeros(n_weights, n_weights)
    rows, lacking = [], []
    for system, neighbors, labels, _ in batches:
        found = evaluate(potential, system, neighbors)
        point = _Point(network, system, neighbors)
        n_atoms = point.n_atoms
        energy = (labels.energy - found.energy) / n_atoms
        force = labels.forces - found.forces
        label = labels.stress * volume(system)[:, None, None]
        virial = (label - sum_by_system(found.virials, system)) / n_atoms[:, None, None]
        by_force = _count(force, shares.forces, floor)
        by_virial = _count(virial, shares.stress, floor)
        lacks = -by_force * force.nan_to_num(), by_virial * virial.nan_to_num()
        vector += point.along(*lacks).sum(0)
        for moves, strain in _directions(system, probes, random):
            row = point.along(by_force.sqrt() * moves, by_virial.sqrt() * strain)
            matrix += row.T @ row
        known = ~energy.isnan()
        rows.append((point.features / n_atoms[:, None])[known])
        lacking.append(energy[known])
    return _Equations(
        matrix, vector, torch.cat(rows), torch.cat(lacking), shares.energy, energy_floor
    )


def _directions(
    system: System, most: int, random: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random directions v of a batch, such that the sum of v v^T is one, or so on an average.

    Those of a system are at right angles to each other: as many as it has dimensions are exact.

    Args:
        system: the batch.
        most: directions of each system.
        random: where they come from.

    Returns:
        Moves of atoms (n_atoms, 3), and strains (n_systems, 3, 3).
    """
    sizes = torch.bincount(system.system, minlength=len(system.cell)).tolist()
    bases = []
    for n_atoms in sizes:
        n = 3 * n_atoms + 9
        columns, _ = np.linalg.qr(random.standard_normal((n, min(most, n))))
        bases.append(columns * math.sqrt(n / columns.shape[1]))
    for each in range(max(basis.shape[1] for basis in bases)):
        rows = [
            basis[:, each] if each < basis.shape[1] else np.zeros(len(basis)) for basis in bases
        ]
        moves = np.concatenate([row[:-9] for row in rows]).reshape(-1, 3)
        strain = np.stack([row[-9:] for row in rows]).reshape(-1, 3, 3)
        yield torch.from_numpy(moves).to(system.cell), torch.from_numpy(strain).to(system.cell)


def _count(lacking: Tensor, share: float, floor: float) -> Tensor:
    """What the square of an error counts so that it counts by its size; nothing without a label."""
    return torch.where(lacking.isnan(), 0.0, share / lacking.abs().clamp_min(floor))


class _Point:
    """A batch, and how what energies are linear in changes around it."""

    def __init__(self, network: Network, system: System, neighbors: Neighbors) -> None:
        """Features as they are."""
        self.network, self.system, self.neighbors = network, system, neighbors
        self.r = pair_vectors(system, neighbors)
        self.n_atoms = sum_by_system(torch.ones_like(system.masses), system)
        self.features = self._see(self.r)
        """(n_systems, P) eV."""

    def along(self, moves: Tensor, strain: Tensor) -> Tensor:
        """(n_systems, P): the derivative as atoms move, (n_atoms, 3), and all space is strained.

        The strain (n_systems, 3, 3) is divided by numbers of atoms, as virials are.
        """
        system, near = self.system, self.neighbors.valid[..., None]
        strain = (strain / self.n_atoms[:, None, None])[system.system]  # (n_atoms, 3, 3)
        change = moves[self.neighbors.j] - moves[:, None] + self.r @ strain  # (n_atoms, K, 3)
        change = torch.where(near, change, 0.0)
        furthest = largest_by_system(change.norm(dim=-1).amax(1), system)
        step = DISPLACEMENT / furthest.clamp_min(1e-30)
        there = self._see(self.r + step[system.system][:, None, None] * change)
        return (there - self.features) / step[:, None]

    def _see(self, r: Tensor) -> Tensor:
        network, system = self.network, self.system
        index, r, distance = network.geometry(system.numbers, r)
        scalars, _ = network.represent(index, r, distance, self.neighbors)
        hidden = network.energy_head.activate(scalars, index)
        features = torch.cat([hidden, scalars], -1).double()  # (n_atoms, P)
        return network.settings.scale * sum_by_system(features, system)
