"""The time step that a system bears: its fastest vibration is that of the whole Hessian."""

from __future__ import annotations

import math

import pytest
import torch
from ase import Atoms
from checks import CUTOFF, REFERENCE_ENERGIES, SPECIES, crystal, molecule, random_schnet
from oracles import LennardJones
from torch import Tensor, nn

from mdlearn.atoms import to_system
from mdlearn.errors import UnstableError
from mdlearn.neighbors import Neighbors, build
from mdlearn.potentials.evaluate import evaluate
from mdlearn.system import System, concatenate
from mdlearn.timestep import choose_timestep, energy_excursion, largest_eigenvalue
from mdlearn.units import fs, kB


def dense_eigenvalue(potential: nn.Module, system: System, mobile: Tensor | None = None) -> float:
    """From the Hessian of all pairs of coordinates, by differences of fourth order."""
    neighbors = build(system, potential.cutoff, 0.5)
    count, h = 3 * len(system.numbers), 1e-3
    rows = []
    for coordinate in range(count):
        direction = torch.zeros(count, dtype=torch.float64)
        direction[coordinate] = h
        moved = direction.view(-1, 3)
        f = {
            n: evaluate(
                potential, system._replace(positions=system.positions + n * moved), neighbors
            ).forces.flatten()
            for n in (-2, -1, 1, 2)
        }
        rows.append(-(8.0 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12.0 * h))
    hessian = torch.stack(rows)
    assert (hessian - hessian.T).abs().max() < 1e-6 * hessian.abs().max()
    weight = system.masses.rsqrt().repeat_interleave(3)
    if mobile is not None:
        weight = weight * mobile[:, 0].repeat_interleave(3)
    return float(torch.linalg.eigvalsh(weight[:, None] * hessian * weight)[-1])


class Spring(nn.Module):
    """A molecule of two atoms with V(x) = k x²/2 + c x⁶, x being how far it is stretched."""

    cutoff, species = 5.0, SPECIES

    def __init__(self, k: float, c: float = 0.0) -> None:
        super().__init__()
        self.k, self.c = k, c

    def forward(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> Tensor:
        x = r.square().sum(2).sqrt() - 1.0
        energy = 0.5 * self.k * x.square() + self.c * x**6
        return 0.5 * torch.where(neighbors.valid, energy, 0.0).sum(1)


HYDROXYL = to_system(Atoms("OH", positions=[[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]]))
CASES = {
    "molecule": (random_schnet(scale=3.0), to_system(molecule())),
    "crystal": (random_schnet(scale=3.0), to_system(crystal())),
    "dense": (
        LennardJones(SPECIES, REFERENCE_ENERGIES, cutoff=CUTOFF).double(),
        to_system(molecule("CH4")),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fastest_vibration_is_that_of_the_whole_hessian(name: str) -> None:
    potential, system = CASES[name]
    expected = dense_eigenvalue(potential, system)
    assert expected > 0.1
    assert largest_eigenvalue(potential, system) == pytest.approx(expected, rel=3e-3)


def test_atoms_that_are_held_do_not_vibrate() -> None:
    potential, system = CASES["molecule"]
    mobile = torch.ones(9, 1, dtype=torch.float64)
    mobile[4:] = 0.0
    expected = dense_eigenvalue(potential, system, mobile)
    assert expected != pytest.approx(dense_eigenvalue(potential, system), rel=0.05)
    assert largest_eigenvalue(potential, system, mobile) == pytest.approx(expected, rel=3e-3)


def test_of_many_systems_the_fastest_counts() -> None:
    potential = Spring(40.0)
    slow = HYDROXYL._replace(masses=10.0 * HYDROXYL.masses)
    alone = largest_eigenvalue(potential, HYDROXYL)
    both = largest_eigenvalue(potential, concatenate([slow, HYDROXYL, slow]))
    assert both == pytest.approx(alone, rel=1e-4)


def test_time_step_is_a_twentieth_of_the_period() -> None:
    oxygen, hydrogen = HYDROXYL.masses.tolist()
    k = 48.0  # eV/Å²: about 3,700 1/cm
    omega = math.sqrt(k * (1.0 / oxygen + 1.0 / hydrogen))
    found = choose_timestep(Spring(k), HYDROXYL, 300.0 * kB)
    assert found.timestep_fs == pytest.approx(2.0 * math.pi / omega / 20.0 / fs, rel=0.02)
    assert found.timestep_fs == round(found.timestep_fs, 2)
    wavenumber = omega * 1e15 * fs / (2.0 * math.pi * 2.99792458e10)
    assert found.wavenumber_per_cm == pytest.approx(wavenumber, rel=1e-3)
    assert found.halvings == 0
    # Velocity Verlet's energy of a harmonic vibration swings by (ω dt)²/8 of the kinetic energy.
    assert 0.0 < found.excursion < 0.05 * 300.0 * kB


def test_stiffness_that_only_motion_shows_halves_the_time_step() -> None:
    soft, stiffening = Spring(5.0), Spring(5.0, 1e6)
    kT = 1000.0 * kB
    first, found = (choose_timestep(each, HYDROXYL, kT) for each in (soft, stiffening))
    assert found.wavenumber_per_cm == pytest.approx(first.wavenumber_per_cm, rel=0.05)
    assert found.halvings in (1, 2)
    longer = 2.0 * found.timestep_fs
    assert found.excursion <= 0.05 * kT < energy_excursion(stiffening, HYDROXYL, longer, kT)


class Rough(Spring):
    """With ripples that no time step can follow."""

    def forward(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> Tensor:
        x = r.square().sum(2).sqrt() - 1.0
        ripples = torch.where(neighbors.valid, 0.05 * torch.sin(1e7 * x), 0.0)
        return super().forward(numbers, r, neighbors) + ripples.sum(1)


def test_hopeless_systems_are_an_error() -> None:
    with pytest.raises(UnstableError, match=r"--timestep auto: even with .* --relax"):
        choose_timestep(Rough(5.0), HYDROXYL, 300.0 * kB)


def test_where_nothing_vibrates_steps_are_not_endless() -> None:
    alone = to_system(Atoms("O"))
    found = choose_timestep(Spring(1.0), alone, 300.0 * kB)
    assert (found.timestep_fs, found.wavenumber_per_cm) == (10.0, 0.0)
