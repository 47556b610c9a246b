"""Where the threads of a compiled loop wait for one another, without the interpreter.

To end a task and to begin the next one takes two threads of Python 50 to 100 µs, as long as a
stage of a small system. Here a thread says that it has arrived and looks in circles until all have,
which takes less than one. It is worth it for as long as threads have cores of their own.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from mdlearn.jit import compiled, instruction
from mdlearn.words import Index1

Meeting = Index1
"""(3,): how many threads meet, how often one has arrived, and whether one has given up."""
X86 = ("x86_64", "AMD64")
"""What processors are called that have a word for a moment of rest."""


def meeting_of(count: int) -> Meeting:
    """A new meeting of so many threads."""
    return np.array([count, 0, 0])


def give_up(meeting: Meeting) -> None:
    """Has all others leave."""
    meeting[2] = 1


@compiled(inner=True)
def meet(meeting: Meeting) -> bool:
    """Waits until all threads have come here as often as this one.

    Returns:
        Whether they have; if not, one has given up, and so should this one.
    """
    count = meeting[0]
    if count == 1:
        return True
    all_there = (_arrive(meeting) // count + 1) * count
    while _look(meeting, 1) < all_there:
        if _look(meeting, 2) != 0:
            return False
        _pause()
    return True


def _pointer(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [place])


@instruction
def _arrive(typing: Any, meeting: Any) -> Any:
    """Counts an arrival, and tells those before; what was written is there for all who see it."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        one = ir.Constant(ir.IntType(64), 1)
        pointer = _pointer(context, builder, meeting, given[0], one)
        return builder.atomic_rmw("add", pointer, one, "acq_rel")

    return types.int64(meeting), generate


@instruction
def _look(typing: Any, meeting: Any, place: Any) -> Any:
    """A number as it is now, in whatever thread it was written."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, meeting, *given), "acquire", 8)

    return types.int64(meeting, types.intp), generate


@instruction
def _pause(typing: Any) -> Any:
    """Leaves the core to its other thread for a moment."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if platform.machine() in X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), generate
