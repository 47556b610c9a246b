"""Messages along pairs through filters from a table, on a GPU: what SchNet and PaiNN hear.

A filter is a spline of degree 4 in the distance, as in `spline`: five rows of a table meet at a
pair, blended by five numbers that all filters of all layers share. A program has a block of atoms,
and a thread one feature of one of them; no filter and no message is ever written. The way back goes
through the same rows of the list, seen from the speaker, and nothing is added to what another
program writes.

Axes: N atoms, K neighbors, F features, G sets of filters: one for scalars, one for vectors along
the line between two atoms, one for the vectors of the speaker. An atom says the first G of

    a, b, x, y, z                       each (F,), so F, 2F or 5F numbers

and hears

    s = sum_k W_1(d_k) a_j              with one set, F numbers
    v = sum_k W_2(d_k) b_j u_k + W_3(d_k) (x_j, y_j, z_j)       with more, 4F.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROWS = tl.constexpr(5)
"""Rows of a table that meet at one point."""


@triton.jit(do_not_specialize=["pairs"])
def approach(
    distance: tl.tensor,
    places: tl.tensor,
    blends: tl.tensor,
    pairs: tl.int64,
    cutoff: tl.constexpr,
    crowding: tl.constexpr,
    intervals: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """How rows of a table are blended for each pair; see `spline.blend`.

    Args:
        distance: (N K,) Å.
        places: (N K,) int32 is filled with the first row; -1 where a pair is out of reach.
        blends: (N K, 10) is filled: for values, and for derivatives by the distance.
        pairs: N K.
        cutoff: Å.
        crowding: knots are even in (1 + s) u / (1 + s u), u being distance/cutoff and s this.
        intervals: of the table.
        block: pairs of a program.
    """
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    d = tl.load(distance + at, at < pairs, 0.0)
    u = d * (1.0 / cutoff)
    far = u >= 1.0  # what is no number is not far
    u = tl.minimum(u, 1.0, propagate_nan=tl.PropagateNan.ALL)
    u5 = u * u * u * u * u
    cut = 1.0 + u5 * u * (-28.0 + u * (48.0 - 21.0 * u))
    d_cut = u5 * (-168.0 + u * (336.0 - 168.0 * u)) * (1.0 / cutoff)
    stretched = 1.0 + u * crowding
    y = u * (1.0 + crowding) / stretched
    d_y = (1.0 + crowding) / (stretched * stretched) * (1.0 / cutoff)
    place = y * intervals + 0.5
    knot = tl.minimum(tl.where(place == place, place, 0.0).to(tl.int32), intervals)
    t = place - knot.to(place.dtype)
    # Bumps of degree 3 and 4 without their divisors, 6 and 24 (Cox and de Boor).
    low = bumps(t, 3)
    value = bumps(t, 4)
    rise, first = cut * d_y * (intervals / 6.0), blends + at * (2 * ROWS)
    for i in tl.static_range(ROWS):
        slope = value[i] * (d_cut * (1.0 / 24.0))
        if i > 0:
            slope += rise * low[i - 1]
        if i < ROWS - 1:
            slope -= rise * low[i]
        tl.store(first + i, value[i] * (cut * (1.0 / 24.0)), at < pairs)
        tl.store(first + ROWS + i, slope, at < pairs)
    tl.store(places + at, tl.where(far, -1, knot), at < pairs)


@triton.jit
def bumps(t: tl.tensor, degree: tl.constexpr) -> tl.tuple:
    """The degree + 1 bumps that are not zero at t, from 0 to 1 after a knot."""
    found: tl.tuple = (tl.zeros_like(t) + 1.0,)
    for d in tl.static_range(1, degree + 1):
        wider: tl.tuple = (found[0] * (1.0 - t),)
        for i in tl.static_range(1, d):
            wider += (found[i - 1] * (d - i + t) + found[i] * (i + 1 - t),)
        wider += (found[d - 1] * t,)
        found = wider
    return found


@triton.jit
def reach(
    places: tl.tensor,
    table: tl.tensor,
    at: tl.tensor,
    known: tl.tensor,
    f: tl.tensor,
    width: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Whether pairs are within reach, and where the rows of a table begin for them."""
    place = tl.load(places + at, known, -1)
    return place >= 0, table + place.to(tl.int64) * width + f


