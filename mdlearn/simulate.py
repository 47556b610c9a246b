"""The driver: the only loop over steps of dynamics.

A step has fixed shapes and never waits for a value. So the driver asks for a block of steps on one
neighbor list, and is told how many were done before a list was worn or a guard tripped; see
`steps`. The noise of a step depends on the seed and the step alone, so steps that are done again
are the same steps. So are the last ones before a guard tripped: nothing is recorded in case one
does.

A batch shares the steps and nothing else: each system has its own noise, and when its own atoms
have moved, and only then, a list of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.errors import UnstableError
from mdlearn.guards import Limits, Watched, watch
from mdlearn.integrators.integrator import (
    Forces,
    Integrator,
    State,
    Surroundings,
    conserved_energy,
)
from mdlearn.momenta import inertia, noise_of_steps, rank
from mdlearn.neighbors import SKIN, WORN, Neighbors, build, moved_since_build, rebuild
from mdlearn.potentials.evaluate import Evaluable, evaluate
from mdlearn.steps import Steps
from mdlearn.system import Evaluation, System, sum_by_system
from mdlearn.trips import Trip, find_trips, leap

BLOCK = {"cpu": 64, "cuda": 32}
"""Steps that are asked for at once, by kind of device. On a GPU nobody looks at values before their
end. They change the time that a run takes, and not a bit of it."""
MANY_DEVIATES = 2**22
"""No more normal deviates at once than these, of 8 bytes."""
TINY = 1e-6
"""Å in a step; nobody need look for slower atoms."""
CRASH_STEPS = 50
"""What is kept, step by step, of the way to where a guard tripped."""


Course = Callable[[int], Tensor]
"""What a quantity of each system is during a step, (n_systems,): a function of the step alone."""
Points = Sequence[tuple[int, float]]
"""Steps and values, to be joined by straight lines; the first and the last value hold beyond."""


class Dynamics(NamedTuple):
    """What stays the same throughout a simulation."""

    potential: Evaluable
    integrator: Integrator
    kT: Course
    """Of the thermostat, eV."""
    pressure: Course
    """Of the barostat, eV/Å³."""
    seeds: Sequence[int]
    """Of the noise, for each system: alone it sees the same noise as in a batch."""
    mobile: Tensor | None = None
    """(n_atoms, 1), zero for atoms that are held where they are and one for others."""
    limits: Limits | None = None
    """What the guards hold the run to; None for no guard but that of the conserved energy."""
    skin: float = SKIN
    """Å, of the neighbor lists. No atom may move further than half of it in a step."""

    def forces(self, neighbors: Neighbors) -> Forces:
        """The potential on one list; atoms that are held feel nothing."""
        return bind_forces(self.potential, neighbors, self.mobile)

    def surroundings(self, state: State, count: int = 1) -> list[Surroundings]:
        """What the world does to the systems in each of some steps after a state."""
        noise, kT, pressure = self.world(state, count)
        return [Surroundings(*each) for each in zip(noise, kT, pressure, strict=True)]

    def world(self, state: State, count: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The fields of these: noise (steps, draws, n_atoms, 3), and kT and pressure of each."""
        draws, like = self.integrator.draws, state.momenta
        steps = range(state.step, state.step + count)
        if draws == 0:
            normals = like.new_empty(count, 0, *like.shape)
        else:
            sizes = [len(like)]
            if len(self.seeds) > 1:
                sizes = torch.bincount(state.system.system).tolist()
            normals = noise_of_steps(self.seeds, sizes, steps, draws, like)
        if self.mobile is not None and not self.integrator.keeps_momentum:
            normals = normals * self.mobile  # the others scale momenta, of which there are none
        return normals, [self.kT(each) for each in steps], [self.pressure(each) for each in steps]

    def step(self, state: State, neighbors: Neighbors) -> State:
        """The state one time step later."""
        (surroundings,) = self.surroundings(state)
        surroundings = surroundings._replace(neighbors=neighbors)
        return self.integrator.step(state, self.forces(neighbors), surroundings)


def bind_forces(potential: Evaluable, neighbors: Neighbors, mobile: Tensor | None) -> Forces:
    """A potential on one list; atoms that are held, where `mobile` is zero, feel nothing."""
    if mobile is None:
        return lambda system: evaluate(potential, system, neighbors)

    def held(system: System) -> Evaluation:
        evaluation = evaluate(potential, system, neighbors)
        return evaluation._replace(forces=evaluation.forces * mobile)

    return held


def piecewise_linear(points: Points, system: System) -> Course:
    """Linear between points, the same for all systems of a batch."""
    steps, values = zip(*points, strict=True)
    like = torch.ones_like(system.charge)
    if len(points) == 1:
        always = like * values[0]
        return lambda _: always
    return lambda step: like * float(np.interp(step, steps, values))


