"""Functions of a distance as splines: the filters of many channels from five rows of a table.

A spline of degree 4 is a sum of bumps, c_i B(y n - i): at each point five of them. It is three
times differentiable, and its derivative is that of what it gives. Rows of a table are coefficients
of as many channels as there are lanes, so what a pair needs stands in one piece, and is small
enough to stay in the first cache. The envelope is not in the table, but in what a pair multiplies
it with.
"""

from __future__ import annotations

import math
from typing import Any

from mdlearn.jit import compiled, on_stack
from mdlearn.lanes import WIDTH, Lanes, alike, load, load_part, store
from mdlearn.potentials.kernels.atoms import envelope, looks_after
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.sphere import FASTMATH

ROWS = 5
"""Coefficients that meet at one point."""


@compiled(fastmath=FASTMATH, inner=True)
def blend(
    y: float, d_y: float, cut: float, d_cut: float, intervals: int, bumps: Array, out: Array
) -> int:
    """What a pair multiplies five rows of a table with, for values (5,) and for slopes (5,).

    Bumps by the recursion of Cox and de Boor, without its divisors. Each is highest at its knot, so
    what meets at a point are those of the nearest knot and of two more to either side.

    Args:
        y: where the function is wanted, from 0 to 1.
        d_y: its derivative by the distance.
        cut: the envelope.
        d_cut: its derivative by the distance.
        intervals: of the table.
        bumps: (5,) float64, is overwritten.
        out: (10,) is filled.

    Returns:
        Where the five rows begin in the table of some lanes.
    """
    place = y * intervals + 0.5
    knot = math.floor(place) if y < 1.0 else intervals
    t = place - knot
    bumps[:] = 0.0
    bumps[0] = 1.0
    for degree in range(1, 4):
        for i in range(degree, 0, -1):
            bumps[i] = (degree - i + t) * bumps[i - 1] + (i + 1 - t) * bumps[i]
        bumps[0] *= 1.0 - t
    rise, value, d_value = cut * d_y * intervals * (1 / 6), cut * (1 / 24), d_cut * (1 / 24)
    for i in range(ROWS):
        before = bumps[i - 1] if i > 0 else 0.0
        bump = (4 - i + t) * before + (i + 1 - t) * bumps[i]
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
def divide(n: int, inputs: Any, work: Any) -> int:
    """Of the pairs of atom n those that it looks after come first; how many they are."""
    slots, pairs, capacity = work.slots[n], work.pairs[n], inputs.j.shape[1]
    first, last = 0, work.within[n]
    while first < last:
        slot = slots[first]
        if looks_after(n, n * capacity + slot, inputs.j[n, slot], inputs.reverse[n, slot]):
            first += 1
            continue
        last -= 1
        slots[first], slots[last] = slots[last], slot
        for i in range(4):
            pairs[first, i], pairs[last, i] = pairs[last, i], pairs[first, i]
    return first


@compiled(inner=True)
def blend_at(distance: float, weights: Any, bumps: Array, out: Array) -> int:
    """`blend` at a distance, with the envelope; knots are even in y = (1 + s) u / (1 + s u).

    Here u = distance/cutoff, and s is how they crowd at short distances.
    """
    s, per_length = weights.crowding, 1.0 / weights.cutoff
    intervals = weights.tables.shape[-1] // WIDTH - ROWS
    u = distance * per_length
    cut, d_cut = envelope(u)
    shrink = 1.0 / (1.0 + s * u)
    y, d_y = (1.0 + s) * u * shrink, (1.0 + s) * shrink * shrink * per_length
    return blend(y, d_y, cut, d_cut * per_length, intervals, bumps, out)


@compiled(inner=True)
def approach(atoms: tuple[int, int], inputs: Any, weights: Any, work: Any) -> None:
    """How some atoms and neighbors that they look after are heard: who, and by which filters."""
    bumps = on_stack(ROWS, work.pairs)
    for n in range(atoms[0], atoms[1]):
        work.own[n] = divide(n, inputs, work)
        first, last = n, n
        for k in range(work.own[n]):
            other = inputs.j[n, work.slots[n, k]]
            first, last = min(first, other), max(last, other)
            work.near[n, k] = other
            distance = work.pairs[n, k, 3]
            work.places[n, k] = blend_at(distance, weights, bumps, work.blends[n, k])
        work.span[n, 0], work.span[n, 1] = first, last + 1


