"""Activations of `Lanes`, with their derivatives."""

from __future__ import annotations

import math
from typing import Any

from mdlearn.jit import compiled
from mdlearn.lanes import Lanes, if_negative, polynomial, power_of_two, truncated

INVERSE_FACTORIALS = [1.0 / math.factorial(n) for n in range(13, -1, -1)]
INVERSE_ODDS = [1.0 / n for n in range(33, 0, -2)]
series_of_exponential: Any = polynomial(INVERSE_FACTORIALS[-8:], INVERSE_FACTORIALS)
"""exp(x) for |x| <= ½ ln 2; what is left out is 5e-9 in float32, and 4e-18."""
series_of_artanh: Any = polynomial(INVERSE_ODDS[-8:], INVERSE_ODDS)
"""artanh(s) / s of s², for s <= 1/3; likewise 2e-9 and 2e-18."""
LOWEST = -80.0
"""Exponents below count as this: what is 1e-35 adds nothing to one."""
LN2 = math.log(2.0)
LN2_HIGH = 0.693145751953125
"""The first bits of ln 2, so that a product with an integer is exact in float32, too."""
LN2_LOW = 1.428606820309417232e-6


@compiled(inner=True)
def exponential(x: Lanes) -> Lanes:
    """exp(x) for x <= 0: 2ⁿ times the series of what is left of x, which is at most ½ ln 2."""
    x = if_negative(x - LOWEST, x * 0.0 + LOWEST, x)
    n = truncated(x * (1.0 / LN2) - 0.5)
    rest = x - n * LN2_HIGH - n * LN2_LOW
    return series_of_exponential(rest) * power_of_two(n)


@compiled(inner=True)
def sigmoid(x: Lanes) -> tuple[Lanes, Lanes]:
    """1 / (1 + exp(-x)), and exp(-|x|)."""
    decay = exponential(if_negative(x, x, x * -1.0))
    return if_negative(x, decay, decay * 0.0 + 1.0) / (decay + 1.0), decay


@compiled(inner=True)
def shifted_softplus(x: Lanes) -> tuple[Lanes, Lanes]:
    """ln(½eˣ + ½) and its derivative; ln(1 + u) is 2 artanh(u / (2 + u))."""
    slope, decay = sigmoid(x)
    s = decay / (decay + 2.0)
    return if_negative(x, x * 0.0, x) + (2.0 * s * series_of_artanh(s * s) - LN2), slope


@compiled(inner=True)
def silu(x: Lanes) -> tuple[Lanes, Lanes]:
    """The function x / (1 + exp(-x)), and its derivative.

    The last operation is a division, which is rounded before anything is subtracted from it; a
    product would not be. So the activations of equal numbers differ by nothing.
    """
    s, decay = sigmoid(x)
    value = x * if_negative(x, decay, decay * 0.0 + 1.0) / (decay + 1.0)
    return value, s * (1.0 + x * (1.0 - s))
