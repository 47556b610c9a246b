"""Sums of pair potentials in the loops of `kernels.pairwise`, and what they are added to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.neighbors import PAIRWISE_SKIN, Neighbors
from mdlearn.potentials.classical import LENNARD_JONES_CORE, ZBL, ZBL_CORE, LennardJones, Morse
from mdlearn.potentials.composition import Composition
from mdlearn.potentials.evaluate import Frozen
from mdlearn.potentials.frozen_network import MANY_ATOMS
from mdlearn.potentials.kernels import pairwise as kernel
from mdlearn.potentials.kernels.atoms import total
from mdlearn.potentials.kernels.pairwise_rows import Rows, pack, place
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.wall import STIFFNESS
from mdlearn.system import Evaluation, System

PAIRWISE = (LennardJones, Morse, ZBL)
"""What has loops in `kernels.pairwise`."""
PIECES = 8
"""That a system of `MANY_ATOMS` is swept in; more threads than that have nothing to do."""
ROOM_OF_SLOT = 4
"""Bytes of a neighbor in a row."""
ROOM_OF_ATOM = 8 * 4
"""Bytes of what a piece gives to an atom."""
NO_WALL = 1e6
"""1/Å, of the distance where a wall begins."""


class FrozenPairs(Frozen):
    """A sum of potentials that are functions of distances."""

    skins = (PAIRWISE_SKIN, PAIRWISE_SKIN)

    def __init__(
        self, potential: ParametricPotential, parts: Sequence[ParametricPotential], *, whole: bool
    ) -> None:
        """Takes over the parameters as they are, and computes in float64.

        Args:
            potential: gives elements, cutoff and wall.
            parts: of it, or itself alone: each of a kind in `PAIRWISE`, or `Composition`.
            whole: whether energies of isolated atoms and walls belong to these parts.
        """
        super().__init__()
        self.cutoff = potential.cutoff
        self.species = potential.species
        self.elements = potential.elements
        self.terms = _terms(potential, parts, whole)
        self.neighbors: Neighbors | None = None
        self.rows: Rows | None = None
        self.pieces, self.shares = np.empty((0, 5), np.int64), np.empty((0, 0, 4))
        """See `kernel.sweep`."""

    def evaluate(self, system: System, neighbors: Neighbors) -> Evaluation:
        """See `Frozen`. Threads share the atoms."""
        index = self.elements.index(system.numbers).numpy()
        n_atoms, of_system, cell = len(index), system.system.numpy(), system.cell.numpy()
        if self.rows is None or neighbors is not self.neighbors:
            listed = (neighbors.j, neighbors.shift, neighbors.reverse, neighbors.valid)
            lists = [each.numpy() for each in listed]
            self.rows = pack(index, len(self.species), *lists)
            self.pieces = _divide(np.bincount(of_system))
            self.shares = np.empty((self.pieces[:, -1].max() + 1, n_atoms, 4))
            self.neighbors = neighbors
        pieces, shares, rows, terms = self.pieces, self.shares, self.rows, self.terms
        points = place(system.positions.numpy(), cell, of_system, rows)
        virials = np.empty((n_atoms, 3, 3))

        def sweep(some: tuple[int, int]) -> None:
            kernel.sweep(some, pieces, points, index, rows, terms, shares, virials)

        self.team.share(len(pieces), sweep)
        energies, forces = kernel.collect(pieces, shares, index, terms)
        energy, stress = total(of_system, cell, energies, virials)
        found = (energy, forces, stress, energies, virials)
        return Evaluation(*(torch.from_numpy(each) for each in found))

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`. Rows have every pair once, and are filled up to fours."""
        slots = capacity / 2 + 3 * len(self.species)
        rows = 16 * len(self.species) + math.ceil(slots) * ROOM_OF_SLOT
        return n_atoms * (rows + _pieces(n_atoms) * ROOM_OF_ATOM)


class FrozenSum(Frozen):
    """Frozen potentials that are added up."""

    def __init__(self, parts: Sequence[Frozen]) -> None:
        """The sum of parts that have the same elements and the same cutoff."""
        super().__init__()
        for part in parts:
            part.team = self.team
        self.cutoff = parts[0].cutoff
        self.species = parts[0].species
        self.summands = parts

    def evaluate(self, system: System, neighbors: Neighbors) -> Evaluation:
        """See `Frozen`."""
        found = [part.evaluate(system, neighbors) for part in self.summands]
        return Evaluation(*(sum(each[1:], each[0]) for each in zip(*found, strict=True)))

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`."""
        return sum(part.workspace(n_atoms, capacity) for part in self.summands)


def _pieces(n_atoms: int) -> int:
    """How many a system of so many atoms is swept in."""
    return PIECES if n_atoms >= MANY_ATOMS else 1


def _divide(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pieces of systems of so many atoms each, see `kernel.sweep`."""
    pieces, first = [], 0
    for size in sizes.tolist():
        count = _pieces(size)
        bounds = [first + size * part // count for part in range(count + 1)]
        for part, (begin, end) in enumerate(pairwise(bounds)):
            pieces.append((begin, end, first, first + size, part))
        first += size
    return np.array(pieces)


def _terms(
    potential: ParametricPotential, parts: Sequence[ParametricPotential], whole: bool
) -> kernel.Terms:
    """The parameters of the loops; the first function has the walls."""
    energies, n = potential.elements.energies(), len(potential.species)
    reference = np.array([energies[z] if whole else 0.0 for z in potential.species])
    functions = [part for part in parts if not isinstance(part, Composition)]
    for part in parts:
        if isinstance(part, Composition):
            reference += part.settings.scale * _array(part.shift)
    kinds = np.zeros(len(functions), np.int64)
    parameters = np.zeros((len(functions), n, n, kernel.PARAMETERS))
    for rank, part in enumerate(functions):
        p = parameters[rank]
        p[..., 0], p[..., 1] = NO_WALL, STIFFNESS
        p[..., 2] = part.cutoff
        if isinstance(part, LennardJones):
            kinds[rank] = kernel.LENNARD_JONES
            p[..., 3], p[..., 4] = 1.0 / _array(part.sigma()), 4.0 * _array(part.epsilon())
            p[..., 5] = LENNARD_JONES_CORE
        elif isinstance(part, Morse):
            kinds[rank] = kernel.MORSE
            p[..., 3], p[..., 4] = _array(part.depth()), _array(part.steepness())
            p[..., 5] = _array(part.minimum())
        elif isinstance(part, ZBL):
            kinds[rank] = kernel.ZBL
            p[..., 2] = _array(part.reach)
            p[..., 3], p[..., 4] = 1.0 / _array(part.screening), _array(part.strength)
            p[..., 5], p[..., 6:10] = ZBL_CORE, _array(part.weights)
            p[..., 10:14] = _array(part.rates)
    if whole and functions:
        parameters[0, ..., 0] = 1.0 / _array(potential.wall.start)
    return kernel.Terms(kinds, parameters, reference, potential.cutoff)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()
