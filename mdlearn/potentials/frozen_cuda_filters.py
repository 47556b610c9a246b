"""SchNet and PaiNN frozen for a GPU: pairs and messages in kernels, and the rest as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mdlearn.neighbors import Neighbors
from mdlearn.potentials.frozen_cuda import (
    SLOT,
    FrozenOnGPU,
    collect,
    crew,
    power_of_two,
    run,
)
from mdlearn.potentials.frozen_painn import painn_filters
from mdlearn.potentials.frozen_schnet import schnet_filters
from mdlearn.potentials.kernels import triton_filters as kernel
from mdlearn.potentials.kernels import triton_geometry as geometry
from mdlearn.potentials.kernels.spline import ROWS
from mdlearn.potentials.network import Representation
from mdlearn.potentials.painn import PaiNN
from mdlearn.potentials.pairs import ChebyshevBasis
from mdlearn.potentials.schnet import Interaction, SchNet
from mdlearn.potentials.wall import STIFFNESS
from mdlearn.system import Evaluation, System

WORDS = {1: 1, 2: 2, 3: 5}
"""How many times F numbers an atom says, by sets of filters; see `triton_filters`."""
SLICE = 64
"""Features of a slice, see `triton_filters`: of 250 rows, 64 kB for each set of filters."""
NUMBERS = 4
"""That a thread has of what stands in a row: they come from memory together."""
CROWDING = 1.0 / ChebyshevBasis.stretch
"""Of the knots of PaiNN's filters, see `triton_filters.approach`."""
OF_FEATURE = 24
"""Numbers of an atom that are kept for each feature of a layer, about."""


class Room(NamedTuple):
    """What stands between the launches, besides what autograd keeps; axes: `triton_filters`."""

    pairs: Tensor
    """(N, K, 4) float64, directions and distances of neighbors within the cutoff."""
    slots: Tensor
    """(N, K) int32, where they are listed."""
    bounds: Tensor
    """(N, Z + 1) int32, where those of an element begin and end."""
    slope: Tensor
    """(N, K, 3) float64 eV/Å, derivatives of the energy by pair vectors."""
    others: Tensor
    """(N, K) int32, the neighbors."""
    places: Tensor
    """(N, K) int32, where in tables their filters are."""
    blends: Tensor
    """(N, K, 10), how rows of a table are blended."""
    along: Tensor
    """(S, N, K), derivatives by distances, a share for each slice."""
    turning: Tensor
    """(S, N, K, 3), by directions; without slices where nobody asks for these."""
    energies: Tensor
    """(N,) float64 eV, without what the network says."""
    forces: Tensor
    """(N, 3) float64 eV/Å."""
    virials: Tensor
    """(N, 3, 3) float64 eV."""


class Filters(NamedTuple):
    """Those of one layer."""

    table: Tensor
    """(rows, G F)"""
    sets: int
    """G."""


class Ears(NamedTuple):
    """What a network hears with."""

    room: Room
    """In which pairs are known."""
    filters: Sequence[Filters]
    """Of its layers."""
    leaf: Tensor
    """To ask for the derivative by, which is not there: on the way, `Room` is given all."""


