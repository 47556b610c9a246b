"""Loops that another process compiles (`jit.HELPER`), while this one does something else.

What they are given is declared by their annotations; so they can be compiled before there is a
network or an atom, by a process that does not even import torch. They are kept on disk, where
whoever needs them finds them.
"""

from __future__ import annotations

from typing import Any

from mdlearn import jit
from mdlearn.jit import HELPER, place_of
from mdlearn.lists import fill_rows
from mdlearn.potentials.kernels import equivariant, painn, schnet
from mdlearn.potentials.kernels.learning_sums import add_gradient
from mdlearn.potentials.kernels.motion import arrive
from mdlearn.words import forms_of

LISTS, MOTION, SUMS = "lists", "motion", "sums"
FUNCTIONS: dict[str, Any] = {
    LISTS: fill_rows,
    MOTION: arrive,
    SUMS: add_gradient,
    "equivariant": equivariant.backward,
    "schnet": schnet.backward,
    "painn": painn.backward,
}
"""Of networks, by architecture, the way from energies to forces."""


def begin(what: str, precision: str = "") -> None:
    """Has one of these functions compiled, in a precision by NumPy's name if it has any."""
    HELPER.tell(FUNCTIONS[what], what, precision)


def serve() -> None:
    """Compiles what another process tells this one."""
    jit.serve(compile_)


def compile_(what: str, precision: str = "") -> None:
    """Compiles one of these functions."""
    place_of(FUNCTIONS[what], *forms_of(FUNCTIONS[what], precision))
