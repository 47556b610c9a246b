"""Steps in compiled loops are the steps of the integrators, and end where those would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import crystal, molecule, random_network
from numba.core.runtime import _nrt_python, rtsys
from test_simulate import INTEGRATORS, bits, count
from torch import Tensor

from mdlearn import looped, steps
from mdlearn import simulate as driver
from mdlearn.atoms import to_system
from mdlearn.guards import Limits, make_limits
from mdlearn.looped import LoopedSteps, has_loops
from mdlearn.momenta import maxwell_boltzmann
from mdlearn.neighbors import Neighbors
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.frozen import freeze
from mdlearn.potentials.frozen_network import FrozenNetwork
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.painn import PaiNN
from mdlearn.potentials.schnet import SchNet
from mdlearn.simulate import (
    CrashError,
    Dynamics,
    Snapshot,
    piecewise_linear,
    piecewise_linear_each,
    restore,
    save,
    simulate,
    start,
)
from mdlearn.system import System, concatenate
from mdlearn.units import kB

LOOPED = ("nve", "langevin", "csvr", "nose-hoover")
every_ensemble = pytest.mark.parametrize("ensemble", LOOPED)


def batch() -> System:
    """Four crystals and a molecule: 41 atoms, three blocks, whose borders no system keeps to."""
    atoms = [crystal(seed=seed) for seed in range(2)] + [molecule()]
    atoms += [crystal(seed=seed) for seed in range(2, 4)]
    return concatenate([to_system(each) for each in atoms])


def network(architecture: type[ParametricPotential] = SchNet) -> FrozenNetwork:
    frozen = freeze(random_network(architecture, scale=0.5))
    assert isinstance(frozen, FrozenNetwork)
    return frozen


def no_limits(system: System) -> Limits:
    return make_limits((), (), torch.full_like(system.charge, torch.inf))._replace(drift=torch.inf)


def dynamics_of(ensemble: str, potential: FrozenNetwork, system: System) -> Dynamics:
    """At temperatures that rise, each with its own course and seed; one atom is held."""
    kT = piecewise_linear_each(
        [[(0, 600.0 * kB), (100, (700.0 + 50.0 * s) * kB)] for s in range(len(system.cell))], system
    )
    mobile = torch.ones_like(system.masses)[:, None]
    mobile[11] = 0.0
    seeds, limits = list(range(len(system.cell))), no_limits(system)
    nothing = piecewise_linear([(0, 0.0)], system)
    return Dynamics(potential, INTEGRATORS[ensemble], kT, nothing, seeds, mobile, limits)


def begin(dynamics: Dynamics, system: System, kelvin: float = 900.0) -> Snapshot:
    momenta = maxwell_boltzmann(system, kelvin * kB, dynamics.seeds, dynamics.mobile)
    return start(dynamics, system, momenta)


def run(dynamics: Dynamics, snapshot: Snapshot, end: int, every: int = 1000) -> Snapshot:
    return simulate(dynamics, snapshot, steps=end, every=every, observe=lambda _: True)


def both(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> tuple[Any, Any]:
    """What comes of something in loops, and by the integrator step by step."""
    looped = action()
    monkeypatch.setattr(steps, "has_loops", lambda *_: False)
    return looped, action()


@every_ensemble
@pytest.mark.parametrize("architecture", [SchNet, PaiNN, Equivariant])
def test_they_are_the_steps_of_the_integrator(
    ensemble: str, architecture: type[ParametricPotential], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = batch()
    dynamics = dynamics_of(ensemble, network(architecture), system)
    first = begin(dynamics, system)
    assert has_loops(dynamics, first.state)
    rebuilds = count(monkeypatch, "rebuild")
    one, other = both(monkeypatch, lambda: run(dynamics, first, 40))
    assert len(rebuilds) > 4
    assert one.state.step == other.state.step == 40
    assert (one.state.system.positions - system.positions).norm(dim=1).max() > 0.25
    assert one.state.system.positions[11].equal(system.positions[11])
    state, expected = one.state, other.state
    pairs = [
        (state.system.positions, expected.system.positions),
        (state.momenta, expected.momenta),
        (state.bath, expected.bath),
        (state.variables, expected.variables),
        *zip(state.evaluation, expected.evaluation, strict=True),
    ]
    for ours, theirs in pairs:
        # The stress of a molecule is not a number.
        assert torch.allclose(ours, theirs, rtol=0.0, atol=1e-9, equal_nan=True)
    assert (state.bath.abs().max() > 1e-3) == (ensemble != "nve")
    again = evaluate(dynamics.potential, state.system, one.neighbors)
    assert (again.energy - state.evaluation.energy).abs().max() < 1e-9
    assert first.state.system.positions.equal(system.positions), "nothing that is given is changed"


@every_ensemble
@pytest.mark.parametrize("skin", [0.5, 0.14])
def test_blocks_outputs_threads_and_restarts_change_no_bit(
    ensemble: str, skin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a step leaves a list that was not worn before, and is done again on another."""
    system, potential = batch(), network()
    dynamics = dynamics_of(ensemble, potential, system)._replace(skin=skin)
    first = begin(dynamics, system)
    ends, left, done_by = [], [], LoopedSteps.run

    def observed(*arguments: Any) -> Any:
        done = done_by(*arguments)
        left.append(done[1] == 0)
        return done

    monkeypatch.setattr(looped.LoopedSteps, "run", observed)
    for threads, block, every in ((1, 64, 40), (1, 1, 40), (2, 64, 7), (1, 5, 40)):
        monkeypatch.setitem(driver.BLOCK, "cpu", block)
        potential.team.size = threads
        ends.append(run(dynamics, first, 40, every))
    monkeypatch.setattr(driver, "_steps_ahead", lambda *_: 64)  # whether lists will last or not
    ends.append(run(dynamics, first, 40))
    snapshot = first
    for end in (7, 20, 33, 40):
        snapshot = restore(dynamics, system, save(run(dynamics, snapshot, end)))
    ends.append(snapshot)
    assert len({(*bits(each.state), bytes_of(each.neighbors)) for each in ends}) == 1
    assert any(left) == (skin < 0.5)


