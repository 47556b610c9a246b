"""A network that takes atoms over a whole stride of time at once, from their positions and momenta.

It knows no energy: what it gives is where the atoms go, and what their momenta become.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mdlearn import units
from mdlearn.neighbors import SKIN, Neighbors, pair_vectors
from mdlearn.potentials.egnn import MessagePassing
from mdlearn.potentials.elements import Elements
from mdlearn.potentials.network import Size
from mdlearn.potentials.pairs import distances, envelope, exchange, gather
from mdlearn.system import System

STRAY = 1.5
"""Times the longest way of an atom in a stride of the training that one may go in a simulation."""


class PropagatorSettings(NamedTuple):
    """All that a propagator is made from besides its elements; stored in its file as it is."""

    stride_fs: float
    """Time that it takes the atoms over, fs."""
    cutoff: float
    """Å, beyond which atoms do not see each other."""
    features: int
    """Width of the features of an atom."""
    interactions: int
    """Pushes in a stride."""
    radial: int
    """Functions that a distance is expanded in."""
    average_neighbors: float
    """Neighbors within the cutoff, averaged over the training atoms."""
    impulse: float
    """u·Å/(Å·sqrt(u/eV)), root mean square of what a component of a momentum changes by."""
    displacement: float
    """Å, root mean square of the way of an atom."""
    longest: float
    """Å, the longest way of an atom."""
    closest: tuple[tuple[int, int, float], ...]
    """Atomic numbers, and the shortest distance of such atoms less a margin, Å; see `Settings`."""


class Propagator(nn.Module):
    """Positions and momenta one stride later: an EGNN with velocities that keeps momenta.

    V. G. Satorras, E. Hoogeboom, M. Welling, "E(n) equivariant graph neural networks", ICML 2021
    (arXiv:2102.09844), section 3.2: each of L layers changes velocities and moves the atoms along
    them, and the next layer sees them where they are then,

        v_i' = φ_v(h_i) v_i + C sum_j (x_i - x_j) φ_x(m_ij),    x_i' = x_i + v_i'        (7)

    Different here: what changes are momenta, by pushes that are equal and opposite,

        p_i' = p_i + S/C sum_j (x_i - x_j) (φ_x(m_ij) + φ_x(m_ji)),

    and v is p/m, with φ_v = 1: as every push acts along the line between two atoms, total and
    angular momentum stay what they are, to rounding. Messages see, besides distances, how fast
    these change and the square of the relative velocity, so that pushes can drive and damp; that a
    system moves as a whole makes no difference. Atoms drift for 1/L of the stride between two
    pushes, and half of that before the first and after the last: without pushes that is free
    flight, exactly. A distance enters as Gaussians, as in `EGNN`, and a pair carries the envelope
    of the distance that it has at the start.

    Neither energy nor the volume of phase space is kept by construction, and no stride can be
    undone.
    """

    sizes: ClassVar[Mapping[str, Size]] = {
        "small": Size(32, 3, 16),
        "medium": Size(64, 4, 20),
        "large": Size(128, 6, 24),
    }

    def __init__(self, species: tuple[int, ...], settings: PropagatorSettings) -> None:
        """Builds the network with random weights.

        Args:
            species: atomic numbers that it can be asked about.
            settings: what it is made from.
        """
        super().__init__()
        self.settings = settings
        self.species = species
        self.cutoff = settings.cutoff
        self.stride = settings.stride_fs * units.fs
        self.elements = Elements(species, dict.fromkeys(species, 0.0))
        self.embedding = nn.Parameter(torch.randn(len(species), settings.features))
        self.layers = nn.ModuleList(Push(settings) for _ in range(settings.interactions))

    @property
    def skin(self) -> float:
        """Å, of a neighbor list that is good for a stride as far as any atom may go in one."""
        return max(SKIN, 2.0 * STRAY * self.settings.longest)

    def forward(
        self, numbers: Tensor, masses: Tensor, momenta: Tensor, r: Tensor, neighbors: Neighbors
    ) -> tuple[Tensor, Tensor]:
        """What a stride brings.

        Args:
            numbers: (n_atoms,) atomic numbers.
            masses: (n_atoms,) u.
            momenta: (n_atoms, 3) u·Å/(Å·sqrt(u/eV)).
            r: (n_atoms, K, 3) Å, pair vectors.
            neighbors: the pairs.

        Returns:
            (n_atoms, 3) float64 Å, how far the atoms go; and (n_atoms, 3) float64, what their
            momenta change by.
        """
        mass, dt = masses[:, None], self.stride / len(self.layers)
        smooth = envelope(distances(r), self.cutoff)[..., None]  # (n_atoms, K, 1)
        start = self.embedding[self.elements.index(numbers)]  # (n_atoms, F)
        h = start
        displacement = 0.5 * dt * momenta / mass
        impulse = torch.zeros_like(momenta)
        for index, layer in enumerate(self.layers):
            velocities = (momenta + impulse) / mass
            current = r + gather(displacement, neighbors) - displacement[:, None]
            relative = gather(velocities, neighbors) - velocities[:, None]  # (n_atoms, K, 3)
            h, push = layer(h, start, current, relative, smooth, neighbors)
            impulse = impulse + push
            last = index == len(self.layers) - 1
            displacement = displacement + (0.5 if last else 1.0) * dt * (momenta + impulse) / mass
        return displacement, impulse


class Push(MessagePassing):
    """One layer of a propagator."""

    def __init__(self, settings: PropagatorSettings) -> None:
        """Builds a layer with random weights."""
        radial = settings.radial
        super().__init__(
            settings.features, radial, radial + 2, settings.cutoff, settings.average_neighbors
        )
        self.impulse = settings.impulse
        self.time = settings.stride_fs * units.fs / settings.displacement

    def forward(
        self,
        h: Tensor,
        start: Tensor,
        r: Tensor,
        relative: Tensor,
        smooth: Tensor,
        neighbors: Neighbors,
    ) -> tuple[Tensor, Tensor]:
        """The next features, and what the momenta change by.

        Args:
            h: (n_atoms, F).
            start: (n_atoms, F), the features that the elements start from.
            r: (n_atoms, K, 3) float64 Å, vectors to the neighbors where this layer finds them.
            relative: (n_atoms, K, 3) float64, velocities of the neighbors less that of the atom.
            smooth: (n_atoms, K, 1), by how much a pair counts; zero from the cutoff on.
            neighbors: the pairs.

        Returns:
            (n_atoms, F), and (n_atoms, 3) float64 u·Å/(Å·sqrt(u/eV)).
        """
        distance = distances(r)
        opening = (r * relative).sum(-1) / distance * self.time  # (n_atoms, K)
        square = relative.square().sum(-1) * self.time**2
        seen = torch.stack([distance, opening, square], -1).to(h.dtype)
        basis = self.basis(seen[..., 0])  # (n_atoms, K, radial)
        known = torch.cat([basis, basis * seen[..., 1:2], seen[..., 1:]], -1)
        messages = self.messages(h, known, neighbors)  # (n_atoms, K, F)
        said = self.push(messages)
        # Of the two halves of a pair the same number, to the bit: addition does not mind the order.
        strength = (said + exchange(said, neighbors)).double() * smooth
        # x_i - x_j is -r.
        push = -self.impulse / self.average_neighbors * (strength * r).sum(1)
        return self.update(h, start, messages, smooth.to(h.dtype)), push


class NoEnergy:
    """The potential of a system whose energy nobody knows: zero, wherever the atoms are."""

    def __init__(self, species: tuple[int, ...], cutoff: float) -> None:
        """Knows elements and a cutoff, for the neighbor list.

        Args:
            species: atomic numbers.
            cutoff: Å.
        """
        self.species, self.cutoff = species, cutoff

    def __call__(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> Tensor:
        """(n_atoms,) zeros."""
        return (0.0 * r).sum((1, 2))


def propagate(
    propagator: Propagator, system: System, momenta: Tensor, neighbors: Neighbors
) -> tuple[Tensor, Tensor]:
    """How far the atoms of a batch go in a stride, and what their momenta change by.

    Args:
        propagator: the network.
        system: the batch.
        momenta: (n_atoms, 3) u·Å/(Å·sqrt(u/eV)).
        neighbors: its pairs, up to at least the cutoff of the propagator.
    """
    r = pair_vectors(system, neighbors)
    displacement, impulse = propagator(system.numbers, system.masses, momenta, r, neighbors)
    return displacement, impulse