class FilteredSchNet(SchNet):
    """SchNet that hears by kernels."""

    ears: Ears
    quiet: list[Tensor]
    """(F,) of each layer: what an atom that hears nothing answers."""

    def represent(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Representation:
        """See `SchNet`; in fewer operations, as no gradient by weights is asked for."""
        start = self.embedding[index]
        h = start
        for layer, filters, quiet in zip(
            self.interactions, self.ears.filters, self.quiet, strict=True
        ):
            assert isinstance(layer, Interaction)
            messages = hear(self.ears, filters, layer.before(h))
            h = torch.addmm(h, softplus(layer.hidden(messages)) - quiet, layer.after.weight.t())
        return Representation(h - start)


class FilteredPaiNN(PaiNN):
    """PaiNN that hears by kernels."""

    ears: Ears

    def listen(
        self, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> list[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """See `PaiNN`."""
        return [partial(hear_both, self.ears, each) for each in self.ears.filters]


class FrozenFiltersOnGPU(FrozenOnGPU):
    """SchNet or PaiNN, whose layers between messages are torch's, and so are their derivatives."""

    def __init__(self, network: SchNet | PaiNN) -> None:
        """Takes over the network's weights, in its precision, where they are."""
        super().__init__()
        self.cutoff, self.species = network.cutoff, network.species
        like, n = network.wall.start, network.settings.features
        kind: type[FilteredSchNet | FilteredPaiNN]
        if isinstance(network, PaiNN):
            kind, rows, sets = FilteredPaiNN, painn_filters(network), 3
        else:
            kind, rows, sets = FilteredSchNet, schnet_filters(network), 1
        table = torch.tensor(rows, dtype=like.dtype, device=like.device)
        tables = table.chunk(network.settings.interactions, 1)
        self.filters = [Filters(each.contiguous(), sets) for each in tables]
        if sets == 3:  # at first there are no vectors to be said
            self.filters[0] = Filters(tables[0][:, : 2 * n].contiguous(), 2)
        self.crowding = CROWDING if sets == 3 else 0.0
        self.network = kind(network.species, network.elements.energies(), network.settings)
        self.network.to(like).load_state_dict(network.state_dict())
        self.network.requires_grad_(False)
        if isinstance(self.network, FilteredSchNet):
            layers = [each for each in self.network.interactions if isinstance(each, Interaction)]
            self.network.quiet = [softplus(each.hidden.bias) for each in layers]
        self.wall = network.wall.start.double()
        self.reference = network.elements.bits.view(torch.float64)

    def room(self, n_atoms: int, capacity: int) -> Room:
        """See `FrozenOnGPU`."""
        exact, like = self.reference, self.filters[0].table
        slices = -(-self.network.settings.features // SLICE)
        turning = slices if self.filters[0].sets > 1 else 0
        slots, others, places = (
            exact.new_zeros(n_atoms, capacity, dtype=torch.int32) for _ in range(3)
        )
        return Room(
            pairs=exact.new_zeros(n_atoms, capacity, 4),
            slots=slots,
            bounds=exact.new_zeros(n_atoms, len(exact) + 1, dtype=torch.int32),
            slope=exact.new_zeros(n_atoms, capacity, 3),
            others=others,
            places=places,
            blends=like.new_zeros(n_atoms, capacity, 2 * ROWS),
            along=like.new_zeros(slices, n_atoms, capacity),
            turning=like.new_zeros(turning, n_atoms, capacity, 3),
            energies=exact.new_zeros(n_atoms),
            forces=exact.new_zeros(n_atoms, 3),
            virials=exact.new_zeros(n_atoms, 3, 3),
        )

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`. The list is copied to where recordings read it: of this, and of a step."""
        settings, size = self.network.settings, self.filters[0].table.element_size()
        words = max(WORDS[each.sets] for each in self.filters)
        of_layer = settings.features * (OF_FEATURE + 2 * words) * size
        of_atom = sum(each.nbytes for each in self.room(1, capacity))
        of_atom += settings.interactions * of_layer
        return n_atoms * (of_atom + 2 * capacity * SLOT)

    def launch(self, work: Room, system: System, neighbors: Neighbors) -> Evaluation:
        """See `FrozenOnGPU`."""
        index = self.network.elements.index(system.numbers)
        self._look(work, system, index, neighbors)
        leaf = self.filters[0].table.new_zeros(()).requires_grad_()
        self.network.ears = Ears(work, self.filters, leaf)
        with torch.enable_grad():
            said = self.network.interaction(index, leaf, leaf, neighbors)
            torch.autograd.grad(said, leaf, torch.ones_like(said), allow_unused=True)
        self._turn(work)
        return collect(work, work.energies + said.detach(), system, neighbors)

    def _look(self, work: Room, system: System, index: Tensor, neighbors: Neighbors) -> None:
        """Who is near whom, and what all layers know of it."""
        n_atoms, capacity = neighbors.j.shape
        row = power_of_two(capacity)
        run(
            geometry.look,
            (n_atoms,),
            system.positions,
            system.cell,
            system.system,
            index,
            neighbors.j,
            neighbors.shift,
            neighbors.valid,
            self.wall,
            self.reference,  # of no radial functions there are no weights
            self.reference,
            work.pairs,
            work.blends,  # nor values
            work.slots,
            work.bounds,
            work.slope,
            work.energies,
            capacity,
            self.cutoff,
            1.0,
            1.0,
            STIFFNESS,
            0,
            len(self.species),
            row,
        )
        run(
            kernel.approach,
            (n_atoms,),
            work.pairs,
            work.slots,
            work.bounds,
            neighbors.j,
            work.others,
            work.places,
            work.blends,
            work.along,
            work.turning,
            n_atoms,
            capacity,
            self.cutoff,
            self.crowding,
            len(self.filters[0].table) - ROWS,
            len(self.species),
            len(work.along),
            len(work.turning) > 0,
            row,
        )

    def _turn(self, work: Room) -> None:
        """From derivatives by distances and directions to those by pair vectors."""
        n_atoms, capacity = work.slots.shape
        run(
            kernel.conclude,
            (n_atoms,),
            work.pairs,
            work.slots,
            work.bounds,
            work.along,
            work.turning,
            work.slope,
            n_atoms,
            capacity,
            len(self.species),
            len(work.along),
            len(work.turning) > 0,
            power_of_two(capacity),
        )


def hear_both(ears: Ears, filters: Filters, said: Tensor) -> tuple[Tensor, Tensor]:
    """Changes of scalars (N, F) and of vectors (N, 3, F); see `hear`."""
    heard = hear(ears, filters, said).view(len(said), 4, -1)
    return heard[:, 0], heard[:, 1:]


def hear(ears: Ears, filters: Filters, said: Tensor) -> Tensor:
    """What atoms hear from their neighbors; see `triton_filters`.

    Args:
        ears: of the network.
        filters: of the layer.
        said: (N, F, 2F or 5F).

    Returns:
        (N, F or 4F).
    """
    apply: Any = _Hear.apply
    heard: Tensor = apply(said, ears.leaf, ears.room, filters)
    return heard


class _Hear(torch.autograd.Function):
    """Differentiable once, which is all that a frozen network is asked for."""

    @staticmethod
    def forward(ctx: Any, said: Tensor, leaf: Tensor, room: Room, filters: Filters) -> Tensor:
        said, features = said.contiguous(), filters.table.shape[1] // filters.sets
        n_atoms, capacity = room.slots.shape
        heard = said.new_empty(n_atoms, features * (1 if filters.sets == 1 else 4))
        blocks, threads = crew(n_atoms, min(SLICE, features), NUMBERS)
        ctx.room, ctx.programs = room, (blocks, len(room.along))
        known = (room.pairs, room.bounds, room.others, room.places, room.blends)
        ctx.given = (*known, filters.table, said)
        ctx.shape = (n_atoms, capacity, room.bounds.shape[1] - 1, features)
        ctx.shape += (filters.sets, WORDS[filters.sets], *threads)
        run(kernel.hear, ctx.programs, *ctx.given, heard, *ctx.shape)
        return heard

    @staticmethod
    def backward(ctx: Any, to_heard: Tensor) -> tuple[Tensor | None, ...]:
        to_said = torch.empty_like(ctx.given[-1])
        results = (to_heard.contiguous(), to_said, ctx.room.along, ctx.room.turning)
        run(kernel.hear_back, ctx.programs, *ctx.given, *results, *ctx.shape)
        return to_said, None, None, None
