"""Sums of functions of pair distances in one loop over atoms: energies, forces and virials.

Every pair is listed with one of its atoms, and what it says is said once: the force on that atom is
V'(d) r/d, that on the other one the opposite, and either has half of the energy. A system is swept
in pieces that depend on its size alone; each adds up for itself what it gives to all atoms of the
system, and what they gave is added in order: the same bits every time, whatever the number of
threads and whatever else is in the batch.

A row of neighbors has one element (`pairwise_rows`), so parameters are numbers and not arrays. What
is within the cutoff is put together first, and filled up to whole vectors with one that is too far
away to matter.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mdlearn.jit import compiled, on_stack
from mdlearn.lanes import (
    FOUR,
    REGISTER,
    alike,
    below,
    chosen,
    if_negative,
    load_four,
    ones,
    store,
    total,
    transposed,
)
from mdlearn.potentials.kernels.atoms import envelope
from mdlearn.potentials.kernels.pairwise_rows import Rows
from mdlearn.potentials.kernels.rows import Array, clear, copy
from mdlearn.potentials.kernels.sphere import FASTMATH

LANES = REGISTER // 8
"""Functions are evaluated for so many neighbors at once: a register of float64."""
PIECE = 256
"""Slots of a row that are looked at before functions are evaluated."""
ROOM = PIECE + LANES
"""For those of them within the cutoff, and what fills them up."""
FAR = 1e8
"""Å, how far away that is."""
LENNARD_JONES, MORSE, ZBL = range(3)
PARAMETERS = 14


class Terms(NamedTuple):
    """The functions that are added up."""

    kinds: Array
    """(T,) int64, one of the constants above each."""
    parameters: Array
    """(T, Z, Z, 14) float64: 1/d₀ and the stiffness of a wall (see `Wall`), where the function
    ends, and what else it says of two elements."""
    reference: Array
    """(Z,) float64 eV, energies of isolated atoms."""
    cutoff: float
    """Å, beyond which there is nothing, nor a wall."""


class Found(NamedTuple):
    """The neighbors within the cutoff among some of an atom, filled up; `ROOM` numbers each."""

    x: Array
    """Å, of the vectors to them,"""
    y: Array
    z: Array
    square: Array
    """Å², and how long these are."""
    further: Array
    """How much greater their indices are than that of the atom."""
    energy: Array
    """eV, of the pairs, and"""
    slope: Array
    """eV/Å², its derivative by the distance, over the distance."""


@compiled(inner=True)
def _soften(x: float, core: float) -> tuple[float, float]:
    """As in `mdlearn.potentials.classical`, and its derivative."""
    depth = 1.0 - x * (1.0 / core)
    depth = depth if depth > 0.0 else 0.0
    return x + core / 3.0 * depth * depth * depth, 1.0 - depth * depth


@compiled(error_model="numpy")
def lennard_jones(d: float, parameters: Array) -> tuple[float, float, float]:
    """V = 4ε (s⁻¹² - s⁻⁶), s = d/σ, softened; V' and 1/d. Parameters: 1/σ, 4ε, the core."""
    scale, strength = parameters[3], parameters[4]
    s, rise = _soften(d * scale, parameters[5])
    both = 1.0 / (s * d)  # one division for 1/s and 1/d
    inverse = both * d
    a = inverse * inverse * inverse
    a *= a
    v = strength * (a * a - a)
    return v, strength * (6.0 * a - 12.0 * a * a) * inverse * rise * scale, both * s


@compiled()
def morse(d: float, parameters: Array) -> tuple[float, float, float]:
    """V = D (1 - exp(-a (d - d₀)))² - D, V' and 1/d. Parameters: D, a, d₀."""
    depth, steepness = parameters[3], parameters[4]
    decay = math.exp(-steepness * (d - parameters[5]))
    slope = -2.0 * depth * steepness * decay * (decay - 1.0)
    return depth * decay * (decay - 2.0), slope, 1.0 / d


@compiled(error_model="numpy")
def zbl(d: float, parameters: Array) -> tuple[float, float, float]:
    """V = A/x sum_i w_i e^(-b_i x), x = d/a, softened; V', 1/d. Parameters: 1/a, A, core, w, b."""
    scale, strength = parameters[3], parameters[4]
    if d >= parameters[2]:
        return 0.0, 0.0, 1.0 / d
    x, rise = _soften(d * scale, parameters[5])
    screened, falls = 0.0, 0.0
    for i in range(6, 10):
        part = parameters[i] * math.exp(-parameters[4 + i] * x)
        screened += part
        falls += parameters[4 + i] * part
    v = strength / x * screened
    return v, -(v + strength * falls) / x * rise * scale, 1.0 / d


