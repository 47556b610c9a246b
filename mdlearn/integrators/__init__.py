"""Equations of motion. Each integrator is a pair of pure functions; its ensemble is its file."""

from mdlearn.integrators.integrator import (
    Forces,
    Integrator,
    State,
    conserved_energy,
    kinetic_energy,
)
from mdlearn.integrators.langevin import langevin
from mdlearn.integrators.velocity_verlet import velocity_verlet

__all__ = [
    "Forces",
    "Integrator",
    "State",
    "conserved_energy",
    "kinetic_energy",
    "langevin",
    "velocity_verlet",
]