def bytes_of(neighbors: Neighbors) -> bytes:
    """Where atoms were when lists were built."""
    return neighbors.reference.numpy().tobytes()


@every_ensemble
@pytest.mark.parametrize("architecture", [SchNet, PaiNN, Equivariant])
def test_steps_ask_for_no_memory(
    ensemble: str, architecture: type[ParametricPotential], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many steps ask for as much as one."""
    system, potential = batch(), network(architecture)
    dynamics, asked, move = dynamics_of(ensemble, potential, system), [], FrozenNetwork.move

    def counted(*arguments: Any) -> Any:
        before = rtsys.get_allocation_stats().alloc
        found = move(*arguments)
        asked.append((arguments[3].steps, rtsys.get_allocation_stats().alloc - before))
        return found

    run(dynamics, begin(dynamics, system), 2)  # compiles what is needed
    monkeypatch.setattr(FrozenNetwork, "move", counted)
    _nrt_python.memsys_enable_stats()
    try:
        for block in (1, 16):
            monkeypatch.setitem(driver.BLOCK, "cpu", block)
            run(dynamics, begin(dynamics, system), 16)
    finally:
        _nrt_python.memsys_disable_stats()
    steps_done = {each[0] for each in asked if each[0] > 0}
    assert max(steps_done) >= 4 * min(steps_done)
    assert len({each[1] for each in asked if each[0] > 0}) == 1
    assert asked[0][1] > 0, "what is returned is counted"


def test_each_system_moves_as_if_it_were_alone() -> None:
    system, potential = batch(), network()
    together = dynamics_of("langevin", potential, system)._replace(mobile=None)
    snapshot = run(together, begin(together, system), 30)
    for index in (1, 2):
        mine = system.system == index
        alone = to_system(crystal(seed=1) if index == 1 else molecule())
        dynamics = together._replace(
            kT=lambda step, index=index: together.kT(step)[index : index + 1],
            seeds=[index],
            limits=no_limits(alone),
        )
        last = run(dynamics, begin(dynamics, alone), 30).state
        assert (last.system.positions - snapshot.state.system.positions[mine]).abs().max() < 1e-12


def crash(dynamics: Dynamics, snapshot: Snapshot) -> tuple[Any, ...]:
    """How a run ends."""
    with pytest.raises(CrashError) as caught:
        run(dynamics, snapshot, 400)
    (trip,) = caught.value.trips
    states = [each.state for each in caught.value.snapshots]
    places = torch.stack([each.system.positions for each in states])
    return trip.step, trip.system, trip.atom, trip.text, [each.step for each in states], places


def same_end(one: tuple[Any, ...], other: tuple[Any, ...], step: range) -> None:
    assert one[:-1] == other[:-1]
    assert one[0] in step
    assert (one[-1] - other[-1]).abs().max() < 1e-9


def quiet(potential: FrozenNetwork) -> tuple[Dynamics, Snapshot, Tensor]:
    """A batch at constant energy; the largest force on a hydrogen atom in each of 60 steps."""
    system = batch()
    dynamics = dynamics_of("nve", potential, system)
    first = begin(dynamics, system, 300.0)
    seen: list[Tensor] = []

    def observe(snapshot: Snapshot) -> bool:
        forces = snapshot.state.evaluation.forces[system.numbers == 1]
        seen.append(forces.norm(dim=1).max())
        return True

    simulate(dynamics, first, steps=60, every=1, observe=observe)
    return dynamics, first, torch.stack(seen)


def test_a_guard_stops_them_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """A force that is larger than any before, in the middle of a block."""
    dynamics, first, largest = quiet(network())
    records = [n for n in range(5, 60) if largest[n] > largest[:n].max()]
    step = records[-1]
    limit = 0.5 * float(largest[step] + largest[:step].max())
    assert dynamics.limits is not None
    force = dynamics.limits.force.clone()
    force[1] = limit
    dynamics = dynamics._replace(limits=dynamics.limits._replace(force=force))
    one, other = both(monkeypatch, lambda: crash(dynamics, first))
    same_end(one, other, range(step + 1, step + 2))
    assert one[4] == list(range(max(0, step - 48), step + 2))


@pytest.mark.parametrize("speed", [0.6, torch.inf])
def test_an_atom_that_leaves_its_list(speed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, or by a momentum that is no number."""
    system = batch()
    dynamics = dynamics_of("nve", network(), system)
    first = begin(dynamics, system, 300.0)
    splitting = dynamics.integrator.splitting
    assert splitting is not None
    momenta = first.state.momenta.clone()
    momenta[20] = speed / splitting.dt * system.masses[20]
    first = first._replace(state=first.state._replace(momenta=momenta))
    one, other = both(monkeypatch, lambda: crash(dynamics, first))
    same_end(one, other, range(1, 2))
    assert one[1] == 2
    assert ("no finite position" if speed == torch.inf else "moved 1.0") in one[3]
