"""Molecular dynamics with learned potentials, from the command line."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdlearn.calculator import MDLearnCalculator
    from mdlearn.potentials.checkpoint import load_model
    from mdlearn.trajectory import Trajectory

__version__ = "0.1.0"
__all__ = ["MDLearnCalculator", "Trajectory", "load_model"]

_HOMES = {
    "MDLearnCalculator": "mdlearn.calculator",
    "Trajectory": "mdlearn.trajectory",
    "load_model": "mdlearn.potentials.checkpoint",
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used, so that `import mdlearn` takes no time."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mdlearn' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
