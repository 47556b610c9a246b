"""Where threads of a compiled loop share work and wait for one another, without the interpreter.

To end a task and to begin the next one takes two threads of Python 50 to 100 µs, as long as a
stage of a small system. Here a thread says that it has arrived and looks in circles until all have,
which takes less than one. It is worth it for as long as threads have cores of their own.

Cores that others use, too, are faster and slower from one moment to the next. So whoever is done
with the blocks of its own goes on with those that another thread has not begun.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from mdlearn.jit import compiled, instruction
from mdlearn.lanes import LINE, zeros
from mdlearn.words import Index1, Index2

Meeting = Index1
"""(3,): how many threads meet, how often one has arrived, and whether one has given up."""
Shared = Index2
"""(T, 8), a line of the cache for each thread: the first of its blocks, the one after the last, and
the next that nobody has taken, in stages of even and of odd number."""
X86 = ("x86_64", "AMD64")
"""What processors are called that have a word for a moment of rest."""


def meeting_of(count: int) -> Meeting:
    """A new meeting of so many threads."""
    return np.array([count, 0, 0])


def shared_by(bounds: Sequence[int]) -> Shared:
    """Blocks of which each thread has those from one bound to the next."""
    shared = zeros((len(bounds) - 1, LINE // 8), np.int64)
    for row, (first, last) in zip(shared, pairwise(bounds), strict=True):
        row[:4] = first, last, first, first
    return shared


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
    all_there = (_count(meeting, 1) // count + 1) * count
    while _look(meeting, 1) < all_there:
        if _look(meeting, 2) != 0:
            return False
        _pause()
    return True


@compiled(inner=True)
def take(stage: int, thread: int, shared: Shared) -> int:
    """The next block of a stage for a thread: of its own, or else one that another has left so far.

    Threads meet after each stage. So nobody is at the stage after this one yet, or still at the one
    before, which had its place: there each makes its own blocks ready for it.

    Returns:
        Which block; -1 if all are taken.
    """
    count, size = shared.shape
    shared[thread, 2 + (stage + 1) % 2] = shared[thread, 0]
    for k in range(count):
        owner = (thread + k) % count
        place = owner * size + 2 + stage % 2
        if _look(shared, place) < shared[owner, 1]:
            block: int = _count(shared, place)
            if block < shared[owner, 1]:
                return block
    return -1


def _pointer(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [place])


@instruction
def _count(typing: Any, array: Any, place: Any) -> Any:
    """Adds one to a number, and tells it as it was.

    Who sees the sum sees what was written before.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = _pointer(context, builder, array, *given)
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(array, types.intp), generate


@instruction
def _look(typing: Any, array: Any, place: Any) -> Any:
    """A number as it is now, in whatever thread it was written."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, array, *given), "acquire", 8)

    return types.int64(array, types.intp), generate


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
