"""SchNet and PaiNN frozen for a GPU: filters from tables, messages fused, the rest as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.frozen_cuda import SLOT, THREADS, FrozenOnGPU, blocks_of, run, share
from mdlearn.potentials.frozen_painn import painn_filters
from mdlearn.potentials.frozen_schnet import schnet_filters
from mdlearn.potentials.kernels import triton_filters as kernel
from mdlearn.potentials.kernels.spline import ROWS
from mdlearn.potentials.painn import PaiNN
from mdlearn.potentials.pairs import ChebyshevBasis
from mdlearn.potentials.schnet import SchNet
from mdlearn.system import Evaluation, System

WORDS = {1: 1, 2: 2, 3: 5}
"""How many times F numbers an atom says, by sets of filters; see `triton_filters`."""
CROWDING = 1.0 / ChebyshevBasis.stretch
"""Of the knots of PaiNN's filters, see `triton_filters.approach`."""
EXACT = 240
"""Bytes of a slot of what is float64 in an evaluation: vectors, translations, derivatives."""
NUMBERS = 60
"""In the precision of the network: distances, directions, blends, and their derivatives."""
OF_FEATURE = 24
"""Numbers of an atom that are kept for each feature of a layer, about."""


class Pairs(NamedTuple):
    """What all layers know of pairs."""

    distance: Tensor
    """(N, K) Å."""
    direction: Tensor
    """(N, K, 3), unit vectors to the neighbors."""
    j: Tensor
    """(N, K) as in `Neighbors`."""
    places: Tensor
    """(N, K) int32, see `triton_filters.approach`."""
    blends: Tensor
    """(N, K, 10), likewise."""


class Filters(NamedTuple):
    """Those of one layer."""

    table: Tensor
    """(rows, G F)"""
    sets: int
    """G."""


class Listening(NamedTuple):
    """How a network hears."""

    filters: Sequence[Filters]
    """Of its layers."""
    crowding: float
    """See `triton_filters.approach`."""


class FilteredSchNet(SchNet):
    """SchNet that hears by kernels."""

    listening: Listening

    def listen(
        self, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> list[Callable[[Tensor], Tensor]]:
        """See `SchNet`."""
        pairs = approach(r, distance, neighbors, self.cutoff, self.listening)
        return [partial(hear, pairs, each) for each in self.listening.filters]


class FilteredPaiNN(PaiNN):
    """PaiNN that hears by kernels."""

    listening: Listening

    def listen(
        self, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> list[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """See `PaiNN`."""
        pairs = approach(r, distance, neighbors, self.cutoff, self.listening)
        return [partial(hear_both, pairs, each) for each in self.listening.filters]


class FrozenFiltersOnGPU(FrozenOnGPU):
    """SchNet or PaiNN, whose layers between messages are torch's, and so are their derivatives."""

    def __init__(self, network: SchNet | PaiNN) -> None:
        """Takes over the network's weights, in its precision, where they are."""
        super().__init__()
        self.cutoff, self.species = network.cutoff, network.species
        like, n = network.wall.start, network.settings.features
        kind: type[FilteredSchNet | FilteredPaiNN]
        if isinstance(network, PaiNN):
            kind, rows, sets, crowding = FilteredPaiNN, painn_filters(network), 3, CROWDING
        else:
            kind, rows, sets, crowding = FilteredSchNet, schnet_filters(network), 1, 0.0
        table = torch.tensor(rows, dtype=like.dtype, device=like.device)
        tables = table.chunk(network.settings.interactions, 1)
        filters = [Filters(each.contiguous(), sets) for each in tables]
        if sets == 3:  # at first there are no vectors to be said
            filters[0] = Filters(tables[0][:, : 2 * n].contiguous(), 2)
        self.network = kind(network.species, network.elements.energies(), network.settings)
        self.network.to(like).load_state_dict(network.state_dict())
        self.network.requires_grad_(False).listening = Listening(filters, crowding)

    def room(self, n_atoms: int, capacity: int) -> None:
        """See `FrozenOnGPU`. Autograd finds room for itself."""

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`. The list is copied to where recordings read it: of this, and of a step."""
        settings, size = self.network.settings, self.network.wall.start.element_size()
        words = max(WORDS[each.sets] for each in self.network.listening.filters)
        of_layer = settings.features * (OF_FEATURE + 2 * words) * size
        of_slot = EXACT + NUMBERS * size + 2 * SLOT
        return n_atoms * (capacity * of_slot + settings.interactions * of_layer)

    def launch(self, work: Any, system: System, neighbors: Neighbors) -> Evaluation:
        """See `FrozenOnGPU`."""
        return evaluate(self.network, system, neighbors)


def approach(
    r: Tensor, distance: Tensor, neighbors: Neighbors, cutoff: float, listening: Listening
) -> Pairs:
    """How filters are blended for each pair; see `triton_filters.approach`."""
    places = torch.empty_like(distance, dtype=torch.int32)
    blends = distance.new_empty(*distance.shape, 2 * ROWS)
    run(
        kernel.approach,
        blocks_of(distance.numel(), THREADS),
        distance.detach(),
        places,
        blends,
        distance.numel(),
        cutoff,
        listening.crowding,
        len(listening.filters[0].table) - ROWS,
        THREADS,
    )
    return Pairs(distance, r / distance[..., None], neighbors.j, places, blends)


def hear_both(pairs: Pairs, filters: Filters, said: Tensor) -> tuple[Tensor, Tensor]:
    """Changes of scalars (N, F) and of vectors (N, 3, F); see `hear`."""
    heard = hear(pairs, filters, said).view(len(said), 4, -1)
    return heard[:, 0], heard[:, 1:]


def hear(pairs: Pairs, filters: Filters, said: Tensor) -> Tensor:
    """What atoms hear from their neighbors; see `triton_filters`.

    Args:
        pairs: the pairs.
        filters: of the layer.
        said: (N, F, 2F or 5F).

    Returns:
        (N, F or 4F).
    """
    apply: Any = _Hear.apply
    heard: Tensor = apply(said, pairs.distance, pairs.direction, pairs, filters)
    return heard


class _Hear(torch.autograd.Function):
    """Differentiable once, which is all that a frozen network is asked for."""

    @staticmethod
    def forward(
        ctx: Any, said: Tensor, distance: Tensor, direction: Tensor, pairs: Pairs, filters: Filters
    ) -> Tensor:
        said, features = said.contiguous(), filters.table.shape[1] // filters.sets
        heard = said.new_empty(len(said), features * (1 if filters.sets == 1 else 4))
        programs, threads = share(len(said), features)
        ctx.given = (pairs.j, pairs.places, pairs.blends, direction, filters.table, said)
        ctx.shape = (*pairs.j.shape, features, filters.sets, WORDS[filters.sets], *threads)
        run(kernel.hear, (programs,), *ctx.given, heard, *ctx.shape)
        return heard

    @staticmethod
    def backward(ctx: Any, to_heard: Tensor) -> tuple[Tensor | None, ...]:
        _, _, blends, direction, _, said = ctx.given
        n_atoms, capacity, features, sets, *_ = ctx.shape
        to_said, to_distance = torch.empty_like(said), blends.new_empty(n_atoms, capacity)
        to_direction = torch.empty_like(direction)
        results = (to_heard.contiguous(), to_said, to_distance, to_direction)
        run(kernel.hear_back, (share(n_atoms, features)[0],), *ctx.given, *results, *ctx.shape)
        # With one set of filters nobody has asked where a neighbor is.
        return to_said, to_distance, None if sets == 1 else to_direction, None, None
