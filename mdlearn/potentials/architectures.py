"""The potentials by their names, and sums of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.classical import ZBL, LennardJones, Morse
from mdlearn.potentials.composition import Composition
from mdlearn.potentials.egnn import EGNN
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.network import EUCLIDEAN, ParametricPotential, Settings, Size
from mdlearn.potentials.painn import PaiNN
from mdlearn.potentials.schnet import SchNet
from mdlearn.potentials.unconstrained import Unconstrained

ARCHITECTURES: dict[str, type[ParametricPotential]] = {
    "composition": Composition,
    "unconstrained": Unconstrained,
    "schnet": SchNet,
    "egnn": EGNN,
    "painn": PaiNN,
    "equivariant": Equivariant,
    "lennard-jones": LennardJones,
    "morse": Morse,
    "zbl": ZBL,
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
        parts = [
            kind(species, reference_energies, settings) for kind in _kinds(settings.architecture)
        ]
        dipole = any(part.settings.dipole for part in parts)
        super().__init__(species, reference_energies, settings._replace(dipole=dipole))
        self.symmetries = EUCLIDEAN.intersection(*(part.symmetries for part in parts))
        self.keeps_atoms = all(part.keeps_atoms for part in parts)
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

    def by_element(self, name: str, parameter: Tensor) -> Sequence[Tensor]:
        """As the part that it belongs to has it; see `ParametricPotential`."""
        _, rank, rest = name.split(".", 2)
        part = self.parts.get_submodule(rank)
        assert isinstance(part, ParametricPotential)
        return part.by_element(rest, parameter)

    def multipoles(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> tuple[Tensor, Tensor]:
        """The sums of the charges and dipoles of the parts that have some; see `Network`."""
        if not self.settings.dipole:
            return super().multipoles(numbers, r, neighbors)
        charges = torch.zeros_like(r[:, 0, 0], dtype=torch.float64)
        dipoles = torch.zeros_like(r[:, 0], dtype=torch.float64)
        for part in self.parts:
            assert isinstance(part, ParametricPotential)
            if part.settings.dipole:
                charge, dipole = part.multipoles(numbers, r, neighbors)
                charges, dipoles = charges + charge, dipoles + dipole
        return charges, dipoles


def default_size(architecture: str, size: str) -> Size:
    """How large a potential is made: of a sum, what its first part that comes in sizes has.

    Args:
        architecture: a name in `ARCHITECTURES`, or several joined by `+`.
        size: small, medium or large.
    """
    sizes = [kind.sizes[size] for kind in _kinds(architecture) if kind.sizes]
    return sizes[0] if sizes else Size(0, 0, 0)


def learning_rate(architecture: str) -> float:
    """The largest step size of Adam that a potential learns well with, and all parts of a sum."""
    return min(kind.learning_rate for kind in _kinds(architecture))


def long_training(architecture: str) -> float | None:
    """The steps of a training from which on that is smaller; see `training.schedule.Schedule`."""
    return min((kind.long for kind in _kinds(architecture) if kind.long), default=None)


def _kinds(architecture: str) -> list[type[ParametricPotential]]:
    return [ARCHITECTURES[name] for name in architecture.split("+")]


def make_potential(
    species: tuple[int, ...], reference_energies: Mapping[int, float], settings: Settings
) -> ParametricPotential:
    """The potential of the architecture that the settings name, with random parameters.

    Raises:
        KeyError: there is no such architecture.
    """
    kind = Sum if "+" in settings.architecture else ARCHITECTURES[settings.architecture]
    return kind(species, reference_energies, settings)
