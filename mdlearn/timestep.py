"""What time step a system bears: a twentieth of its fastest vibration, and a short run to try it.

With 20 steps a period, velocity Verlet makes the frequency of a harmonic vibration 0.4 percent too
high, and its energy swings by 1.2 percent: (ω dt)²/24 and (ω dt)²/8 (B. Leimkuhler and C. Matthews,
Molecular Dynamics, Springer, 2015, chapter 2).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mdlearn.errors import UnstableError
from mdlearn.integrators import conserved_energy, velocity_verlet
from mdlearn.momenta import maxwell_boltzmann, noise
from mdlearn.neighbors import SKIN, build
from mdlearn.potentials.evaluate import Evaluable
from mdlearn.simulate import (
    Snapshot,
    bind_forces,
    degrees_of_freedom,
    isolated,
    simulate,
    start,
)
from mdlearn.system import System
from mdlearn.units import LIGHT_M_PER_S, fs, second

STEPS_PER_PERIOD = 20
LONGEST_FS = 10.0
"""Where nothing vibrates faster than in 200 fs, collisions need steps no longer than this."""
DISPLACEMENT = 0.005
"""Å that the atom moves which moves most, where forces are differentiated."""
PRODUCTS = (12, 60)
"""Products with the Hessian: at least and at most."""
CONVERGED = 1e-3
"""Relative change of the largest eigenvalue in one more product."""
PROBE_STEPS = 300
TOLERANCE, SMALLEST_TOLERANCE = 0.05, 1e-3
"""Of kT, and eV: what the conserved energy per atom may move by in the probe."""
HALVINGS = 3


class TimeStep(NamedTuple):
    """A time step and the reasons for it."""

    timestep_fs: float
    wavenumber_per_cm: float
    """Of the fastest vibration; zero where nothing vibrates."""
    excursion: float
    """eV per atom that the conserved energy moved by in the probe."""
    halvings: int
    """How often the probe did not bear what the vibration allowed."""


def choose_timestep(
    potential: Evaluable, system: System, kT: float, mobile: Tensor | None = None
) -> TimeStep:
    """The longest time step that fastest vibration and conservation of energy allow.

    Args:
        potential: the potential.
        system: one or many systems, as they start.
        kT: eV, the highest of the run.
        mobile: (n_atoms, 1), zero for atoms that are held.

    Raises:
        UnstableError: energy is not conserved with an eighth of the first choice either.
    """
    period = fastest_period(potential, system, mobile)
    wavenumber = second / period / (100.0 * LIGHT_M_PER_S)
    first = min(LONGEST_FS, period / fs / STEPS_PER_PERIOD)
    limit = max(TOLERANCE * kT, SMALLEST_TOLERANCE)
    for halvings in range(HALVINGS + 1):
        timestep_fs = float(f"{first / 2**halvings:.2g}")
        excursion = energy_excursion(potential, system, timestep_fs, kT, mobile)
        if excursion <= limit:
            return TimeStep(timestep_fs, wavenumber, excursion, halvings)
    raise UnstableError(
        f"--timestep auto: even with {timestep_fs:g} fs the conserved energy moves by"
        f" {1000 * excursion:.3g} meV per atom in {PROBE_STEPS} steps (limit"
        f" {1000 * limit:.3g}); the structure is far from what the model was trained on:"
        " start with --relax, or give a number"
    )


def fastest_period(potential: Evaluable, system: System, mobile: Tensor | None = None) -> float:
    """The period of the fastest vibration, Å sqrt(u/eV); infinite where nothing vibrates.

    Args:
        potential: the potential.
        system: one or many systems; of many, the fastest of all.
        mobile: (n_atoms, 1), zero for atoms that are held.
    """
    square = largest_eigenvalue(potential, system, mobile)
    return 2.0 * math.pi / math.sqrt(square) if square > 0.0 else math.inf


def largest_eigenvalue(potential: Evaluable, system: System, mobile: Tensor | None = None) -> float:
    """The largest eigenvalue of the mass-weighted Hessian M^(-1/2) H M^(-1/2): ω², eV/(Å² u).

    By Lanczos' iteration (J. Res. Natl. Bur. Stand. 45, 255, 1950), which takes the same products
    with the Hessian as power iteration and needs far fewer of them; the basis is kept orthogonal.
    A product is a central difference of forces.

    Args:
        potential: the potential.
        system: one or many systems; of many, the largest of all.
        mobile: (n_atoms, 1), zero for atoms that are held.
    """
    forces = bind_forces(potential, build(system, potential.cutoff, SKIN), mobile)
    weight = system.masses[:, None].rsqrt() * (1.0 if mobile is None else mobile)

    def product(q: Tensor) -> Tensor:
        direction = weight * q
        h = DISPLACEMENT / direction.norm(dim=1).max()
        ahead, behind = (
            forces(system._replace(positions=system.positions + sign * h * direction)).forces
            for sign in (1.0, -1.0)
        )
        image: Tensor = weight * (behind - ahead) / (2.0 * h)
        return image

    q = noise(0, 0, 1, system.positions)[0] * (weight > 0.0)
    basis = [q / q.norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    largest = math.nan
    least, most = PRODUCTS
    for count in range(1, min(most, 3 * int((weight > 0.0).sum())) + 1):
        image = product(basis[-1])
        diagonal.append((image * basis[-1]).sum())
        for each in (*basis, *basis):  # twice is enough (W. Kahan, B. Parlett)
            image = image - (image * each).sum() * each
        previous, largest = largest, _largest(diagonal, beside)
        if count >= least and abs(largest - previous) <= CONVERGED * abs(largest):
            break
        beside.append(image.norm())
        if not bool(beside[-1] > 1e-12):  # these are all directions there are
            break
        basis.append(image / beside[-1])
    return largest


def _largest(diagonal: list[Tensor], beside: list[Tensor]) -> float:
    """The largest eigenvalue of a symmetric tridiagonal matrix."""
    matrix = torch.diag(torch.stack(diagonal))
    if beside:
        off = torch.diag(torch.stack(beside), 1)
        matrix = matrix + off + off.T
    return float(torch.linalg.eigvalsh(matrix)[-1])


def energy_excursion(
    potential: Evaluable,
    system: System,
    timestep_fs: float,
    kT: float,
    mobile: Tensor | None = None,
) -> float:
    """How far the conserved energy moves in a short run of velocity Verlet, eV per atom.

    Args:
        potential: the potential.
        system: where to start; of many systems, all energies are added.
        timestep_fs: the time step.
        kT: eV, of the first velocities, which have the energy of that at least: by chance a few
            atoms may have next to none.
        mobile: (n_atoms, 1), zero for atoms that are held.

    Returns:
        The largest distance from the first value; infinite if the run is unstable.
    """
    dynamics = isolated(potential, velocity_verlet(timestep_fs * fs), system)
    dynamics = dynamics._replace(mobile=mobile)
    momenta = maxwell_boltzmann(system, kT, dynamics.seeds, mobile)
    kinetic = 0.5 * float((momenta.square() / system.masses[:, None]).sum())
    mean = 0.5 * kT * float(degrees_of_freedom(dynamics, system).sum())
    if 0.0 < kinetic < mean:
        momenta = momenta * (mean / kinetic) ** 0.5
    energies: list[Tensor] = []

    def observe(snapshot: Snapshot) -> bool:
        energies.append(conserved_energy(snapshot.state).sum())
        return True

    try:
        first = start(dynamics, system, momenta)
        simulate(dynamics, first, steps=PROBE_STEPS, every=1, observe=observe)
    except UnstableError:
        return math.inf
    change = torch.stack(energies) - first.conserved.sum()
    return float(change.abs().max()) / len(system.numbers)
