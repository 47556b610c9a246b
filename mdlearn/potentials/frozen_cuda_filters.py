"""SchNet and PaiNN frozen for a GPU: filters from tables, messages fused, the rest as it is."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from mdlearn.neighbors import Neighbors, pair_vectors
from mdlearn.potentials.evaluate import assemble, differentiate
from mdlearn.potentials.frozen_cuda import SLOT, THREADS, FrozenOnGPU, blocks_of, run, share
from mdlearn.potentials.frozen_painn import painn_filters
from mdlearn.potentials.frozen_schnet import schnet_filters
from mdlearn.potentials.kernels import triton_filters as kernel
from mdlearn.potentials.kernels.spline import ROWS
from mdlearn.potentials.painn import Message, PaiNN
from mdlearn.potentials.pairs import ChebyshevBasis
from mdlearn.potentials.schnet import Interaction, SchNet
from mdlearn.system import Evaluation, System

WORDS = {1: 1, 2: 2, 3: 5}
"""How many times F numbers an atom says, by sets of filters; see `triton_filters`."""
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
    """(N, K, 12), likewise."""


class Filters(NamedTuple):
    """Those of one layer."""

    table: Tensor
    """(rows, G F)"""
    sets: int
    """G."""


class FrozenFiltersOnGPU(FrozenOnGPU):
    """SchNet or PaiNN, whose layers between messages are torch's, and so are their derivatives."""

    def __init__(self, network: SchNet | PaiNN) -> None:
        """Takes over the network's weights, in its precision, where they are."""
        super().__init__()
        self.cutoff, self.species = network.cutoff, network.species
        self.network = copy.deepcopy(network).requires_grad_(False)
        like, layers = network.wall.start, network.settings.interactions
        if isinstance(network, PaiNN):
            rows, sets, self.crowding = painn_filters(network), 3, 1.0 / ChebyshevBasis.stretch
        else:
            rows, sets, self.crowding = schnet_filters(network), 1, 0.0
        table = torch.tensor(rows, dtype=like.dtype, device=like.device)
        self.filters = [Filters(each.contiguous(), sets) for each in table.chunk(layers, 1)]
        if sets == 3:  # at first there are no vectors to be said
            first = self.filters[0].table[:, : 2 * network.settings.features]
            self.filters[0] = Filters(first.contiguous(), 2)

    def room(self, n_atoms: int, capacity: int) -> None:
        """See `FrozenOnGPU`. Autograd finds room for itself."""

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`. The list is copied to where recordings read it: of this, and of a step."""
        settings, size = self.network.settings, self.network.wall.start.element_size()
        words = max(WORDS[each.sets] for each in self.filters)
        of_layer = settings.features * (OF_FEATURE + 2 * words) * size
        of_slot = EXACT + NUMBERS * size + 2 * SLOT
        return n_atoms * (capacity * of_slot + settings.interactions * of_layer)

    def launch(self, work: Any, system: System, neighbors: Neighbors) -> Evaluation:
        """See `FrozenOnGPU`."""
        r = pair_vectors(system, neighbors).detach()
        energies, g = differentiate(self._energies, system.numbers, r, neighbors)
        return Evaluation(*(each.detach() for each in assemble(system, neighbors, r, energies, g)))

    def _energies(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> Tensor:
        """What the network gives; see `ParametricPotential.forward`."""
        network = self.network
        index, r, distance = network.geometry(numbers, r)
        scalars = self._represent(index, self._approach(r, distance, neighbors))
        energy: Tensor = network.settings.scale * network.energy_head(scalars, index)
        energy = energy + network.wall(index, distance, neighbors)
        return network.elements.reference_energies(index) + energy.double()

    def _approach(self, r: Tensor, distance: Tensor, neighbors: Neighbors) -> Pairs:
        places = torch.empty_like(distance, dtype=torch.int32)
        blends = distance.new_empty(*distance.shape, 2 * ROWS)
        run(
            kernel.approach,
            blocks_of(distance.numel(), THREADS),
            distance.detach(),
            places,
            blends,
            distance.numel(),
            self.cutoff,
            self.crowding,
            len(self.filters[0].table) - (ROWS - 1),
            THREADS,
        )
        return Pairs(distance, r / distance[..., None], neighbors.j, places, blends)

    def _represent(self, index: Tensor, pairs: Pairs) -> Tensor:
        """What layers change in the features of each atom, (N, F)."""
        network = self.network
        start: Tensor = network.embedding[index]
        if isinstance(network, SchNet):
            h = start
            for each, filters in zip(network.interactions, self.filters, strict=True):
                interaction = cast("Interaction", each)
                h = h + interaction.respond(hear(interaction.before(h), pairs, filters))
            return h - start
        s, v = start, None
        layers = zip(network.messages, network.updates, self.filters, strict=True)
        for message, update, filters in layers:
            said = cast("Message", message).speak(s, v)
            heard = hear(said, pairs, filters).view(len(s), 4, -1)
            dv = heard[:, 1:]
            s, v = update(s + heard[:, 0], dv if v is None else v + dv, start)
        return s - start


def hear(said: Tensor, pairs: Pairs, filters: Filters) -> Tensor:
    """What atoms hear from their neighbors; see `triton_filters`.

    Args:
        said: (N, F, 2F or 5F).
        pairs: the pairs.
        filters: of the layer.

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
