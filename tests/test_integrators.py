"""Equations of motion: order of convergence, reversibility, what is conserved."""

from __future__ import annotations

import math

import ase
import ase.build
import numpy as np
import pytest
import torch
from checks import compiler, is_power, molecule, random_schnet
from oracles import LennardJones, well
from torch import Tensor, nn

from mdlearn.atoms import to_system
from mdlearn.integrators import (
    Forces,
    Integrator,
    State,
    Surroundings,
    conserved_energy,
    kinetic_energy,
    langevin,
    martyna_tobias_klein,
    nose_hoover,
    velocity_verlet,
)
from mdlearn.integrators.nose_hoover import drive_by_operations, drive_chain
from mdlearn.momenta import maxwell_boltzmann, noise
from mdlearn.neighbors import build
from mdlearn.potentials.evaluate import evaluate
from mdlearn.system import System, concatenate, sum_by_system
from mdlearn.units import GPa, fs, kB, ps


def bound_forces(potential: nn.Module, system: System, skin: float = 6.0) -> Forces:
    """Forces on a list so wide that it stays good, for a molecule with any skin."""
    neighbors = build(system, potential.cutoff, skin)
    return lambda moved: evaluate(potential, moved, neighbors)


def begin(integrator: Integrator, system: System, momenta: Tensor, forces: Forces) -> State:
    """The first state; every atom counts with its three directions."""
    freedom = 3.0 * sum_by_system(torch.ones_like(system.masses), system)
    return integrator.init(system, momenta, forces, freedom)


def run(
    integrator: Integrator,
    state: State,
    forces: Forces,
    steps: int,
    *,
    seed: int = 0,
    kT: float = 0.0,
    pressure: float = 0.0,
) -> list[State]:
    """All states of a run, the first one included."""
    states = [state]
    like = torch.ones_like(state.bath)
    for _ in range(steps):
        draw = noise(seed, state.step, integrator.draws, state.momenta)
        state = integrator.step(state, forces, Surroundings(draw, kT * like, pressure * like))
        states.append(state)
    return states


def cluster() -> System:
    """A shaken tetrahedron: near a minimum, so that rounding does not grow exponentially."""
    x = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    atoms = ase.Atoms("C2O2", positions=0.84 * x)
    atoms.rattle(0.05, [0])
    return to_system(atoms)


def tiny_crystal() -> System:
    """Near its minimum, too."""
    atoms = ase.build.bulk("C", "fcc", 3.3, cubic=True)
    atoms.rattle(0.02, [0])
    return to_system(atoms)


def lennard_jones(cutoff: float = 9.0) -> LennardJones:
    energies = dict.fromkeys((6, 8), 0.0)
    return LennardJones((6, 8), energies, cutoff=cutoff, epsilon=0.3, sigma=2.1).double()


def test_harmonic_oscillator_follows_its_exact_solution() -> None:
    """Velocity Verlet has one in closed form: cos θ = 1 - ω²dt²/2 replaces cos ω dt."""
    system = to_system(ase.Atoms("HO", positions=[[0.3, -0.2, 0.5], [1.0, 0.4, 0.0]]))
    stiffness, dt = 1.7, 0.3
    integrator = velocity_verlet(dt)
    start = begin(integrator, system, torch.zeros_like(system.positions), well(stiffness))
    states = run(integrator, start, well(stiffness), 50)
    theta = torch.arccos(1.0 - stiffness / system.masses * dt**2 / 2.0)
    for n, state in enumerate(states):
        expected = system.positions * torch.cos(n * theta)[:, None]
        assert (state.system.positions - expected).abs().max() < 1e-12
        assert state.step == n
        assert torch.equal(state.evaluation.forces, -stiffness * state.system.positions)


@pytest.mark.parametrize("name", ["schnet", "lennard-jones"])
def test_velocity_verlet_is_of_second_order(name: str) -> None:
    if name == "schnet":
        potential, system = random_schnet(cutoff=9.0, seed=1), to_system(molecule())
    else:
        potential, system = lennard_jones(), cluster()
    forces = bound_forces(potential, system)
    momenta = maxwell_boltzmann(system, 300.0 * kB, [1])
    errors, ends, steps = [], [], [1.0, 0.5, 0.25]
    for dt_fs in (*steps, 0.03125):
        integrator = velocity_verlet(dt_fs * fs)
        first = begin(integrator, system, momenta, forces)
        states = run(integrator, first, forces, int(16 / dt_fs))
        energy = torch.stack([conserved_energy(state) for state in states[:: int(1 / dt_fs)]])
        errors.append(float((energy - energy[0]).abs().max()))
        ends.append(states[-1].system.positions)
        assert abs(float(kinetic_energy(states[-1]) / kinetic_energy(states[0])) - 1.0) > 0.02
    assert is_power(steps, errors[:3], order=2.0, tolerance=0.19)  # 3.5 to 4.5 on halving
    distances = [float((end - ends[-1]).norm()) for end in ends[:3]]
    assert is_power(steps, distances, order=2.0, tolerance=0.19)


