"""Large systems in parts: what a derivative keeps of every pair need not fit into memory at once.

A network tells each atom what its neighbors know as many times as it has interactions. So the
energies of some atoms depend on those that can be reached in so many steps along the neighbor list,
and on no others. With these around them, the derivative of the energies of a part is exact; parts
follow one another, and their derivatives add up. The price is that surroundings are computed with
each part that they belong to.
"""

from __future__ import annotations

import torch

from mdlearn.division import Part, among_themselves, divide
from mdlearn.neighbors import Neighbors, pair_vectors
from mdlearn.potentials.evaluate import Frozen, assemble, differentiate
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.threads import leave_one_thread
from mdlearn.system import Evaluation, System

VECTORS = 48
"""Bytes of a pair vector and of the derivative by it."""


class InParts(Frozen):
    """A potential whose derivative is taken for one part of the atoms after another."""

    def __init__(self, potential: ParametricPotential, most: int, size: int) -> None:
        """Divides nothing yet.

        Args:
            potential: gives the energies of atoms; stays as it is.
            most: atoms that are computed at once, surroundings included.
            size: bytes that the potential keeps of an atom for a derivative.
        """
        super().__init__()
        self.cutoff, self.species = potential.cutoff, potential.species
        self.potential, self.most, self.size = potential, most, size
        self.neighbors: Neighbors | None = None
        self.parts: list[Part] = []

    def evaluate(self, system: System, neighbors: Neighbors) -> Evaluation:
        """See `Frozen`. Parts are made anew with every list."""
        if neighbors is not self.neighbors:
            self.parts = list(divide(system, neighbors, reach_of(self.potential), self.most))
            self.neighbors = neighbors
        vectors = pair_vectors(system, neighbors)  # (n_atoms, K, 3)
        energies, slope = torch.zeros_like(vectors[:, 0, 0]), torch.zeros_like(vectors)
        for atoms, members in self.parts:
            among = among_themselves(members, neighbors)
            own = torch.searchsorted(members, atoms)
            inside = among.valid[..., None]
            r = torch.where(inside, vectors[members], 2.0 * neighbors.reach)
            found, g = differentiate(self.potential, system.numbers[members], r, among, own)
            energies[atoms] = found.detach()
            slope[members] += g
        return assemble(system, neighbors, vectors, energies, slope)

    def choose_threads(self, system: System, neighbors: Neighbors) -> None:
        """See `Frozen`. They are those of torch, as for the potential itself."""
        leave_one_thread(neighbors.j.numel())

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`."""
        return n_atoms * capacity * VECTORS + min(n_atoms, self.most) * self.size


def reach_of(potential: ParametricPotential) -> int:
    """How many steps along the neighbor list the energy of an atom depends on, at most."""
    return max(1, potential.settings.interactions)
