"""PaiNN: messages of scalars and vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.network import Network, Representation, Settings, Size
from mdlearn.potentials.pairs import ChebyshevBasis, envelope, gather
from mdlearn.potentials.response import Response

SOFTNESS = 0.1
"""Below which the length of a vector is counted as its square."""


class PaiNN(Network):
    """An equivariant network whose atoms carry scalars s and vectors v, and pass both on.

    K. T. Schütt, O. T. Unke, M. Gastegger, "Equivariant message passing for the prediction of
    tensorial properties and molecular spectra", ICML 2021 (arXiv:2102.03150). The first vectors are
    sums of directions to neighbors; lengths and scalar products of vectors turn what they say about
    angles into scalars. The energy of an atom is read off its last scalars.

    Different here: filters carry an envelope with two continuous derivatives, on Chebyshev
    polynomials of the distance; sums over neighbors are divided by the square root of their average
    number; lengths of vectors are smooth at zero; and what an update does to an isolated atom is
    taken out of it, so that such an atom has its own energy.
    """

    sizes: ClassVar[Mapping[str, Size]] = {
        "small": Size(32, 2, 12),
        "medium": Size(64, 3, 16),
        "large": Size(128, 3, 20),
    }
    learning_rate: ClassVar[float] = 1e-2

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: Mapping[int, float],
        settings: Settings,
    ) -> None:
        """Builds the network with random weights; see `Network`."""
        features, layers = settings.features, settings.interactions
        super().__init__(species, reference_energies, settings)
        self.add_heads(scalars=features, vectors=features)
        self.embedding = nn.Parameter(torch.randn(len(species), features))
        self.basis = ChebyshevBasis(settings.radial, settings.cutoff)
        self.messages = nn.ModuleList(
            Message(features, settings.radial, settings.average_neighbors) for _ in range(layers)
        )
        self.updates = nn.ModuleList(Update(features) for _ in range(layers))

    def represent(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Representation:
        """What the layers changed in the scalars, and the last vectors; see `Network`."""
        start = self.embedding[index]  # (n_atoms, F)
        s, v = start, None
        ears = self.listen(r, distance, neighbors)
        for message, hear, update in zip(self.messages, ears, self.updates, strict=True):
            ds, dv = hear(message(s, v))
            s, v = update(s + ds, dv if v is None else v + dv, start)
        return Representation(s - start, v)

    def listen(
        self, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> list[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """For each layer, what atoms hear of what all say; see `Message.hear`."""
        basis = self.basis(distance) * envelope(distance, self.cutoff)[..., None]  # (n_atoms, K, B)
        direction = r / distance[..., None]  # (n_atoms, K, 3)
        layers = [each for each in self.messages if isinstance(each, Message)]
        return [partial(each.hear, basis, direction, neighbors) for each in layers]


class Message(nn.Module):
    """What atoms hear from their neighbors (figure 2b).

    Δs[n] = sum_k φ_s(s_j) W_s(r_k)
    Δv[n] = sum_k φ_vs(s_j) W_vs(r_k) r_k/|r_k| + sum_k v_j φ_vv(s_j) W_vv(r_k)
    """

    def __init__(self, features: int, radial: int, average_neighbors: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, features)
        self.out = nn.Linear(features, 3 * features)
        self.filters = nn.Linear(radial, 3 * features, bias=False)
        self.norm = average_neighbors**-0.5

    def forward(self, s: Tensor, v: Tensor | None) -> Tensor:
        """What atoms say to all their neighbors: φ_s, φ_vs, and v φ_vv if there are vectors.

        An atom multiplies its vectors before it speaks, so that one gather serves all.

        Args:
            s: (n_atoms, F).
            v: (n_atoms, 3, F), or None.

        Returns:
            (n_atoms, 2F or 5F).
        """
        spoken = self.out(silu(self.hidden(s))).chunk(3, -1)  # (n_atoms, F) each
        axes = () if v is None else (v * spoken[2][:, None]).unbind(1)
        return torch.cat([*spoken[:2], *axes], -1)

    def hear(
        self, basis: Tensor, direction: Tensor, neighbors: Neighbors, said: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What atoms hear of what all say.

        Args:
            basis: (n_atoms, K, B) of the distances, zero at the cutoff.
            direction: (n_atoms, K, 3), unit vectors to the neighbors.
            neighbors: the pairs.
            said: (n_atoms, 2F or 5F).

        Returns:
            Changes of scalars (n_atoms, F), and of vectors (n_atoms, 3, F).
        """
        filters = self.filters(basis).chunk(3, -1)  # (n_atoms, K, F) each
        width = filters[0].shape[-1]
        to_s, to_v, *axes = gather(said, neighbors).split(width, -1)  # (n_atoms, K, F) each
        ds = (to_s * filters[0]).sum(1)
        dv = torch.bmm(direction.transpose(1, 2), to_v * filters[1])  # (n_atoms, 3, F)
        if axes:
            dv = dv + torch.stack([(each * filters[2]).sum(1) for each in axes], 1)
        return self.norm * ds, self.norm * dv


class Update(nn.Module):
    """How the scalars and vectors of one atom mix (figure 2c).

    Δs = a_ss + a_sv (U v · V v)
    Δv = a_vv U v
    where the a are functions of s and |V v|.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mix = nn.Linear(features, 2 * features, bias=False)
        self.response = Response(features, features)
        self.scalars = nn.Linear(features, features, bias=False)
        self.gates = nn.Linear(features, 2 * features)

    def forward(self, s: Tensor, v: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Updated scalars and vectors.

        Args:
            s: (n_atoms, F).
            v: (n_atoms, 3, F).
            start: (n_atoms, F), the scalars that the elements start from.

        Returns:
            (n_atoms, F) and (n_atoms, 3, F).
        """
        one, other = self.mix(v).chunk(2, -1)  # U v and V v
        response = self.response(s, soft_length(other), start)
        to_s, to_v = self.gates(response).chunk(2, -1)  # a_sv and a_vv
        s = s + self.scalars(response) + to_s * (one * other).sum(1)
        return s, v + to_v[:, None] * one


def soft_length(v: Tensor) -> Tensor:
    """Lengths of vectors, smooth where they vanish: √(|v|² + δ²) - δ with δ = `SOFTNESS`.

    Args:
        v: (n_atoms, 3, F).

    Returns:
        (n_atoms, F), exactly zero where v is.
    """
    square = v.square().sum(1)
    # Written without the difference, which would lose digits of short vectors.
    return square / ((square + SOFTNESS**2).sqrt() + SOFTNESS)
