"""Loops that another process compiles (`jit.HELPER`), while this one does something else.

What loops are given is declared by their layouts; so they can be compiled before there is a network
or an atom, by a process that does not even import torch. They are kept on disk, where whoever needs
them finds them.
"""

from __future__ import annotations

from typing import Annotated, Any

from mdlearn import jit
from mdlearn.jit import HELPER, place_of
from mdlearn.lists import fill_rows
from mdlearn.meeting import meeting_of
from mdlearn.potentials.kernels import (
    equivariant,
    layout,
    learning_layout,
    painn,
    painn_layout,
    schnet,
)
from mdlearn.potentials.kernels.atoms import Inputs
from mdlearn.potentials.kernels.learning_sums import add_gradient
from mdlearn.potentials.kernels.motion import Found, Motion, arrive
from mdlearn.potentials.kernels.rows import (
    Array,
    Array1,
    Exact3,
    Flags2,
    Index1,
    Index2,
)
from mdlearn.words import Form, Written, form_of

GIVEN = {"equivariant": layout, "schnet": schnet, "painn": painn_layout}
"""Where it is said what the loops of an architecture are given,"""

BACKWARD: dict[str, Any] = {
    "equivariant": equivariant.backward,
    "schnet": schnet.backward,
    "painn": painn.backward,
}
"""and its way to forces."""
SHIFT, NUMBERS, ROWS = (Annotated[Array, Form(rank, "int32")] for rank in (2, 1, 2))
GIVEN_LISTS = (
    Index1,
    Index1,
    SHIFT,
    tuple[Index1, Index1, Index1],
    tuple[NUMBERS, NUMBERS, ROWS],  # type: ignore[valid-type]
    Index2,
    Exact3,
    Index2,
    Flags2,
)
"""See `lists.fill_rows`."""
LISTS, MOTION, SUMS = "lists", "motion", "sums"


def begin_dynamics() -> None:
    """Has compiled what all dynamics needs, whatever the network."""
    HELPER.tell(fill_rows, LISTS)
    HELPER.tell(arrive, MOTION)


def begin_backward(architecture: str, precision: str) -> None:
    """Has compiled the way to forces of a network, in a precision by NumPy's name."""
    HELPER.tell(BACKWARD[architecture], architecture, precision)


def begin_sums() -> None:
    """Has compiled what sums up the gradient of a training."""
    HELPER.tell(add_gradient, SUMS, "float32")


def serve() -> None:
    """Compiles what another process tells this one."""
    jit.serve(compile_)


def compile_(what: str, precision: str = "") -> None:
    """Compiles one of the functions above, by the words that stand for it there."""
    if what == LISTS:
        place_of(fill_rows, *(form_of(each, precision) for each in GIVEN_LISTS))
    elif what == MOTION:
        place_of_motion(arrive)
    elif what == SUMS:
        place_of(add_gradient, (0, 0), (0, 0), *kinds_of_sums(precision))
    else:
        place_of(BACKWARD[what], 0, 0, *kinds_of_network(what, precision))


def place_of_motion(function: Any) -> int:
    """Where `motion.depart` or `motion.arrive` is in memory."""
    kinds = [Written(form_of(each, "")) for each in (Inputs, Found, Motion)]
    return place_of(function, 0, (0, 0), *kinds, meeting_of(1))


def kinds_of_network(architecture: str, precision: str) -> list[Any]:
    """The types of what the loops of a network are given: inputs, weights and workspace."""
    given = GIVEN[architecture]
    return [Written(form_of(each, precision)) for each in (Inputs, given.Weights, given.Workspace)]


def kinds_of_sums(precision: str) -> list[Any]:
    """The same of `learning_sums.add_gradient`."""
    given = (learning_layout.Weights, learning_layout.Pass, learning_layout.Gradient)
    return [form_of(each, precision) for each in (Array1, Index1, *given)]
