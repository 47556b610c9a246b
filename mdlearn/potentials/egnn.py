"""EGNN: messages of distances between atoms that the network itself moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.network import Network, Representation, Settings, Size
from mdlearn.potentials.pairs import GaussianBasis, distances, envelope, gather
from mdlearn.potentials.response import Response


class EGNN(Network):
    """An equivariant network that sees distances alone, but moves the atoms between its layers.

    V. G. Satorras, E. Hoogeboom, M. Welling, "E(n) equivariant graph neural networks", ICML 2021
    (arXiv:2102.09844). Each `Layer` passes messages that depend on features and distances, and
    shifts every atom along the directions to its neighbors; the next layer sees the distances
    between the shifted atoms, and so what the first knew of angles.

    Different here: a distance enters as Gaussians, those of the true one as attributes of the edge
    (a single number |x_i - x_j|² cannot resolve chemistry), and the first layer of φ_e multiplies
    features with functions of the distance (added, they hardly learned any forces); all that a
    pair does carries the envelope of its true distance; C is one over the average number of
    neighbors, so that nothing depends on the size of the system; sums of messages are divided by
    the square root of that number; what a layer does to an isolated atom is taken out of it; and
    the energy is read off the lengths of the shifts, too.
    """

    sizes: ClassVar[Mapping[str, Size]] = {
        "small": Size(32, 2, 12),
        "medium": Size(64, 3, 16),
        "large": Size(128, 4, 20),
    }
    learning_rate: ClassVar[float] = 1e-2

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Builds the network with random weights; see `Network`."""
        features, radial = settings.features, settings.radial
        super().__init__(species, reference_energies, settings)
        self.add_heads(scalars=features + 1, vectors=1)
        self.embedding = nn.Parameter(torch.randn(len(species), features))
        self.basis = GaussianBasis(radial, settings.cutoff)
        self.layers = nn.ModuleList(
            Layer(features, radial, radial, settings.cutoff, settings.average_neighbors)
            for _ in range(settings.interactions)
        )

    def represent(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Representation:
        """What the layers changed in the features, and how far they moved; see `Network`."""
        attributes = self.basis(distance)  # (n_atoms, K, B)
        smooth = envelope(distance, self.cutoff)[..., None]  # (n_atoms, K, 1)
        start = self.embedding[index]  # (n_atoms, F)
        h, shift = start, torch.zeros_like(r[:, 0])  # (n_atoms, F), (n_atoms, 3)
        current = r
        for layer in self.layers:
            h, move = layer(h, start, None, current, attributes, smooth, neighbors)
            shift = shift + move
            current = r + gather(shift, neighbors) - shift[:, None]
        square = shift.square().sum(1, keepdim=True)
        return Representation(torch.cat([h - start, square], 1), shift[:, :, None])


class MessagePassing(nn.Module):
    """What layers have in common, however they move the atoms: the networks, and these equations.

    m_ij = φ_e(h_i, h_j, |x_i - x_j|², a_ij)                    (3)
    m_i  = sum_j m_ij                                           (5)
    h_i' = φ_h(h_i, m_i)                                        (6)
    """

    def __init__(
        self, features: int, radial: int, attributes: int, cutoff: float, average_neighbors: float
    ) -> None:
        """Builds φ_e, φ_x and φ_h with random weights.

        Args:
            features: F, width of the features of atoms and of messages.
            radial: Gaussians that a distance is expanded in.
            attributes: numbers that are known of each pair besides these.
            cutoff: Å, where the last Gaussian stands.
            average_neighbors: (5) is divided by the square root of it.
        """
        super().__init__()
        self.basis = GaussianBasis(radial, cutoff)
        # The first layer of φ_e, in parts, so that what an atom says is computed once.
        self.own = nn.Linear(features, features)
        self.other = nn.Linear(features, features, bias=False)
        self.pair = nn.Linear(radial + attributes, features, bias=False)
        # At any distance few Gaussians differ from zero; torch's weights count on all inputs.
        nn.init.normal_(self.pair.weight, std=0.5)
        self.message = nn.Linear(features, features)
        self.push = _to_one_number(features)  # φ_x
        self.response = Response(features, features)  # φ_h
        self.out = nn.Linear(features, features, bias=False)
        self.average_neighbors = average_neighbors

    def messages(self, h: Tensor, known: Tensor, neighbors: Neighbors) -> Tensor:
        """What each atom hears from each neighbor.

        Args:
            h: (n_atoms, F).
            known: (n_atoms, K, radial + attributes), of the pairs.
            neighbors: the pairs.

        Returns:
            (n_atoms, K, F).
        """
        hidden = silu((self.own(h)[:, None] + gather(self.other(h), neighbors)) * self.pair(known))
        messages: Tensor = silu(self.message(hidden))
        return messages

    def update(self, h: Tensor, start: Tensor, messages: Tensor, smooth: Tensor) -> Tensor:
        """The next features.

        Args:
            h: (n_atoms, F).
            start: (n_atoms, F), the features that the elements start from.
            messages: (n_atoms, K, F).
            smooth: (n_atoms, K, 1), by how much a pair counts; zero from the cutoff on.

        Returns:
            (n_atoms, F).
        """
        heard = (messages * smooth).sum(1) * self.average_neighbors**-0.5
        updated: Tensor = h + self.out(self.response(h, heard, start))
        return updated


class Layer(MessagePassing):
    """One equivariant graph convolutional layer, with or without velocities.

    What `MessagePassing` says, and

    x_i' = x_i + C sum_j (x_i - x_j) φ_x(m_ij)                  (4)

    and with velocities, in place of (4),

    v_i' = φ_v(h_i) v_i + C sum_j (x_i - x_j) φ_x(m_ij)         (7)
    x_i' = x_i + v_i'
    """

    def __init__(
        self,
        features: int,
        radial: int,
        attributes: int,
        cutoff: float,
        average_neighbors: float,
        velocities: bool = False,
    ) -> None:
        """Builds a layer with random weights.

        Args:
            features: see `MessagePassing`.
            radial: see `MessagePassing`.
            attributes: see `MessagePassing`.
            cutoff: see `MessagePassing`.
            average_neighbors: one over C.
            velocities: whether atoms have velocities.
        """
        super().__init__(features, radial, attributes, cutoff, average_neighbors)
        self.keep = _to_one_number(features) if velocities else None  # φ_v

    def forward(
        self,
        h: Tensor,
        start: Tensor,
        velocity: Tensor | None,
        r: Tensor,
        attributes: Tensor,
        smooth: Tensor,
        neighbors: Neighbors,
    ) -> tuple[Tensor, Tensor]:
        """The next features, and how far each atom moves.

        Args:
            h: (n_atoms, F).
            start: (n_atoms, F), the features that the elements start from.
            velocity: (n_atoms, 3) for a layer with velocities, else None.
            r: (n_atoms, K, 3) Å, vectors to the neighbors where this layer finds them.
            attributes: (n_atoms, K, A), what else is known of the pairs.
            smooth: (n_atoms, K, 1), by how much a pair counts; zero from the cutoff on.
            neighbors: the pairs.

        Returns:
            (n_atoms, F), and (n_atoms, 3) x' - x, which is the next velocity where there are any.
        """
        known = torch.cat([self.basis(distances(r)), attributes], -1)
        messages = self.messages(h, known, neighbors)  # (n_atoms, K, F)
        # x_i - x_j is -r.
        move = -(self.push(messages) * smooth * r).sum(1) / self.average_neighbors
        if self.keep is not None:
            move = move + self.keep(h) * velocity
        return self.update(h, start, messages, smooth), move


def _to_one_number(features: int) -> nn.Sequential:
    """A small network from the features of something to a number."""
    return nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 1))
