"""Classical pair potentials: two with parameters to be fitted, and the repulsion of nuclei."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mdlearn import units
from mdlearn.neighbors import Neighbors
from mdlearn.potentials.network import ParametricPotential, Settings, Size
from mdlearn.potentials.pairs import envelope

# fmt: off
COVALENT_RADII = (
    0.31, 0.28,
    1.28, 0.96, 0.84, 0.76, 0.71, 0.66, 0.57, 0.58,
    1.66, 1.41, 1.21, 1.11, 1.07, 1.05, 1.02, 1.06,
    2.03, 1.76, 1.70, 1.60, 1.53, 1.39, 1.39, 1.32, 1.26, 1.24,
    1.32, 1.22, 1.22, 1.20, 1.19, 1.20, 1.20, 1.16,
    2.20, 1.95, 1.90, 1.75, 1.64, 1.54, 1.47, 1.46, 1.42, 1.39,
    1.45, 1.44, 1.42, 1.39, 1.39, 1.38, 1.39, 1.40,
    2.44, 2.15, 2.07, 2.04, 2.03, 2.01, 1.99, 1.98, 1.98, 1.96,
    1.94, 1.92, 1.92, 1.89, 1.90, 1.87, 1.87, 1.75, 1.70, 1.62,
    1.51, 1.44, 1.41, 1.36, 1.36, 1.32, 1.45, 1.46, 1.48, 1.40,
    1.50, 1.50, 2.60, 2.21, 2.15, 2.06, 2.00, 1.96, 1.90, 1.87,
    1.80, 1.69,
)
# fmt: on
"""Å, from hydrogen to curium (B. Cordero et al., Dalton Trans. 2008, 2832, table 2); of carbon the
radius of sp³, of manganese, iron and cobalt those of low spin."""
MINIMUM = 2.0 ** (1.0 / 6.0)
"""Where the energy of Lennard-Jones is lowest, in units of σ."""
MORSE_WIDTH = 4.0
"""a d₀ before training: bonds have 1.5 to 3, rare gases 6."""
ATTRACTION = 0.3
"""The strongest attraction of a pair before training, as a share of the typical force of the
training frames. Rare gases have less and bonds have more. What starts too weak grows; what starts
too strong can escape from the atoms instead, to a much smaller σ."""
LENNARD_JONES_CORE = 0.4
"""In units of σ; a pair has 240,000 ε there."""
ZBL_CORE = 0.1
"""In screening lengths, some 0.015 Å; a pair of carbon atoms has 30,000 eV there."""


def covalent_radii(species: tuple[int, ...]) -> Tensor:
    """Covalent radii of elements; those beyond curium are taken to be as large as curium.

    Args:
        species: atomic numbers.

    Returns:
        (S,) float64 Å.
    """
    heaviest = len(COVALENT_RADII)
    radii = [COVALENT_RADII[min(z, heaviest) - 1] for z in species]
    return torch.tensor(radii, dtype=torch.float64)


def soften(x: Tensor, core: float) -> Tensor:
    """A distance that never comes near zero, so that its inverse powers stay numbers in float32.

    x + core/3 (1 - x/core)³ below `core` and x beyond: increasing, with two continuous
    derivatives, and core/3 with a slope of zero at x = 0, where the direction of a force is lost.
    """
    depth = (1.0 - x / core).clamp_min(0.0)
    return x + core / 3.0 * (depth * depth * depth)


def positive(log: Tensor) -> Tensor:
    """Positive numbers of pairs of elements, the same in either order: exp((p + pᵀ)/2), (S, S)."""
    return torch.exp(0.5 * (log + log.T))


class PairPotential(ParametricPotential, ABC):
    """A potential of distances with a few parameters for each pair of elements.

    The parameters are kept as logarithms: what they stand for is always positive, and a step of
    the optimizer is a share of it, whatever its unit. There are no charges.
    """

    sizes: ClassVar[Mapping[str, Size]] = {}
    learning_rate: ClassVar[float] = 3e-2

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Sets up what is looked up for pairs; see `ParametricPotential`."""
        super().__init__(species, reference_energies, settings._replace(dipole=False))
        self.one_hot: Tensor
        one_hot = torch.eye(len(species), dtype=torch.float64)
        self.register_buffer("one_hot", one_hot, persistent=False)

    def guess_minimum(self) -> Tensor:
        """Where the energies of pairs are lowest, before training.

        The energy of a pair is taken to be zero at the closest distance of the training frames,
        as that of Lennard-Jones is at 0.89 times the distance of lowest energy; of elements that
        never meet there, the distance is that of a single bond.

        Returns:
            (S, S) float64 Å.
        """
        radii = covalent_radii(self.species)
        closest = self.wall.start.double()
        return torch.where(closest > 1e-3, MINIMUM * closest, radii[:, None] + radii)

    @abstractmethod
    def log_depths(self) -> nn.Parameter:
        """(S, S) logarithms of depths in eV, which forces are linear in."""

    @abstractmethod
    def stretch(self, factor: float) -> None:
        """Makes all lengths so many times as long."""

    def of_pairs(self, index: Tensor, neighbors: Neighbors, *tables: Tensor) -> tuple[Tensor, ...]:
        """Looks up parameters, by products with ones and zeros: an index's derivative is a scatter.

        Args:
            index: (n_atoms,) ranks of the elements among the species.
            neighbors: the pairs.
            tables: (S, S) each.

        Returns:
            (n_atoms, K) for each table.
        """
        element = self.one_hot[index]  # (n_atoms, S)
        rows = torch.tensordot(element, torch.stack(tables, -1), 1)  # (n_atoms, S, tables)
        return torch.bmm(element[neighbors.j], rows).unbind(-1)


