"""Lennard-Jones argon: what others have published, and what ASE makes of the same start."""

from __future__ import annotations

import math
from typing import Any

import ase
import ase.build
import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.md.verlet import VelocityVerlet

from mdlearn import units
from mdlearn.atoms import to_system
from mdlearn.integrators import csvr, pressure, velocity_verlet
from mdlearn.momenta import maxwell_boltzmann
from mdlearn.neighbors import build, pair_vectors
from mdlearn.potentials.architectures import make_potential
from mdlearn.potentials.network import ParametricPotential, Settings
from mdlearn.simulate import Dynamics, Snapshot, isolated, piecewise_linear, simulate, start

EPSILON, SIGMA = 119.8 * units.kB, 3.405
"""eV and Å."""
DENSITY = 0.82
"""1/σ³."""


def liquid(cutoff: float) -> ParametricPotential:
    """The potential, with a cutoff in σ."""
    settings = Settings("lennard-jones", cutoff * SIGMA, 1, 1, 1, average_neighbors=1.0, scale=1.0)
    potential = make_potential((18,), {18: 0.0}, settings).double()
    potential.get_parameter("log_sigma").data.fill_(math.log(SIGMA))
    potential.get_parameter("log_epsilon").data.fill_(math.log(EPSILON))
    return potential


def crystal() -> ase.Atoms:
    """108 atoms in a box of 5.1 σ."""
    edge = SIGMA * (4.0 / DENSITY) ** (1.0 / 3.0)
    return ase.build.bulk("Ar", "fcc", a=edge, cubic=True) * (3, 3, 3)


def test_energy_and_pressure_are_those_published() -> None:
    """T* = 0.85 and ρ* = 0.82: -5.7947 ε per atom and 0.55355 ε/σ³.

    NIST Standard Reference Simulation Website, Lennard-Jones fluid, Monte Carlo; truncated at 3 σ,
    with long-range corrections. Frames are weighted by what the envelope takes away within 3 σ.
    """
    cutoff, kT = 3.0, 0.85 * EPSILON
    system = to_system(crystal())
    n, volume = len(system.numbers), len(system.numbers) / DENSITY
    course = piecewise_linear([(0, 4.0 * kT), (150, 4.0 * kT), (300, kT)], system)
    nothing = piecewise_linear([(0, 0.0)], system)
    dynamics = Dynamics(
        liquid(cutoff).float(), csvr(10 * units.fs, 300 * units.fs), course, nothing, [0]
    )
    seen: list[list[float]] = []

    def observe(snapshot: Snapshot) -> bool:
        state = snapshot.state
        if state.step < 500:
            return True
        neighbors = build(state.system, cutoff * SIGMA)
        r = pair_vectors(state.system, neighbors)[neighbors.valid].norm(dim=1) / SIGMA
        u, s = r / cutoff, r**-6
        taken = u**6 * (28.0 - 48.0 * u + 21.0 * u**2)
        steepness = u**6 * (168.0 - 336.0 * u + 168.0 * u**2)  # u d(taken)/du
        energy = 4.0 * (s * s - s)
        virial = energy * steepness - 24.0 * (2.0 * s * s - s) * taken  # r d(energy taken)/dr
        more = 0.5 * float((energy * taken).sum()) / n, float(virial.sum()) / (-6.0 * volume)
        found = float(state.evaluation.energy) / EPSILON / n, float(pressure(state))
        seen.append([found[0] + more[0], found[1] * SIGMA**3 / EPSILON + more[1], n * more[0]])
        return True

    first = start(dynamics, system, maxwell_boltzmann(system, 4.0 * kT, [0]))
    simulate(dynamics, first, steps=1700, every=10, observe=observe)
    x = cutoff**-3
    tail = [8 / 9 * DENSITY * (x**3 - 3 * x), 32 / 9 * DENSITY**2 * (x**3 - 1.5 * x)]
    values, lacking = np.array(seen)[:, :2] + math.pi * np.array(tail), np.array(seen)[:, 2]
    weights = np.exp((lacking.mean() - lacking) * EPSILON / kT)
    energy, force = np.average(values, 0, weights)
    # Four error bars each; the potential that was run has -4.6 and 1.5.
    assert abs(energy + 5.7947) < 0.07
    assert abs(force - 0.55355) < 0.35


class Switched(Calculator):
    """Lennard-Jones times the envelope, by all pairs of nearest images."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  declared so by ASE
    cutoff = 2.5 * SIGMA

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = tuple(all_changes),
    ) -> None:
        Calculator.calculate(self, atoms, properties, system_changes)
        x, length = self.atoms.positions, self.atoms.cell[0, 0]
        r = x[:, None] - x
        r -= length * np.round(r / length)
        d = np.sqrt((r**2).sum(2))
        np.fill_diagonal(d, np.inf)
        u, s = np.minimum(d / self.cutoff, 1.0), (SIGMA / d) ** 6
        envelope = 1.0 - 28.0 * u**6 + 48.0 * u**7 - 21.0 * u**8
        slope = -168.0 * u**5 * (1.0 - u) ** 2 / self.cutoff
        energy = 4.0 * EPSILON * (s * s - s)
        push = 24.0 * EPSILON * (2.0 * s * s - s) / d * envelope - energy * slope
        self.results = {
            "energy": 0.5 * float((energy * envelope).sum()),
            "forces": ((push / d)[..., None] * r).sum(1),
        }


def test_trajectory_is_that_of_ase() -> None:
    """500 steps of velocity Verlet from a crystal that melts, with lists that are replaced."""
    atoms = crystal()
    system, dt = to_system(atoms), 5.0 * units.fs
    potential = liquid(2.5)
    dynamics = isolated(potential, velocity_verlet(dt), system)
    momenta = maxwell_boltzmann(system, 200.0 * units.kB, [1])
    first = start(dynamics, system, momenta)
    last = simulate(dynamics, first, steps=500, every=500, observe=lambda _: True)
    assert not torch.equal(last.neighbors.reference, first.neighbors.reference)
    atoms.set_momenta(momenta.numpy())
    atoms.calc = Switched()
    VelocityVerlet(atoms, timestep=dt).run(500)
    moved = last.state.system.positions - system.positions
    assert moved.square().mean().sqrt() > 0.5
    theirs = torch.from_numpy(atoms.positions)
    assert (last.state.system.positions - theirs).abs().max() < 1e-9
    assert abs(float(last.state.evaluation.energy) - atoms.get_potential_energy()) < 1e-9
