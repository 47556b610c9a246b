"""Thermostats that scale all momenta of a system alike, for steps in loops (`motion`).

They are half a step of `mdlearn.integrators.csvr` and `nose_hoover`, where the formulas are
explained. Each is compiled when it is first needed, and called by its place in memory.
"""

from __future__ import annotations

import math

from mdlearn.chain import drive
from mdlearn.jit import compiled
from mdlearn.potentials.kernels.atoms import Inputs
from mdlearn.potentials.kernels.motion import Motion
from mdlearn.potentials.kernels.rows import Array, clear


@compiled(inner=True)
def _kinetic_energies(inputs: Inputs, motion: Motion, energies: Array) -> None:
    """Fills in those of systems, (n_systems,) eV."""
    clear(energies)
    for n in range(len(inputs.system)):
        square = 0.0
        for axis in range(3):
            square += motion.momenta[n, axis] ** 2
        energies[inputs.system[n]] += square / (2.0 * motion.masses[n])


@compiled(inner=True)
def _scale(factors: Array, inputs: Inputs, motion: Motion) -> None:
    for n in range(len(inputs.system)):
        for axis in range(3):
            motion.momenta[n, axis] *= factors[inputs.system[n]]


@compiled(error_model="numpy")
def csvr(step: int, half: int, inputs: Inputs, motion: Motion) -> None:
    """The first or the second half of stochastic velocity rescaling in a step."""
    clear(motion.scratch)
    first, squares, places = motion.scratch[0], motion.scratch[1], motion.scratch[2]
    kinetic, factors = motion.scratch[3], motion.scratch[4]
    noise = motion.noise[step, half]
    for n in range(len(inputs.system)):
        s = inputs.system[n]
        for axis in range(3):
            if places[s] == 0.0:
                first[s] = noise[n, axis]
            if places[s] < motion.freedom[s]:
                squares[s] += noise[n, axis] ** 2
            places[s] += 1.0
    remember = math.exp(-0.5 * motion.dt / motion.time)
    _kinetic_energies(inputs, motion, kinetic)
    for s in range(len(inputs.cell)):
        ratio = 0.5 * motion.kT[step, s] / kinetic[s] if kinetic[s] > 0.0 else 0.0
        gain = (1.0 - remember) * ratio
        square = remember + gain * squares[s] + 2.0 * first[s] * math.sqrt(remember * gain)
        square = max(square, 0.0)
        turned = first[s] + math.sqrt(remember / max(gain, 1e-300)) < 0.0
        factors[s] = -math.sqrt(square) if turned else math.sqrt(square)
        motion.bath[s] += kinetic[s] - square * kinetic[s]
    _scale(factors, inputs, motion)


@compiled(error_model="numpy")
def nose_hoover(step: int, half: int, inputs: Inputs, motion: Motion) -> None:
    """Half a step of a chain of thermostats; both halves are alike."""
    kinetic, factors = motion.scratch[0], motion.scratch[1]
    _kinetic_energies(inputs, motion, kinetic)
    for s in range(len(factors)):
        v, kT, freedom = motion.variables[s], motion.kT[step, s], motion.freedom[s]
        given = (2.0 * kinetic[s], freedom, kT, 0.5 * motion.dt, motion.time)
        factors[s], heat = drive(v, *given)
        motion.bath[s] += heat
    _scale(factors, inputs, motion)