@compiled(inner=True)
def filtered(table: Array, place: int, blend: Array, first: int) -> Lanes:
    """The filters of some channels, or what they change by with the distance.

    Args:
        table: of these channels.
        place: where five rows of it begin.
        blend: (10,), see `blend`.
        first: zero for filters, `ROWS` for derivatives.
    """
    return (
        blend[first] * load(table, place)
        + blend[first + 1] * load(table, place + WIDTH)
        + blend[first + 2] * load(table, place + 2 * WIDTH)
        + blend[first + 3] * load(table, place + 3 * WIDTH)
        + blend[first + 4] * load(table, place + 4 * WIDTH)
    )


@compiled(inner=True)
def part_filtered(table: Array, place: int, blend: Array) -> Lanes:
    """The filters of a part of these channels."""
    value = blend[0] * load_part(table, place)
    for i in range(1, ROWS):
        value = value + blend[i] * load_part(table, place + i * WIDTH)
    return value


@compiled(inner=True)
def part_with_slopes(table: Array, place: int, blend: Array) -> tuple[Lanes, Lanes]:
    """The same, and what they change by; what a table has is loaded once for both."""
    row = load_part(table, place)
    value, slope = blend[0] * row, blend[ROWS] * row
    for i in range(1, ROWS):
        row = load_part(table, place + i * WIDTH)
        value, slope = value + blend[i] * row, slope + blend[ROWS + i] * row
    return value, slope


@compiled(inner=True)
def tasks_of(block: int, blocks: int, work: Any) -> tuple[int, int]:
    """The first task that comes with a block of atoms, and the one after its last.

    A task has the pairs of a share of the atoms, in one bundle of features. Every pair is worked on
    once, by the atom that looks after it: its filter is blended once, for what both atoms hear. So
    atoms are given by many, and there are not sums of threads but of shares, which are the same
    however many threads there are.
    """
    tasks = work.shares.shape[0] * work.shares.shape[1]
    return -(-block * tasks // blocks), -(-(block + 1) * tasks // blocks)


@compiled(inner=True)
def share_of(task: int, work: Any) -> tuple[int, int, int, int]:
    """The bundle of a task, its share, the first atom of that and the one after the last."""
    n_atoms, shares = len(work.own), len(work.shares)
    bundle, share = task // shares, task % shares
    return bundle, share, share * n_atoms // shares, (share + 1) * n_atoms // shares


@compiled(inner=True)
def begin_sums(task: int, layer: int, work: Any) -> None:
    """Clears the sums of a task; of the atoms that its share reaches, which are few in a batch."""
    bundle, share, first, last = share_of(task, work)
    reached = work.reached[share]
    if layer == 0:  # all tasks of a share write the same
        low, high = len(work.own), 0
        for n in range(first, last):
            low, high = min(low, work.span[n, 0]), max(high, work.span[n, 1])
        reached[0], reached[1] = low, high
    sums, words = work.shares[share, bundle].reshape(-1), work.shares.shape[3]
    nothing = alike(0.0, load(sums, 0))
    for place in range(reached[0] * words, reached[1] * words, WIDTH):
        store(sums, place, nothing)


@compiled(inner=True)
def add_shares(work: Any, first: int, out: Array) -> None:
    """What atoms are given by all shares, of which every one has G numbers for each feature.

    Args:
        work: has the sums, and which atoms they reach.
        first: the first atom.
        out: (W, G F) is filled for it and the next.
    """
    shares, reached = work.shares, work.reached
    bundles, words = shares.shape[1], shares.shape[3] // WIDTH
    for place in range(len(out)):
        row, n = out[place], first + place
        nothing = alike(0.0, load(row, 0))
        for bundle in range(bundles):
            for word in range(words):
                sums = nothing
                for share in range(len(shares)):
                    if reached[share, 0] <= n < reached[share, 1]:
                        sums = sums + load(shares[share, bundle, n], word * WIDTH)
                store(row, (word * bundles + bundle) * WIDTH, sums)
