"""Steps of dynamics around the forces, in the loops that compute them.

A step of a few atoms takes no longer than to ask for it from outside. So loops are asked for many:
they move atoms, and stop where a neighbor list is worn or a guard trips. What an atom does in a
step is here; it is what `mdlearn.integrators` say of constant energy and constant temperature.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mdlearn.jit import call, compiled
from mdlearn.lists import furthest
from mdlearn.meeting import Meeting, meet
from mdlearn.potentials.kernels.atoms import Inputs
from mdlearn.potentials.kernels.rows import copy
from mdlearn.potentials.kernels.usage import larger, usage
from mdlearn.words import Exact0, Exact1, Exact2, Exact3, Exact4, Index1

GONE, STALE, TRIPPED = 1, 2, 3
"""Why loops stop before the last step: in the next one an atom would leave its list, a list is to
be replaced before it, or a guard tripped."""


class Motion(NamedTuple):
    """Steps that loops are to do from the positions they are given, and what comes of them.

    All numbers are float64. What is marked with * is overwritten.
    """

    steps: int
    """How many; zero to evaluate, and move nothing."""
    dt: float
    """Å·sqrt(u/eV), time step."""
    remember: float
    """What momenta keep of themselves in a step with friction; one without."""
    thermostat: int
    """The place in memory of half a step of a thermostat, see `thermostats`; zero for none."""
    time: float
    """Å·sqrt(u/eV), of that thermostat."""
    good: float
    """Å that atoms may have moved since their list was built, and"""
    worn: float
    """Å, from which on it is to be replaced before the next step."""
    drift: float
    """eV per atom that the conserved energy may move."""
    hottest: float
    """See `usage.usage`, as for all guards."""
    masses: Exact1
    """(N,) u,"""
    mobile: Exact1
    """(N,), zero for atoms that are held and one for others,"""
    numbers: Index1
    """(N,) int64."""
    momenta: Exact2
    """(N, 3)*,"""
    forces: Exact2
    """(N, 3)* eV/Å, and"""
    energy: Exact1
    """(n_systems,)* eV, of the positions before the first step, and then of the last."""
    bath: Exact1
    """(n_systems,)* eV, energy handed to the thermostat."""
    variables: Exact2
    """(n_systems, V)*, of a thermostat with a motion of its own."""
    before: Exact3
    """(2, N, 3)*, positions and momenta of the step before,"""
    bath_before: Exact1
    """(n_systems,)*, and what belongs to the thermostat."""
    variables_before: Exact2
    """(n_systems, V)*."""
    heat: Exact1
    """(N,)* eV, handed to the thermostat in a step."""
    noise: Exact4
    """(steps, draws, N, 3) normal deviates, as many as the thermostat takes."""
    kT: Exact2
    """(steps, n_systems) eV."""
    listed: tuple[Exact2, Exact3, Exact3, Exact1]
    """Of lists: reference positions, and for each system reference cell, its inverse, and wear."""
    reach: Exact0
    """() Å, of lists."""
    watched: tuple[Index1, Index1, Exact2, Exact1]
    """See `mdlearn.guards.Watched`."""
    limits: tuple[Exact1, Exact1]
    """See `usage.usage`."""
    conserved: Exact1
    """(n_systems,) eV, at the start of the simulation."""
    freedom: Exact1
    """(n_systems,)."""
    moved: Exact2
    """(2, n_systems)* Å, how far atoms have moved since lists were built: by the last step that was
    done, and by the last that was tried."""
    share: Exact1
    """(1,)*, the largest of the guards' shares; or NaN."""
    done: Index1
    """(2,)* int64: steps that were done; and why no more, or zero."""
    scratch: Exact2
    """(5, n_systems)*, for whoever counts something of systems, and"""
    strains: Exact3
    """(n_systems, 3, 3)*, since lists were built."""


class Found(NamedTuple):
    """What comes of the network for every atom."""

    width: int
    """Atoms of a block."""
    energies: Exact1
    """(N,) float64 eV."""
    forces: Exact2
    """(N, 3) float64 eV/Å."""


def rest() -> Motion:
    """No steps: to evaluate only."""
    none, rows, ranks = np.zeros(0), np.zeros((0, 3)), np.zeros(0, np.int64)
    table, cells = np.zeros((0, 0)), np.zeros((0, 3, 3))
    return Motion(
        steps=0,
        dt=0.0,
        remember=1.0,
        thermostat=0,
        time=0.0,
        good=0.0,
        worn=0.0,
        drift=0.0,
        hottest=0.0,
        masses=none,
        mobile=none,
        numbers=ranks,
        momenta=rows,
        forces=rows,
        energy=none,
        bath=none,
        variables=table,
        before=cells,
        bath_before=none,
        variables_before=table,
        heat=none,
        noise=np.zeros((0, 0, 0, 3)),
        kT=table,
        listed=(rows, cells, cells, none),
        reach=np.zeros(()),
        watched=(ranks, ranks, rows, none),
        limits=(none, none),
        conserved=none,
        freedom=none,
        moved=table,
        share=none,
        done=ranks,
        scratch=table,
        strains=cells,
    )


