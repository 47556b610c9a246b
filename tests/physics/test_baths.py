"""Thermostats and barostats sample what they say, where the answer is known in closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import ase
import numpy as np
import pytest
import torch
from oracles import LennardJones
from torch import Tensor
from validation import SIGMAS, assert_gamma

from mdlearn.atoms import to_system
from mdlearn.integrators import (
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
)
from mdlearn.momenta import maxwell_boltzmann, noise
from mdlearn.simulate import Dynamics, Snapshot, piecewise_linear, simulate, start
from mdlearn.system import Evaluation, System, concatenate, sum_by_system, volume

KT = 0.4


def gas(n_systems: int, n_atoms: int, length: float) -> System:
    """Systems of atoms that do not see each other, half of them of another element."""
    half = n_atoms // 2
    atoms = ase.Atoms(f"H{half}O{n_atoms - half}", cell=[length] * 3, pbc=True)
    atoms.set_scaled_positions(np.random.default_rng(0).random((n_atoms, 3)))
    return concatenate([to_system(atoms)] * n_systems)


def free(system: System) -> Evaluation:
    """No forces at all."""
    nothing = torch.zeros_like(system.cell)
    per_atom = torch.zeros_like(system.masses)
    virials = per_atom[:, None, None].expand(-1, 3, 3)
    return Evaluation(nothing[:, 0, 0], 0.0 * system.positions, nothing, per_atom, virials)


def springs(system: System) -> Evaluation:
    """Every atom is bound to the first of its system by a spring that hardens as it is stretched.

    Its stress is zero as far as the integrators are told, so for constant volume only.
    """
    x, index = system.positions, system.system
    leads = torch.searchsorted(index, torch.arange(len(system.charge)))
    r = x - x[leads][index]
    square = r.square().sum(1, keepdim=True)
    pull = -(1.0 + square) * r
    first = torch.zeros_like(x).index_add(0, leads[index], -pull)
    energies = (0.5 * square + 0.25 * square.square())[:, 0]
    energy = sum_by_system(energies, system)
    quiet = free(system)
    return quiet._replace(energy=energy, energies=energies, forces=pull + first)


def sample(
    integrator: Integrator,
    system: System,
    forces: Callable[[System], Evaluation],
    steps: int,
    *,
    pressure: float = 0.0,
    lost: float = 0.0,
) -> list[State]:
    """All states of a run that begins in thermal equilibrium, less some degrees of freedom."""
    like = torch.ones_like(system.charge)
    n_atoms = sum_by_system(torch.ones_like(system.masses), system)
    normals = noise(1, -1, 1, system.positions)[0]
    momenta = normals * (system.masses[:, None] * KT).sqrt()
    if lost:
        momenta = maxwell_boltzmann(system, KT, range(len(like)))
    state = integrator.init(system, momenta, forces, 3.0 * n_atoms - lost)
    states = [state]
    for step in range(steps):
        draw = noise(7, step, integrator.draws, momenta)
        state = integrator.step(state, forces, Surroundings(draw, KT * like, pressure * like))
        states.append(state)
    return states


@pytest.mark.parametrize("dt", [0.2, 0.8])
def test_csvr_samples_the_kinetic_energy(dt: float) -> None:
    """Of f degrees of freedom it is gamma distributed, and forgets at the rate 1/τ, for any dt."""
    time, n_systems, n_atoms = 1.5, 150, 3
    integrator = csvr(dt, time)
    every = math.ceil(6.0 * time / dt)  # then it has forgotten
    states = sample(integrator, gas(n_systems, n_atoms, 5.0), free, 12 * every)
    kinetic = torch.stack([kinetic_energy(state) for state in states])
    assert_gamma(kinetic[::every], 1.5 * n_atoms, KT)
    lag = round(time / dt)
    x = kinetic - 1.5 * n_atoms * KT
    correlation = float((x[::every][:12] * x[lag::every]).mean() / x.square().mean())
    expected = math.exp(-lag * dt / time)
    assert abs(correlation - expected) < SIGMAS * 1.5 / math.sqrt(n_systems * 12)
    for state in (states[0], states[-1]):
        assert (conserved_energy(state) - conserved_energy(states[0])).abs().max() < 1e-11


def test_csvr_counts_only_what_moves() -> None:
    """Systems at rest as a whole stay at rest, and the other degrees of freedom share kT/2 each."""
    states = sample(csvr(0.1, 0.3), gas(150, 4, 5.0), free, 400, lost=3.0)
    kinetic = torch.stack([kinetic_energy(state) for state in states[::20]])
    assert_gamma(kinetic, 4.5, KT)
    last = states[-1]
    assert sum_by_system(last.momenta, last.system).abs().max() < 1e-11


@pytest.mark.parametrize("name", ["csvr", "langevin"])
def test_held_atoms_do_not_count(name: str) -> None:
    """Two of three atoms are held, the first one among them; the third has 3 kT/2."""
    system = gas(150, 3, 9.0)
    mobile = (torch.arange(450) % 3 == 2).to(torch.float64)[:, None]
    kT = piecewise_linear([(0, KT)], system)
    potential = LennardJones((1, 8), {1: 0.0, 8: 0.0}, cutoff=1.0, epsilon=0.0).double()
    integrator = csvr(0.05, 0.05) if name == "csvr" else langevin(0.05, 10.0)
    dynamics = Dynamics(potential, integrator, kT, kT, range(150), mobile)
    momenta = maxwell_boltzmann(system, KT, range(150), mobile)
    first = start(dynamics, system, momenta)
    assert first.state.freedom.unique().tolist() == [3.0]
    kinetic: list[Tensor] = []

    def observe(snapshot: Snapshot) -> bool:
        kinetic.append(kinetic_energy(snapshot.state))
        return True

    last = simulate(dynamics, first, steps=60, every=10, observe=observe)
    assert_gamma(torch.stack(kinetic), 1.5, KT)
    moved = (last.state.system.positions - system.positions).abs().amax(1) > 0.0
    assert torch.equal(moved, mobile[:, 0] > 0.0)


@pytest.mark.parametrize("flexible", [False, True])
def test_cell_rescaling_samples_the_volume_of_an_ideal_gas(flexible: bool) -> None:
    """V is gamma distributed: V^N exp(-PV/kT), whether the cell keeps its shape or not."""
    n_systems, n_atoms, pressure, dt, time = 150, 4, 0.02, 0.05, 1.0
    length = ((n_atoms + 1) * KT / pressure) ** (1 / 3)
    integrator = cell_rescaling(dt, 0.5, time, 1.0 / pressure, flexible=flexible)
    states = sample(
        integrator, gas(n_systems, n_atoms, length), free, round(30 * time / dt), pressure=pressure
    )
    every = round(6 * time / dt)
    volumes = torch.stack([volume(state.system) for state in states[every::every]])
    # A step of dt/τ = 0.05 by Euler's rule is off by about as much as the error bar.
    assert_gamma(volumes, n_atoms + 1.0, KT / pressure)
    kinetic = torch.stack([kinetic_energy(state) for state in states[every::every]])
    assert_gamma(kinetic, 1.5 * n_atoms, KT)
    last = states[-1]
    drift = (conserved_energy(last) - conserved_energy(states[0])).abs().max()
    assert drift < 1e-4 * KT * n_atoms  # the strain is applied up to its third power
    shape = last.system.cell / volume(last.system)[:, None, None] ** (1 / 3)
    sheared = (shape - torch.eye(3, dtype=shape.dtype)).abs().max() > 0.1
    assert bool(sheared) == flexible


@pytest.mark.parametrize("name", ["nose-hoover", "mtk"])
def test_deterministic_baths_are_reversible_and_conserve(name: str) -> None:
    """Conserved energy of second order in dt; back to the start when all velocities turn round."""
    errors, steps = [], [0.1, 0.05, 0.025]
    forces = springs if name == "nose-hoover" else free
    system = gas(3, 4, 0.8 if name == "nose-hoover" else 3.0)
    for dt in steps:
        integrator = (
            nose_hoover(dt, 0.7) if name == "nose-hoover" else martyna_tobias_klein(dt, 0.7, 2.0)
        )
        count = round(4.0 / dt)
        states = sample(integrator, system, forces, count, pressure=0.15)
        energy = torch.stack([conserved_energy(state) for state in states[:: round(0.1 / dt)]])
        errors.append(float((energy - energy[0]).abs().max()))
        exchanged = torch.stack([state.bath for state in states])
        assert (exchanged - exchanged[0]).abs().max() > 20.0 * errors[-1]
        turned = states[-1]._replace(momenta=-states[-1].momenta, variables=-states[-1].variables)
        like = torch.ones_like(system.charge)
        for _ in range(count):
            nothing = noise(0, 0, 0, system.positions)
            turned = integrator.step(turned, forces, Surroundings(nothing, KT * like, 0.15 * like))
        assert (turned.system.positions - system.positions).abs().max() < 1e-8
        assert (turned.system.cell - system.cell).abs().max() < 1e-8
    orders = [math.log2(one / other) for one, other in itertools.pairwise(errors)]
    assert min(orders) > 1.8
    assert max(orders) < 2.3 if name == "nose-hoover" else max(orders) < 4.5


def test_nose_hoover_chain_samples_the_kinetic_energy() -> None:
    """Over time and systems; what is sampled is correlated, so within three and ten percent."""
    states = sample(nose_hoover(0.1, 0.5), gas(60, 4, 0.8), springs, 1500)
    kinetic = torch.stack([kinetic_energy(state) for state in states[200::10]]) / KT
    assert float(kinetic.mean()) == pytest.approx(6.0, rel=0.03)
    assert float(kinetic.var()) == pytest.approx(6.0, rel=0.1)


def test_a_wrong_thermostat_is_found_out() -> None:
    """Berendsen's: the right mean, and not the fluctuations of any ensemble."""
    system, dt, time = gas(150, 3, 5.0), 0.1, 1.5
    state = sample(csvr(dt, time), system, springs, 0)[0]
    right = csvr(dt, 1e12)
    like = torch.ones_like(system.charge)
    for step in range(150):
        draw = noise(3, step, 2, state.momenta)
        state = right.step(state, springs, Surroundings(draw, KT * like, like))
        ratio = 4.5 * KT / kinetic_energy(state)
        factor = (1.0 + dt / time * (ratio - 1.0)).sqrt()
        state = state._replace(momenta=state.momenta * factor[system.system, None])
    with pytest.raises(AssertionError):
        assert_gamma(kinetic_energy(state), 4.5, KT)