@compiled(inner=True)
def _gather(
    n: int, slots: tuple[int, int], near: Array, points: Array, cutoff: float, found: Found
) -> tuple[int, float]:
    """Writes down the neighbors within the cutoff among some, filled up to whole bundles.

    Args:
        n: whose neighbors.
        slots: the first one, and the one after the last.
        near: of the rows.
        points: by `pairwise_rows.place`, flat.
        cutoff: Å.
        found: is overwritten but for what functions say.

    Returns:
        How many there are with what fills them up, and the square of the smallest distance, Å².
    """
    own = load_four(points, FOUR * n)
    least, count = alike(FAR, own), 0
    for k in range(slots[0], slots[1], FOUR):
        a = load_four(points, FOUR * near[k]) - own
        b = load_four(points, FOUR * near[k + 1]) - own
        c = load_four(points, FOUR * near[k + 2]) - own
        d = load_four(points, FOUR * near[k + 3]) - own
        x, y, z, further = transposed(a, b, c, d)
        square = x * x + y * y + z * z
        # What lies behind the last slot is not looked at.
        bits = below(square, cutoff * cutoff) & (15 >> max(0, k + FOUR - slots[1]))
        least = if_negative(square - least, square, least)
        store(found.x, count, chosen(x, bits))
        store(found.y, count, chosen(y, bits))
        store(found.z, count, chosen(z, bits))
        store(found.square, count, chosen(square, bits))
        store(found.further, count, chosen(further, bits))
        count += ones(bits)  # or the next ones take their places
    for k in range(count, count + LANES, FOUR):
        store(found.x, k, alike(0.0, own))
        store(found.y, k, alike(0.0, own))
        store(found.z, k, alike(0.0, own))
        store(found.square, k, alike(FAR * FAR, own))
        store(found.further, k, alike(0.0, own))
    four = on_stack(FOUR, points)
    store(four, 0, least)
    nearest = min(min(four[0], four[1]), min(four[2], four[3]))
    return -(-count // LANES) * LANES, nearest


def _adding(function: Any) -> Any:
    """The loop over some pairs of two elements, for a function of distance V.

    The function returns V, V' and 1/d; the loop adds V f(d), and its derivative over d.
    """

    @compiled(fastmath=FASTMATH, error_model="numpy", keep=False)
    def add(square: Array, energy: Array, slope: Array, count: int, given: Array) -> None:
        p = on_stack(PARAMETERS, given)  # which nothing that is written could change
        copy(given, p)
        reach = 1.0 / p[2]
        for k in range(count):
            d = math.sqrt(1e-12 if square[k] < 1e-12 else square[k])
            v, rise, over_d = function(d, p)
            cut, d_cut = envelope(d * reach)
            energy[k] += v * cut
            slope[k] += (rise * cut + v * d_cut * reach) * over_d

    return add


_add_lennard_jones, _add_morse, _add_zbl = _adding(lennard_jones), _adding(morse), _adding(zbl)


@compiled(inner=True)
def _add_wall(square: Array, energy: Array, slope: Array, count: int, p: Array) -> None:
    """Adds `Wall`, which hardly any pair comes near."""
    for k in range(count):
        d = math.sqrt(max(square[k], 1e-12))
        depth = max(0.0, 1.0 - d * p[0])
        energy[k] += p[1] * depth * depth * depth
        slope[k] -= 3.0 * p[1] * depth * depth * p[0] / d


@compiled(inner=True)
def _share(n: int, count: int, found: Found, shares: Array, virial: Array) -> None:
    """Adds pairs of atom n to what both their atoms have (flat), and to its virial."""
    zeros = alike(0.0, load_four(shares, 0))
    own, xx, yy, zz, xy, xz, yz = zeros, zeros, zeros, zeros, zeros, zeros, zeros
    for k in range(0, count, FOUR):
        x, y, z = load_four(found.x, k), load_four(found.y, k), load_four(found.z, k)
        slope, energy = load_four(found.slope, k), load_four(found.energy, k)
        fx, fy, fz = slope * x, slope * y, slope * z
        xx, yy, zz = xx + fx * x, yy + fy * y, zz + fz * z
        xy, xz, yz = xy + fx * y, xz + fx * z, yz + fy * z
        pairs = transposed(fx, fy, fz, energy * -0.5)
        for each in range(FOUR):
            place = FOUR * (n + np.int64(found.further[k + each]))
            store(shares, place, load_four(shares, place) - pairs[each])
            own = own + pairs[each]
    four = on_stack(FOUR, shares)
    store(four, 0, own)
    shares[FOUR * n] += four[0]
    shares[FOUR * n + 1] += four[1]
    shares[FOUR * n + 2] += four[2]
    shares[FOUR * n + 3] -= four[3]  # the energy is not the opposite on the other side
    virial[0, 0] += total(xx)
    virial[1, 1] += total(yy)
    virial[2, 2] += total(zz)
    virial[0, 1] += total(xy)
    virial[0, 2] += total(xz)
    virial[1, 2] += total(yz)


@compiled(inner=True)
def _evaluate(
    terms: Terms, here: int, there: int, count: int, nearest: float, found: Found
) -> None:
    """Fills in what functions say of pairs of two elements; see `_gather` for the numbers."""
    square, energy, slope = found.square, found.energy, found.slope
    for k in range(count):
        energy[k], slope[k] = 0.0, 0.0
    for t in range(len(terms.kinds)):
        kind, p = terms.kinds[t], terms.parameters[t, here, there]
        if kind == LENNARD_JONES:
            _add_lennard_jones(square, energy, slope, count, p)
        elif kind == MORSE:
            _add_morse(square, energy, slope, count, p)
        else:
            _add_zbl(square, energy, slope, count, p)
        if nearest * p[0] * p[0] < 1.0:
            _add_wall(square, energy, slope, count, p)


@compiled(nogil=True)
def sweep(
    some: tuple[int, int],
    pieces: Array,
    points: Array,
    index: Array,
    rows: Rows,
    terms: Terms,
    shares: Array,
    virials: Array,
) -> None:
    """What the pairs of the atoms in some pieces of work give to all atoms of their systems.

    Args:
        some: the first piece, and the one after the last.
        pieces: (pieces, 5) int64, of each the first atom and the one after the last, those of
            their system, and which of `shares` it may write to.
        points: by `pairwise_rows.place`.
        index: (N,) int64, ranks of the elements.
        rows: by `pairwise_rows.pack`.
        terms: the potential.
        shares: (P, N, 4) forces, and energies.
        virials: (N, 3, 3); to that of each atom belong the pairs that it has.
    """
    flat = points.reshape(-1)
    x, y, z = on_stack(ROOM, flat), on_stack(ROOM, flat), on_stack(ROOM, flat)
    square, further = on_stack(ROOM, flat), on_stack(ROOM, flat)
    energy, slope = on_stack(ROOM, flat), on_stack(ROOM, flat)
    found = Found(x, y, z, square, further, energy, slope)
    n_species = len(terms.reference)
    for piece in range(some[0], some[1]):
        begin, end, first, last, part = pieces[piece]
        clear(shares[part, first:last])
        given = shares[part].reshape(-1)
        for n in range(begin, end):
            virial = virials[n]
            for axis in range(3):
                for other in range(3):
                    virial[axis, other] = 0.0
            for element in range(n_species):
                row = n * n_species + element
                for start in range(rows.first[row], rows.last[row], PIECE):
                    slots = (start, min(start + PIECE, rows.last[row]))
                    count, nearest = _gather(n, slots, rows.near, flat, terms.cutoff, found)
                    _evaluate(terms, index[n], element, count, nearest, found)
                    _share(n, count, found, given, virial)
            virial[1, 0], virial[2, 0], virial[2, 1] = virial[0, 1], virial[0, 2], virial[1, 2]


@compiled()
def collect(pieces: Array, shares: Array, index: Array, terms: Terms) -> tuple[Array, Array]:
    """Energies (N,) and forces (N, 3): what was given to each atom, in the order of pieces."""
    n_atoms = len(index)
    energies, forces = np.empty(n_atoms), np.zeros((n_atoms, 3))
    for n in range(n_atoms):
        energies[n] = terms.reference[index[n]]
    for piece in range(len(pieces)):
        _, _, first, last, part = pieces[piece]
        for n in range(first, last):
            share, force = shares[part, n], forces[n]
            force[0] += share[0]
            force[1] += share[1]
            force[2] += share[2]
            energies[n] += share[3]
    return energies, forces
