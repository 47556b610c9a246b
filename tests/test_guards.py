"""The guards stop what has left the physics, name who did, and are not seen where nobody did."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import ase
import numpy as np
import pytest
import torch
from ase.data import chemical_symbols
from checks import CUTOFF, REFERENCE_ENERGIES, SPECIES, crystal, molecule
from oracles import LennardJones
from test_simulate import INTEGRATORS, bits, dynamics_of, hot_start, potential
from torch import Tensor

from mdlearn import simulate as driver
from mdlearn.atoms import Frame, read_frames, to_system
from mdlearn.guards import (
    LARGEST_DRIFT,
    NEAREST,
    STRONG,
    STRONGEST,
    WARM,
    Limits,
    Watched,
    _shares_by_operations,
    at_start,
    lonely_atoms,
    make_limits,
    shares,
    unfamiliar_atom,
    watch,
    watch_by_operations,
)
from mdlearn.integrators import Forces, Integrator, State, Surroundings, kinetic_energy
from mdlearn.labels import Labels
from mdlearn.momenta import maxwell_boltzmann
from mdlearn.neighbors import SKIN, build, pair_vectors
from mdlearn.potentials.wall import WALL_MARGIN
from mdlearn.simulate import CRASH_STEPS, CrashError, Dynamics, Snapshot, isolated, simulate, start
from mdlearn.system import System, concatenate
from mdlearn.training.dataset import make_example
from mdlearn.training.statistics import largest_forces, neighbor_counts
from mdlearn.trips import find_trips
from mdlearn.units import fs, kB

INTEGRATOR = INTEGRATORS["langevin"]
LAST, QUIET = 160, 60
"""Steps of the reference run, and of its part in which no guard may trip."""


def begin() -> Snapshot:
    """A crystal that is colder than its thermostat: again and again all has never been so wild."""
    system = to_system(crystal())
    return start(dynamics_of(INTEGRATOR), system, maxwell_boltzmann(system, 300.0 * kB, [5]))


def no_limits(n_systems: int = 1) -> Limits:
    """Those that nothing exceeds."""
    infinite = torch.full((n_systems,), torch.inf, dtype=torch.float64)
    return make_limits((), (), infinite)


@pytest.fixture(scope="module")
def reference() -> list[Snapshot]:
    """Every step of a run without guards."""
    first = begin()
    seen = [first]

    def observe(snapshot: Snapshot) -> bool:
        seen.append(snapshot)
        return True

    simulate(dynamics_of(INTEGRATOR), first, steps=LAST, every=1, observe=observe)
    assert len({id(each.neighbors) for each in seen}) > 3
    return seen


def pair_distances(system: System) -> Tensor:
    """By a loop over images, (n_atoms, n_atoms) Å; infinite for an atom and itself."""
    shifts = torch.cartesian_prod(*[torch.arange(-1.0, 2.0, dtype=torch.float64)] * 3)
    x = system.positions
    vectors = x[None, :, None] - x[:, None, None] + shifts @ system.cell[0]
    distances = vectors.norm(dim=3)
    return torch.where(distances == 0.0, torch.inf, distances).amin(2)


def crash_of(limits: Limits, block: int, monkeypatch: pytest.MonkeyPatch) -> CrashError:
    """How the reference run ends with guards; the last output is far from the end."""
    monkeypatch.setitem(driver.BLOCK, "cpu", block)
    dynamics = dynamics_of(INTEGRATOR)._replace(limits=limits)
    first = begin()
    with pytest.raises(CrashError) as caught:
        simulate(dynamics, first, steps=LAST, every=LAST, observe=lambda _: True)
    return caught.value


def first_record(values: list[float]) -> int:
    """The first step after the quiet ones with a larger value than all before it."""
    return next(step for step in range(QUIET, LAST) if values[step] > max(values[1:step]))


def half_way(values: list[float], step: int) -> float:
    """A limit that is kept before a step and not in it."""
    return 0.5 * (max(values[1:step]) + values[step])


def require(crash: CrashError, step: int, atom: int, reference: list[Snapshot]) -> None:
    """The trip, and the steps before it bit by bit."""
    (trip,) = crash.trips
    assert (trip.step, trip.system, trip.atom) == (step, 0, atom)
    kept = [each.state.step for each in crash.snapshots]
    assert kept == list(range(step - CRASH_STEPS + 1, step + 1))
    for each in crash.snapshots:
        assert bits(each.state) == bits(reference[each.state.step].state)
    symbol = chemical_symbols[int(reference[0].state.system.numbers[atom])]
    assert f"step {step}: " in str(crash)
    assert f"atom {atom} ({symbol})" in str(crash)


@pytest.mark.parametrize("block", [1, 16])
def test_atoms_that_come_too_near(
    block: int, reference: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    distances = [pair_distances(each.state.system) for each in reference]
    nearness = [1.0 / float(each.min()) for each in distances]
    step = first_record(nearness)
    limit = 1.0 / half_way(nearness, step)
    everywhere = torch.full_like(no_limits().distance, limit / NEAREST)
    crash = crash_of(no_limits()._replace(distance=everywhere), block, monkeypatch)
    pair = divmod(int(distances[step].argmin()), 8)
    require(crash, step, crash.trips[0].atom, reference)
    assert crash.trips[0].atom in pair
    assert crash.trips[0].value == pytest.approx(float(distances[step].min()), abs=1e-12)
    assert crash.trips[0].limit == pytest.approx(limit, abs=1e-12)
    assert all(f"atom {each} (" in crash.trips[0].text for each in pair)


@pytest.mark.parametrize("block", [1, 16])
def test_forces_that_are_too_strong(
    block: int, reference: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [each.state.evaluation.forces.norm(dim=1) for each in reference]
    largest = [float(each.max()) for each in sizes]
    step = first_record(largest)
    limits = no_limits()
    limits = limits._replace(force=torch.full_like(limits.force, half_way(largest, step)))
    crash = crash_of(limits, block, monkeypatch)
    require(crash, step, int(sizes[step].argmax()), reference)
    assert crash.trips[0].value == pytest.approx(largest[step], rel=1e-12)


def test_force_limits_are_those_of_the_element(reference: list[Snapshot]) -> None:
    state, neighbors, conserved = reference[-1]
    numbers, forces = state.system.numbers, state.evaluation.forces.norm(dim=1)
    for element in set(numbers.tolist()):
        limits = no_limits()
        limits.force[element] = 0.5 * float(forces[numbers == element].max())
        (trip,) = find_trips(state, neighbors, conserved, limits)
        assert numbers[trip.atom] == element
        assert trip.value == pytest.approx(2.0 * trip.limit)


@pytest.mark.parametrize("block", [1, 16])
def test_temperatures_that_no_fluctuation_reaches(
    block: int, reference: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    energies = [float(kinetic_energy(each.state)) for each in reference]
    step = first_record(energies)
    # 24 degrees of freedom: a chi-squared variable of which 1e-13 lies beyond 24 + 53.7 + 60.
    shape = 3.0 * 0.5 * (24.0 + 2.0 * (24.0 * 30.0) ** 0.5 + 60.0)
    kT = half_way(energies, step) / shape
    crash = crash_of(no_limits()._replace(kT=torch.tensor([kT])), block, monkeypatch)
    state = reference[step].state
    fastest = (state.momenta.square().sum(1) / state.system.masses).argmax()
    require(crash, step, int(fastest), reference)
    assert crash.trips[0].value == pytest.approx(2.0 * energies[step] / (24.0 * kB))


@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("jump", [0.31, -0.31, 0.29])
def test_conserved_energy_that_jumps(
    jump: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a single step, within a block: handed to a bath that gives it back."""
    monkeypatch.setitem(driver.BLOCK, "cpu", block)
    honest = INTEGRATORS["nve"]

    def step(state: State, forces: Forces, surroundings: Surroundings) -> State:
        after = honest.step(state, forces, surroundings)
        taken = {24: 8.0 * jump, 25: -8.0 * jump}.get(after.step, 0.0)
        return after._replace(bath=after.bath + taken)

    integrator = Integrator(honest.init, step, honest.draws, honest.keeps_momentum)
    first = hot_start(honest)
    arguments: dict[str, Any] = {"steps": 40, "every": 40, "observe": lambda _: True}
    if abs(jump) < LARGEST_DRIFT:
        assert simulate(dynamics_of(integrator), first, **arguments).state.step == 40
        return
    with pytest.raises(CrashError) as caught:
        simulate(dynamics_of(integrator), first, **arguments)
    (trip,) = caught.value.trips
    assert trip.step == 24
    assert trip.value == pytest.approx(jump, abs=1e-3)
    assert [each.state.step for each in caught.value.snapshots] == list(range(25))


