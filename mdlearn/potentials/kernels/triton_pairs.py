"""Loops over the neighbors of atoms on a GPU: what `neighborhood` has for a CPU.

A program has a block of atoms, and a thread one feature of one of them: it goes through some of the
neighbors of its atom, and all sums stay in its registers until threads add theirs up. What an atom
is for others they fetch where they need it, by the rows of the neighbor list, which hold every pair
twice. So nothing is added to what another program writes, and the bits do not depend on who comes
first.

Axes: N atoms, K neighbors, M harmonics, F features, C channels of the first density, B radial
functions (of 16 places), Z elements. Arrays of functions are (M, N, F), and a row of them may be
part of a wider one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mdlearn.potentials.kernels.triton_geometry import LANES
from mdlearn.potentials.kernels.triton_sphere import (
    across,
    bend,
    load,
    look_along,
    nothing,
    spread,
    store,
    summed,
)


@triton.jit(do_not_specialize=["atoms", "capacity"])
def expand(
    pairs: tl.tensor,
    basis: tl.tensor,
    bounds: tl.tensor,
    density: tl.tensor,
    atoms: tl.int64,
    capacity: tl.int64,
    width: tl.constexpr,
    radial: tl.constexpr,
    elements: tl.constexpr,
    block: tl.constexpr,
    some: tl.constexpr,
) -> None:
    """The density (M, N, width) of the neighbors of one element, in channels of its own."""
    n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)[:, None, None]
    b = tl.arange(0, LANES)[None, None]
    species = tl.program_id(1)
    first = tl.load(bounds + n * (elements + 1) + species, n < atoms, 0)
    count = tl.load(bounds + n * (elements + 1) + species + 1, n < atoms, 0) - first
    first += n * capacity
    dtype = basis.dtype.element_ty
    c = nothing(tl.zeros((block, some, LANES), dtype))
    for begun in range(0, tl.max(count), some):
        k = begun + tl.arange(0, some)[None, :, None]
        live = k < count
        pair = pairs + (first + k) * 4
        x, y, z = direction(pair, live, dtype)
        value = tl.load(basis + (first + k) * (2 * LANES) + b, live & (b < radial), 0.0)
        c = spread(c, value, (0.0, 0.0, 0.0), x, y, z)
    own = (n < atoms) & (b < radial)
    store(density + n * width + species * radial + b, atoms * width, summed(c), own)


@triton.jit(do_not_specialize=["atoms", "capacity"])
def expand_back(
    pairs: tl.tensor,
    basis: tl.tensor,
    slots: tl.tensor,
    bounds: tl.tensor,
    density: tl.tensor,
    slope: tl.tensor,
    atoms: tl.int64,
    capacity: tl.int64,
    width: tl.constexpr,
    radial: tl.constexpr,
    elements: tl.constexpr,
    block: tl.constexpr,
    some: tl.constexpr,
) -> None:
    """Adds the derivative of the energy by pairs, from that by the density (M, N, width)."""
    n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)[:, None, None]
    b = tl.arange(0, LANES)[None, None]
    species = tl.program_id(1)
    first = tl.load(bounds + n * (elements + 1) + species, n < atoms, 0)
    count = tl.load(bounds + n * (elements + 1) + species + 1, n < atoms, 0) - first
    first += n * capacity
    dtype = basis.dtype.element_ty
    own = (n < atoms) & (b < radial)
    c = load(density + n * width + species * radial + b, atoms * width, own)
    for begun in range(0, tl.max(count), some):
        k = begun + tl.arange(0, some)[None, :, None]
        live = k < count
        pair = pairs + (first + k) * 4
        x, y, z = direction(pair, live, dtype)
        at = basis + (first + k) * (2 * LANES) + b
        radial_function = tl.load(at, live & (b < radial), 0.0)
        rise = tl.load(at + LANES, live & (b < radial), 0.0)
        value, derivative, _, _ = look_along(c, x, y, z)
        push_pair(
            value * rise,
            derivative[0] * radial_function,
            derivative[1] * radial_function,
            derivative[2] * radial_function,
            pair,
            slope + (n * capacity + tl.load(slots + first + k, live, 0)) * 3,
            live,
        )


@triton.jit
def direction(
    pair: tl.tensor, live: tl.tensor, dtype: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The unit vector of a pair, in a precision."""
    x, y, z = tl.load(pair, live, 0.0), tl.load(pair + 1, live, 0.0), tl.load(pair + 2, live, 0.0)
    return x.to(dtype), y.to(dtype), z.to(dtype)


