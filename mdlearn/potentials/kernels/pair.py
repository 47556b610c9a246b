"""What is done for one pair of atoms and one bundle of features, in vector registers."""

from __future__ import annotations

import math
from typing import Any

from mdlearn.jit import compiled
from mdlearn.lanes import alike, load_half, store, total
from mdlearn.potentials.kernels.layout import BUNDLE, LANES
from mdlearn.potentials.kernels.rows import Array, clear
from mdlearn.potentials.kernels.sphere import HARMONICS, Scalar


@compiled(inner=True)
def radial_functions(d: float, weights: Any, basis: Array) -> None:
    """Fills basis (32,): radial functions of a distance (16,), and their derivatives (16,)."""
    u = d / weights.cutoff
    a = weights.stretch
    angle = math.pi * (1.0 + a) * u / (u + a)
    d_angle = math.pi * (1.0 + a) * a / (u + a) ** 2 / weights.cutoff
    u5 = u * u * u * u * u
    cut = 1.0 + u5 * u * (-28.0 + u * (48.0 - 21.0 * u))
    d_cut = u5 * (-168.0 + u * (336.0 - 168.0 * u)) / weights.cutoff
    root = 1.0 / math.sqrt(u * u + 0.01)
    near = weights.near * root
    d_near = -near * root * root * u / weights.cutoff
    factor, d_factor = near * cut, d_near * cut + near * d_cut
    turn, up = math.cos(angle), math.sin(angle)
    cosine, sine = 1.0, 0.0
    clear(basis)
    for b in range(weights.radial):
        w = weights.frequency_weight[b]
        basis[b] = w * cosine * factor
        basis[16 + b] = w * (cosine * d_factor - b * sine * d_angle * factor)
        cosine, sine = cosine * turn - sine * up, sine * turn + cosine * up


@compiled(inner=True)
def expand_pair(y: Array, basis: Array, density: Array) -> None:
    """Adds y_m b_c, for y (64,) and b (16,), to a density (256,)."""
    b = load_half(basis, 0)
    for row in range(HARMONICS):
        store(density, row * LANES, load_half(density, row * LANES) + y[row] * b)


@compiled(inner=True)
def filter_pair(basis: Array, filters: Array, out: Array) -> None:
    """Out (32,) = basis (16,) @ filters, for values and for slopes (2, 256)."""
    values, slopes = filters[0], filters[1]
    v, s = basis[0] * load_half(values, 0), basis[0] * load_half(slopes, 0)
    for b in range(1, 16):
        v = v + basis[b] * load_half(values, b * LANES)
        s = s + basis[b] * load_half(slopes, b * LANES)
    store(out, 0, v)
    store(out, LANES, s)


@compiled(inner=True)
def evaluate_along(y: Array, f: Array, g: Array, out: Array) -> None:
    """Functions f (256,) where harmonics are y (64,), and the slopes of g (256,) there.

    Out (64,) is filled with values, and slopes by axis.
    """
    v, s = y[0] * load_half(f, 0), load_half(g, LANES)
    v, tx, ty, tz = v + y[1] * load_half(f, LANES), y[17] * s, y[33] * s, y[49] * s
    for m in range(2, HARMONICS):
        s = load_half(g, m * LANES)
        v = v + y[m] * load_half(f, m * LANES)
        tx, ty, tz = tx + y[16 + m] * s, ty + y[32 + m] * s, tz + y[48 + m] * s
    store(out, 0, v)
    store(out, 16, tx)
    store(out, 32, ty)
    store(out, 48, tz)


@compiled(inner=True)
def weigh(q: Array, filters: Array) -> None:
    """Values and slopes (64,) times filters (32,)."""
    slopes = load_half(filters, LANES)
    store(q, 0, load_half(q, 0) * load_half(filters, 0))
    for c in range(LANES, 4 * LANES, LANES):
        store(q, c, load_half(q, c) * slopes)


