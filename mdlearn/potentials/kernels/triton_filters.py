"""Messages along pairs through filters from a table, on a GPU: what SchNet and PaiNN hear.

A filter is a spline of degree 4 in the distance, as in `spline`: five rows of a table meet at a
pair, blended by five numbers that all filters of all layers share. A program has a block of atoms
and a slice of the features, and a thread one feature of one atom; no filter and no message is ever
written. The way back goes through the same rows of the list, seen from the speaker, and nothing is
added to what another program writes.

Programs of one slice follow each other, so that their part of the table stays in the caches next to
them: all of it would not fit. Several threads share the neighbors of an atom, since what takes long
is to wait for their rows.

Axes: N atoms, K neighbors, F features, S slices of them, G sets of filters: one for scalars, one
for vectors along the line between two atoms, one for the vectors of the speaker. An atom says the
first G of

    a, b, x, y, z                       each (F,), so F, 2F or 5F numbers

and hears

    s = sum_k W_1(d_k) a_j              with one set, F numbers
    v = sum_k W_2(d_k) b_j u_k + W_3(d_k) (x_j, y_j, z_j)       with more, 4F.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mdlearn.potentials.kernels.triton_pairs import direction
from mdlearn.potentials.kernels.triton_sphere import across

ROWS = tl.constexpr(5)
"""Rows of a table that meet at one point."""


@triton.jit(do_not_specialize=["atoms", "capacity"])
def approach(
    pairs: tl.tensor,
    slots: tl.tensor,
    bounds: tl.tensor,
    j: tl.tensor,
    others: tl.tensor,
    places: tl.tensor,
    blends: tl.tensor,
    along: tl.tensor,
    turning: tl.tensor,
    atoms: tl.int64,
    capacity: tl.int64,
    cutoff: tl.constexpr,
    crowding: tl.constexpr,
    intervals: tl.constexpr,
    elements: tl.constexpr,
    slices: tl.constexpr,
    turns: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """How rows of a table are blended for each pair; see `spline.blend`.

    Args:
        pairs: see `triton_geometry.look`, as the next two.
        slots: likewise.
        bounds: likewise.
        j: (N, K) as in `Neighbors`.
        others: (N, K) int32 is filled with neighbors, in the order of `pairs`,
        places: (N, K) int32, with the first row of the table,
        blends: (N, K, 10), and with what that and the next four are multiplied by: for values, and
            for derivatives by the distance.
        along: (S, N, K), see `hear_back`, is cleared,
        turning: (S, N, K, 3), and so is this, if there is any.
        atoms: N.
        capacity: K.
        cutoff: Å.
        crowding: knots are even in (1 + s) u / (1 + s u), u being distance/cutoff and s this.
        intervals: of the table.
        elements: Z.
        slices: S.
        turns: whether there is `turning`.
        row: a power of two that is no less than K.
    """
    n = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, row)
    near, at = k < tl.load(bounds + n * (elements + 1) + elements), n * capacity + k
    tl.store(others + at, tl.load(j + n * capacity + tl.load(slots + at, near, 0), near, 0), near)
    for part in tl.static_range(slices):
        tl.store(along + part * atoms * capacity + at, 0.0, near)
        if turns:
            for axis in tl.static_range(3):
                tl.store(turning + (part * atoms * capacity + at) * 3 + axis, 0.0, near)
    u = tl.load(pairs + at * 4 + 3, near, cutoff) * (1.0 / cutoff)
    u5 = u * u * u * u * u
    cut = 1.0 + u5 * u * (-28.0 + u * (48.0 - 21.0 * u))
    d_cut = u5 * (-168.0 + u * (336.0 - 168.0 * u)) * (1.0 / cutoff)
    stretched = 1.0 + u * crowding
    y = u * (1.0 + crowding) / stretched
    d_y = (1.0 + crowding) / (stretched * stretched) * (1.0 / cutoff)
    place = y * intervals + 0.5
    knot = tl.where(place == place, place, 0.0).to(tl.int32)  # what is no number has no place
    tl.store(places + at, knot, near)
    t = place - knot.to(tl.float64)
    # Bumps of degree 3 and 4 without their divisors, 6 and 24 (Cox and de Boor).
    low = bumps(t, 3)
    value = bumps(t, 4)
    rise, target = cut * d_y * (intervals / 6.0), blends + at * (2 * ROWS)
    for i in tl.static_range(ROWS):
        slope = value[i] * (d_cut * (1.0 / 24.0))
        if i > 0:
            slope += rise * low[i - 1]
        if i < ROWS - 1:
            slope -= rise * low[i]
        tl.store(target + i, value[i] * (cut * (1.0 / 24.0)), near)
        tl.store(target + ROWS + i, slope, near)


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
def blended(
    table: tl.tensor, blends: tl.tensor, width: tl.constexpr, live: tl.tensor, own: tl.tensor
) -> tl.tensor:
    """The filters of features: five rows of a table (rows, width)."""
    total = tl.load(blends, live, 0.0) * tl.load(table, own, 0.0)
    for i in tl.static_range(1, ROWS):
        total += tl.load(blends + i, live, 0.0) * tl.load(table + i * width, own, 0.0)
    return total


@triton.jit
def blended_both(
    table: tl.tensor, blends: tl.tensor, width: tl.constexpr, live: tl.tensor, own: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """The filters of features, and their derivatives by the distance."""
    entry = tl.load(table, own, 0.0)
    value = tl.load(blends, live, 0.0) * entry
    slope = tl.load(blends + ROWS, live, 0.0) * entry
    for i in tl.static_range(1, ROWS):
        entry = tl.load(table + i * width, own, 0.0)
        value += tl.load(blends + i, live, 0.0) * entry
        slope += tl.load(blends + ROWS + i, live, 0.0) * entry
    return value, slope


@triton.jit(do_not_specialize=["atoms", "capacity"])
def hear(
    pairs: tl.tensor,
    bounds: tl.tensor,
    others: tl.tensor,
    places: tl.tensor,
    blends: tl.tensor,
    table: tl.tensor,
    said: tl.tensor,
    heard: tl.tensor,
    atoms: tl.int64,
    capacity: tl.int64,
    elements: tl.constexpr,
    features: tl.constexpr,
    sets: tl.constexpr,
    words: tl.constexpr,
    block: tl.constexpr,
    some: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """What atoms hear from their neighbors.

    Args:
        pairs: see `triton_geometry.look`.
        bounds: see `triton_geometry.look`.
        others: see `approach`.
        places: see `approach`.
        blends: see `approach`.
        table: (rows, G F).
        said: (N, F, 2F or 5F).
        heard: (N, F or 4F) is filled.
        atoms: N.
        capacity: K.
        elements: Z.
        features: F.
        sets: G.
        words: how many times F numbers an atom says, 1, 2 or 5.
        block: atoms of a program.
        some: threads that share the neighbors of an atom.
        row: features of a slice, a power of two.
    """
    n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)[:, None, None]
    f = (tl.program_id(1) * row + tl.arange(0, row))[None, None]
    count = tl.load(bounds + n * (elements + 1) + elements, n < atoms, 0)
    s = tl.zeros((block, some, row), table.dtype.element_ty)
    x, y, z = tl.zeros_like(s), tl.zeros_like(s), tl.zeros_like(s)
    for first in range(0, tl.max(count), some):
        k = first + tl.arange(0, some)[None, :, None]
        live, at = k < count, n * capacity + k
        own, mixture = live & (f < features), blends + at * (2 * ROWS)
        filters = table + tl.load(places + at, live, 0).to(tl.int64) * (sets * features) + f
        there = said + tl.load(others + at, live, 0).to(tl.int64) * (words * features) + f
        s += blended(filters, mixture, sets * features, live, own) * tl.load(there, own, 0.0)
        if sets > 1:
            straight = blended(filters + features, mixture, sets * features, live, own)
            straight *= tl.load(there + features, own, 0.0)
            ux, uy, uz = direction(pairs + at * 4, live, table.dtype.element_ty)
            x += ux * straight
            y += uy * straight
            z += uz * straight
        if sets > 2:
            turned = blended(filters + 2 * features, mixture, sets * features, live, own)
            x += turned * tl.load(there + 2 * features, own, 0.0)
            y += turned * tl.load(there + 3 * features, own, 0.0)
            z += turned * tl.load(there + 4 * features, own, 0.0)
    own = (n < atoms) & (f < features)
    if sets == 1:
        tl.store(heard + n * features + f, tl.sum(s, 1, keep_dims=True), own)
    else:
        target = heard + n * (4 * features) + f
        tl.store(target, tl.sum(s, 1, keep_dims=True), own)
        tl.store(target + features, tl.sum(x, 1, keep_dims=True), own)
        tl.store(target + 2 * features, tl.sum(y, 1, keep_dims=True), own)
        tl.store(target + 3 * features, tl.sum(z, 1, keep_dims=True), own)


@triton.jit(do_not_specialize=["atoms", "capacity"])
def hear_back(
    pairs: tl.tensor,
    bounds: tl.tensor,
    others: tl.tensor,
    places: tl.tensor,
    blends: tl.tensor,
    table: tl.tensor,
    said: tl.tensor,
    heard: tl.tensor,
    to_said: tl.tensor,
    along: tl.tensor,
    turning: tl.tensor,
    atoms: tl.int64,
    capacity: tl.int64,
    elements: tl.constexpr,
    features: tl.constexpr,
    sets: tl.constexpr,
    words: tl.constexpr,
    block: tl.constexpr,
    some: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """From the adjoint of what others heard to that of what an atom said, and to its pairs.

    What a pair says in one direction counts for the slot of the speaker, who is seen from there in
    the opposite direction.

    Args:
        pairs: as for `hear`.
        bounds: likewise.
        others: likewise.
        places: likewise.
        blends: likewise.
        table: likewise.
        said: likewise.
        heard: (N, F or 4F), the adjoint.
        to_said: (N, F, 2F or 5F) is filled.
        along: (S, N, K), to derivatives by distances the share of each slice is added,
        turning: (S, N, K, 3), and to those by directions; not with one set.
        atoms: N.
        capacity: K.
        elements: Z.
        features: F.
        sets: G.
        words: how many times F numbers an atom says, 1, 2 or 5.
        block: atoms of a program.
        some: threads that share the neighbors of an atom.
        row: features of a slice, a power of two.
    """
    n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)[:, None, None]
    f = (tl.program_id(1) * row + tl.arange(0, row))[None, None]
    here = (n < atoms) & (f < features)
    count = tl.load(bounds + n * (elements + 1) + elements, n < atoms, 0)
    mine = n * (words * features) + f
    a = tl.load(said + mine, here, 0.0)
    b, x, y, z = tl.zeros_like(a), tl.zeros_like(a), tl.zeros_like(a), tl.zeros_like(a)
    if sets > 1:
        b = tl.load(said + mine + features, here, 0.0)
    if sets > 2:
        x = tl.load(said + mine + 2 * features, here, 0.0)
        y = tl.load(said + mine + 3 * features, here, 0.0)
        z = tl.load(said + mine + 4 * features, here, 0.0)
    to_a = tl.zeros((block, some, row), table.dtype.element_ty)
    to_b, to_x, to_y, to_z = to_a, to_a, to_a, to_a
    for first in range(0, tl.max(count), some):
        k = first + tl.arange(0, some)[None, :, None]
        live, at = k < count, n * capacity + k
        own, mixture = live & (f < features), blends + at * (2 * ROWS)
        filters = table + tl.load(places + at, live, 0).to(tl.int64) * (sets * features) + f
        other = tl.load(others + at, live, 0).to(tl.int64)
        result = tl.program_id(1) * (atoms * capacity) + at
        if sets == 1:
            s = tl.load(heard + other * features + f, own, 0.0)
        else:
            s = tl.load(heard + other * (4 * features) + f, own, 0.0)
        filter_a, rise = blended_both(filters, mixture, sets * features, live, own)
        to_a += filter_a * s
        rising = rise * a * s
        if sets > 1:
            listener = heard + other * (4 * features) + f
            hx = tl.load(listener + features, own, 0.0)
            hy = tl.load(listener + 2 * features, own, 0.0)
            hz = tl.load(listener + 3 * features, own, 0.0)
            ux, uy, uz = direction(pairs + at * 4, live, table.dtype.element_ty)
            straight = hx * ux + hy * uy + hz * uz
            filters += features
            filter_b, rise = blended_both(filters, mixture, sets * features, live, own)
            to_b -= filter_b * straight
            rising -= rise * b * straight
            filter_b *= b
            turned = turning + result * 3
            add(turned, -tl.sum(filter_b * hx, 2, keep_dims=True), live)
            add(turned + 1, -tl.sum(filter_b * hy, 2, keep_dims=True), live)
            add(turned + 2, -tl.sum(filter_b * hz, 2, keep_dims=True), live)
            if sets > 2:
                filters += features
                filter_v, rise = blended_both(filters, mixture, sets * features, live, own)
                to_x += filter_v * hx
                to_y += filter_v * hy
                to_z += filter_v * hz
                rising += rise * (x * hx + y * hy + z * hz)
        add(along + result, tl.sum(rising, 2, keep_dims=True), live)
    tl.store(to_said + mine, tl.sum(to_a, 1, keep_dims=True), here)
    if sets > 1:
        tl.store(to_said + mine + features, tl.sum(to_b, 1, keep_dims=True), here)
    if sets > 2:
        tl.store(to_said + mine + 2 * features, tl.sum(to_x, 1, keep_dims=True), here)
        tl.store(to_said + mine + 3 * features, tl.sum(to_y, 1, keep_dims=True), here)
        tl.store(to_said + mine + 4 * features, tl.sum(to_z, 1, keep_dims=True), here)


@triton.jit
def add(place: tl.tensor, value: tl.tensor, live: tl.tensor) -> None:
    """To what is there, which nobody else changes."""
    tl.store(place, tl.load(place, live, 0.0) + value, live)


@triton.jit(do_not_specialize=["atoms", "capacity"])
def conclude(
    pairs: tl.tensor,
    slots: tl.tensor,
    bounds: tl.tensor,
    along: tl.tensor,
    turning: tl.tensor,
    slope: tl.tensor,
    atoms: tl.int64,
    capacity: tl.int64,
    elements: tl.constexpr,
    slices: tl.constexpr,
    turns: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """Adds derivatives by distances and directions to those by pair vectors.

    Args:
        pairs: see `triton_geometry.look`, as the next two.
        slots: likewise.
        bounds: likewise.
        along: see `hear_back`,
        turning: likewise.
        slope: (N, K, 3) float64 eV/Å is added to, in the order of the list.
        atoms: N.
        capacity: K.
        elements: Z.
        slices: S.
        turns: whether there is `turning`.
        row: a power of two that is no less than K.
    """
    n = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, row)
    near, at = k < tl.load(bounds + n * (elements + 1) + elements), n * capacity + k
    x, y, z = direction(pairs + at * 4, near, tl.float64)
    straight = tl.zeros((row,), tl.float64)
    gx, gy, gz = tl.zeros_like(straight), tl.zeros_like(straight), tl.zeros_like(straight)
    for part in tl.static_range(slices):
        share = part * atoms * capacity + at
        straight += tl.load(along + share, near, 0.0)
        if turns:
            gx += tl.load(turning + share * 3, near, 0.0)
            gy += tl.load(turning + share * 3 + 1, near, 0.0)
            gz += tl.load(turning + share * 3 + 2, near, 0.0)
    if turns:
        d = tl.load(pairs + at * 4 + 3, near, 1.0)
        _, gx, gy, gz = across((gx / d, gy / d, gz / d), x, y, z)
    target = slope + (n * capacity + tl.load(slots + at, near, 0)) * 3
    add(target, gx + straight * x, near)
    add(target + 1, gy + straight * y, near)
    add(target + 2, gz + straight * z, near)
