"""Equations of motion. Each integrator is a pair of pure functions; its ensemble is its file."""

from mdlearn.integrators.cell_rescaling import cell_rescaling
from mdlearn.integrators.csvr import csvr
from mdlearn.integrators.integrator import (
    Forces,
    Integrator,
    State,
    Surroundings,
    conserved_energy,
    kinetic_energy,
    pressure,
    pressure_tensor,
)
from mdlearn.integrators.langevin import langevin
from mdlearn.integrators.learned import learned
from mdlearn.integrators.martyna_tobias_klein import martyna_tobias_klein
from mdlearn.integrators.nose_hoover import nose_hoover
from mdlearn.integrators.velocity_verlet import velocity_verlet

__all__ = [
    "Forces",
    "Integrator",
    "State",
    "Surroundings",
    "cell_rescaling",
    "conserved_energy",
    "csvr",
    "kinetic_energy",
    "langevin",
    "learned",
    "martyna_tobias_klein",
    "nose_hoover",
    "pressure",
    "pressure_tensor",
    "velocity_verlet",
]
