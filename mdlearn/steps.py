"""Steps of dynamics on one list: one by one, in compiled loops, or on a GPU as recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.guards import shares
from mdlearn.integrators.integrator import State
from mdlearn.looped import LoopedSteps, has_loops
from mdlearn.neighbors import WORN, moved_since_build
from mdlearn.recorded import RecordedSteps, pays, shape_of

if TYPE_CHECKING:
    from mdlearn.simulate import Dynamics, Lists


class Done(NamedTuple):
    """What came of some steps.

    They end where they were to end, or before: where a list is worn, before the first step that
    would leave one, or with the first in which a guard tripped.
    """

    state: State
    """After the last of them."""
    steps: int
    """How many they are; none if already the first one would have left a list."""
    moved: NDArray[Any]
    """(n_systems,) Å, how far atoms have moved since lists were built; or would have, by the first
    step, if there is none."""
    share: float
    """The largest of the guards' shares, see `guards.shares`; or NaN."""


class Steps:
    """Does steps of some dynamics."""

    def __init__(self, dynamics: Dynamics) -> None:
        """Records nothing yet."""
        self.dynamics = dynamics
        self.recorded: RecordedSteps | None = None
        self.looped: LoopedSteps | None = None

    def run(self, state: State, lists: Lists, conserved: Tensor, length: int) -> Done:
        """Does so many steps, or as many as lists and guards allow; one at least is tried."""
        if pays(self.dynamics, state):
            return self._replay(state, lists, conserved, length)
        if has_loops(self.dynamics, state):
            self.looped = self.looped or LoopedSteps(self.dynamics, state)
            return Done(*self.looped.run(state, lists, conserved, length))
        return self._step(state, lists, conserved, length)

    def _step(self, state: State, lists: Lists, conserved: Tensor, length: int) -> Done:
        """One by one: to look at values after each costs nothing on a CPU."""
        dynamics, neighbors = self.dynamics, lists.neighbors
        step, forces = dynamics.integrator.step, dynamics.forces(neighbors)
        moved, share = np.zeros(0), 0.0
        for done, surroundings in enumerate(dynamics.surroundings(state, length)):
            after = step(state, forces, surroundings._replace(neighbors=neighbors))
            now = moved_since_build(after.system, neighbors).cpu().numpy()
            if not (now <= dynamics.skin / 2).all():  # NaN is nowhere near
                return Done(state, done, moved if done else now, share)
            state, moved = after, now
            used = shares(state, lists.watched, conserved, dynamics.limits)
            share = float(np.maximum(share, float(used.max())))
            if not share <= 1.0 or (moved > WORN * dynamics.skin).any():
                return Done(state, done + 1, moved, share)
        return Done(state, length, moved, share)

    def _replay(self, state: State, lists: Lists, conserved: Tensor, length: int) -> Done:
        """As recorded, with one look at the end; if that was too far, once more and less far."""
        if self.recorded is None or self.recorded.shape != shape_of(lists):
            self.recorded = None  # and its memory is free
            self.recorded = RecordedSteps(self.dynamics, state, lists, conserved)
        skin = self.dynamics.skin
        after, way, used = self.recorded.run(state, lists, conserved, length)
        good = way <= skin / 2
        good[1:] &= way[:-1] <= WORN * skin
        good[1:] &= used[:-1, None] <= 1.0
        steps = length if good.all() else int(good.all(1).argmin())
        if steps == 0:
            return Done(state, 0, way[0], 0.0)
        if steps < length:
            after, way, used = self.recorded.run(state, lists, conserved, steps)
        return Done(after, steps, way[-1], float(used.max()))