@pytest.mark.parametrize(
    ("name", "distance"), [("velocity verlet", 0.1), ("nose-hoover", 0.1), ("mtk", 0.05)]
)
def test_deterministic_dynamics_is_reversible(name: str, distance: float) -> None:
    """A thousand steps and back, with the baths that run backward too."""
    dt, kT, pressure = 2.0 * fs, 60.0 * kB, 0.2 * GPa
    integrator = {
        "velocity verlet": velocity_verlet(dt),
        "nose-hoover": nose_hoover(dt, 200.0 * fs),
        "mtk": martyna_tobias_klein(dt, 200.0 * fs, 400.0 * fs),
    }[name]
    if name == "mtk":
        system = tiny_crystal()
        forces = bound_forces(lennard_jones(cutoff=5.0), system, skin=1.0)
    else:
        system = cluster()
        forces = bound_forces(lennard_jones(), system)
    momenta = maxwell_boltzmann(system, kT, [2])
    first = begin(integrator, system, momenta, forces)
    there = run(integrator, first, forces, 1000, kT=kT, pressure=pressure)[-1]
    assert (there.system.positions - system.positions).norm(dim=1).max() > distance
    assert (name == "velocity verlet") == bool((there.bath == 0.0).all())
    turned = there._replace(momenta=-there.momenta, variables=-there.variables)
    back = run(integrator, turned, forces, 1000, kT=kT, pressure=pressure)[-1]
    assert (back.system.positions - system.positions).abs().max() < 1e-8
    assert (back.momenta + momenta).abs().max() < 1e-8
    assert (back.system.cell - system.cell).abs().max() < 1e-8
    assert (back.bath - first.bath).abs().max() < 1e-8


def test_momentum_and_angular_momentum_are_conserved() -> None:
    system, integrator = cluster(), velocity_verlet(2.0 * fs)
    forces = bound_forces(lennard_jones(), system)
    momenta = maxwell_boltzmann(system, 60.0 * kB, [2])
    first, *_, last = run(integrator, begin(integrator, system, momenta, forces), forces, 1000)
    assert (last.momenta - first.momenta).abs().max() > 0.1
    assert (last.momenta.sum(0) - first.momenta.sum(0)).abs().max() < 1e-13
    spin = [torch.linalg.cross(s.system.positions, s.momenta).sum(0) for s in (first, last)]
    assert (spin[1] - spin[0]).abs().max() < 1e-11


def test_systems_of_a_batch_do_not_mix() -> None:
    parts = [cluster(), to_system(ase.Atoms("CO", positions=[[0, 0, 0], [2.2, 0, 0]]))]
    momenta = [maxwell_boltzmann(each, 100.0 * kB, [3]) for each in parts]
    integrator, potential = velocity_verlet(2.0 * fs), lennard_jones()
    batch = concatenate(parts)
    forces = bound_forces(potential, batch)
    last = run(integrator, begin(integrator, batch, torch.cat(momenta), forces), forces, 50)[-1]
    for index, (part, p) in enumerate(zip(parts, momenta, strict=True)):
        forces = bound_forces(potential, part)
        alone = run(integrator, begin(integrator, part, p, forces), forces, 50)[-1]
        mine = batch.system == index
        assert (last.system.positions[mine] - alone.system.positions).abs().max() < 1e-11
        assert abs(conserved_energy(last)[index] - conserved_energy(alone)[0]) < 1e-11


def test_kinetic_energy_by_hand() -> None:
    system = concatenate([to_system(ase.Atoms("H2")), to_system(ase.Atoms("O"))])
    momenta = torch.tensor([[1.0, 0, 0], [0, 2, 0], [2, 1, 2]], dtype=torch.float64)
    state = begin(velocity_verlet(1.0), system, momenta, well(0.0))
    masses = system.masses.tolist()
    expected = [(1.0 + 4.0) / (2.0 * masses[0]), 9.0 / (2.0 * masses[2])]
    assert kinetic_energy(state).tolist() == pytest.approx(expected, rel=1e-14)


