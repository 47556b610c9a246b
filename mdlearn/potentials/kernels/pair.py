"""What is done for one pair of atoms and one bundle of features, in vector registers.

Sizes are known to the compiler, and bodies are so large that it makes vectors of them instead of
copies; that is why they look as they do.
"""

from __future__ import annotations

import math
from typing import Any

from mdlearn.jit import compiled
from mdlearn.potentials.kernels.layout import BUNDLE, LANES
from mdlearn.potentials.kernels.rows import Array, clear
from mdlearn.potentials.kernels.sphere import FASTMATH, HARMONICS, Scalar


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


@compiled(fastmath=FASTMATH, inner=True)
def expand_pair(y: Array, basis: Array, density: Array) -> None:
    """Adds y_m b_c, for y (64,) and b (16,), to a density (256,)."""
    for m in range(0, HARMONICS, 4):
        rows = density[m * LANES : (m + 4) * LANES]
        y0, y1, y2, y3 = y[m], y[m + 1], y[m + 2], y[m + 3]
        for c in range(LANES):
            b = basis[c]
            rows[c] += y0 * b
            rows[16 + c] += y1 * b
            rows[32 + c] += y2 * b
            rows[48 + c] += y3 * b


@compiled(fastmath=FASTMATH, inner=True)
def filter_pair(basis: Array, filters: Array, out: Array) -> None:
    """Out (32,) = basis (16,) @ filters, for values and for slopes (2, 256)."""
    values, slopes = filters[0], filters[1]
    for c in range(LANES):
        v, s = basis[0] * values[c], basis[0] * slopes[c]
        for b in range(1, 16):
            v += basis[b] * values[b * LANES + c]
            s += basis[b] * slopes[b * LANES + c]
        out[c], out[LANES + c] = v, s


@compiled(fastmath=FASTMATH, inner=True)
def evaluate_along(y: Array, f: Array, g: Array, out: Array) -> None:
    """Functions f (256,) where harmonics are y (64,), and the slopes of g (256,) there.

    Out (64,) is filled with values, and slopes by axis.
    """
    for c in range(LANES):
        v = y[0] * f[c]
        for m in range(1, HARMONICS):
            v += y[m] * f[m * LANES + c]
        out[c] = v
    for c in range(LANES):
        s = g[LANES + c]
        tx, ty, tz = y[17] * s, y[33] * s, y[49] * s
        for m in range(2, HARMONICS):
            s = g[m * LANES + c]
            tx += y[16 + m] * s
            ty += y[32 + m] * s
            tz += y[48 + m] * s
        out[16 + c], out[32 + c], out[48 + c] = tx, ty, tz


@compiled(fastmath=FASTMATH, inner=True)
def weigh(q: Array, filters: Array) -> None:
    """Values and slopes (64,) times filters (32,)."""
    for c in range(LANES):
        q[c] *= filters[c]
        q[16 + c] *= filters[16 + c]
        q[32 + c] *= filters[16 + c]
        q[48 + c] *= filters[16 + c]


@compiled(fastmath=FASTMATH, inner=True)
def weigh_both(p: Array, q: Array, filters: Array, rises: Array) -> Scalar:
    """The same for two; and sum_c R'_c p_c q_c with the derivatives of the filters (32,)."""
    total = p[0] - p[0]
    for c in range(LANES):
        r, s = filters[c], filters[16 + c]
        p0, p1, p2, p3 = p[c], p[16 + c], p[32 + c], p[48 + c]
        q0, q1, q2, q3 = q[c], q[16 + c], q[32 + c], q[48 + c]
        total += rises[c] * p0 * q0 + rises[16 + c] * (p1 * q1 + p2 * q2 + p3 * q3)
        p[c], p[16 + c], p[32 + c], p[48 + c] = p0 * r, p1 * s, p2 * s, p3 * s
        q[c], q[16 + c], q[32 + c], q[48 + c] = q0 * r, q1 * s, q2 * s, q3 * s
    return total


