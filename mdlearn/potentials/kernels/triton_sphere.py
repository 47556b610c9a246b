"""Functions on the sphere in the registers of a GPU: values, slopes, second derivatives.

A harmonic of degree l is a polynomial P_l(u) = u·T_l·...·u with a symmetric tensor without traces.
So the second derivatives of a function, five numbers for each degree, tell all else (Euler):

    ∂P_2 = ∂∂P_2 u    P_2 = u·∂P_2 / 2        ∂P_3 = ∂∂P_3 u / 2    P_3 = u·∂P_3 / 3

They are formed from the 16 coefficients of a function, which nothing is multiplied with before. A
thread does that for a feature of an atom, and shares nothing with others. The harmonics are those
of `mdlearn.potentials.spherical`, undamped: damping is a factor of the weights.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

HARMONICS = tl.constexpr(16)
R3, R5, R7 = (tl.constexpr(math.sqrt(n)) for n in (3, 5, 7))
R15, R105 = (tl.constexpr(math.sqrt(n)) for n in (15, 105))
K, Q = tl.constexpr(6 * math.sqrt(35 / 8)), tl.constexpr(2 * math.sqrt(21 / 8))
# What slopes of degree l are divided by, √(l(l + 1)).
S1, S2, S3 = (tl.constexpr((degree * (degree + 1)) ** -0.5) for degree in (1, 2, 3))


@triton.jit
def load(pointer: tl.tensor, stride: tl.tensor, mask: tl.tensor) -> tl.tuple:
    """What stands at 16 pointers that are a stride apart; zeros where a thread has no part."""
    found: tl.tuple = ()
    for m in tl.static_range(HARMONICS):
        found += (tl.load(pointer + m * stride, mask, 0.0),)
    return found


@triton.jit
def store(pointer: tl.tensor, stride: tl.tensor, values: tl.tuple, mask: tl.tensor) -> None:
    """The opposite of `load`."""
    for m in tl.static_range(HARMONICS):
        tl.store(pointer + m * stride, values[m], mask)


@triton.jit
def nothing(like: tl.tensor) -> tl.tuple:
    """A function that is zero everywhere."""
    found: tl.tuple = ()
    for _ in tl.static_range(HARMONICS):
        found += (tl.zeros_like(like),)
    return found


@triton.jit
def summed(c: tl.tuple) -> tl.tuple:
    """Functions of blocks of atoms from the shares (block, some, row) of threads."""
    found: tl.tuple = ()
    for m in tl.static_range(HARMONICS):
        found += (tl.sum(c[m], 1, keep_dims=True),)
    return found


@triton.jit
def bend(h: tl.tuple, x: tl.tensor, y: tl.tensor, z: tl.tensor) -> tl.tuple:
    """Second derivatives (xx, yy, xy, xz, yz) times a vector; zz is what makes the trace zero."""
    return (
        h[0] * x + h[2] * y + h[3] * z,
        h[2] * x + h[1] * y + h[4] * z,
        h[3] * x + h[4] * y - (h[0] + h[1]) * z,
    )


@triton.jit
def look_along(c: tl.tuple, x: tl.tensor, y: tl.tensor, z: tl.tensor) -> tl.tuple:
    """A function in the direction u = (x, y, z).

    Returns:
        Its value; the derivative of that by u, as a polynomial; that derivative with the weights of
        slopes (what is across u of it is the slope); and the second derivatives that belong to it.
    """
    # Constants stand behind what they are multiplied with: the interpreter wants it so.
    xx2, yy2 = c[8] * R15 - c[6] * R5, -c[8] * R15 - c[6] * R5
    second = (xx2, yy2, c[4] * R15, c[7] * R15, c[5] * R15)
    k9, k11, k12, k13, k15 = c[9] * K, c[11] * Q, c[12] * (3 * R7), c[13] * Q, c[15] * K
    k10, k14 = c[10] * R105, c[14] * R105
    bent, rest = k9 * y + k14 * z + k15 * x, k12 * z
    third = (
        bent - k11 * y - rest - 3 * k13 * x,
        -bent - 3 * k11 * y - rest - k13 * x,
        k9 * x + k10 * z - k11 * x - k13 * y - k15 * y,
        k10 * y - k12 * x + 4 * k13 * z + k14 * x,
        k10 * x + 4 * k11 * z - k12 * y - k14 * y,
    )
    x1, y1, z1 = c[3] * R3, c[1] * R3, c[2] * R3
    x2, y2, z2 = bend(second, x, y, z)
    x3, y3, z3 = bend(third, 0.5 * x, 0.5 * y, 0.5 * z)
    value = (
        c[0]
        + x * (x1 + x2 / 2 + x3 * (1 / 3))
        + y * (y1 + y2 / 2 + y3 * (1 / 3))
        + z * (z1 + z2 / 2 + z3 * (1 / 3))
    )
    rising = (x1 * S1 + x2 * S2 + x3 * S3, y1 * S1 + y2 * S2 + y3 * S3, z1 * S1 + z2 * S2 + z3 * S3)
    bending = (
        second[0] * S2 + third[0] * S3,
        second[1] * S2 + third[1] * S3,
        second[2] * S2 + third[2] * S3,
        second[3] * S2 + third[3] * S3,
        second[4] * S2 + third[4] * S3,
    )
    return value, (x1 + x2 + x3, y1 + y2 + y3, z1 + z2 + z3), rising, bending


@triton.jit
def across(v: tl.tuple, x: tl.tensor, y: tl.tensor, z: tl.tensor) -> tl.tuple:
    """What is along the direction (x, y, z) of a vector, and the vector without it."""
    along = v[0] * x + v[1] * y + v[2] * z
    return along, v[0] - along * x, v[1] - along * y, v[2] - along * z


@triton.jit
def spread(
    c: tl.tuple, value: tl.tensor, slope: tl.tuple, x: tl.tensor, y: tl.tensor, z: tl.tensor
) -> tl.tuple:
    """The transpose of `look_along`, added to coefficients.

    Args:
        c: the coefficients.
        value: to be multiplied with the value in the direction u = (x, y, z).
        slope: to be multiplied with the slope there; a vector across u.
        x: of u.
        y: of u.
        z: of u.
    """
    # Of degree 1, the derivative is multiplied with w; of degree l, the second ones with u and w.
    x1, y1, z1 = value * x + slope[0] * S1, value * y + slope[1] * S1, value * z + slope[2] * S1
    half = value / 2
    x2, y2, z2 = half * x + slope[0] * S2, half * y + slope[1] * S2, half * z + slope[2] * S2
    xx2, yy2 = x * x2 - z * z2, y * y2 - z * z2
    sixth, sx, sy, sz = value * (1 / 6), slope[0] / 2, slope[1] / 2, slope[2] / 2
    x3, y3, z3 = sixth * x + sx * S3, sixth * y + sy * S3, sixth * z + sz * S3
    xx, yy = x * x3 - z * z3, y * y3 - z * z3
    xy, xz, yz = x * y3 + y * x3, x * z3 + z * x3, y * z3 + z * y3
    return (
        c[0] + value,
        c[1] + y1 * R3,
        c[2] + z1 * R3,
        c[3] + x1 * R3,
        c[4] + (x * y2 + y * x2) * R15,
        c[5] + (y * z2 + z * y2) * R15,
        c[6] - (xx2 + yy2) * R5,
        c[7] + (x * z2 + z * x2) * R15,
        c[8] + (xx2 - yy2) * R15,
        c[9] + (y * (xx - yy) + x * xy) * K,
        c[10] + (z * xy + y * xz + x * yz) * R105,
        c[11] + (4 * z * yz - y * (xx + 3 * yy) - x * xy) * Q,
        c[12] - (z * (xx + yy) + x * xz + y * yz) * (3 * R7),
        c[13] + (4 * z * xz - x * (3 * xx + yy) - y * xy) * Q,
        c[14] + (z * (xx - yy) + x * xz - y * yz) * R105,
        c[15] + (x * (xx - yy) - y * xy) * K,
    )