def piecewise_linear_each(points: Sequence[Points], system: System) -> Course:
    """Linear between points, which every system of a batch has of its own."""
    courses = [([step for step, _ in each], [value for _, value in each]) for each in points]
    like = torch.ones_like(system.charge)
    return lambda step: like.new_tensor([np.interp(step, *each) for each in courses])


def isolated(potential: Evaluable, integrator: Integrator, system: System) -> Dynamics:
    """Dynamics without thermostat, barostat and noise."""
    nothing = piecewise_linear([(0, 0.0)], system)
    return Dynamics(potential, integrator, nothing, nothing, [0] * len(system.charge))


class Snapshot(NamedTuple):
    """A state together with what the driver needs to go on from it as if it had never stopped."""

    state: State
    neighbors: Neighbors
    conserved: Tensor
    """(n_systems,) eV, the conserved energy at the start of the simulation."""


class Lists(NamedTuple):
    """What is known of who is near whom; of one age."""

    neighbors: Neighbors
    watched: Watched
    """Pairs that the guard of distance looks at."""


class CrashError(UnstableError):
    """A simulation that was stopped by a guard."""

    def __init__(self, trips: Sequence[Trip], snapshots: Sequence[Snapshot]) -> None:
        """Says what happened.

        Args:
            trips: the guards that tripped, for each system at most one.
            snapshots: of the last steps, at most `CRASH_STEPS`, every one of them. The last is that
                of the trip if its neighbor list was good, and that before it if an atom moved too
                far.
        """
        what = {each.system: f"step {each.step}: {each.text}" for each in trips}
        super().__init__(
            f"{'; '.join(what.values())}; the time step is too long, or the atoms have gone where"
            " the model was never trained",
            what,
        )
        self.trips = trips
        self.snapshots = snapshots


def start(dynamics: Dynamics, system: System, momenta: Tensor) -> Snapshot:
    """The beginning of a simulation.

    Raises:
        DataError, UnstableError: see `neighbors.build`.
    """
    neighbors = build(system, dynamics.potential.cutoff, dynamics.skin)
    freedom = degrees_of_freedom(dynamics, system)
    state = dynamics.integrator.init(system, momenta, dynamics.forces(neighbors), freedom)
    return Snapshot(state, neighbors, conserved_energy(state))


def degrees_of_freedom(dynamics: Dynamics, system: System) -> Tensor:
    """How many there are to share the kinetic energy, (n_systems,).

    Three for every atom that is not held. Where nothing from outside moves the system as a whole,
    its momentum stays what it is, zero, and does not count; nor does the angular momentum of a
    system without periodic directions.
    """
    mobile = torch.ones_like(system.masses) if dynamics.mobile is None else dynamics.mobile[:, 0]
    freedom = 3.0 * sum_by_system(mobile, system)
    if not dynamics.integrator.keeps_momentum:
        return freedom
    held = sum_by_system(1.0 - mobile, system) > 0.0
    rotations = torch.where(system.pbc.any(1), 0.0, rank(inertia(system)))
    kept = torch.where(held, 0.0, 3.0 + rotations)
    return (freedom - kept).clamp_min(1.0)