class Holed(LennardJones):
    """Has no number for an oxygen atom with a neighbor closer than 1.49 Å."""

    def forward(self, numbers: Tensor, r: Tensor, neighbors: Any) -> Tensor:
        near = r.norm(dim=2).amin(1) < 1.49
        energies = super().forward(numbers, r, neighbors)
        return energies * torch.where(near & (numbers == 8), torch.nan, 1.0)


def flight(dt: float, network: LennardJones, limits: Limits) -> tuple[Dynamics, Snapshot]:
    """Two systems; in the second an H flies at an O with 0.02 Å a step, 3 Å away."""
    rest = to_system(ase.Atoms("CH", [[0, 0, 0], [0, 0, 3.0]]))
    fast = to_system(ase.Atoms("COH", [[0, 9.0, 0], [0, 0, 0], [0, 0, 3.0]]))
    system = concatenate([rest, fast])
    momenta = torch.zeros_like(system.positions)
    momenta[4, 2] = -0.02 / dt * system.masses[4]
    dynamics = isolated(network, INTEGRATORS["nve"], system)._replace(limits=limits)
    return dynamics, start(dynamics, system, momenta)


@pytest.mark.parametrize("block", [1, 32])
def test_the_system_that_tripped_is_named(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(driver.BLOCK, "cpu", block)
    free = LennardJones(SPECIES, REFERENCE_ENERGIES, cutoff=CUTOFF, epsilon=0.0).double()
    # The pair may come to 1.011 Å: 0.75 of the shortest distance there was, 1.348 Å.
    infinite = torch.full((2,), torch.inf, dtype=torch.float64)
    limits = make_limits([(1, 6, 0.1), (1, 8, WALL_MARGIN * 1.348)], (), infinite)
    with pytest.raises(CrashError) as caught:
        simulate(*flight(0.5 * fs, free, limits), steps=900, every=900, observe=lambda _: True)
    (trip,) = caught.value.trips
    assert (trip.step, trip.system) == (100, 1)  # 3 - 100 * 0.02 < 1.011
    assert trip.value == pytest.approx(1.0, abs=1e-9)
    assert "atom 1 (O) and atom 2 (H) are 1.000 Å apart (limit 1.011 Å, 0.75 of" in trip.text


def test_forces_that_are_no_numbers() -> None:
    network = Holed(SPECIES, REFERENCE_ENERGIES, cutoff=CUTOFF, epsilon=0.0).double()
    dynamics, first = flight(0.5 * fs, network, no_limits(2))
    with pytest.raises(
        CrashError, match=r"step 76: the force on atom 1 \(O\) is not a number"
    ) as caught:
        simulate(dynamics, first, steps=900, every=900, observe=lambda _: True)
    assert [each.system for each in caught.value.trips] == [1], "the other one is sound"


@pytest.mark.parametrize("ensemble", INTEGRATORS)
def test_a_sound_run_is_what_it_is_without_guards(ensemble: str) -> None:
    integrator = INTEGRATORS[ensemble]
    first = hot_start(integrator)
    shortest = 0.5 * float(pair_distances(first.state.system).min())
    kT = torch.full((1,), 700.0 * kB, dtype=torch.float64)
    walls = [(a, b, WALL_MARGIN * shortest) for a in SPECIES for b in SPECIES]
    limits = make_limits(walls, [(z, 1.0) for z in SPECIES], kT)
    ends = {
        tuple(
            bits(
                simulate(
                    dynamics_of(integrator)._replace(limits=each),
                    first,
                    steps=100,
                    every=30,
                    observe=lambda _: True,
                ).state
            )
        )
        for each in (None, limits)
    }
    assert len(ends) == 1


def test_limits_of_a_model() -> None:
    kT = torch.tensor([100.0 * kB, 900.0 * kB], dtype=torch.float64)
    limits = make_limits([(1, 8, 0.92)], [(1, 7.0), (8, 0.5)], kT)
    assert limits.distance[1, 8] == limits.distance[8, 1] == pytest.approx(1.0)
    assert limits.nearest == NEAREST
    assert at_start(limits).nearest == WALL_MARGIN
    assert 0.09 < NEAREST * float(limits.distance[6, 6]) < 0.11  # an overlap, for all others
    assert limits.force[1] == STRONGEST * 7.0
    assert limits.force[8] == STRONG
    assert limits.force[6] == torch.inf
    assert limits.kT.tolist() == [WARM, 900.0 * kB]


@pytest.fixture(scope="module")
def examples() -> dict[str, list[Any]]:
    data = files("mdlearn.data")
    return {
        name: [
            make_example(each, 5.0) for each in read_frames(str(data / f"{name}.xyz"))[0][::stride]
        ]
        for name, stride in (("ethanol", 10), ("water", 8))
    }


class TestSurroundings:
    """An atom whose surroundings are like none of the training frames is told of, no other."""

    def test_counts_are_those_of_distances(self, examples: dict[str, list[Any]]) -> None:
        counts: dict[int, list[int]] = {}
        for each in examples["ethanol"]:
            x = each.system.positions
            near = (torch.cdist(x, x) < 5.0).sum(1) - 1
            for z, count in zip(each.system.numbers.tolist(), near.tolist(), strict=True):
                counts.setdefault(z, []).append(count)
        expected = [(z, min(each), max(each)) for z, each in sorted(counts.items())]
        assert neighbor_counts(examples["ethanol"]) == expected

    @pytest.mark.parametrize("name", ["ethanol", "water"])
    def test_no_false_alarm(self, examples: dict[str, list[Any]], name: str) -> None:
        """Half of the frames know the other half, also shaken by 0.2 Å."""
        known = neighbor_counts(examples[name][::2])
        torch.manual_seed(0)
        for each in examples[name][1::2]:
            x = each.system.positions
            shaken = each.system._replace(positions=x + 0.2 * torch.randn_like(x))
            for system in (each.system, shaken):
                assert unfamiliar_atom(system, build(system, 5.0), known) is None

    def test_ethanol_does_not_know_water_nor_water_a_molecule(
        self, examples: dict[str, list[Any]]
    ) -> None:
        ethanol, water = (neighbor_counts(examples[name]) for name in ("ethanol", "water"))
        liquid = examples["water"][0]
        said = unfamiliar_atom(liquid.system, liquid.neighbors, ethanol)
        assert said is not None
        assert "neighbors within 5 Å, where H has" in said
        molecule = to_system(ase.Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]))
        for known in (ethanol, water):
            said = unfamiliar_atom(molecule, build(molecule, 5.0), known)
            assert said is not None
            assert "(H) has 2 neighbors" in said
        both = concatenate([examples["ethanol"][0].system, molecule])
        said = unfamiliar_atom(both, build(both, 5.0), ethanol)
        assert said is not None
        assert said.startswith("atom 1 (H)")  # of the second

    def test_older_models_know_nothing_to_compare_with(
        self, examples: dict[str, list[Any]]
    ) -> None:
        liquid = examples["water"][0]
        assert unfamiliar_atom(liquid.system, liquid.neighbors, []) is None


