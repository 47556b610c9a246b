"""A wall against what no training frame has shown: atoms closer than they have ever been."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mdlearn.neighbors import Neighbors

STIFFNESS = 400.0
"""eV. At nine tenths of the closest distance a pair costs 0.4 eV, at eight tenths 3.2 eV."""

WALL_MARGIN = 0.92
"""Where the wall begins, as a share of the shortest distance among the training frames. Closer to
one it stands in the way of hotter dynamics than the training frames': with 0.97 it was most of the
error of forces at 1200 K of a network trained on 3BPA at 300 K."""


class Wall(nn.Module):
    """Repulsion of pairs that are closer than any pair of their elements in the training frames.

    A network learns nothing about distances that it is never shown, and dynamics finds the holes:
    oxygen atoms of two water molecules that fall into each other. V(d) = k (1 - d/d₀)³ for d < d₀,
    with two continuous derivatives at d₀, closes them and is exactly zero on every training frame.
    """

    def __init__(self, species: tuple[int, ...], closest: Sequence[tuple[int, int, float]]) -> None:
        """Sets up the walls.

        Args:
            species: atomic numbers in the order of the network.
            closest: pairs of atomic numbers with d₀ in Å; pairs that are not named have no wall.
        """
        super().__init__()
        rank = {z: index for index, z in enumerate(species)}
        start = torch.full((len(species), len(species)), 1e-6)
        for one, other, distance in closest:
            start[rank[one], rank[other]] = start[rank[other], rank[one]] = distance
        self.start: Tensor
        self.register_buffer("start", start, persistent=False)

    def forward(self, index: Tensor, distance: Tensor, neighbors: Neighbors) -> Tensor:
        """Ranks of the elements (n_atoms,), distances (n_atoms, K) Å -> energies (n_atoms,) eV."""
        start = self.start[index[:, None], index[neighbors.j]]  # (n_atoms, K)
        depth = (1.0 - distance / start).clamp_min(0.0)
        return 0.5 * STIFFNESS * (depth * depth * depth).sum(1)