def save(snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    """What `restore` needs, as arrays by name, bit for bit."""
    state, neighbors, conserved = snapshot
    tensors = {
        "positions": state.system.positions,
        "cell": state.system.cell,
        "momenta": state.momenta,
        "bath": state.bath,
        "variables": state.variables,
        "freedom": state.freedom,
        "conserved": conserved,
        "reference": neighbors.reference,
        "reference_cell": neighbors.reference_cell,
    }
    counters = {"step": state.step, "capacity": neighbors.j.shape[1]}
    return {name: each.detach().cpu().numpy() for name, each in tensors.items()} | {
        name: np.array(each) for name, each in counters.items()
    }


def restore(dynamics: Dynamics, system: System, saved: Mapping[str, NDArray[Any]]) -> Snapshot:
    """The snapshot that was saved; the run goes on with the same bits as if it had not stopped.

    Args:
        dynamics: that of the run.
        system: gives elements, masses and boundary conditions; positions and cell are the saved
            ones.
        saved: by `save`.
    """

    def tensor(name: str) -> Tensor:
        return torch.tensor(saved[name]).to(system.positions)

    # The neighbor list is not saved, only what it was built from.
    reference = system._replace(positions=tensor("reference"), cell=tensor("reference_cell"))
    capacity = int(saved["capacity"])
    neighbors = build(reference, dynamics.potential.cutoff, dynamics.skin, capacity)
    system = system._replace(positions=tensor("positions"), cell=tensor("cell"))
    forces = dynamics.forces(neighbors)
    state = dynamics.integrator.init(system, tensor("momenta"), forces, tensor("freedom"))
    state = state._replace(
        bath=tensor("bath"), variables=tensor("variables"), step=int(saved["step"])
    )
    return Snapshot(state, neighbors, tensor("conserved"))


def simulate(
    dynamics: Dynamics,
    snapshot: Snapshot,
    *,
    steps: int,
    every: int,
    observe: Callable[[Snapshot], bool],
    block: Steps | None = None,
) -> Snapshot:
    """Runs dynamics up to a step.

    Args:
        dynamics: the potential, the integrator, and what drives it.
        snapshot: where to start from; `start` makes the first one.
        steps: the step to end at, counted from the start of the simulation.
        every: `observe` is called after each multiple of this many steps, and after the last.
        observe: is shown the snapshot; returns whether to go on.
        block: of these dynamics, which a GPU need not record again.

    Returns:
        The last snapshot; its step is `steps` unless `observe` ended the run.

    Raises:
        CrashError: a guard tripped, see `guards.shares`; or an atom moved further in one step than
            the list can follow.
        UnstableError: a system without periodic directions has flown apart.

        Both say which systems these are; `replicas.keep` goes on with the others from the last
        snapshot that was observed.
    """
    state, neighbors, conserved = snapshot
    older = newer = snapshot
    skin, lists = dynamics.skin, _list(dynamics, state.system, neighbors)
    moved = _moved(state.system, neighbors)
    longest = BLOCK[state.momenta.device.type]
    longest = max(1, min(longest, MANY_DEVIATES // max(1, state.momenta.numel())))
    speed = np.full_like(moved, np.inf)  # nobody knows yet
    block = block or Steps(dynamics)
    while state.step < steps:
        # A system has a new list where its old one is worn or the next step would leave it, and
        # nowhere else: so the life of a list depends on the trajectory of its system alone, and so
        # do its bits, however the run is cut up and whatever else is in the batch.
        worn = moved > WORN * skin
        if worn.any():
            lists = _renew(dynamics, state.system, lists, worn)
            moved = np.where(worn, 0.0, moved)
        ahead = _steps_ahead(moved, speed, skin, longest)
        length = min(ahead, every - state.step % every, steps - state.step)
        done = block.run(state, lists, conserved, length)
        if done.steps == 0:
            left = ~(done.moved <= skin / 2)  # True for NaN
            lost = np.flatnonzero(left & (moved == 0.0))
            if len(lost):
                first = dynamics.step(state, lists.neighbors)
                trips = [leap(state, first, int(index), skin / 2) for index in lost]
                raise CrashError(trips, _replay(dynamics, older, state.step))
            lists = _renew(dynamics, state.system, lists, left)
            moved = np.where(left, 0.0, moved)
            continue
        if not done.share <= 1.0:  # NaN trips too
            last = Snapshot(done.state, lists.neighbors, conserved)
            way = [*_replay(dynamics, older, last.state.step - 1), last][-CRASH_STEPS:]
            raise CrashError(find_trips(*last, dynamics.limits), way)
        speed = (done.moved - moved) / done.steps
        state, moved = done.state, done.moved
        snapshot = Snapshot(state, lists.neighbors, conserved)
        if state.step - newer.state.step >= CRASH_STEPS:
            older, newer = newer, snapshot
        seen = state.step % every == 0 or state.step == steps
        if seen and not observe(snapshot):
            break
    return Snapshot(state, lists.neighbors, conserved)


def _list(dynamics: Dynamics, system: System, neighbors: Neighbors) -> Lists:
    """All lists, from that of the potential."""
    return Lists(neighbors, watch(neighbors, system, dynamics.limits, dynamics.skin))


def _moved(system: System, neighbors: Neighbors) -> NDArray[Any]:
    """How far atoms have moved since the list was built, for the driver to look at."""
    moved: NDArray[Any] = moved_since_build(system, neighbors).cpu().numpy()
    return moved


def _steps_ahead(moved: NDArray[Any], speed: NDArray[Any], skin: float, longest: int) -> int:
    """For how many steps the lists of all systems are going to be good, as far as one can tell.

    Rather too few than too many: to look once more costs less than to do a block again.

    Args:
        moved: (n_systems,) Å, how far atoms have moved.
        speed: (n_systems,) Å, how far they move in a step.
        skin: Å, of the lists.
        longest: how many steps are asked for at most.
    """
    left = ((WORN * skin - moved) / np.maximum(speed, TINY)).min()
    return min(longest, 1 + int(0.9 * max(left, 0.0)))


def _renew(dynamics: Dynamics, system: System, lists: Lists, which: NDArray[np.bool_]) -> Lists:
    """New lists for the chosen systems, (n_systems,)."""
    chosen = torch.from_numpy(which).to(system.positions.device)
    cutoff, skin = dynamics.potential.cutoff, dynamics.skin
    return _list(dynamics, system, rebuild(lists.neighbors, system, chosen, cutoff, skin))


def _replay(dynamics: Dynamics, snapshot: Snapshot, end: int) -> list[Snapshot]:
    """The last steps up to one before any guard trips: they are the same again."""
    way = deque([snapshot], CRASH_STEPS)

    def observe(each: Snapshot) -> bool:
        way.append(each)
        return True

    with suppress(CrashError):  # of a device that does not give the same bits again
        simulate(dynamics, snapshot, steps=end, every=1, observe=observe)
    return list(way)
