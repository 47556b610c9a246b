"""Functions of a distance as splines: the filters of many channels from six rows of a table.

A spline of degree 5 is a sum of bumps, c_i B(y n - i): at each point six of them. It is four times
differentiable, and its derivative is that of what it gives. Rows of a table are coefficients of as
many channels as there are lanes, so what a pair needs stands in one piece, and is small enough to
stay in the first cache. The envelope is not in the table, but in what a pair multiplies it with.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mdlearn.jit import compiled
from mdlearn.lanes import WIDTH, Lanes, load
from mdlearn.potentials.kernels.atoms import envelope
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.sphere import FASTMATH

ROWS = 6
"""Coefficients that meet at one point."""


@compiled(fastmath=FASTMATH, inner=True)
def blend(
    y: float, d_y: float, cut: float, d_cut: float, intervals: int, bumps: Array, out: Array
) -> int:
    """What a pair multiplies six rows of a table with, for values (6,) and for slopes (6,).

    Bumps by the recursion of Cox and de Boor, without its divisors.

    Args:
        y: where the function is wanted, from 0 to 1.
        d_y: its derivative by the distance.
        cut: the envelope.
        d_cut: its derivative by the distance.
        intervals: of the table.
        bumps: (6,) float64, is overwritten.
        out: (12,) is filled.

    Returns:
        Where the six rows begin in the table of some lanes.
    """
    place = y * intervals
    knot = math.floor(place) if y < 1.0 else intervals - 1
    t = place - knot
    bumps[:] = 0.0
    bumps[0] = 1.0
    for degree in range(1, 5):
        for i in range(degree, 0, -1):
            bumps[i] = (degree - i + t) * bumps[i - 1] + (i + 1 - t) * bumps[i]
        bumps[0] *= 1.0 - t
    rise, value = cut * d_y * intervals / 24.0, cut / 120.0
    d_value = d_cut / 120.0
    for i in range(ROWS):
        before = bumps[i - 1] if i > 0 else 0.0
        bump = (5 - i + t) * before + (i + 1 - t) * bumps[i]
        out[i] = value * bump
        out[ROWS + i] = d_value * bump + rise * (before - bumps[i])
    return knot * WIDTH


@compiled()
def blend_once(
    y: float, d_y: float, cut: float, d_cut: float, intervals: int, bumps: Array, out: Array
) -> int:
    """The same, for Python to call."""
    return blend(y, d_y, cut, d_cut, intervals, bumps, out)


@compiled(inner=True)
def approach(atoms: tuple[int, int], j: Array, weights: Any, work: Any) -> None:
    """How the neighbors of some atoms are heard: which they are, and how filters are blended.

    Knots are even in y = (1 + s) u / (1 + s u) for u = distance/cutoff.
    """
    bumps, s = np.empty(ROWS), weights.crowding
    per_length = 1.0 / weights.cutoff
    intervals = weights.tables.shape[-1] // WIDTH - (ROWS - 1)
    for n in range(atoms[0], atoms[1]):
        for k in range(work.within[n]):
            work.near[n, k] = j[n, work.slots[n, k]]
            u = work.pairs[n, k, 3] * per_length
            cut, d_cut = envelope(u)
            y, d_y = (1.0 + s) * u / (1.0 + s * u), (1.0 + s) / (1.0 + s * u) ** 2 * per_length
            out = work.blends[n, k]
            work.places[n, k] = blend(y, d_y, cut, d_cut * per_length, intervals, bumps, out)


@compiled(inner=True)
def filtered(table: Array, place: int, weights: Array) -> Lanes:
    """The filters of some channels: six rows of a table, blended (12,)."""
    return (
        weights[0] * load(table, place)
        + weights[1] * load(table, place + WIDTH)
        + weights[2] * load(table, place + 2 * WIDTH)
        + weights[3] * load(table, place + 3 * WIDTH)
        + weights[4] * load(table, place + 4 * WIDTH)
        + weights[5] * load(table, place + 5 * WIDTH)
    )


@compiled(inner=True)
def filtered_both(table: Array, place: int, weights: Array) -> tuple[Lanes, Lanes]:
    """The same, and derivatives by the distance."""
    a, b, c = load(table, place), load(table, place + WIDTH), load(table, place + 2 * WIDTH)
    d, e = load(table, place + 3 * WIDTH), load(table, place + 4 * WIDTH)
    f = load(table, place + 5 * WIDTH)
    value = weights[0] * a + weights[1] * b + weights[2] * c
    slope = weights[6] * a + weights[7] * b + weights[8] * c
    value = value + weights[3] * d + weights[4] * e + weights[5] * f
    return value, slope + weights[9] * d + weights[10] * e + weights[11] * f
