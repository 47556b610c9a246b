"""The default network: densities of neighbors, and their products as functions on the sphere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.network import EUCLIDEAN, Network, Representation, Settings, Size
from mdlearn.potentials.pairs import ChebyshevBasis, envelope, exchange
from mdlearn.potentials.spherical import (
    SphericalHarmonics,
    clebsch_gordan,
    degrees,
    sphere_grid,
)

DEGREE = 3
"""Of the spherical harmonics. Products of three of them are what the grid integrates exactly."""
DAMPING = 1.0
"""Harmonics of degree l count 1/(1 + l): what is learned first is smooth in the angles. On 200
frames of rMD17 ethanol that takes 2 % off the error of forces, against 1/(1 + l/2)."""
SMOOTHNESS = 4.0
"""Radial functions of frequency b count 1/(1 + (b/4)²), for the same reason. On 75 frames of 3BPA
that takes 8 % off after 2,850 steps; on 150 frames, which tell more, nothing after 3,400."""
NEAR = 0.6
"""Share of the cutoff at which a neighbor counts one; elsewhere it counts as 1/r: what is near says
more. On 200 frames of rMD17 ethanol that takes 11 % off the error of forces."""


class Equivariant(Network):
    """Densities in spherical harmonics, products of them, and messages along the pairs.

    The surroundings of an atom are a density, expanded in radial functions and spherical harmonics
    (the density trick of the atomic cluster expansion: R. Drautz, Phys. Rev. B 99, 014104, 2019):

        A[n, lm, bz] = sum_k T_b(r_k) Y_lm(r_k/|r_k|) [z_k = z]

    All that is learned comes after the sum: nothing in it is wider than a handful of functions
    per pair. `Product` turns densities into invariants and into functions of the direction.
    Then every atom evaluates its function s_n(direction) where its neighbors are, and says the
    value to them (F numbers a pair, whatever the degree of the function):

        A'[n, lm, c] = sum_k R_c(r_k) Y_lm(r_k/|r_k|) s_jc(-r_k/|r_k|)

    which is a tensor product of filter and equivariant features as in NequIP (S. Batzner et al.,
    Nat. Commun. 13, 2453, 2022) at the price of a scalar message, with the products of densities
    of MACE (I. Batatia et al., NeurIPS 2022, arXiv:2206.07697) after it. A value on the line
    between two atoms is the same however the function is turned about that line. What tells a
    torsion is across it, and so every atom also says how its function rises there, ∇ being the
    slope on the sphere, a vector across the line:

        A'[n, lm, c] += sum_k R'_c(r_k) ∇Y_lm(r_k/|r_k|) · ∇s'_jc(-r_k/|r_k|)

    Seen along the line, values are the part of the tensor product with m = 0, and slopes that with
    m = ±1 (S. Passaro, C. L. Zitnick, ICML 2023, arXiv:2302.03655).
    """

    sizes: ClassVar[Mapping[str, Size]] = {
        "small": Size(16, 2, 8),
        "medium": Size(32, 2, 12),
        "large": Size(64, 3, 12),
    }
    learning_rate: ClassVar[float] = 1e-2
    long: ClassVar[float | None] = 2500.0

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Builds the network with random weights; see `Network`."""
        features, layers, n_species = settings.features, settings.interactions, len(species)
        chiral = settings.parity == "so3"
        kinds = 3 if chiral else 2
        super().__init__(species, reference_energies, settings)
        self.add_heads(scalars=(kinds + 1) * features * layers, vectors=kinds * features)
        if chiral:
            self.symmetries = EUCLIDEAN - {"reflection"}
        self.harmonics = SphericalHarmonics(DEGREE)
        self.damping: Tensor
        degree = torch.tensor(degrees(DEGREE), dtype=torch.float64)
        self.register_buffer("damping", 1.0 / (1.0 + DAMPING * degree), persistent=False)
        self.basis = ChebyshevBasis(settings.radial, settings.cutoff)
        self.smoothness: Tensor
        frequency = torch.arange(settings.radial, dtype=torch.float64)
        smoothness = 1.0 / (1.0 + (frequency / SMOOTHNESS) ** 2)
        self.register_buffer("smoothness", smoothness, persistent=False)
        self.one_hot: Tensor
        self.register_buffer("one_hot", torch.eye(n_species), persistent=False)
        self.norm: float = settings.average_neighbors**-0.5
        channels = settings.radial * n_species
        self.products = nn.ModuleList(
            Product(channels + features * (layer > 0), features, n_species, chiral)
            for layer in range(layers)
        )
        self.messages = nn.ModuleList(
            Message(features, kinds, settings.radial, n_species) for _ in range(layers - 1)
        )

    def represent(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Representation:
        """Invariants of all layers, and the vectors of the last; see `Network`."""
        harmonics, slopes = self.harmonics(r / distance[..., None])
        harmonics = self.damping * harmonics  # (n_atoms, K, M)
        slopes = (self.damping * slopes).flatten(1, 2)  # (n_atoms, 3K, M)
        basis = self.smoothness * self.basis(distance)  # (n_atoms, K, B)
        u = distance / self.cutoff
        near = NEAR * (u.square() + 0.01).rsqrt()  # finite where two atoms coincide
        basis = basis * (near * envelope(distance, self.cutoff))[..., None]
        element = self.one_hot[index][neighbors.j]  # (n_atoms, K, Z)
        pairs = (basis[..., None] * element[:, :, None]).flatten(2)  # (n_atoms, K, BZ)
        seen = self.norm * sum_over_neighbors(harmonics, pairs)  # (M, n_atoms, BZ)
        invariants, functions = self.products[0](seen, index)
        scalars = [invariants]
        for message, product in zip(self.messages, self.products[1:], strict=True):
            told = message(invariants, functions, index, harmonics, slopes, basis, neighbors)
            told = self.norm * told  # (M, n_atoms, F)
            density = torch.cat([seen, told], -1)  # (M, n_atoms, BZ + F)
            invariants, functions = product(density, index)
            scalars.append(invariants)
        # The harmonics of degree 1 are y, z and x.
        vectors = torch.stack((functions[3], functions[1], functions[2]), 1)
        return Representation(torch.cat(scalars, -1), vectors)

    def by_element(self, name: str, parameter: Tensor) -> Sequence[Tensor]:
        """The densities of an element are mixed by weights of its own; see `Network`."""
        if not name.endswith("mix.weight"):
            return (parameter,)
        n_species, radial = len(self.species), self.settings.radial
        weight = parameter.view(DEGREE + 1, -1, 3 * self.settings.features)
        near = weight[:, : radial * n_species].view(DEGREE + 1, radial, n_species, -1)
        return near.movedim(2, 0), weight[:, radial * n_species :]


def sum_over_neighbors(harmonics: Tensor, pairs: Tensor) -> Tensor:
    """(n_atoms, K, M), (n_atoms, K, C) -> (M, n_atoms, C)."""
    return torch.bmm(harmonics.transpose(1, 2), pairs).transpose(0, 1)


class LinearByDegree(nn.Module):
    """A linear map of channels for each degree, the same for all components of that degree."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(DEGREE + 1, channels * out) * channels**-0.5)
        self.degree: Tensor
        self.register_buffer("degree", torch.eye(DEGREE + 1)[degrees(DEGREE)], persistent=False)
        self.shape = (len(self.degree), channels, out)

    def forward(self, components: Tensor) -> Tensor:
        """(M, n_atoms, channels) -> (M, n_atoms, out)."""
        weight: Tensor = self.degree @ self.weight  # (M, channels out)
        return torch.bmm(components, weight.view(self.shape))


class Product(nn.Module):
    """Products of up to three densities of one atom.

    The densities are mixed into three functions on the sphere for each feature, f, g and h. The
    product fg is formed point by point on a grid and projected back; the invariants are the means
    over the sphere of f, fg and fgh. Since the mixing differs between degrees and features, their
    linear combinations reach every coupling of two and three densities that keeps parity
    (correlation orders 2 and 3 of the atomic cluster expansion), and a product costs the same
    whatever the number of couplings. A chiral product also has f × g: all couplings that do not
    keep parity.
    """

    def __init__(self, channels: int, features: int, n_species: int, chiral: bool) -> None:
        super().__init__()
        points, weights = (torch.from_numpy(each) for each in sphere_grid())
        harmonics, _ = SphericalHarmonics(DEGREE)(points)  # (P, M)
        self.evaluate: Tensor
        self.project: Tensor
        self.register_buffer("evaluate", harmonics, persistent=False)
        self.register_buffer("project", (harmonics * weights[:, None]).T, persistent=False)
        self.features = features
        self.mix = LinearByDegree(channels, 3 * features)
        self.element = nn.Parameter(1.0 + 0.1 * torch.randn(n_species, 3 * features))
        self.chiral = chiral
        if chiral:
            self.cross: Tensor
            self.register_buffer("cross", torch.from_numpy(_cross()), persistent=False)

    def forward(self, density: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Densities (M, n_atoms, channels) and ranks of the elements (n_atoms,).

        Returns:
            Invariants (n_atoms, 3F) and functions (M, n_atoms, 2F); a chiral product has F more.
        """
        n_harmonics, n_atoms, _ = density.shape
        mixed = self.mix(density) * self.element[index]  # (M, n_atoms, 3F)
        f, g, h = mixed.chunk(3, -1)
        values = self.evaluate @ mixed[..., : 2 * self.features].reshape(n_harmonics, -1)
        f_values, g_values = values.view(-1, n_atoms, 2 * self.features).chunk(2, -1)
        fg = (self.project @ (f_values * g_values).flatten(1)).view_as(f)
        invariants, functions = [f[0], fg[0], (fg * h).sum(0)], [f, fg]
        if self.chiral:
            outer = (f[:, None] * g).flatten(0, 1).flatten(1)  # (M², n_atoms F)
            cross = (self.cross @ outer).view_as(f)
            invariants.append((cross * h).sum(0))
            functions.append(cross)
        return torch.cat(invariants, -1), torch.cat(functions, -1)


class Message(nn.Module):
    """What atoms tell their neighbors: values and slopes of functions of the direction."""

    def __init__(self, features: int, kinds: int, radial: int, n_species: int) -> None:
        super().__init__()
        self.speak = LinearByDegree(kinds * features, 2 * features)
        self.gate = nn.Linear((kinds + 1) * features, 2 * features)
        self.element = nn.Parameter(torch.randn(n_species, 2 * features))
        self.radial = nn.Linear(radial, 2 * features, bias=False)

    def forward(
        self,
        invariants: Tensor,
        functions: Tensor,
        index: Tensor,
        harmonics: Tensor,
        slopes: Tensor,
        basis: Tensor,
        neighbors: Neighbors,
    ) -> Tensor:
        """The density of what each atom hears from its neighbors.

        Args:
            invariants: (n_atoms, (kinds + 1) F).
            functions: (M, n_atoms, kinds F).
            index: (n_atoms,) ranks of the elements.
            harmonics: (n_atoms, K, M) of the directions to the neighbors.
            slopes: (n_atoms, 3K, M), of the harmonics there.
            basis: (n_atoms, K, B) of the distances, zero at the cutoff.
            neighbors: the pairs.

        Returns:
            (M, n_atoms, F).
        """
        element = self.element[index]  # (n_atoms, 2F)
        spoken = self.speak(functions) * (silu(self.gate(invariants)) + element)  # (M, n_atoms, 2F)
        # Every atom says its element, too, whatever is around it.
        spoken = torch.cat([spoken[:1] + element, spoken[1:]])
        level, rising = spoken.transpose(0, 1).chunk(2, -1)  # (n_atoms, M, F)
        level_radial, rising_radial = self.radial(basis).chunk(2, -1)  # (n_atoms, K, F)
        value = torch.bmm(harmonics, level) * level_radial  # (n_atoms, K, F)
        slope = torch.bmm(slopes, rising).unflatten(1, (-1, 3))  # (n_atoms, K, 3, F)
        slope = slope * rising_radial[:, :, None]
        heard = exchange(value, neighbors)
        felt = exchange(slope.flatten(2), neighbors).view_as(slope).flatten(1, 2)
        return sum_over_neighbors(harmonics, heard) + sum_over_neighbors(slopes, felt)


def _cross() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """All couplings with odd l1 + l2 + l3, from two sets of harmonics to one: (M, M²)."""
    first = [degree**2 for degree in range(DEGREE + 2)]
    cross = np.zeros((first[-1],) * 3)
    for l1 in range(DEGREE + 1):
        for l2 in range(DEGREE + 1):
            for l3 in range(abs(l1 - l2), min(l1 + l2, DEGREE) + 1):
                if (l1 + l2 + l3) % 2:
                    block = tuple(slice(first[each], first[each + 1]) for each in (l3, l1, l2))
                    cross[block] = clebsch_gordan(l1, l2, l3).transpose(2, 0, 1)
    return cross.reshape(first[-1], -1)