@triton.jit
def push_pair(
    along: tl.tensor,
    gx: tl.tensor,
    gy: tl.tensor,
    gz: tl.tensor,
    pair: tl.tensor,
    slope: tl.tensor,
    live: tl.tensor,
) -> None:
    """Adds dE/dr to the slope of a pair: from dE/dd, and dE/du, of which only what is across u.

    Both have still to be summed over features.
    """
    x, y, z = direction(pair, live, tl.float64)
    d = tl.load(pair + 3, live, 1.0)
    g = (
        tl.sum(gx, 2, keep_dims=True) / d,
        tl.sum(gy, 2, keep_dims=True) / d,
        tl.sum(gz, 2, keep_dims=True) / d,
    )
    _, gx, gy, gz = across(g, x, y, z)
    along = tl.sum(along, 2, keep_dims=True)
    tl.store(slope, tl.load(slope, live, 0.0) + gx + along * x, live)
    tl.store(slope + 1, tl.load(slope + 1, live, 0.0) + gy + along * y, live)
    tl.store(slope + 2, tl.load(slope + 2, live, 0.0) + gz + along * z, live)


@triton.jit
def filter_pair(
    basis: tl.tensor, filters: tl.tuple, radial: tl.constexpr, live: tl.tensor
) -> tl.tensor:
    """A filter for each feature: radial functions times weights."""
    total = tl.load(basis, live, 0.0) * filters[0]
    for b in tl.static_range(1, LANES):
        if b < radial:
            total += tl.load(basis + b, live, 0.0) * filters[b]
    return total


@triton.jit(do_not_specialize=["atoms", "capacity"])
def hear(
    pairs: tl.tensor,
    basis: tl.tensor,
    slots: tl.tensor,
    bounds: tl.tensor,
    j: tl.tensor,
    spoken: tl.tensor,
    filters: tl.tensor,
    density: tl.tensor,
    atoms: tl.int64,
    capacity: tl.int64,
    width: tl.constexpr,
    radial: tl.constexpr,
    elements: tl.constexpr,
    features: tl.constexpr,
    block: tl.constexpr,
    some: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """The density of what atoms hear from their neighbors.

    Args:
        pairs: see `look`.
        basis: see `look`.
        slots: see `look`.
        bounds: see `look`.
        j: (N, K) as in `Neighbors`.
        spoken: (M, N, 2F), functions for values and functions for slopes.
        filters: (16, 2F) likewise, of radial functions.
        density: (M, N, width) is filled in its first F columns.
        atoms: N.
        capacity: K.
        width: of the density.
        radial: B.
        elements: Z.
        features: F.
        block: atoms of a program.
        some: threads that share the neighbors of an atom.
        row: a power of two that is no less than F.
    """
    n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)[:, None, None]
    f = tl.arange(0, row)[None, None]
    own = (n < atoms) & (f < features)
    count = tl.load(bounds + n * (elements + 1) + elements, n < atoms, 0)
    dtype = basis.dtype.element_ty
    level_filter = load(filters + f, 2 * features, f < features)
    slope_filter = load(filters + features + f, 2 * features, f < features)
    c = nothing(tl.zeros((block, some, row), dtype))
    for begun in range(0, tl.max(count), some):
        k = begun + tl.arange(0, some)[None, :, None]
        live = k < count
        at = n * capacity + k
        pair = pairs + at * 4
        x, y, z = direction(pair, live, dtype)
        other = tl.load(j + n * capacity + tl.load(slots + at, live, 0), live, 0)
        said = spoken + other * (2 * features) + f
        stride, whole = atoms * (2 * features), live & (f < features)
        value, _, _, _ = look_along(load(said, stride, whole), -x, -y, -z)
        _, _, rising, _ = look_along(load(said + features, stride, whole), -x, -y, -z)
        _, sx, sy, sz = across(rising, x, y, z)
        level = filter_pair(basis + at * (2 * LANES), level_filter, radial, live)
        rise = filter_pair(basis + at * (2 * LANES), slope_filter, radial, live)
        c = spread(c, value * level, (sx * rise, sy * rise, sz * rise), x, y, z)
    store(density + n * width + f, atoms * width, summed(c), own)