def test_largest_forces_of_frames() -> None:
    frames = []
    for seed, symbols in enumerate(("H2O", "CO", "H")):
        system = to_system(ase.Atoms(symbols))
        generator = np.random.default_rng(seed)
        forces = torch.tensor(generator.normal(size=(len(system.numbers), 3)))
        nothing = torch.full((1,), torch.nan)
        labels = Labels(nothing, forces, nothing, nothing)
        frames.append(Frame(symbols, system, labels))
    frames[2].labels.forces[0] = torch.nan
    water, oxide = (each.labels.forces.norm(dim=1).tolist() for each in frames[:2])
    expected = [(1, max(water[:2])), (6, oxide[0]), (8, max(water[2], oxide[1]))]
    assert largest_forces(frames) == expected
    assert largest_forces(frames[2:]) == []


def test_lonely_atoms() -> None:
    near, far = ase.Atoms("OH", [[0, 0, 0], [0, 0, 1.0]]), ase.Atoms("H", [[0, 0, 9.0]])
    system = concatenate([to_system(near + far), to_system(far)])
    assert lonely_atoms(system, build(system, CUTOFF, SKIN)) == [2]  # and not the single atom


def test_first_velocities_trip_nothing() -> None:
    """What is drawn at the temperature of the thermostat never trips."""
    system = to_system(ase.Atoms("HO", [[0, 0, 0], [0, 0, 1.0]]))
    kT = torch.full((1,), 400.0 * kB, dtype=torch.float64)
    for seed in range(50):
        momenta = maxwell_boltzmann(system, 400.0 * kB, [seed])
        dynamics = isolated(potential(), INTEGRATORS["nve"], system)
        state, neighbors, conserved = start(dynamics, system, momenta)
        assert find_trips(state, neighbors, conserved, make_limits((), (), kT)) == []