@triton.jit
def blended(
    table: tl.tensor, blends: tl.tensor, width: tl.constexpr, live: tl.tensor, own: tl.tensor
) -> tl.tensor:
    """The filters of features: five rows of a table (rows, width)."""
    total = tl.load(blends, live, 0.0) * tl.load(table, own, 0.0)
    for i in tl.static_range(1, ROWS):
        total += tl.load(blends + i, live, 0.0) * tl.load(table + i * width, own, 0.0)
    return total


@triton.jit(do_not_specialize=["atoms", "capacity"])
def hear(
    j: tl.tensor,
    places: tl.tensor,
    blends: tl.tensor,
    direction: tl.tensor,
    table: tl.tensor,
    said: tl.tensor,
    heard: tl.tensor,
    atoms: tl.int64,
    capacity: tl.int64,
    features: tl.constexpr,
    sets: tl.constexpr,
    words: tl.constexpr,
    block: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """What atoms hear from their neighbors.

    Args:
        j: (N, K) as in `Neighbors`.
        places: see `approach`.
        blends: see `approach`.
        direction: (N, K, 3), unit vectors to the neighbors; not looked at with one set.
        table: (rows, G F).
        said: (N, F, 2F or 5F).
        heard: (N, F or 4F) is filled.
        atoms: N.
        capacity: K.
        features: F.
        sets: G.
        words: how many times F numbers an atom says, 1, 2 or 5.
        block: atoms of a program.
        row: a power of two that is no less than F.
    """
    n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)[:, None]
    f = tl.arange(0, row)[None]
    s = tl.zeros((block, row), table.dtype.element_ty)
    x, y, z = tl.zeros_like(s), tl.zeros_like(s), tl.zeros_like(s)
    for k in range(capacity):
        at = n * capacity + k
        live, filters = reach(places, table, at, n < atoms, f, sets * features)
        own, mixture = live & (f < features), blends + at * (2 * ROWS)
        there = said + tl.load(j + at, live, 0) * (words * features) + f
        s += blended(filters, mixture, sets * features, live, own) * tl.load(there, own, 0.0)
        if sets > 1:
            straight = blended(filters + features, mixture, sets * features, live, own)
            straight *= tl.load(there + features, own, 0.0)
            u = direction + at * 3
            x += tl.load(u, live, 0.0) * straight
            y += tl.load(u + 1, live, 0.0) * straight
            z += tl.load(u + 2, live, 0.0) * straight
        if sets > 2:
            turned = blended(filters + 2 * features, mixture, sets * features, live, own)
            x += turned * tl.load(there + 2 * features, own, 0.0)
            y += turned * tl.load(there + 3 * features, own, 0.0)
            z += turned * tl.load(there + 4 * features, own, 0.0)
    own = (n < atoms) & (f < features)
    if sets == 1:
        tl.store(heard + n * features + f, s, own)
    else:
        target = heard + n * (4 * features) + f
        tl.store(target, s, own)
        tl.store(target + features, x, own)
        tl.store(target + 2 * features, y, own)
        tl.store(target + 3 * features, z, own)


