"""SchNet: continuous-filter convolutions on distances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.elements import Elements
from mdlearn.potentials.pairs import GaussianBasis, distances, envelope, gather
from mdlearn.potentials.wall import Wall


def shifted_softplus(x: Tensor) -> Tensor:
    """The smooth activation of SchNet, ln(½eˣ + ½); zero at zero (section 4.1)."""
    return softplus(x) - math.log(2.0)


class Interaction(nn.Module):
    """One continuous-filter convolution and the atom-wise layers after it (figure 2)."""

    def __init__(self, features: int, radial: int, average_neighbors: float) -> None:
        super().__init__()
        self.filter_in = nn.Linear(radial, features)
        self.filter_out = nn.Linear(features, features)
        self.before = nn.Linear(features, features, bias=False)
        self.hidden = nn.Linear(features, features)
        self.after = nn.Linear(features, features, bias=False)
        self.norm = average_neighbors**-0.5

    def forward(self, h: Tensor, basis: Tensor, smooth: Tensor, neighbors: Neighbors) -> Tensor:
        """Features (n_atoms, F) -> their change (n_atoms, F), zero without neighbors."""
        filters = (
            self.filter_out(shifted_softplus(self.filter_in(basis))) * smooth
        )  # (n_atoms, K, F)
        messages = (filters * gather(self.before(h), neighbors)).sum(1) * self.norm  # eq. 2
        # Repeated, because functions of arrays of different shapes can differ in the last bit.
        bias = self.hidden.bias.repeat(len(messages), 1)  # (n_atoms, F)
        # Without neighbors the bias alone would still change the features; its share is taken out.
        hidden = shifted_softplus(self.hidden(messages)) - shifted_softplus(bias)
        change: Tensor = self.after(hidden)
        return change


class SchNet(nn.Module):
    """An E(3)-invariant network that sees nothing but distances.

    Schütt et al., "SchNet: A continuous-filter convolutional neural network for modeling quantum
    interactions", NeurIPS 2017 (arXiv:1706.08566). Each atom carries features; an interaction
    convolves those of the neighbors with filters generated from the distance and adds the result to
    the atom's own; the energy of an atom is read off its last features.

    Different here: filters carry an envelope with two continuous derivatives; sums over neighbors
    are divided by the square root of their average number; and the energy is measured from that of
    the isolated atom, which comes out exactly.
    """

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        *,
        cutoff: float,
        features: int,
        interactions: int,
        radial: int,
        average_neighbors: float,
        scale: float,
        closest: Sequence[tuple[int, int, float]] = (),
    ) -> None:
        """Builds the network with random weights.

        Args:
            species: atomic numbers that it can be asked about.
            reference_energies: energy of the isolated atom of each species, eV.
            cutoff: Å, beyond which atoms do not see each other.
            features: F, width of the atomic features.
            interactions: number of interaction blocks.
            radial: number of Gaussians between zero and the cutoff.
            average_neighbors: neighbors within the cutoff, averaged over the training atoms.
            scale: eV that an output of one stands for.
            closest: where the `Wall` of each pair of elements begins, Å.
        """
        super().__init__()
        self.cutoff = cutoff
        self.species = species
        self.scale = scale
        self.settings: dict[str, Any] = {
            "cutoff": cutoff,
            "features": features,
            "interactions": interactions,
            "radial": radial,
            "average_neighbors": average_neighbors,
            "scale": scale,
            "closest": [list(each) for each in closest],
        }
        self.elements = Elements(species, reference_energies)
        self.wall = Wall(species, closest)
        self.embedding = nn.Parameter(torch.randn(len(species), features))
        self.basis = GaussianBasis(radial, cutoff)
        self.interactions = nn.ModuleList(
            Interaction(features, radial, average_neighbors) for _ in range(interactions)
        )
        self.readout = nn.Sequential(
            nn.Linear(features, features // 2), nn.Linear(features // 2, 1)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> Tensor:
        """Atomic energies.

        Args:
            numbers: (n_atoms,) atomic numbers.
            r: (n_atoms, K, 3) Å, pair vectors, in any precision; the network's own is used inside.
            neighbors: the pairs.

        Returns:
            (n_atoms,) float64 eV.
        """
        index = self.elements.index(numbers)
        distance = distances(r.to(self.embedding.dtype))  # (n_atoms, K)
        basis = self.basis(distance)  # (n_atoms, K, radial)
        smooth = envelope(distance, self.cutoff)[..., None]  # (n_atoms, K, 1)

        h = self.embedding[index]  # (n_atoms, F)
        for interaction in self.interactions:
            h = h + interaction(h, basis, smooth, neighbors)

        energy = self._read(h) - self._read(self.embedding[index])  # (n_atoms,)
        wall: Tensor = self.wall(index, distance, neighbors)
        energy = self.scale * energy + wall
        return self.elements.reference_energies(index) + energy.double()

    def _read(self, h: Tensor) -> Tensor:
        hidden, out = self.readout
        energy: Tensor = out(shifted_softplus(hidden(h)))
        return energy.squeeze(-1)
