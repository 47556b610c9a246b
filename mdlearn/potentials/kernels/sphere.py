"""Harmonics of one direction, their slopes, and the way back from both to the direction.

The harmonics are those of `mdlearn.potentials.spherical`, up to degree 3, written out: values P and
gradients of the polynomials, P_m(u) and ∂P_m/∂u_a. Slopes on the sphere are ∂P - l P u.
"""

from __future__ import annotations

import math
from typing import Any

from mdlearn.jit import compiled
from mdlearn.lanes import load_half, total
from mdlearn.potentials.kernels.rows import Array, clear

FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be reordered for vectors; NaN and infinity stay what they are."""
HARMONICS, DEGREES = 16, 4
R3, R5, R7, R15, R105 = (math.sqrt(n) for n in (3, 5, 7, 15, 105))
A, B = math.sqrt(35 / 8), math.sqrt(21 / 8)
Scalar = Any


@compiled(inner=True)
def polynomials(x: float, y: float, z: float, p: Array) -> None:
    """Fills p (64,): values (16,) of a direction, then gradients along x, y and z (16,) each."""
    xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
    p[0] = 1.0
    p[1], p[2], p[3] = R3 * y, R3 * z, R3 * x
    p[4], p[5], p[7] = R15 * xy, R15 * yz, R15 * xz
    p[6] = R5 * (zz - 0.5 * (xx + yy))
    p[8] = 0.5 * R15 * (xx - yy)
    p[9] = A * y * (3.0 * xx - yy)
    p[10] = R105 * xy * z
    p[11] = B * y * (4.0 * zz - xx - yy)
    p[12] = R7 * z * (zz - 1.5 * (xx + yy))
    p[13] = B * x * (4.0 * zz - xx - yy)
    p[14] = 0.5 * R105 * z * (xx - yy)
    p[15] = A * x * (xx - 3.0 * yy)
    clear(p[16:64])
    p[19], p[33], p[50] = R3, R3, R3
    # Degree 2, ∂/∂x at 16 + m, ∂/∂y at 32 + m, ∂/∂z at 48 + m.
    p[20], p[36] = R15 * y, R15 * x
    p[37], p[53] = R15 * z, R15 * y
    p[22], p[38], p[54] = -R5 * x, -R5 * y, 2.0 * R5 * z
    p[23], p[55] = R15 * z, R15 * x
    p[24], p[40] = R15 * x, -R15 * y
    # Degree 3.
    p[25], p[41] = 6.0 * A * xy, 3.0 * A * (xx - yy)
    p[26], p[42], p[58] = R105 * yz, R105 * xz, R105 * xy
    p[27], p[43], p[59] = -2.0 * B * xy, B * (4.0 * zz - xx - 3.0 * yy), 8.0 * B * yz
    p[28], p[44] = -3.0 * R7 * xz, -3.0 * R7 * yz
    p[60] = R7 * (3.0 * zz - 1.5 * (xx + yy))
    p[29], p[45], p[61] = B * (4.0 * zz - 3.0 * xx - yy), -2.0 * B * xy, 8.0 * B * xz
    p[30], p[46], p[62] = R105 * xz, -R105 * yz, 0.5 * R105 * (xx - yy)
    p[31], p[47] = 3.0 * A * (xx - yy), -6.0 * A * xy


@compiled(fastmath=FASTMATH, inner=True)
def harmonics(x: float, y: float, z: float, p: Array, table: Array, out: Array) -> None:
    """Weighted harmonics of a direction and of the opposite one: out (128,).

    Values (16,), and slopes by axis, of a direction u; then those of -u, where values have another
    sign for odd degrees, and slopes for even ones.

    Args:
        x: of u, a unit vector.
        y: of u.
        z: of u.
        p: (64,) is filled with `polynomials` of u.
        table: (64,) weights of values, weights of slopes, degrees, and minus one for odd degrees.
        out: is filled.
    """
    polynomials(x, y, z, p)
    kind = p.dtype.type
    ux, uy, uz = kind(x), kind(y), kind(z)
    for m in range(HARMONICS):
        value, weight, sign = table[m] * p[m], table[16 + m], table[48 + m]
        lift = table[32 + m] * p[m]
        sx, sy, sz = p[16 + m] - lift * ux, p[32 + m] - lift * uy, p[48 + m] - lift * uz
        out[m], out[64 + m] = value, sign * value
        out[16 + m], out[32 + m], out[48 + m] = weight * sx, weight * sy, weight * sz
        sign *= -weight
        out[80 + m], out[96 + m], out[112 + m] = sign * sx, sign * sy, sign * sz


@compiled(fastmath=FASTMATH, inner=True)
def tangents(p: Array, table: Array, out: Array) -> None:
    """What `pull_back` multiplies with, from polynomials p (64,) of a direction: out (112,)."""
    for m in range(HARMONICS):
        v, s = table[m], table[32 + m] * table[16 + m]
        x, y, z = p[16 + m], p[32 + m], p[48 + m]
        out[m], out[16 + m], out[32 + m] = v * x, v * y, v * z
        out[48 + m], out[64 + m], out[80 + m] = s * x, s * y, s * z
        out[96 + m] = s * p[m]


@compiled(inner=True)
def pull_back(
    x: float, y: float, z: float, t: Array, s: Array, table: Array
) -> tuple[Scalar, Scalar, Scalar]:
    """The derivative by the direction u of sum_mc (a_mc w_m P_m + b_mc · w'_m ∇P_m).

    On the sphere ∇P = ∂P - l P u for polynomials of degree l, and ∇P has the derivatives
    ∂∂P - l P - l u ∂P. What points away from the sphere is for the caller to take off.

    Args:
        x: of u, a unit vector.
        y: of u.
        z: of u.
        t: (112,) `tangents` of u.
        s: (1024,) for each harmonic a and b by axis, 16 lanes c each.
        table: (64,) as for `harmonics`.
    """
    kind = s.dtype.type
    ux, uy, uz = kind(x), kind(y), kind(z)
    r5, r15 = kind(R5) * table[20], kind(R15) * table[20]
    r7, r105 = kind(3.0 * R7) * table[25], kind(R105) * table[25]
    k, q = kind(6.0 * A) * table[25], kind(2.0 * B) * table[25]
    two, three, four = kind(2.0), kind(3.0), kind(4.0)
    a = load_half(s, 0)
    gx, gy, gz = t[0] * a, t[16] * a, t[32] * a
    for m in range(1, HARMONICS):
        row, w = m * 64, t[96 + m]
        a, bx = load_half(s, row), load_half(s, row + 16)
        by, bz = load_half(s, row + 32), load_half(s, row + 48)
        along = ux * bx + uy * by + uz * bz
        gx = gx + t[m] * a - t[48 + m] * along - w * bx
        gy = gy + t[16 + m] * a - t[64 + m] * along - w * by
        gz = gz + t[32 + m] * a - t[80 + m] * along - w * bz
    # The second derivatives: xy, yz, zz, xz and xx - yy; then those of degree 3 in turn.
    gx = gx + r15 * (load_half(s, 288) + load_half(s, 496) + load_half(s, 528))
    gx = gx - r5 * load_half(s, 400)
    gy = gy + r15 * (load_half(s, 272) + load_half(s, 368) - load_half(s, 544))
    gy = gy - r5 * load_half(s, 416)
    gz = gz + r15 * (load_half(s, 352) + load_half(s, 464)) + two * r5 * load_half(s, 432)
    bx, by = load_half(s, 592), load_half(s, 608)
    gx = gx + k * (uy * bx + ux * by)
    gy = gy + k * (ux * bx - uy * by)
    bx, by, bz = load_half(s, 656), load_half(s, 672), load_half(s, 688)
    gx = gx + r105 * (uz * by + uy * bz)
    gy = gy + r105 * (uz * bx + ux * bz)
    gz = gz + r105 * (uy * bx + ux * by)
    bx, by, bz = load_half(s, 720), load_half(s, 736), load_half(s, 752)
    gx = gx - q * (uy * bx + ux * by)
    gy = gy + q * (four * uz * bz - ux * bx - three * uy * by)
    gz = gz + q * four * (uy * bz + uz * by)
    bx, by, bz = load_half(s, 784), load_half(s, 800), load_half(s, 816)
    gx = gx - r7 * (uz * bx + ux * bz)
    gy = gy - r7 * (uz * by + uy * bz)
    gz = gz + r7 * (two * uz * bz - ux * bx - uy * by)
    bx, by, bz = load_half(s, 848), load_half(s, 864), load_half(s, 880)
    gx = gx + q * (four * uz * bz - three * ux * bx - uy * by)
    gy = gy - q * (ux * by + uy * bx)
    gz = gz + q * four * (ux * bz + uz * bx)
    bx, by, bz = load_half(s, 912), load_half(s, 928), load_half(s, 944)
    gx = gx + r105 * (uz * bx + ux * bz)
    gy = gy - r105 * (uz * by + uy * bz)
    gz = gz + r105 * (ux * bx - uy * by)
    bx, by = load_half(s, 976), load_half(s, 992)
    gx = gx + k * (ux * bx - uy * by)
    gy = gy - k * (uy * bx + ux * by)
    return total(gx), total(gy), total(gz)
