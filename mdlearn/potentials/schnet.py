"""SchNet: continuous-filter convolutions on distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.network import Network, Representation, Settings, Size
from mdlearn.potentials.pairs import GaussianBasis, envelope, gather


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

    def filter(self, basis: Tensor) -> Tensor:
        """Functions of distances (..., radial) -> filters (..., F)."""
        filters: Tensor = self.filter_out(shifted_softplus(self.filter_in(basis)))
        return filters

    def hear(self, basis: Tensor, smooth: Tensor, neighbors: Neighbors, said: Tensor) -> Tensor:
        """What atoms hear (n_atoms, F) of what all say (n_atoms, F): eq. 2."""
        filters = self.filter(basis) * smooth  # (n_atoms, K, F)
        heard: Tensor = (filters * gather(said, neighbors)).sum(1) * self.norm
        return heard

    def forward(self, h: Tensor, hear: Callable[[Tensor], Tensor]) -> Tensor:
        """Features (n_atoms, F) -> their change (n_atoms, F), zero without neighbors.

        Args:
            h: the features.
            hear: what atoms hear (n_atoms, F), if all of them say something (n_atoms, F).
        """
        messages = hear(self.before(h))
        # Repeated, because functions of arrays of different shapes can differ in the last bit.
        bias = self.hidden.bias.repeat(len(messages), 1)  # (n_atoms, F)
        # Without neighbors the bias alone would still change the features; its share is taken out.
        hidden = shifted_softplus(self.hidden(messages)) - shifted_softplus(bias)
        change: Tensor = self.after(hidden)
        return change


class SchNet(Network):
    """An E(3)-invariant network that sees nothing but distances.

    Schütt et al., "SchNet: A continuous-filter convolutional neural network for modeling quantum
    interactions", NeurIPS 2017 (arXiv:1706.08566). Each atom carries features; an interaction
    convolves those of the neighbors with filters generated from the distance and adds the result to
    the atom's own; the energy of an atom is read off its last features.

    Different here: filters carry an envelope with two continuous derivatives; sums over neighbors
    are divided by the square root of their average number; and the energy is read off what the
    interactions changed (with a bias for each element), so that an isolated atom has its own.
    """

    sizes: ClassVar[Mapping[str, Size]] = {
        "small": Size(64, 3, 25),
        "medium": Size(128, 3, 50),
        "large": Size(128, 6, 50),
    }
    learning_rate: ClassVar[float] = 5e-3

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Builds the network with random weights; see `Network`."""
        features = settings.features
        super().__init__(species, reference_energies, settings)
        self.add_heads(scalars=features)
        self.embedding = nn.Parameter(torch.randn(len(species), features))
        self.basis = GaussianBasis(settings.radial, settings.cutoff)
        self.interactions = nn.ModuleList(
            Interaction(features, settings.radial, settings.average_neighbors)
            for _ in range(settings.interactions)
        )
        for layer in self.interactions.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def represent(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Representation:
        """What the interactions changed in the features of each atom; see `Network`."""
        start = self.embedding[index]  # (n_atoms, F)
        h = start
        ears = self.listen(r, distance, neighbors)
        for interaction, hear in zip(self.interactions, ears, strict=True):
            h = h + interaction(h, hear)
        return Representation(h - start)

    def listen(
        self, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> list[Callable[[Tensor], Tensor]]:
        """For each layer, what atoms hear of what all say; see `Interaction.hear`."""
        basis = self.basis(distance)  # (n_atoms, K, radial)
        smooth = envelope(distance, self.cutoff)[..., None]  # (n_atoms, K, 1)
        layers = [each for each in self.interactions if isinstance(each, Interaction)]
        return [partial(each.hear, basis, smooth, neighbors) for each in layers]
