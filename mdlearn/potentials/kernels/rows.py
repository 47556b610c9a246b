"""Arrays that loops are given, by how many axes they have, and elementwise operations on them.

The operations say nothing that NumPy would not, but Numba takes seconds to compile an assignment to
a slice,
most of it for the message that shapes do not match.
"""

from __future__ import annotations

from typing import Annotated, Any

from numpy.typing import NDArray

from mdlearn.jit import compiled
from mdlearn.words import Form

Array = NDArray[Any]
Array1 = Annotated[Array, Form(1)]
Array2 = Annotated[Array, Form(2)]
Array3 = Annotated[Array, Form(3)]
Array4 = Annotated[Array, Form(4)]
Array5 = Annotated[Array, Form(5)]
Array6 = Annotated[Array, Form(6)]
"""Of so many axes, in the precision of the network;"""
Exact0 = Annotated[Array, Form(0, "float64")]
Exact1 = Annotated[Array, Form(1, "float64")]
Exact2 = Annotated[Array, Form(2, "float64")]
Exact3 = Annotated[Array, Form(3, "float64")]
Exact4 = Annotated[Array, Form(4, "float64")]
Index1 = Annotated[Array, Form(1, "int64")]
Index2 = Annotated[Array, Form(2, "int64")]
Flags2 = Annotated[Array, Form(2, "bool")]
"""and of a type that is always the same."""


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
