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
        self.shift = nn.Parameter(torch.zeros(len(species)))

    def interaction(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Tensor:
        """What is learned of each element, whatever its neighbors; see `ParametricPotential`."""
        # Forces are a derivative by r, and torch takes none by what an energy does not depend on.
        # Distances are finite for padding and coincident atoms, so that this is zero for them, too.
        nothing = 0.0 * distance.sum(1)
        return self.settings.scale * self.shift[index] + nothing