@compiled(fastmath=FASTMATH, inner=True)
def spread(y: Array, q: Array, density: Array) -> None:
    """Adds y_m q_c + ∇y_m · ∇q_c, for y (64,) and q (64,), to a density (256,)."""
    for m in range(0, HARMONICS, 2):
        rows = density[m * LANES : (m + 2) * LANES]
        v0, x0, y0, z0 = y[m], y[16 + m], y[32 + m], y[48 + m]
        v1, x1, y1, z1 = y[m + 1], y[17 + m], y[33 + m], y[49 + m]
        for c in range(LANES):
            qv, qx, qy, qz = q[c], q[16 + c], q[32 + c], q[48 + c]
            rows[c] += v0 * qv + x0 * qx + y0 * qy + z0 * qz
            rows[16 + c] += v1 * qv + x1 * qx + y1 * qy + z1 * qz


@compiled(fastmath=FASTMATH, inner=True)
def spread_apart(y: Array, q: Array, density: Array) -> None:
    """Adds y_m q_c to the first half of a density (512,), ∇y_m · ∇q_c to the second."""
    for m in range(0, HARMONICS, 2):
        rows = density[m * LANES : m * LANES + 288]
        v0, x0, y0, z0 = y[m], y[16 + m], y[32 + m], y[48 + m]
        v1, x1, y1, z1 = y[m + 1], y[17 + m], y[33 + m], y[49 + m]
        for c in range(LANES):
            qv, qx, qy, qz = q[c], q[16 + c], q[32 + c], q[48 + c]
            rows[c] += v0 * qv
            rows[16 + c] += v1 * qv
            rows[256 + c] += x0 * qx + y0 * qy + z0 * qz
            rows[272 + c] += x1 * qx + y1 * qy + z1 * qz


@compiled(fastmath=FASTMATH, inner=True)
def to_harmonics(
    listener: Array, spoken: Array, p: Array, q: Array, parity: Array, sums: Array
) -> None:
    """Adds to sums the derivative of E_pair by the harmonics that the speaker sees.

    Args:
        listener: (256,) the adjoint of the density that it hears.
        spoken: (512,) by the other atom.
        p: (64,) what the adjoint is along the pair, filtered.
        q: (64,) what is spoken along the pair, filtered.
        parity: (M,) of the harmonics.
        sums: (1024,) for each harmonic by values and slopes, 16 lanes each; see `pull_back`.
    """
    for m in range(0, HARMONICS, 4):
        first = m * LANES
        f, g, h = listener[first:], spoken[first:], spoken[BUNDLE + first :]
        rows = sums[m * 64 :]
        for c in range(LANES):
            for i in range(4):
                v, w, s = parity[m + i] * f[i * LANES + c], g[i * LANES + c], h[i * LANES + c]
                rows[i * 64 + c] += v * q[c] + w * p[c]
                rows[i * 64 + 16 + c] += s * p[16 + c] - v * q[16 + c]
                rows[i * 64 + 32 + c] += s * p[32 + c] - v * q[32 + c]
                rows[i * 64 + 48 + c] += s * p[48 + c] - v * q[48 + c]


@compiled(inner=True)
def push_pair(pair: Array, along: float, across: tuple[float, float, float], slope: Array) -> None:
    """Adds dE/dr to the slope of a pair, from dE/dd and dE/du, of which only what is across u."""
    x, y, z, d = pair[0], pair[1], pair[2], pair[3]
    along -= (across[0] * x + across[1] * y + across[2] * z) / d
    slope[0] += across[0] / d + along * x
    slope[1] += across[1] / d + along * y
    slope[2] += across[2] / d + along * z


@compiled(fastmath=FASTMATH, inner=True)
def four_dots(q: Array, basis: Array) -> tuple[float, float, float, float]:
    """Of values (16,) with derivatives of radial functions, and of slopes with the functions."""
    v, x, y, z = q[0] * basis[16], q[16] * basis[0], q[32] * basis[0], q[48] * basis[0]
    for c in range(1, LANES):
        v += q[c] * basis[16 + c]
        x += q[16 + c] * basis[c]
        y += q[32 + c] * basis[c]
        z += q[48 + c] * basis[c]
    return v, x, y, z