@compiled(placed=True)
def depart(
    step: int,
    blocks: tuple[int, int],
    inputs: Inputs,
    found: Found,
    motion: Motion,
    meeting: Meeting,
) -> bool:
    """What comes before the forces of a step: B A, or B A O A; after half of a thermostat.

    Returns:
        Whether to go on: all atoms are where their list is good.
    """
    width = found.width
    atoms = (blocks[0] * width, min(blocks[1] * width, len(inputs.system)))
    positions, momenta, remember, dt = inputs.positions, motion.momenta, motion.remember, motion.dt
    forget = math.sqrt(1.0 - remember * remember)
    x_before, p_before = motion.before[0], motion.before[1]
    for n in range(atoms[0], atoms[1]):
        for axis in range(3):
            x_before[n, axis], p_before[n, axis] = positions[n, axis], momenta[n, axis]
    if motion.thermostat != 0:
        if not meet(meeting):
            return False
        if blocks[0] == 0:
            copy(motion.bath, motion.bath_before)
            copy(motion.variables, motion.variables_before)
            call(motion.thermostat, (step, 0, inputs, motion))
        if not meet(meeting):
            return False
    for n in range(atoms[0], atoms[1]):
        mass, heat = motion.masses[n], 0.0
        spread = forget * math.sqrt(mass * motion.kT[step, inputs.system[n]])
        for axis in range(3):
            x, p = positions[n, axis], momenta[n, axis]
            p += 0.5 * dt * motion.forces[n, axis]
            if remember == 1.0:
                x += dt * p / mass
            else:
                x += 0.5 * dt * p / mass
                q = remember * p + spread * motion.noise[step, 0, n, axis]
                heat += (p * p - q * q) / (2.0 * mass)
                p = q
                x += 0.5 * dt * p / mass
            positions[n, axis], momenta[n, axis] = x, p
        motion.heat[n] = heat
    if not meet(meeting):
        return False
    if blocks[0] == 0:
        _measure(inputs, motion)
    if not meet(meeting):
        return False
    if motion.done[1] == 0:
        return True
    for n in range(atoms[0], atoms[1]):
        for axis in range(3):
            positions[n, axis], momenta[n, axis] = x_before[n, axis], p_before[n, axis]
    if blocks[0] == 0 and motion.thermostat != 0:
        copy(motion.bath_before, motion.bath)
        copy(motion.variables_before, motion.variables)
    return False


@compiled(inner=True)
def _measure(inputs: Inputs, motion: Motion) -> None:
    """How far atoms have moved, and whether any has left its list."""
    reference, cells, inverse, wear = motion.listed
    box = (inputs.cell, cells, inverse, wear)
    strains, moved = motion.strains, motion.moved[1]
    furthest(inputs.positions, reference, inputs.system, box, motion.reach, strains, moved)
    for s in range(len(moved)):
        if not moved[s] <= motion.good:  # NaN has left, too
            motion.done[1] = GONE


@compiled(placed=True)
def arrive(
    step: int,
    blocks: tuple[int, int],
    inputs: Inputs,
    found: Found,
    motion: Motion,
    meeting: Meeting,
) -> bool:
    """What comes after the forces of a step: B, a thermostat, and a look at the guards.

    Returns:
        Whether there may be another step on these lists.
    """
    width = found.width
    for n in range(blocks[0] * width, min(blocks[1] * width, len(inputs.system))):
        for axis in range(3):
            force = found.forces[n, axis] * motion.mobile[n]
            motion.forces[n, axis] = force
            motion.momenta[n, axis] += 0.5 * motion.dt * force
    if not meet(meeting):
        return False
    if blocks[0] == 0:
        if motion.thermostat != 0:
            call(motion.thermostat, (step, 1, inputs, motion))
        _account(inputs, motion, found)
    return meet(meeting) and motion.done[1] == 0


@compiled(inner=True)
def _account(inputs: Inputs, motion: Motion, found: Found) -> None:
    """Energies of systems after a step, and what guards make of it."""
    for s in range(len(inputs.cell)):
        motion.energy[s] = 0.0
    for n in range(len(inputs.system)):
        motion.energy[inputs.system[n]] += found.energies[n]
        motion.bath[inputs.system[n]] += motion.heat[n]
    places = (inputs.positions, inputs.cell, inputs.system)
    atoms = (motion.masses, motion.momenta, motion.numbers, motion.forces)
    energies = (motion.energy, motion.bath, motion.conserved, motion.freedom)
    usage(
        places,
        atoms,
        energies,
        motion.watched,
        motion.limits,
        motion.drift,
        motion.hottest,
        motion.scratch,
    )
    share = motion.share[0]
    for guard in range(4):
        for each in motion.scratch[guard]:
            share = larger(share, each)
    motion.share[0] = share
    for s in range(len(inputs.cell)):
        motion.moved[0, s] = motion.moved[1, s]
        if motion.moved[0, s] > motion.worn:
            motion.done[1] = STALE
    motion.done[0] += 1
    if not share <= 1.0:
        motion.done[1] = TRIPPED