@triton.jit(do_not_specialize=["atoms", "capacity"])
def hear_back(
    pairs: tl.tensor,
    basis: tl.tensor,
    slots: tl.tensor,
    bounds: tl.tensor,
    j: tl.tensor,
    spoken: tl.tensor,
    filters: tl.tensor,
    heard: tl.tensor,
    said: tl.tensor,
    slope: tl.tensor,
    atoms: tl.int64,
    capacity: tl.int64,
    radial: tl.constexpr,
    elements: tl.constexpr,
    features: tl.constexpr,
    block: tl.constexpr,
    some: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """From what others heard of atoms to the adjoint of what these said.

    A message along a pair is E = R p q + R' P·Q, where p is the adjoint of what the listener heard,
    seen along the pair, q what the speaker says, and P and Q are the same for slopes. It is
    bilinear, so the derivative by the pair takes nothing that is not here.

    Args:
        pairs: see `look`.
        basis: see `look`.
        slots: see `look`.
        bounds: see `look`.
        j: see `hear`.
        spoken: see `hear`.
        filters: see `hear`.
        heard: (M, N, F), adjoints of what atoms heard.
        said: (M, N, 2F) is filled.
        slope: (N, K, 3) float64 eV/Å is added to.
        atoms: N.
        capacity: K.
        radial: B.
        elements: Z.
        features: F.
        block: atoms of a program.
        some: threads that share the neighbors of an atom.
        row: a power of two that is no less than F.
    """
    n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)[:, None, None]
    f = tl.arange(0, row)[None, None]
    own = (n < atoms) & (f < features)
    count = tl.load(bounds + n * (elements + 1) + elements, n < atoms, 0)
    dtype = basis.dtype.element_ty
    level_filter = load(filters + f, 2 * features, f < features)
    slope_filter = load(filters + features + f, 2 * features, f < features)
    column, stride = n * (2 * features) + f, atoms * (2 * features)
    level = load(spoken + column, stride, own)
    rising = load(spoken + features + column, stride, own)
    to_level = nothing(tl.zeros((block, some, row), dtype))
    to_rising = to_level
    for begun in range(0, tl.max(count), some):
        k = begun + tl.arange(0, some)[None, :, None]
        live = k < count
        at = n * capacity + k
        pair = pairs + at * 4
        x, y, z = direction(pair, live, dtype)
        slot = n * capacity + tl.load(slots + at, live, 0)
        listener = heard + tl.load(j + slot, live, 0) * features + f
        listened = load(listener, atoms * features, live & (f < features))
        p, p_rise, heard_rise, p_bend = look_along(listened, -x, -y, -z)
        q, q_rise, _, _ = look_along(level, x, y, z)
        _, _, said_rise, q_bend = look_along(rising, x, y, z)
        p_along, px, py, pz = across(heard_rise, x, y, z)
        q_along, qx, qy, qz = across(said_rise, x, y, z)
        radii = basis + at * (2 * LANES)
        r = filter_pair(radii, level_filter, radial, live)
        s = filter_pair(radii, slope_filter, radial, live)
        to_level = spread(to_level, p * r, (0.0, 0.0, 0.0), x, y, z)
        to_rising = spread(to_rising, 0.0, (px * s, py * s, pz * s), x, y, z)
        along = filter_pair(radii + LANES, level_filter, radial, live) * p * q
        by_slopes = px * qx + py * qy + pz * qz
        along += filter_pair(radii + LANES, slope_filter, radial, live) * by_slopes
        # The listener sees the speaker in the opposite direction: hence the signs.
        bx, by, bz = bend(q_bend, px, py, pz)
        ax, ay, az = bend(p_bend, qx, qy, qz)
        push_pair(
            along,
            r * (p * q_rise[0] - q * p_rise[0]) + s * (bx - ax - q_along * px - p_along * qx),
            r * (p * q_rise[1] - q * p_rise[1]) + s * (by - ay - q_along * py - p_along * qy),
            r * (p * q_rise[2] - q * p_rise[2]) + s * (bz - az - q_along * pz - p_along * qz),
            pair,
            slope + slot * 3,
            live,
        )
    store(said + column, stride, summed(to_level), own)
    store(said + features + column, stride, summed(to_rising), own)
