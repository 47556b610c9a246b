"""A network without rotation symmetry, and an average that gives some of it back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.network import (
    EUCLIDEAN,
    Network,
    ParametricPotential,
    Representation,
    Settings,
    Size,
)
from mdlearn.potentials.pairs import ChebyshevBasis, envelope, gather
from mdlearn.potentials.response import Response
from mdlearn.potentials.spherical import SphericalHarmonics

DEGREE = 2
"""Of the harmonics that a direction is expanded in: 1, x, y, z and their products."""


class Unconstrained(Network):
    """A network that sees the directions of neighbors in the frame of the laboratory.

    Filters as in SchNet (Schütt et al., NeurIPS 2017, arXiv:1706.08566), but of the whole vector to
    the neighbor and not of its length alone: a function of direction and distance, expanded in
    products of harmonics and Chebyshev polynomials, and a layer of neurons. Sums over neighbors
    keep it invariant under permutation, and relative vectors under translation; rotations and
    reflections it has to learn from frames that training turns at random. What that costs is what
    it is for.
    """

    sizes: ClassVar[Mapping[str, Size]] = {
        "small": Size(32, 2, 8),
        "medium": Size(64, 3, 12),
        "large": Size(128, 3, 12),
    }
    learning_rate: ClassVar[float] = 3e-3

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Builds the network with random weights; see `Network`."""
        features, functions = settings.features, (DEGREE + 1) ** 2 * settings.radial
        super().__init__(species, reference_energies, settings)
        self.symmetries = EUCLIDEAN - {"rotation", "reflection"}
        self.add_heads(scalars=features)
        self.embedding = nn.Parameter(torch.randn(len(species), features))
        self.basis = ChebyshevBasis(settings.radial, settings.cutoff)
        self.harmonics = SphericalHarmonics(DEGREE)
        self.interactions = nn.ModuleList(
            Interaction(features, functions, settings.average_neighbors)
            for _ in range(settings.interactions)
        )

    def represent(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Representation:
        """What the interactions changed in the features of each atom; see `Network`."""
        harmonics, _ = self.harmonics(r / distance[..., None])  # (n_atoms, K, M)
        basis = self.basis(distance)  # (n_atoms, K, B)
        functions = (basis[..., None] * harmonics[:, :, None]).flatten(2)  # (n_atoms, K, BM)
        smooth = envelope(distance, self.cutoff)[..., None]  # (n_atoms, K, 1)
        start = self.embedding[index]  # (n_atoms, F)
        h = start
        for interaction in self.interactions:
            h = h + interaction(h, start, functions, smooth, neighbors)
        return Representation(h - start)


class Interaction(nn.Module):
    """A convolution with filters that depend on the direction, and atom-wise layers after it."""

    def __init__(self, features: int, functions: int, average_neighbors: float) -> None:
        super().__init__()
        self.filter_in = nn.Linear(functions, features)
        self.filter_out = nn.Linear(features, features)
        self.before = nn.Linear(features, features, bias=False)
        self.response = Response(features, features)
        self.after = nn.Linear(features, features, bias=False)
        self.norm = average_neighbors**-0.5

    def forward(
        self, h: Tensor, start: Tensor, functions: Tensor, smooth: Tensor, neighbors: Neighbors
    ) -> Tensor:
        """The change of the features.

        Args:
            h: (n_atoms, F).
            start: (n_atoms, F), the features that the elements start from.
            functions: (n_atoms, K, BM) of the vectors to the neighbors.
            smooth: (n_atoms, K, 1), by how much a pair counts; zero from the cutoff on.
            neighbors: the pairs.

        Returns:
            (n_atoms, F), zero without neighbors.
        """
        filters = self.filter_out(silu(self.filter_in(functions))) * smooth  # (n_atoms, K, F)
        heard = (filters * gather(self.before(h), neighbors)).sum(1) * self.norm
        change: Tensor = self.after(self.response(h, heard, start))
        return change


class RotationAverage(ParametricPotential):
    """The average of a potential over fixed rotations of what it sees.

    Any number of rotations makes the average a potential like others, with forces that are its
    exact derivative; the more there are, the less its energy depends on the orientation.
    """

    def __init__(self, potential: ParametricPotential, count: int) -> None:
        """Wraps a potential.

        Args:
            potential: what is averaged.
            count: how many rotations; the first is none at all.
        """
        energies = potential.elements.energies()
        super().__init__(potential.species, energies, potential.settings)
        self.symmetries = potential.symmetries
        self.potential = potential
        self.rotations: Tensor
        self.register_buffer("rotations", even_rotations(count), persistent=False)

    def interaction(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Tensor:
        """The average interaction; see `ParametricPotential`."""
        turned = [
            self.potential.interaction(index, r @ rotation, distance, neighbors)
            for rotation in self.rotations
        ]
        return torch.stack(turned).mean(0)

    def multipoles(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> tuple[Tensor, Tensor]:
        """Average charges and atomic dipoles, the latter turned back; see `Network`."""
        _, r, _ = self.geometry(numbers, r)
        charges, dipoles = [], []
        for rotation in self.rotations:
            charge, dipole = self.potential.multipoles(numbers, r @ rotation, neighbors)
            charges.append(charge)
            dipoles.append(dipole @ rotation.to(dipole.dtype).T)
        return torch.stack(charges).mean(0), torch.stack(dipoles).mean(0)


def even_rotations(count: int) -> Tensor:
    """Rotations spread evenly over all orientations; the first is the identity.

    A spiral on the sphere of unit quaternions with two incommensurate frequencies, √2 and the
    positive root of ψ⁴ = ψ + 4 (M. Alexa, "Super-Fibonacci spirals", CVPR 2022), turned so that it
    starts at the identity.

    Returns:
        (count, 3, 3) float64, to be multiplied from the right.
    """
    place = torch.arange(count, dtype=torch.float64) + 0.5
    inner, outer = (place / count).sqrt(), (1.0 - place / count).sqrt()
    one = 2.0 * math.pi * place / math.sqrt(2.0)
    other = 2.0 * math.pi * place / 1.533751168755204288118041
    quaternions = torch.stack(
        [inner * one.sin(), inner * one.cos(), outer * other.sin(), outer * other.cos()], 1
    )
    rotations = rotation_matrices(quaternions)
    first = rotations[0].T
    rotations = rotations @ first
    rotations[0] = torch.eye(3, dtype=torch.float64)  # exactly
    return rotations


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """Unit quaternions (n, 4), real part last -> rotation matrices (n, 3, 3)."""
    x, y, z, w = quaternions.unbind(1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], 1),
        torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], 1),
        torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], 1),
    ]
    return torch.stack(rows, 1)
