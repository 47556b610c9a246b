"""What a network knows of the elements: which ones, in which order, and their isolated atoms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

HEAVIEST = 118
"""Atomic number of oganesson."""


class Elements(nn.Module):
    """Numbers the elements of a network from 0, and holds the energies of their isolated atoms."""

    def __init__(self, species: tuple[int, ...], reference_energies: Mapping[int, float]) -> None:
        """Fixes the order of the elements.

        Args:
            species: atomic numbers.
            reference_energies: energy of the isolated atom of each species (E0), eV.
        """
        super().__init__()
        self.species = species
        rank = torch.full((HEAVIEST + 1,), -1)
        rank[list(species)] = torch.arange(len(species))
        energies = torch.tensor([reference_energies[z] for z in species], dtype=torch.float64)
        self.rank: Tensor
        self.bits: Tensor
        self.register_buffer("rank", rank, persistent=False)
        # As bits, so that casting the network to float32 cannot round energies of -2,000 eV.
        self.register_buffer("bits", energies.view(torch.int64), persistent=False)

    def index(self, numbers: Tensor) -> Tensor:
        """Atomic numbers (n_atoms,) -> ranks among the species (n_atoms,), -1 if unknown."""
        return self.rank[numbers]

    def reference_energies(self, index: Tensor) -> Tensor:
        """Ranks (n_atoms,) -> energies of the isolated atoms (n_atoms,) float64 eV."""
        return self.bits.view(torch.float64)[index]

    def energies(self) -> dict[int, float]:
        """Energy of the isolated atom of each species by atomic number, eV."""
        return dict(zip(self.species, self.bits.view(torch.float64).tolist(), strict=True))