class LennardJones(PairPotential):
    """V(d) = 4ε ((σ/d)¹² - (σ/d)⁶) times the envelope; half of it for each atom of the pair.

    Below 0.4σ, where no atoms are, d is softened (see `soften`), so that V stays finite. At first
    the strongest attraction, 2.4 ε/σ at 1.24 σ, is `ATTRACTION` of the typical force.
    """

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Builds the potential; nothing in it is random; see `ParametricPotential`."""
        super().__init__(species, reference_energies, settings)
        sigma = self.guess_minimum() / MINIMUM
        self.log_sigma = nn.Parameter(sigma.log())
        self.log_epsilon = nn.Parameter((ATTRACTION * settings.scale * sigma / 2.4).log())

    def log_depths(self) -> nn.Parameter:
        """See `PairPotential`."""
        return self.log_epsilon

    def stretch(self, factor: float) -> None:
        """See `PairPotential`."""
        self.log_sigma.add_(math.log(factor))

    def epsilon(self) -> Tensor:
        """Depths of the minima, (S, S) eV."""
        return positive(self.log_epsilon)

    def sigma(self) -> Tensor:
        """Distances where the energy crosses zero, (S, S) Å."""
        return positive(self.log_sigma)

    def interaction(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Tensor:
        """Half of the energies of an atom's pairs; see `ParametricPotential`."""
        epsilon, sigma = self.of_pairs(index, neighbors, self.epsilon(), self.sigma())
        attraction = soften(distance / sigma, LENNARD_JONES_CORE) ** -6
        energy = 4.0 * epsilon * (attraction * attraction - attraction)
        return 0.5 * (energy * envelope(distance, self.cutoff)).sum(1)


