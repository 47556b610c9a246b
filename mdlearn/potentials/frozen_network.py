"""What networks have in common when they are frozen: stages of loops over blocks of atoms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdlearn.jit import HELPER, place_of
from mdlearn.lanes import WIDTH, aligned, zeros
from mdlearn.matrices import packed
from mdlearn.meeting import Meeting, give_up, meeting_of, shared_by
from mdlearn.neighbors import Neighbors
from mdlearn.potentials.beforehand import begin
from mdlearn.potentials.evaluate import Frozen
from mdlearn.potentials.kernels.atoms import Inputs, total
from mdlearn.potentials.kernels.motion import Found, Motion, arrive, depart, rest
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.sweep import sweep
from mdlearn.potentials.network import Network
from mdlearn.potentials.threads import Team
from mdlearn.potentials.wall import STIFFNESS
from mdlearn.system import Evaluation, System
from mdlearn.words import Words, forms_of, kind_of

BLOCK = 16
"""Atoms whose linear maps are one matrix product, and that one thread takes at a time, at most."""
MANY_ATOMS = 32 * BLOCK
"""From which on the room for atoms is the same for each of them."""


class Loops(NamedTuple):
    """What is compiled for networks of one kind."""

    name: str
    """In `ARCHITECTURES`."""
    forward: Any
    """Stages on the way to energies,"""
    backward: Any
    """and from there to forces; both are given a stage and a block, see `kernels.schnet`."""
    turn: int
    """The stage that belongs to both."""
    stages: int
    """How many there are; each needs the one before of all blocks."""


class Seen(NamedTuple):
    """What was looked at last; while its list is in use, most of it stays the same."""

    neighbors: Neighbors
    numbers: Tensor
    inputs: Words[Inputs]


class FrozenNetwork(Frozen):
    """A network in compiled loops."""

    def __init__(
        self,
        network: Network,
        weights: Any,
        room: Callable[[Any, int, int], Any],
        loops: Loops,
    ) -> None:
        """A network as its loops have it.

        Args:
            network: gives elements and cutoff.
            weights: what the loops know of it.
            room: makes a workspace of weights, a number of atoms, and of neighbors of an atom.
            loops: the loops.
        """
        super().__init__()
        self.cutoff = network.cutoff
        self.species = network.species
        self.elements = network.elements
        self.precision = network.wall.start.dtype
        weights = weights._replace(
            hidden=packed(weights.hidden), hidden_back=packed(weights.hidden_back)
        )
        own = [aligned(each) if isinstance(each, np.ndarray) else each for each in weights]
        self.weights, self.room, self.loops = weights._make(own), room, loops
        self.places: tuple[int, int] | None = None
        """Where the loops are in memory, once they are compiled,"""
        self.around = (0, 0)
        """and where those are that move atoms before and after them, once any have moved."""
        self.work: Any = None
        self.known: list[Words[Any]] = []
        """Weights, and what is found in the workspace, as loops have them in memory;"""
        self.rooms: dict[int, Words[Any]] = {}
        """and the workspace, with a scratch for each thread, by the first block it works on."""
        self.rest = Words(rest())
        self.seen: Seen | None = None

    def evaluate(self, system: System, neighbors: Neighbors) -> Evaluation:
        """See `Frozen`."""
        return self.move(system, neighbors, self.rest.value)

    def move(self, system: System, neighbors: Neighbors, motion: Motion) -> Evaluation:
        """Does steps of dynamics on one list; threads share the blocks of atoms.

        Args:
            system: where they start; its positions are overwritten.
            neighbors: its list.
            motion: the steps, and what has come of them.

        Returns:
            The evaluation of the last step; of none that was done, it is without meaning.
        """
        n_atoms, capacity = neighbors.j.shape
        if self.work is None or self.work.slots.shape != (n_atoms, capacity):
            self.work = self.room(self.weights, n_atoms, capacity)
            width = self.work.invariants.shape[1]
            found = Found(width, self.work.energies, self.work.forces)
            self.known, self.rooms = [Words(self.weights), Words(found)], {}
        work, inputs = self.work, self.look(system, neighbors)
        places = self.places = self.places or self._compile(inputs.value)
        weights, results = self.known
        if motion.steps and not self.around[0]:
            # Nobody looks at it later.
            taken = forms_of(arrive)
            assert taken[2:5] == [kind_of(inputs.value), kind_of(results.value), kind_of(motion)]
            self.around = place_of(depart, *taken), place_of(arrive, *taken)
        moves = self.rest if motion is self.rest.value else Words(motion)
        calls = (*places, *self.around)

        def part(blocks: tuple[int, int], meeting: Meeting) -> None:
            room = self.room_of(blocks[0])
            known = (inputs.address, weights.address, room, results.address, moves.address)
            thread = bounds.index(blocks[0])
            stages, turn, steps = self.loops.stages, self.loops.turn, motion.steps
            sweep(stages, thread, shared, turn, calls, known, steps, meeting)

        count = len(work.invariants)
        bounds = self.team.bounds(count)
        shared = shared_by(bounds)
        share_blocks(self.team, count, part)
        of_system, cell = inputs.value.system, inputs.value.cell
        energy, stress = total(of_system, cell, work.energies, work.virials)
        return Evaluation(
            torch.from_numpy(energy),
            torch.from_numpy(work.forces.copy()),
            torch.from_numpy(stress),
            torch.from_numpy(work.energies.copy()),
            torch.from_numpy(work.virials.copy()),
        )

    def room_of(self, first: int) -> int:
        """Where the workspace is in memory for a thread, given the first block it works on."""
        if first not in self.rooms:
            own = [aligned(each) for each in self.work.scratch]
            self.rooms[first] = Words(self.work._replace(scratch=self.work.scratch._make(own)))
        return self.rooms[first].address

    def begin_compiling(self) -> None:
        """See `Frozen`."""
        begin(self.loops.name, str(self.precision).removeprefix("torch."))

    def _compile(self, inputs: Inputs) -> tuple[int, int]:
        """Compiles the loops, or loads them; another process does half of it, if it can."""
        known = [kind_of(each) for each in (inputs, self.weights, self.work)]
        self.begin_compiling()
        forward = place_of(self.loops.forward, 0, 0, *known)
        place_of(sweep, *forms_of(sweep))
        if HELPER.is_at(self.loops.backward):  # there is time for what may not be needed
            place_of(depart, *forms_of(depart))
        return forward, place_of(self.loops.backward, 0, 0, *known)

    def look(self, system: System, neighbors: Neighbors) -> Words[Inputs]:
        """What the loops see; a step of a small system has no time to look at a list again."""
        seen = self.seen
        if seen is None or seen.neighbors is not neighbors or seen.numbers is not system.numbers:
            inputs = as_arrays(system, neighbors, self.elements.index(system.numbers))
            self.seen = Seen(neighbors, system.numbers, Words(inputs))
            return self.seen.inputs
        positions, cell = system.positions.contiguous().numpy(), system.cell.contiguous().numpy()
        seen.inputs.renew(seen.inputs.value._replace(positions=positions, cell=cell), 2)
        return seen.inputs

    def workspace(self, n_atoms: int, capacity: int) -> int:
        """See `Frozen`."""

        def size(n_atoms: int) -> int:
            *shared, _ = self.room(self.weights, n_atoms, capacity)
            return sum(each.nbytes for each in shared)

        if n_atoms <= MANY_ATOMS:
            return size(n_atoms)
        least, step = size(MANY_ATOMS), 2 * BLOCK  # blocks are even in number
        growth = size(MANY_ATOMS + step) - least
        return least + -(-(n_atoms - MANY_ATOMS) // step) * growth


def as_arrays(system: System, neighbors: Neighbors, index: Tensor) -> Inputs:
    """What loops see of a batch and its list; index (n_atoms,) are ranks of the elements.

    All is in the layout that loops are compiled for.
    """
    atoms = (system.positions, system.cell, system.system, index)
    listed = (neighbors.j, neighbors.shift, neighbors.reverse, neighbors.valid)
    return Inputs(*(each.contiguous().numpy() for each in (*atoms, *listed)))


def width_of(n_atoms: int) -> int:
    """Atoms of a block: an even number, whose features fill lanes.

    More than one block are two, four and so on of one size, as far as that goes: three would take
    two threads as long as four.
    """
    count = -(-n_atoms // BLOCK)
    count += count % 2 if count > 1 else 0
    width = -(-n_atoms // count)
    return width + width % 2


def share_blocks(team: Team, count: int, work: Callable[[tuple[int, int], Meeting], None]) -> None:
    """Works on all blocks, one stage after the other; threads share them.

    Args:
        team: the threads.
        count: of blocks.
        work: is given the first block and the one after the last, and where threads meet after
            each stage.
    """
    meeting = meeting_of(min(len(team), count))

    def part(mine: tuple[int, int]) -> None:
        try:
            work(mine, meeting)
        except BaseException:
            give_up(meeting)  # or others would wait for ever
            raise

    try:
        team.share(count, part)
    except BaseException:
        give_up(meeting)
        raise


def array(tensor: Tensor) -> Array:
    """The numbers of a parameter."""
    return tensor.detach().numpy().copy()


def padded(values: Array, axis: int, count: int, multiple: int) -> Array:
    """Fills up each of `count` equal parts of an axis with zeros to a multiple of some width."""
    size = values.shape[axis] // count
    missing = [(0, 0)] * values.ndim
    missing[axis] = (0, -size % multiple)
    return np.concatenate([np.pad(each, missing) for each in np.split(values, count, axis)], axis)


def square(matrix: Array, rows: int = 1, columns: int = 1) -> Array:
    """A matrix of `rows` by `columns` blocks, each filled up with zeros to the width of lanes."""
    return padded(padded(matrix, 0, rows, WIDTH), 1, columns, WIDTH)


def stacked(values: Sequence[Array]) -> Array:
    """Weights of layers in one array."""
    return np.ascontiguousarray(np.stack(values))


def ready(matrices: Sequence[Array]) -> Array:
    """Matrices of layers, to multiply by."""
    return packed(np.stack(matrices))


def turned(matrices: Sequence[Array]) -> Array:
    """The same, for the way back."""
    return packed(np.stack(matrices).swapaxes(-1, -2))


def common_weights(network: Network, parts: int, multiple: int) -> dict[str, Any]:
    """What the loops of all networks know, by name.

    Args:
        network: the network.
        parts: of its scalars, each of which is filled up
        multiple: to a multiple of this.
    """
    head, scale = network.energy_head, network.settings.scale
    hidden = padded(array(head.hidden.weight).T, 0, parts, multiple)
    energies = network.elements.energies()
    return {
        "cutoff": network.cutoff,
        "hidden": np.ascontiguousarray(hidden),
        "hidden_back": np.ascontiguousarray(hidden.T),
        "hidden_bias": array(head.bias),
        "out": array(head.out.weight)[0] * scale,
        "linear": padded(array(head.linear.weight)[0], 0, parts, multiple) * scale,
        "wall": network.wall.start.double().numpy(),
        "stiffness": STIFFNESS,
        "reference": np.array([energies[z] for z in network.species]),
    }


def common_room(n_atoms: int, capacity: int) -> dict[str, Array]:
    """What the loops of all networks fill for atoms and their neighbors, by name."""
    return {
        "within": np.zeros(n_atoms, np.int64),
        "slots": np.zeros((n_atoms, capacity), np.int64),
        "pairs": zeros((n_atoms, capacity, 4), np.float64),
        "slope": zeros((n_atoms, capacity, 3), np.float64),
        "energies": np.zeros(n_atoms),
        "forces": np.zeros((n_atoms, 3)),
        "virials": np.zeros((n_atoms, 3, 3)),
    }