@compiled(inner=True)
def weigh_both(p: Array, q: Array, filters: Array, rises: Array) -> Scalar:
    """The same for two; and sum_c R'_c p_c q_c with the derivatives of the filters (32,)."""
    r, s = load_half(filters, 0), load_half(filters, LANES)
    one, other = load_half(p, 0), load_half(q, 0)
    along = load_half(rises, 0) * one * other
    store(p, 0, one * r)
    store(q, 0, other * r)
    rise = load_half(rises, LANES)
    for c in range(LANES, 4 * LANES, LANES):
        one, other = load_half(p, c), load_half(q, c)
        along = along + rise * one * other
        store(p, c, one * s)
        store(q, c, other * s)
    return total(along)


@compiled(inner=True)
def spread(y: Array, q: Array, density: Array) -> None:
    """Adds y_m q_c + ∇y_m · ∇q_c, for y (64,) and q (64,), to a density (256,)."""
    v, x, y_, z = load_half(q, 0), load_half(q, 16), load_half(q, 32), load_half(q, 48)
    for m in range(HARMONICS):
        row = load_half(density, m * LANES) + y[m] * v + y[16 + m] * x
        store(density, m * LANES, row + y[32 + m] * y_ + y[48 + m] * z)


@compiled(inner=True)
def spread_apart(y: Array, q: Array, density: Array) -> None:
    """Adds y_m q_c to the first half of a density (512,), ∇y_m · ∇q_c to the second."""
    v, x, y_, z = load_half(q, 0), load_half(q, 16), load_half(q, 32), load_half(q, 48)
    for m in range(HARMONICS):
        values, slopes = m * LANES, BUNDLE + m * LANES
        store(density, values, load_half(density, values) + y[m] * v)
        row = load_half(density, slopes) + y[16 + m] * x
        store(density, slopes, row + y[32 + m] * y_ + y[48 + m] * z)


@compiled(inner=True)
def to_harmonics(
    listener: Array, spoken: Array, p: Array, q: Array, parity: Array, sums: Array
) -> None:
    """The derivative of E_pair by the harmonics that the speaker sees, over bundles of features.

    Args:
        listener: (F/16, 256) the adjoint of the density that it hears.
        spoken: (F/16, 512) by the other atom.
        p: (F/16, 64) what the adjoint is along the pair, filtered.
        q: (F/16, 64) what is spoken along the pair, filtered.
        parity: (M,) of the harmonics.
        sums: (1024,) is filled for each harmonic by values and slopes, 16 lanes each; see
            `pull_back`.
    """
    parts = len(p)
    heard, said, one, other = listener.reshape(-1), spoken.reshape(-1), p.reshape(-1), q.reshape(-1)
    nothing = alike(0.0, load_half(one, 0))
    for m in range(HARMONICS):
        a, bx, by, bz = nothing, nothing, nothing, nothing
        for part in range(parts):
            here, end = part * BUNDLE + m * LANES, part * 64
            v = parity[m] * load_half(heard, here)
            here += part * BUNDLE
            w, s = load_half(said, here), load_half(said, BUNDLE + here)
            a = a + v * load_half(other, end) + w * load_half(one, end)
            bx = bx + s * load_half(one, end + 16) - v * load_half(other, end + 16)
            by = by + s * load_half(one, end + 32) - v * load_half(other, end + 32)
            bz = bz + s * load_half(one, end + 48) - v * load_half(other, end + 48)
        row = m * 64
        store(sums, row, a)
        store(sums, row + 16, bx)
        store(sums, row + 32, by)
        store(sums, row + 48, bz)


@compiled(inner=True)
def push_pair(pair: Array, along: float, across: tuple[float, float, float], slope: Array) -> None:
    """Adds dE/dr to the slope of a pair, from dE/dd and dE/du, of which only what is across u."""
    x, y, z, d = pair[0], pair[1], pair[2], pair[3]
    along -= (across[0] * x + across[1] * y + across[2] * z) / d
    slope[0] += across[0] / d + along * x
    slope[1] += across[1] / d + along * y
    slope[2] += across[2] / d + along * z


@compiled(inner=True)
def four_dots(q: Array, basis: Array) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """Of values (16,) with derivatives of radial functions, and of slopes with the functions."""
    b = load_half(basis, 0)
    v = total(load_half(q, 0) * load_half(basis, 16))
    x, y = total(load_half(q, 16) * b), total(load_half(q, 32) * b)
    return v, x, y, total(load_half(q, 48) * b)
