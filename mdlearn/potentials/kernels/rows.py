"""Elementwise operations on whole arrays.

They say nothing that NumPy would not, but Numba takes seconds to compile an assignment to a slice,
most of it for the message that shapes do not match.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from mdlearn.jit import compiled

Array = NDArray[Any]


@compiled(inner=True)
def clear(out: Array) -> None:
    """Fills an array with zeros."""
    flat = out.reshape(-1)
    for c in range(len(flat)):
        flat[c] = 0.0


@compiled(inner=True)
def copy(values: Array, out: Array) -> None:
    """Overwrites an array with another one of its shape."""
    flat, source = out.reshape(-1), values.reshape(-1)
    for c in range(len(flat)):
        flat[c] = source[c]


@compiled(inner=True)
def add(values: Array, out: Array) -> None:
    """Adds an array of the same shape."""
    flat, source = out.reshape(-1), values.reshape(-1)
    for c in range(len(flat)):
        flat[c] += source[c]


@compiled(inner=True)
def scale(factors: Array, out: Array) -> None:
    """Multiplies by an array of the same shape."""
    flat, source = out.reshape(-1), factors.reshape(-1)
    for c in range(len(flat)):
        flat[c] *= source[c]