class Morse(PairPotential):
    """V(d) = D (1 - exp(-a (d - d₀)))² - D times the envelope; half of it for each atom.

    P. M. Morse, Phys. Rev. 34, 57 (1929). It is finite at d = 0 by itself. At first the strongest
    attraction, D a/2, is `ATTRACTION` of the typical force.
    """

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Builds the potential; nothing in it is random; see `ParametricPotential`."""
        super().__init__(species, reference_energies, settings)
        minimum = self.guess_minimum()
        steepness = MORSE_WIDTH / minimum
        self.log_minimum = nn.Parameter(minimum.log())
        self.log_steepness = nn.Parameter(steepness.log())
        depth = ATTRACTION * settings.scale * 2.0 / steepness
        self.log_depth = nn.Parameter(depth.log())

    def log_depths(self) -> nn.Parameter:
        """See `PairPotential`."""
        return self.log_depth

    def stretch(self, factor: float) -> None:
        """See `PairPotential`."""
        self.log_minimum.add_(math.log(factor))
        self.log_steepness.sub_(math.log(factor))

    def depth(self) -> Tensor:
        """D, (S, S) eV."""
        return positive(self.log_depth)

    def steepness(self) -> Tensor:
        """The constant a, (S, S) 1/Å."""
        return positive(self.log_steepness)

    def minimum(self) -> Tensor:
        """d₀, (S, S) Å."""
        return positive(self.log_minimum)

    def interaction(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Tensor:
        """Half of the energies of an atom's pairs; see `ParametricPotential`."""
        tables = self.depth(), self.steepness(), self.minimum()
        depth, steepness, minimum = self.of_pairs(index, neighbors, *tables)
        decay = torch.exp(-steepness * (distance - minimum))
        energy = depth * decay * (decay - 2.0)
        return 0.5 * (energy * envelope(distance, self.cutoff)).sum(1)


class ZBL(ParametricPotential):
    """The repulsion of nuclei behind their electrons, for distances that bonds never have.

    V(d) = kₑ Z₁ Z₂/d φ(d/a) with a = 0.8854 a₀/(Z₁^0.23 + Z₂^0.23) and
    φ(x) = 0.1818 e^(-3.2x) + 0.5099 e^(-0.9423x) + 0.2802 e^(-0.4029x) + 0.02817 e^(-0.2016x);
    half of it for each atom of the pair (J. F. Ziegler, J. P. Biersack, U. Littmark, "The Stopping
    and Range of Ions in Solids", Pergamon, 1985, chapter 2).

    The envelope ends at the sum of the covalent radii, as in MACE, so that bonds are left to
    what is trained, and at the cutoff at the latest. Below a tenth of a, d is softened (see
    `soften`). These are physical eV, whatever the scale of the settings, and nothing is learned.
    """

    sizes: ClassVar[Mapping[str, Size]] = {}
    learning_rate: ClassVar[float] = math.inf  # there is nothing that a step could spoil

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Sets up the constants; see `ParametricPotential`."""
        super().__init__(species, reference_energies, settings._replace(dipole=False))
        charge = torch.tensor(species, dtype=torch.float64)
        radii = covalent_radii(species)
        screening = 0.8854 * units.bohr / (charge[:, None] ** 0.23 + charge**0.23)
        weights = torch.tensor([0.1818, 0.5099, 0.2802, 0.02817], dtype=torch.float64)
        rates = torch.tensor([3.2, 0.9423, 0.4029, 0.2016], dtype=torch.float64)
        reach = (radii[:, None] + radii).clamp_max(settings.cutoff)
        strength = units.coulomb * charge[:, None] * charge / screening
        self.screening: Tensor  # (S, S) Å, the length a
        self.strength: Tensor  # (S, S) eV, of bare nuclei at the distance a
        self.reach: Tensor  # (S, S) Å
        self.weights: Tensor  # (4,)
        self.rates: Tensor  # (4,)
        self.register_buffer("screening", screening, persistent=False)
        self.register_buffer("strength", strength, persistent=False)
        self.register_buffer("reach", reach, persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("rates", rates, persistent=False)

    def interaction(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Tensor:
        """Half of the energies of an atom's pairs; see `ParametricPotential`."""
        pair = (index[:, None], index[neighbors.j])
        x = soften(distance / self.screening[pair], ZBL_CORE)  # (n_atoms, K)
        screened = (self.weights * torch.exp(-self.rates * x[..., None])).sum(-1)
        smooth = envelope(distance / self.reach[pair], 1.0)
        return 0.5 * (self.strength[pair] / x * screened * smooth).sum(1)