def test_langevin_without_friction_is_velocity_verlet() -> None:
    system = cluster()
    forces = bound_forces(lennard_jones(), system)
    momenta = maxwell_boltzmann(system, 100.0 * kB, [4])
    ends = []
    for integrator in (velocity_verlet(2.0 * fs), langevin(2.0 * fs, 0.0)):
        ends.append(run(integrator, begin(integrator, system, momenta, forces), forces, 50)[-1])
    assert (ends[0].system.positions - ends[1].system.positions).abs().max() < 1e-12
    assert float(ends[1].bath) == 0.0


def test_langevin_at_zero_temperature_is_friction() -> None:
    """A free atom slows down as exp(-γ t), whatever the noise."""
    system = to_system(ase.Atoms("HO", positions=[[0, 0, 0], [5, 0, 0]]))
    momenta = torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 9.0]], dtype=torch.float64)
    friction, dt = 3.0 / ps, 10.0 * fs
    integrator = langevin(dt, friction)
    last = run(integrator, begin(integrator, system, momenta, well(0.0)), well(0.0), 100)[-1]
    assert (last.momenta - momenta * math.exp(-3.0)).abs().max() < 1e-12
    lost = (1.0 - math.exp(-6.0)) * (momenta.square().sum(1) / (2.0 * system.masses)).sum()
    assert float(last.bath) == pytest.approx(float(lost), rel=1e-12)


@pytest.mark.parametrize("kT", [0.0, 0.02])
def test_conserved_energy_of_langevin_is_of_second_order(kT: float) -> None:
    """Friction and noise are booked to the bath, so that only the error of the step is left."""
    n, steps = 400, [0.2, 0.1, 0.05]
    system = to_system(ase.Atoms(f"H{n}", positions=np.zeros((n, 3))))
    generator = torch.Generator().manual_seed(0)
    x = 0.2 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    # Each atom a system of its own, to see the error of each and not their sum.
    system = system._replace(
        positions=x,
        system=torch.arange(n),
        cell=system.cell.repeat(n, 1, 1),
        pbc=system.pbc.repeat(n, 1),
    )
    errors, exchanged = [], []
    for dt in steps:
        integrator = langevin(dt, 0.3)
        start = begin(integrator, system, torch.zeros_like(x), well(1.5))
        last = run(integrator, start, well(1.5), round(8.0 / dt), kT=kT)[-1]
        error = conserved_energy(last) - conserved_energy(start)
        errors.append(float(error.square().mean().sqrt()))
        exchanged.append(float(last.bath.abs().mean()))
    assert min(exchanged) > 10.0 * max(errors)
    assert is_power(steps, errors, order=2.0, tolerance=0.3)


@pytest.mark.parametrize("name", ["velocity verlet", "langevin"])
def test_compiled_step_is_eager(name: str) -> None:
    """One graph without a break, whichever step it is."""
    dt, potential, system = 1.0 * fs, lennard_jones(), cluster()
    integrator = velocity_verlet(dt)
    if name == "langevin":
        integrator = langevin(dt, 5.0 / ps)
    forces = bound_forces(potential, system)
    momenta = maxwell_boltzmann(system, 300.0 * kB, [6])
    start = begin(integrator, system, momenta, forces)
    expected = run(integrator, start, forces, 4)
    with compiler() as compiled:
        step = compiled(lambda state, outside: integrator.step(state, forces, outside))
        found = run(integrator._replace(step=lambda s, _, n: step(s, n)), start, forces, 4)
    for one, other in zip(found, expected, strict=True):
        assert one.step == other.step
        assert (one.system.positions - other.system.positions).abs().max() < 1e-13
        assert (one.momenta - other.momenta).abs().max() < 1e-12
        assert abs(one.bath - other.bath) < 1e-12


def test_a_chain_is_the_same_in_a_loop_and_by_operations() -> None:
    """Of four systems; the loop is for a CPU, operations are for a GPU."""
    generator = torch.Generator().manual_seed(0)
    velocities, *rest = (
        torch.rand(shape, generator=generator, dtype=torch.float64)
        for shape in ((4, 3), (4,), (4,), (4,))
    )
    velocities -= 0.5
    kinetic, freedom, kT = rest[0], 3.0 + 20.0 * rest[1], 0.01 + rest[2]
    given = (velocities, kinetic, freedom, kT, 0.2, 0.9)
    before = velocities.clone()
    for ours, theirs in zip(drive_chain(*given), drive_by_operations(*given), strict=True):
        assert (ours - theirs).abs().max() < 1e-13
    assert torch.equal(velocities, before)
    assert (drive_chain(*given)[0] - before).abs().min() > 1e-3