@triton.jit(do_not_specialize=["atoms", "capacity"])
def hear_back(
    j: tl.tensor,
    places: tl.tensor,
    blends: tl.tensor,
    direction: tl.tensor,
    table: tl.tensor,
    said: tl.tensor,
    heard: tl.tensor,
    to_said: tl.tensor,
    to_distance: tl.tensor,
    to_direction: tl.tensor,
    atoms: tl.int64,
    capacity: tl.int64,
    features: tl.constexpr,
    sets: tl.constexpr,
    words: tl.constexpr,
    block: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """From the adjoint of what others heard to that of what an atom said, and of its pairs.

    What a pair says in one direction counts for the slot of the speaker, who is seen from there in
    the opposite direction.

    Args:
        j: as for `hear`.
        places: likewise.
        blends: likewise.
        direction: likewise.
        table: likewise.
        said: likewise.
        heard: (N, F or 4F), the adjoint.
        to_said: (N, F, 2F or 5F) is filled.
        to_distance: (N, K) is filled.
        to_direction: (N, K, 3) is filled; not with one set.
        atoms: N.
        capacity: K.
        features: F.
        sets: G.
        words: how many times F numbers an atom says, 1, 2 or 5.
        block: atoms of a program.
        row: a power of two that is no less than F.
    """
    n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)[:, None]
    f = tl.arange(0, row)[None]
    here = (n < atoms) & (f < features)
    mine = n * (words * features) + f
    a = tl.load(said + mine, here, 0.0)
    to_a = tl.zeros_like(a)
    to_b, to_x, to_y, to_z = to_a, to_a, to_a, to_a
    b, x, y, z = to_a, to_a, to_a, to_a
    if sets > 1:
        b = tl.load(said + mine + features, here, 0.0)
    if sets > 2:
        x = tl.load(said + mine + 2 * features, here, 0.0)
        y = tl.load(said + mine + 3 * features, here, 0.0)
        z = tl.load(said + mine + 4 * features, here, 0.0)
    for k in range(capacity):
        at = n * capacity + k
        live, filters = reach(places, table, at, n < atoms, f, sets * features)
        own, mixture = live & (f < features), blends + at * (2 * ROWS)
        other = tl.load(j + at, live, 0)
        if sets == 1:
            s = tl.load(heard + other * features + f, own, 0.0)
        else:
            s = tl.load(heard + other * (4 * features) + f, own, 0.0)
        to_a += blended(filters, mixture, sets * features, live, own) * s
        along = blended(filters, mixture + ROWS, sets * features, live, own) * a * s
        if sets > 1:
            listener = heard + other * (4 * features) + f
            hx = tl.load(listener + features, own, 0.0)
            hy = tl.load(listener + 2 * features, own, 0.0)
            hz = tl.load(listener + 3 * features, own, 0.0)
            u = direction + at * 3
            straight = hx * tl.load(u, live, 0.0)
            straight += hy * tl.load(u + 1, live, 0.0)
            straight += hz * tl.load(u + 2, live, 0.0)
            filter_b = blended(filters + features, mixture, sets * features, live, own)
            rise = blended(filters + features, mixture + ROWS, sets * features, live, own)
            to_b -= filter_b * straight
            along -= rise * b * straight
            turning = to_direction + at * 3
            tl.store(turning, -tl.sum(filter_b * b * hx, 1, keep_dims=True), n < atoms)
            tl.store(turning + 1, -tl.sum(filter_b * b * hy, 1, keep_dims=True), n < atoms)
            tl.store(turning + 2, -tl.sum(filter_b * b * hz, 1, keep_dims=True), n < atoms)
            if sets > 2:
                filter_v = blended(filters + 2 * features, mixture, sets * features, live, own)
                rise = blended(filters + 2 * features, mixture + ROWS, sets * features, live, own)
                to_x += filter_v * hx
                to_y += filter_v * hy
                to_z += filter_v * hz
                along += rise * (x * hx + y * hy + z * hz)
        tl.store(to_distance + at, tl.sum(along, 1, keep_dims=True), n < atoms)
    tl.store(to_said + mine, to_a, here)
    if sets > 1:
        tl.store(to_said + mine + features, to_b, here)
    if sets > 2:
        tl.store(to_said + mine + 2 * features, to_x, here)
        tl.store(to_said + mine + 3 * features, to_y, here)
        tl.store(to_said + mine + 4 * features, to_z, here)
