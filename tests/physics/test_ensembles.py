"""Every thermostat and barostat samples its ensemble, in a fluid of vibrating molecules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ase
import numpy as np
import pytest
import torch
from checks import is_power
from torch import Tensor
from validation import (
    LEAST_P,
    QUANTILES,
    SIGMAS,
    Samples,
    assert_gamma,
    ensemble_quantiles,
    kinetic_p_value,
)

from mdlearn.atoms import to_system
from mdlearn.integrators import (
    Forces,
    Integrator,
    State,
    Surroundings,
    cell_rescaling,
    conserved_energy,
    csvr,
    kinetic_energy,
    langevin,
    martyna_tobias_klein,
    nose_hoover,
    pressure,
    velocity_verlet,
)
from mdlearn.integrators.integrator import scale_momenta
from mdlearn.momenta import maxwell_boltzmann, noise
from mdlearn.system import Evaluation, System, concatenate, sum_by_system, volume

N_ATOMS = 8
"""Four molecules of a light and a heavy atom: each system is small, since there are many."""
BOND = 3.0
"""eV/Å², stiffness of the molecules: a vibration takes 3.2 Å·sqrt(u/eV)."""
REACH, HEIGHT = 0.8, 4.0
"""Å and eV, of the repulsion of atoms."""
LENGTH = 2.8
"""Å, of the cells at first, about what they have at `KT` and `PRESSURE`."""
DT, EVERY, FRAMES, N_SYSTEMS = 0.08, 100, 16, 40
"""After so many steps a system has forgotten what it was, and is the next sample."""
KT, PRESSURE = 0.4, 0.07
THERMOSTATS = {
    "langevin": langevin(DT, 0.5),
    "csvr": csvr(DT, 0.5),
    "nose-hoover": nose_hoover(DT, 0.5),
}
BAROSTATS = {
    "npt": cell_rescaling(DT, 0.5, 1.5, 1.0 / PRESSURE),
    "mtk": martyna_tobias_klein(DT, 0.5, 0.7),
}
every_ensemble = pytest.mark.parametrize("name", [*THERMOSTATS, *BAROSTATS])


def fluid(n_systems: int) -> System:
    """Molecules on a lattice, each with bonds as they are at `KT` without neighbors."""
    centers = np.array([[0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1]]) * 0.5 * LENGTH
    places = np.repeat(centers, 2, axis=0)
    atoms = ase.Atoms("HHe" * (N_ATOMS // 2), places, cell=[LENGTH] * 3, pbc=True)
    system = concatenate([to_system(atoms)] * n_systems)
    bonds = noise(5, 0, 1, system.positions)[0] * (KT / BOND) ** 0.5
    light = (system.numbers == 1).to(bonds.dtype)[:, None]
    return system._replace(positions=system.positions + light * bonds)


def forces(system: System) -> Evaluation:
    """U = sum over molecules k d²/2 + sum over other pairs ε (1 - d²/c²)³ nearer than c.

    Of the nearest images, pair by pair: a list and a derivative would take ten times as long.
    """
    first, second = torch.triu_indices(N_ATOMS, N_ATOMS, 1)
    identity = torch.eye(N_ATOMS, dtype=system.cell.dtype)
    differences = identity[second] - identity[first]  # (n_pairs, n_atoms)
    bond = (first // 2 == second // 2).to(identity.dtype)  # (n_pairs,)
    fractions = differences @ system.positions.view(-1, N_ATOMS, 3) @ torch.linalg.inv(system.cell)
    r = (fractions - fractions.round()) @ system.cell  # (n_systems, n_pairs, 3)
    square = r.square().sum(2)
    overlap = (1.0 - square / REACH**2).clamp_min(0.0) * (1.0 - bond)
    energy = (0.5 * BOND * bond * square + HEIGHT * overlap**3).sum(1)
    # dU/dr, (n_systems, n_pairs, 3)
    pull = (BOND * bond - 6.0 * HEIGHT / REACH**2 * overlap**2)[:, :, None] * r
    stress = r.mT @ pull / volume(system)[:, None, None]
    nothing = torch.zeros_like(system.masses)  # integrators ask for no more
    virials = nothing[:, None, None].expand(-1, 3, 3)
    return Evaluation(energy, -(differences.T @ pull).flatten(0, 1), stress, nothing, virials)


class Run(NamedTuple):
    """What was sampled at one state point."""

    samples: Samples
    momenta: Tensor
    """(n_samples, N_ATOMS, 3) u·Å/(Å·sqrt(u/eV))."""
    masses: Tensor
    """(N_ATOMS,) u."""
    pressure: Tensor
    """(n_samples,) eV/Å³, what the atoms exert."""
    keeps_momentum: bool


def begin(integrator: Integrator, system: System, kT: Tensor) -> State:
    """A state of thermal momenta, less those of systems as a whole."""
    momenta = maxwell_boltzmann(system, kT, range(len(kT)))
    freedom = torch.full_like(kT, 3.0 * N_ATOMS - 3.0 * integrator.keeps_momentum)
    return integrator.init(system, momenta, forces, freedom)


def advance(integrator: Integrator, state: State, kT: Tensor, target: Tensor) -> State:
    """The state one step later; its noise is a function of the step."""
    draw = noise(11, state.step, integrator.draws, state.momenta)
    return integrator.step(state, forces, Surroundings(draw, kT, target))


def sample(integrator: Integrator, points: Sequence[tuple[float, float | None]]) -> list[Run]:
    """Runs one batch of systems at several temperatures and pressures."""
    system = fluid(N_SYSTEMS * len(points))
    kT, target = (
        torch.tensor([each[axis] or 0.0 for each in points]).double().repeat_interleave(N_SYSTEMS)
        for axis in (0, 1)
    )
    state = begin(integrator, system, kT)
    states: list[State] = []
    for step in range(1, (FRAMES + 3) * EVERY + 1):
        state = advance(integrator, state, kT, target)
        if step > 3 * EVERY and step % EVERY == 0:
            states.append(state)
            # Else atoms would see more than one image of another.
            assert torch.linalg.svdvals(state.system.cell).min() > 2.0 * REACH

    def collect(quantity: Callable[[State], Tensor], point: int) -> Tensor:
        return torch.cat([quantity(each).chunk(len(points))[point] for each in states])

    return [
        Run(
            Samples(
                *each,
                N_ATOMS,
                float(state.freedom[0]),
                collect(kinetic_energy, point).numpy(),
                collect(lambda state: state.evaluation.energy, point).numpy(),
                collect(lambda state: volume(state.system), point).numpy(),
            ),
            collect(lambda state: state.momenta.view(-1, N_ATOMS, 3), point),
            system.masses[:N_ATOMS],
            collect(pressure, point),
            integrator.keeps_momentum,
        )
        for point, each in enumerate(points)
    ]


@functools.cache
def sampled(name: str) -> list[Run]:
    """What an ensemble gives at one state point, a hotter one, and one of lower pressure."""
    if name in BAROSTATS:
        return sample(BAROSTATS[name], [(KT, PRESSURE), (1.3 * KT, PRESSURE), (KT, 0.7 * PRESSURE)])
    return sample(THERMOSTATS[name], [(KT, None), (1.4 * KT, None)])


def assert_kinetic_energy(run: Run) -> None:
    assert kinetic_p_value(run.samples) > LEAST_P


def assert_ratios(runs: list[Run]) -> None:
    first, *others = (run.samples for run in runs)
    for other in others:
        assert ensemble_quantiles(first, other) < QUANTILES


@every_ensemble
def test_kinetic_energy_has_its_distribution(name: str) -> None:
    for run in sampled(name):
        assert_kinetic_energy(run)


@every_ensemble
def test_state_points_have_the_ratio_of_their_weights(name: str) -> None:
    """Energies by temperature; enthalpies by temperature and volumes by pressure."""
    assert_ratios(sampled(name))


@every_ensemble
def test_kinetic_energy_is_shared_equally(name: str) -> None:
    """By light and heavy atoms, by translation and inner motion of molecules: 3/2 kT each.

    Where the momentum P of the system is zero, a part of mass m has only the share 1 - m/M of
    that; the inner motion of a molecule has all of it.
    """
    for run in sampled(name):
        light, heavy = run.momenta[:, ::2], run.momenta[:, 1::2]
        m, n = run.masses[0], run.masses[1]
        total = run.masses.sum() if run.keeps_momentum else torch.inf
        inner = (n * light - m * heavy) / (m + n)
        parts = (
            (light, m, m),
            (heavy, n, n),
            (light + heavy, m + n, m + n),
            (inner, m * n / (m + n), 0.0),
        )
        for momenta, mass, moving in parts:
            kinetic = momenta.square().sum(2) / (2.0 * mass * (1.0 - moving / total))
            assert_gamma(kinetic, 1.5, run.samples.kT)


@pytest.mark.parametrize("name", BAROSTATS)
def test_pressure_is_that_of_the_barostat(name: str) -> None:
    """<P> = P₀ and <(P - P₀) V> = -kT, whatever the potential: V is weighted by exp(-P₀V/kT).

    Both follow from the integral over V of a derivative by V, which is zero; of the ratio between
    two pressures neither shows anything, since it would not change if all weights were divided by
    V.
    """
    for run in sampled(name):
        kT, target, v = run.samples.kT, run.samples.pressure, torch.from_numpy(run.samples.volume)
        assert target is not None
        excess = (run.pressure - target) / kT
        for found, expected in ((excess * v.mean(), 0.0), (excess * v, -1.0)):
            error = float(found.std()) / len(found) ** 0.5
            assert error < 0.25
            assert abs(float(found.mean()) - expected) < SIGMAS * error


def berendsen(dt: float, time: float) -> Integrator:
    """All momenta scaled towards the mean kinetic energy: the thermostat that samples nothing."""
    newton = velocity_verlet(dt)

    def step(state: State, forces: Forces, surroundings: Surroundings) -> State:
        state = newton.step(state, forces, surroundings)
        ratio = 0.5 * state.freedom * surroundings.kT / kinetic_energy(state)
        return scale_momenta(state, (1.0 + dt / time * (ratio - 1.0)).sqrt())

    return newton._replace(step=step)


def test_a_wrong_thermostat_is_found_out() -> None:
    runs = sample(berendsen(DT, 0.5), [(KT, None), (1.4 * KT, None)])
    kinetic = runs[0].samples.kinetic.mean()
    assert kinetic == pytest.approx(0.5 * runs[0].samples.freedom * KT, rel=0.01)
    with pytest.raises(AssertionError):
        assert_kinetic_energy(runs[0])
    with pytest.raises(AssertionError):
        assert_ratios(runs)


@pytest.mark.parametrize("name", ["csvr", "nose-hoover", "npt", "mtk"])
def test_conserved_energy_is_of_second_order(name: str) -> None:
    """What baths exchange is booked, so that only the error of the step is left."""
    medians, steps = [], [0.04, 0.02, 0.01]
    kT = torch.full((N_SYSTEMS,), KT, dtype=torch.float64)
    for dt in steps:
        integrator = {
            "csvr": csvr(dt, 0.5),
            "nose-hoover": nose_hoover(dt, 0.5),
            "npt": cell_rescaling(dt, 0.5, 15.0, 1.0 / PRESSURE),
            "mtk": martyna_tobias_klein(dt, 0.5, 0.7),
        }[name]
        first = state = begin(integrator, fluid(N_SYSTEMS), kT)
        errors, exchanged = [], []
        for step in range(1, round(2.4 / dt) + 1):
            state = advance(integrator, state, kT, torch.full_like(kT, PRESSURE))
            if step * dt % 0.2 < 0.5 * dt:
                errors.append((conserved_energy(state) - conserved_energy(first)).abs())
                exchanged.append((state.bath - first.bath).abs())
        medians.append(float(torch.stack(errors).median()))
        assert torch.stack(exchanged).median() > 10.0 * medians[-1]
        # As long as nothing pushes from outside, the momentum is zero to rounding errors.
        assert sum_by_system(state.momenta, state.system).abs().max() < 1e-12
    assert is_power(steps, medians, order=2.0, tolerance=0.4)
