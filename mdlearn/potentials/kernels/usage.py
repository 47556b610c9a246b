"""How much of what guards allow has been used, in one loop over atoms; see `mdlearn.guards`."""

from __future__ import annotations

import math
from typing import Any

from mdlearn.jit import compiled
from mdlearn.potentials.kernels.rows import Array, clear

RARE = 30.0
"""The largest fluctuation of the kinetic energy is one that exp(30) = 10¹³ steps have once."""


def largest_of(freedom: Any, kT: Any, hottest: float) -> Any:
    """A kinetic energy that equilibrium never has, (n_systems,) eV, times `hottest`.

    That of f degrees of freedom is kT/2 times a chi-squared variable X, and
    P(X >= f + 2 sqrt(f t) + 2 t) <= exp(-t) (Laurent, Massart, Ann. Stat. 28, 1302, 2000, lemma 1).
    """
    return hottest * 0.5 * kT * (freedom + 2.0 * (freedom * RARE) ** 0.5 + 2.0 * RARE)


_largest_of_one = compiled(inner=True)(largest_of)


@compiled(error_model="numpy")
def usage(
    places: tuple[Array, ...],
    atoms: tuple[Array, ...],
    energies: tuple[Array, ...],
    watched: tuple[Array, ...],
    limits: tuple[Array, ...],
    drift: float,
    hottest: float,
    found: Array,
) -> None:
    """What `mdlearn.guards.shares` returns, (4, n_systems).

    Args:
        places: positions, cells, and the system of each atom.
        atoms: masses, momenta, atomic numbers, forces.
        energies: of systems: potential, of the bath, conserved at the start; and their freedom.
        watched: see `mdlearn.guards.Watched`.
        limits: the largest forces by atomic number, and kT by system.
        drift: eV per atom that the conserved energy may move.
        hottest: times kT that a system may be.
        found: (5, n_systems) is filled: the last with numbers of atoms.
    """
    positions, cell, system = places
    masses, momenta, numbers, forces = atoms
    energy, bath, conserved, freedom = energies
    first, second, shift, nearest = watched
    strongest, kT = limits
    clear(found)
    close, strong, hot, moved, counts = found[0], found[1], found[2], found[3], found[4]
    for p in range(len(first)):
        n = first[p]
        squared = squared_distance(positions, n, second[p], shift[p], cell[system[n]])
        close[system[n]] = larger(close[system[n]], nearest[p] * nearest[p] / squared)
    for n in range(len(system)):
        s, f, p = system[n], forces[n], momenta[n]
        most = strongest[numbers[n]]
        square = (f[0] * f[0] + f[1] * f[1] + f[2] * f[2]) / (most * most)
        strong[s] = larger(strong[s], square)
        hot[s] += (p[0] * p[0] + p[1] * p[1] + p[2] * p[2]) / (2.0 * masses[n])
        counts[s] += 1.0
    for s in range(len(cell)):
        moved[s] = abs(energy[s] + hot[s] + bath[s] - conserved[s]) / counts[s] / drift
        hot[s] /= _largest_of_one(freedom[s], kT[s], hottest)


@compiled(inner=True)
def squared_distance(positions: Array, n: int, j: int, shift: Array, box: Array) -> float:
    """The square of the distance of an image of atom j from atom n, Å²."""
    squared = 0.0
    for axis in range(3):
        translation = shift[0] * box[0, axis] + shift[1] * box[1, axis] + shift[2] * box[2, axis]
        way = positions[j, axis] - positions[n, axis] + translation
        squared += way * way
    return squared


@compiled(inner=True)
def larger(one: float, other: float) -> float:
    """NaN if any of the two is."""
    return other if other > one or math.isnan(other) else one
