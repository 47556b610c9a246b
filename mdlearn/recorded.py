"""Steps of dynamics as one graph, for a GPU: recorded once for their shapes, and then replayed.

A step is some hundred operations on small tensors, and a GPU takes microseconds to be told of each.
An integrator is a pure function of fixed shapes that waits for nothing, so all it launches, the
forces and the guards can be recorded. What a step is given lies where the recording reads it: the
state, which the recording replaces by that after the step; lists, which are copied there when they
change; and what the world does in the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.graph import capture, place_for, put
from mdlearn.guards import LARGEST_DRIFT, Watched, largest_kinetic_energy
from mdlearn.integrators.integrator import State, Surroundings
from mdlearn.launched import launched
from mdlearn.potentials.elements import HEAVIEST
from mdlearn.potentials.evaluate import Frozen

if TYPE_CHECKING:
    from mdlearn.simulate import Dynamics, Lists


def pays(dynamics: Dynamics, state: State) -> bool:
    """Whether a recording is worth it; derivatives by autograd are not recorded."""
    return state.momenta.device.type == "cuda" and isinstance(dynamics.potential, Frozen)


class Shape(NamedTuple):
    """What a recording is for."""

    capacity: int
    """Slots of a row of the neighbor list."""
    watched: int
    """Places for pairs that are watched."""


class RecordedSteps:
    """A recording of the step of some dynamics."""

    def __init__(self, dynamics: Dynamics, state: State, lists: Lists, conserved: Tensor) -> None:
        """Records it, for lists of this size.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        self.dynamics = dynamics
        self.step = launched(dynamics.integrator, conserved).step
        self.shape = shape_of(lists)
        self.state = place_for(state)
        self.conserved = place_for(conserved)
        self.neighbors = place_for(lists.neighbors)
        self.watched = place_for(_padded(lists.watched, self.shape.watched))
        self.lists = lists
        self.given = dynamics.surroundings(state)[0][:3]
        self.world = [place_for(each) for each in self.given]
        self.allowed = self._allowed(state)
        self.replay = capture(self._step, state.momenta.device)

    def _step(self) -> tuple[Tensor, Tensor]:
        """Replaces the state by that after a step; how far atoms have moved, and guards' shares."""
        forces = self.dynamics.forces(self.neighbors)
        noise, kT, pressure = self.world
        surroundings = Surroundings(noise, kT, pressure, self.neighbors)
        after = self.step(self.state, forces, surroundings)
        seen = self._look(after)
        put(after, self.state)
        return seen

    def _allowed(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """The most of forces by atomic number, of kinetic energies, and of the energy's drift."""
        limits, like = self.dynamics.limits, self.conserved
        if limits is None:
            endless = torch.full_like(like, torch.inf)
            return (
                endless.new_full((HEAVIEST + 1,), torch.inf),
                endless,
                endless.new_tensor(LARGEST_DRIFT),
            )
        drift = like.new_tensor(limits.drift)
        return limits.force, largest_kinetic_energy(state, limits), drift

    def _look(self, state: State) -> tuple[Tensor, Tensor]:
        """What `neighbors.moved_since_build` and `guards.shares` say, in one launch."""
        from mdlearn.potentials.frozen_cuda import ATOMS, run  # with Triton, which not all have
        from mdlearn.potentials.kernels import triton_systems

        system, lists, n_systems = state.system, self.neighbors, len(self.conserved)
        moved, used = self.conserved.new_empty(n_systems), self.conserved.new_empty(4, n_systems)
        run(
            triton_systems.look_at,
            (n_systems,),
            system.positions,
            state.momenta,
            state.evaluation.forces,
            system.masses,
            system.numbers,
            system.system,
            system.cell,
            state.evaluation.energy,
            state.bath,
            self.conserved,
            lists.reference,
            lists.reference_cell,
            lists.inverse_cell,
            lists.wear,
            lists.reach,
            *self.watched,
            *self.allowed,
            moved,
            used,
            len(system.masses),
            len(self.watched.n),
            n_systems,
            ATOMS,
        )
        return moved, used

    def run(
        self, state: State, lists: Lists, conserved: Tensor, length: int
    ) -> tuple[State, NDArray[Any], NDArray[Any]]:
        """Does so many steps on lists of the shape that was recorded.

        Returns:
            The state after them; and for each of them how far atoms had moved by then since lists
            were built, (steps, n_systems) Å, and the largest of the guards' shares, (steps,).
        """
        put(state, self.state)
        put(conserved, self.conserved)
        if lists is not self.lists:
            put(lists.neighbors, self.neighbors)
            put(_padded(lists.watched, self.shape.watched), self.watched)
            self.lists = lists
        ways, used = [], []
        for given in self.dynamics.surroundings(state, length):  # all at once: noise is of the host
            for mine, now, before in zip(self.world, given[:3], self.given, strict=True):
                if now is not before:
                    put(now, mine)
            self.given = given[:3]
            moved, shared = self.replay()
            ways.append(moved.clone())
            used.append(shared.clone())
        after = place_for(self.state)._replace(step=state.step + length)
        return after, *_look(ways, used)


def _look(ways: list[Tensor], used: list[Tensor]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The only look at values in a block: ways of each step, and its largest share."""
    largest = [each.max()[None] for each in used]
    seen = torch.cat([*ways, *largest]).cpu().numpy()
    count = len(ways) * len(ways[0])
    return seen[:count].reshape(len(ways), -1), seen[count:]


def shape_of(lists: Lists) -> Shape:
    """The shape of a recording that lists fit into, with room for more pairs to watch."""
    count = len(lists.watched.n)
    places = max(64, 1 << (count - 1).bit_length()) if count else 0
    return Shape(lists.neighbors.j.shape[1], places)


def _padded(watched: Watched, count: int) -> Watched:
    """Filled up with the first pair, again and again: the largest share stays what it is."""
    more = count - len(watched.n)
    return Watched(*(torch.cat([each, each[:1].expand(more, *each.shape[1:])]) for each in watched))
