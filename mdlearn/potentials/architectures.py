"""The potentials by their names, and sums of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.network import EUCLIDEAN, ParametricPotential, Settings
from mdlearn.potentials.schnet import SchNet

ARCHITECTURES: dict[str, type[ParametricPotential]] = {
    "schnet": SchNet,
    "equivariant": Equivariant,
}
"""Every architecture by the name it has on the command line and in model files."""


class Sum(ParametricPotential):
    """Several potentials at once, as in `equivariant+zbl`: their interactions add."""

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Builds the parts from the same settings; see `ParametricPotential`."""
        super().__init__(species, reference_energies, settings)
        parts = [
            ARCHITECTURES[name](species, reference_energies, settings)
            for name in settings.architecture.split("+")
        ]
        self.symmetries = EUCLIDEAN.intersection(*(each.symmetries for each in parts))
        self.parts = nn.ModuleList(parts)

    def interaction(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Tensor:
        """The sum of the interactions of the parts; see `ParametricPotential`."""
        energy = torch.zeros_like(distance[:, 0])
        for part in self.parts:
            assert isinstance(part, ParametricPotential)
            energy = energy + part.interaction(index, r, distance, neighbors)
        return energy


def make_potential(
    species: tuple[int, ...], reference_energies: Mapping[int, float], settings: Settings
) -> ParametricPotential:
    """The potential of the architecture that the settings name, with random parameters.

    Raises:
        KeyError: there is no such architecture.
    """
    kind = Sum if "+" in settings.architecture else ARCHITECTURES[settings.architecture]
    return kind(species, reference_energies, settings)