def test_crystals_are_guarded_across_their_boundaries() -> None:
    atoms = crystal()
    atoms.positions[3] = atoms.positions[2] + [0.08, 0.0, 0.0] + atoms.cell[1]
    system = to_system(atoms)
    dynamics = isolated(potential(), INTEGRATORS["nve"], system)
    snapshot = start(dynamics, system, torch.zeros_like(system.positions))
    (trip,) = find_trips(*snapshot, no_limits())
    assert "atom 2 (H) and atom 3 (C) are 0.080 Å apart" in trip.text


def drawn_batch() -> tuple[State, Snapshot, Watched, Limits]:
    """A crystal and a molecule some way from where their lists were built, and their guards."""
    system = concatenate([to_system(crystal()), to_system(molecule())])
    generator = torch.Generator().manual_seed(4)
    strain = 0.01 * torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    shift = 0.05 * torch.randn(system.positions.shape, generator=generator, dtype=torch.float64)
    kT = torch.tensor([0.03, 0.05], dtype=torch.float64)
    limits = make_limits([(1, 6, 2.0), (8, 8, 2.5)], [(6, 3.0), (1, 0.5)], kT)
    dynamics = isolated(potential(), INTEGRATORS["nve"], system)
    snapshot = start(dynamics, system, maxwell_boltzmann(system, 0.04, [5, 6]))
    watched = watch(snapshot.neighbors, system, limits, SKIN)
    moved = system._replace(
        positions=system.positions + shift, cell=system.cell + torch.bmm(system.cell, strain)
    )
    state = snapshot.state._replace(
        system=moved, bath=kT, freedom=torch.tensor([20.0, 9.0]).double()
    )
    return state, snapshot, watched, limits


