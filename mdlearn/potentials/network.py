"""What all potentials with parameters share, and what all networks share beyond that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mdlearn.errors import ModelError
from mdlearn.neighbors import Neighbors
from mdlearn.potentials.elements import Elements
from mdlearn.potentials.pairs import distances
from mdlearn.potentials.wall import Wall

EUCLIDEAN = frozenset({"translation", "permutation", "rotation", "reflection"})
"""What the energy of a network that sees geometry as physics does never changes under."""


class Size(NamedTuple):
    """How large a network is."""

    features: int
    """Width of the features of an atom."""
    interactions: int
    """How often atoms tell each other what they know."""
    radial: int
    """Functions of the distance that filters are made of."""


class Settings(NamedTuple):
    """All that a potential is made from besides its elements; stored in model files as it is."""

    architecture: str
    """A name in `ARCHITECTURES`, or several joined by `+`."""
    cutoff: float
    """Å, beyond which atoms do not see each other."""
    features: int
    """See `Size`."""
    interactions: int
    """See `Size`."""
    radial: int
    """See `Size`."""
    average_neighbors: float
    """Neighbors within the cutoff, averaged over the training atoms."""
    scale: float
    """eV that an output of one stands for."""
    closest: tuple[tuple[int, int, float], ...] = ()
    """Where the `Wall` of each pair of elements begins: atomic numbers and Å."""
    parity: str = "o3"
    """`so3` for a network that can tell mirror images apart; most cannot."""
    dipole: bool = False
    """Whether there are heads for charges and atomic dipoles."""
    largest_forces: tuple[tuple[int, float], ...] = ()
    """On an atom of each element in the training frames: atomic numbers and eV/Å. Older models have
    none. Nothing is made from them; a simulation is told where the model has been."""
    neighbor_counts: tuple[tuple[int, int, int], ...] = ()
    """Atomic numbers, and the fewest and the most neighbors that such an atom has within the cutoff
    in the training frames."""


class Representation(NamedTuple):
    """What a network knows of every atom; heads turn it into quantities."""

    scalars: Tensor
    """(n_atoms, F), invariant; zero for an atom without neighbors."""
    vectors: Tensor | None = None
    """(n_atoms, 3, G), turning with the system; None where a network has no such features."""


class ParametricPotential(nn.Module, ABC):
    """A potential with parameters to be fitted: what training makes and model files hold.

    The energy of an atom is that of its isolated element, plus that of its interactions, plus the
    `Wall`.
    """

    sizes: ClassVar[Mapping[str, Size]]
    """Small, medium and large."""
    learning_rate: ClassVar[float] = 1e-3
    """The largest step size of Adam that it learns well with,"""
    long: ClassVar[float | None] = None
    """and the steps from which on it is smaller, see `training.schedule.Schedule`."""
    symmetries: frozenset[str]
    """What leaves the energy as it is, by construction; a subset of `EUCLIDEAN`."""
    keeps_atoms: bool
    """Whether an isolated atom has the reference energy of its element."""

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Sets up what does not depend on the architecture.

        Args:
            species: atomic numbers that the potential can be asked about.
            reference_energies: energy of the isolated atom of each species, eV.
            settings: what the potential is made from.
        """
        super().__init__()
        self.symmetries = EUCLIDEAN
        self.keeps_atoms = True
        self.cutoff = settings.cutoff
        self.species = species
        self.settings = settings
        self.elements = Elements(species, reference_energies)
        self.wall = Wall(species, settings.closest)

    @abstractmethod
    def interaction(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Tensor:
        """What an atom's energy gains by its neighbors; nothing without any.

        Args:
            index: (n_atoms,) ranks of the elements among the species.
            r: (n_atoms, K, 3) Å, in the precision of the parameters.
            distance: (n_atoms, K) Å, lengths of r, never zero.
            neighbors: the pairs.

        Returns:
            (n_atoms,) eV.
        """

    def forward(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> Tensor:
        """Atomic energies.

        Args:
            numbers: (n_atoms,) atomic numbers.
            r: (n_atoms, K, 3) Å, pair vectors, in any precision; that of the parameters is used
                inside.
            neighbors: the pairs.

        Returns:
            (n_atoms,) float64 eV.
        """
        index, r, distance = self.geometry(numbers, r)
        energy: Tensor = self.interaction(index, r, distance, neighbors)
        wall: Tensor = self.wall(index, distance, neighbors)
        energy = energy + wall
        return self.elements.reference_energies(index) + energy.double()

    def multipoles(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> tuple[Tensor, Tensor]:
        """Charges and dipoles of atoms, before the charges are made to sum up; see `Network`.

        Raises:
            ModelError: the potential has nothing to say about charges.
        """
        raise ModelError(
            f"this model ({self.settings.architecture}) has no charges and dipoles; train a network"
            " on frames with dipole labels"
        )

    def inherit(self, other: ParametricPotential) -> None:
        """Takes over the parameters of a potential of the same settings for fewer elements.

        What belongs to an element that the other does not know stays as it is.

        Raises:
            ModelError: the parameters of this architecture are not sorted by element.
        """
        theirs = dict(other.named_parameters())
        ranks = torch.tensor([self.species.index(z) for z in other.species])
        with torch.no_grad():
            for name, mine in self.named_parameters():
                places = self.by_element(name, mine), other.by_element(name, theirs[name])
                for place, old in zip(*places, strict=True):
                    if place.shape == old.shape:
                        place.copy_(old)
                    elif place.shape[1:] == old.shape[1:] and len(old) == len(ranks):
                        place[ranks] = old.to(place)
                    else:
                        raise ModelError(
                            f"a model of the kind {self.settings.architecture} cannot take up new"
                            " elements; train one from scratch"
                        )

    def by_element(self, name: str, parameter: Tensor) -> Sequence[Tensor]:
        """Views of a parameter; those that depend on elements have these along the first axis."""
        return (parameter,)

    def geometry(self, numbers: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ranks of the elements, and pair vectors and distances in the parameters' precision."""
        r = r.to(self.wall.start.dtype)
        return self.elements.index(numbers), r, distances(r)


class Network(ParametricPotential):
    """A representation of atoms in their surroundings, and heads that read it.

    One head gives the energy; others give charges and atomic dipoles, where they are asked for.
    """

    def add_heads(self, scalars: int, vectors: int = 0) -> None:
        """Adds what reads the representation; for architectures, when they are built.

        Args:
            scalars: F of the representation.
            vectors: G of the representation.
        """
        self.energy_head = ScalarHead(scalars, len(self.species))
        if self.settings.dipole:
            self.charge_head = ScalarHead(scalars, len(self.species))
            self.dipole_head = VectorHead(scalars, vectors) if vectors else None

    @abstractmethod
    def represent(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Representation:
        """The architecture itself.

        Args:
            index: (n_atoms,) ranks of the elements among the species.
            r: (n_atoms, K, 3) Å, in the precision of the network.
            distance: (n_atoms, K) Å, lengths of r, never zero.
            neighbors: the pairs.
        """

    def interaction(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Tensor:
        """The energy that is read off the representation; see `ParametricPotential`."""
        scalars, _ = self.represent(index, r, distance, neighbors)
        energy: Tensor = self.settings.scale * self.energy_head(scalars, index)
        return energy

    def multipoles(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> tuple[Tensor, Tensor]:
        """Charges and dipoles of atoms, as `evaluate_multipoles` needs them.

        Args:
            numbers: (n_atoms,) atomic numbers.
            r: (n_atoms, K, 3) Å, pair vectors.
            neighbors: the pairs.

        Returns:
            (n_atoms,) float64 e, and (n_atoms, 3) float64 e Å.

        Raises:
            ModelError: `settings.dipole` is not set.
        """
        if not self.settings.dipole:
            return super().multipoles(numbers, r, neighbors)
        index, r, distance = self.geometry(numbers, r)
        scalars, vectors = self.represent(index, r, distance, neighbors)
        charges: Tensor = self.charge_head(scalars, index).double()
        if self.dipole_head is None:
            return charges, torch.zeros_like(charges)[:, None].repeat(1, 3)
        dipoles: Tensor = self.dipole_head(scalars, vectors).double()
        return charges, dipoles


class ScalarHead(nn.Module):
    """One number for each atom from its scalars, zero where they are zero.

    A linear form plus a hidden layer with a bias for each element, less what the bias alone gives.
    """

    def __init__(self, scalars: int, n_species: int, hidden: int = 64) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(n_species, hidden))
        self.hidden = nn.Linear(scalars, hidden, bias=False)
        self.out = nn.Linear(hidden, 1, bias=False)
        self.linear = nn.Linear(scalars, 1, bias=False)

    def forward(self, scalars: Tensor, index: Tensor) -> Tensor:
        """(n_atoms, F) and ranks of the elements (n_atoms,) -> (n_atoms,)."""
        value: Tensor = self.out(self.activate(scalars, index)) + self.linear(scalars)
        return value.squeeze(-1)

    def activate(self, scalars: Tensor, index: Tensor) -> Tensor:
        """The same -> (n_atoms, hidden), what the number is linear in besides the scalars."""
        bias = self.bias[index]  # (n_atoms, hidden)
        return silu(self.hidden(scalars) + bias) - silu(bias)


class VectorHead(nn.Module):
    """One vector for each atom: its vectors, each times a number that depends on its scalars."""

    def __init__(self, scalars: int, vectors: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(scalars, vectors)
        self.out = nn.Linear(vectors, vectors)

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """(n_atoms, F) and (n_atoms, 3, G) -> (n_atoms, 3)."""
        weight = self.out(silu(self.hidden(scalars)))  # (n_atoms, G)
        total: Tensor = (vectors * weight[:, None]).sum(-1)
        return total
