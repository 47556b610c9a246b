"""The lowest rung: an energy that counts elements and sees no geometry at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.network import ParametricPotential, Settings, Size


class Composition(ParametricPotential):
    """One number for each element, summed over the atoms.

    A function of a set that is a sum over its members is invariant under permutation, and every
    invariant one is a function of such a sum (M. Zaheer et al., "Deep sets", NeurIPS 2017, theorem
    2); an energy has to be extensive, which leaves the sum itself. Forces are zero. What this
    potential gets wrong is what geometry has to explain, so it is what others are to be compared
    with.

    Unlike all other potentials it does not give an isolated atom its reference energy: atoms of a
    molecule that are bound by 4 eV each are bound by as much when they are alone. It has no wall
    and no charges.
    """

    sizes: ClassVar[Mapping[str, Size]] = {}
    learning_rate: ClassVar[float] = 1e-1

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Starts from the reference energies; see `ParametricPotential`."""
        settings = settings._replace(closest=(), dipole=False)
        super().__init__(species, reference_energies, settings)
        self.keeps_atoms = False
        self.shift = nn.Parameter(torch.zeros(len(species)))

    def interaction(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Tensor:
        """What is learned of each element, whatever its neighbors; see `ParametricPotential`."""
        # Torch takes no derivative by what an energy does not depend on. `forward` adds a wall that
        # begins nowhere, and so the forces are zero and not an error.
        return self.settings.scale * self.shift[index]