@pytest.mark.parametrize(("skin", "least"), [(0.0, 0), (0.7, 5), (2.0, 20), (torch.inf, 50)])
def test_all_that_could_come_near_is_watched(skin: float, least: int) -> None:
    """Once each, with the images of the crystal, and nothing else."""
    _, snapshot, _, limits = drawn_batch()
    neighbors, system = snapshot.neighbors, snapshot.state.system
    there = system._replace(positions=neighbors.reference, cell=neighbors.reference_cell)
    distance = pair_vectors(there, neighbors).norm(dim=2)
    z = system.numbers
    nearest = limits.nearest * limits.distance[z[:, None], z[neighbors.j]]
    near = neighbors.valid & (distance <= nearest + skin)
    found = watch(neighbors, system, limits, skin)
    expected = set()
    for n, k in torch.nonzero(near).tolist():
        pair = (n, int(neighbors.j[n, k]), *neighbors.shift[n, k].tolist(), float(nearest[n, k]))
        expected.add(pair)
    rows = zip(*(each.tolist() for each in found), strict=True)
    once = {(n, j, *shift, limit) for n, j, shift, limit in rows}
    twice = once | {(j, n, *(-s for s in shift), limit) for n, j, *shift, limit in once}
    assert len(once) == len(found.n)
    assert twice == expected
    assert len(expected) == 2 * len(once)
    assert len(once) >= least
    closest = limits.distance * limits.nearest
    for one, other in zip(
        found, watch_by_operations(neighbors, system, closest, skin), strict=True
    ):
        assert torch.equal(one, other)


def test_one_loop_says_what_operations_say() -> None:
    """The form of processors and that of other devices, with and without a number."""
    state, snapshot, watched, limits = drawn_batch()
    assert len(watched.n) > 5
    broken = state.system.positions.clone()
    broken[-1, 1] = torch.nan
    together = state.system.positions.clone()
    together[watched.n[0]] = together[watched.j[0]]
    for positions in (state.system.positions, broken, together):
        each = state._replace(system=state.system._replace(positions=positions))
        one = shares(each, watched, snapshot.conserved, limits)
        two = _shares_by_operations(each, watched, snapshot.conserved, limits)
        torch.testing.assert_close(one, two, rtol=1e-13, atol=0.0, equal_nan=True)
    forces = state.evaluation.forces.clone()
    forces[0, 2] = torch.nan
    each = state._replace(evaluation=state.evaluation._replace(forces=forces))
    one = shares(each, watched, snapshot.conserved, limits)
    assert one[1, 0].isnan()
    assert one[1, 1] > 0.0
