"""The loop over steps downhill; like the driver of dynamics it owns the neighbor lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mdlearn.errors import UnstableError
from mdlearn.integrators.fire import CellChange, Descent, enthalpy, fire, unbalanced_stress
from mdlearn.neighbors import SKIN, build, moved_since_build
from mdlearn.potentials.evaluate import Evaluable
from mdlearn.simulate import bind_forces
from mdlearn.system import Evaluation, System, volume

AREA = 30.0
"""Å², what a stress counts as a force by: 0.01 eV/Å are 0.05 GPa."""
LARGEST_CHANGE = 3.0
"""Factor that the volume of a cell may change by, either way. Solids that keep their structure
stay far within it."""


class Minimum(NamedTuple):
    """Where a descent ended."""

    first: Evaluation
    """Where it began."""
    system: System
    evaluation: Evaluation
    steps: int
    residual: float
    """The largest force on an atom, or on the cell, eV/Å; see `residual`."""
    converged: bool


def minimize(
    potential: Evaluable,
    system: System,
    *,
    fmax: float,
    steps: int,
    mobile: Tensor | None = None,
    cell: CellChange = "none",
    pressure: float = 0.0,
    observe: Callable[[int, Descent], bool] = lambda step, descent: True,
) -> Minimum:
    """Follows the forces to the nearest minimum of the energy, or of the enthalpy E + P V.

    Args:
        potential: gives the energy.
        system: where to start.
        fmax: eV/Å; converged where no force is larger, nor the stress times `AREA`.
        steps: at most so many.
        mobile: (n_atoms, 1), zero for atoms that are held; they only move along with the cell.
        cell: what of the cell may change; the system must then be periodic in all directions.
        pressure: P, eV/Å³.
        observe: is shown each step; returns whether to go on.

    Returns:
        The last point if it converged, else the one of lowest enthalpy.

    Raises:
        UnstableError: energy or positions are no numbers, or the cell collapses or falls apart.
    """
    minimizer = fire(pressure, cell)
    neighbors = build(system, potential.cutoff, SKIN)
    state = minimizer.init(system, bind_forces(potential, neighbors, mobile))
    _check(state, 0, volume(system))
    first, best, step = state.evaluation, state, 0
    while not (converged := residual(state, pressure, cell) <= fmax) and step < steps:
        trial = minimizer.step(state, bind_forces(potential, neighbors, mobile))
        if not bool((moved_since_build(trial.system, neighbors) <= SKIN / 2).all()):
            neighbors = build(state.system, potential.cutoff, SKIN, neighbors.j.shape[1])
            trial = minimizer.step(state, bind_forces(potential, neighbors, mobile))
        state, step = trial, step + 1
        _check(state, step, volume(system))
        if enthalpy(state, pressure).sum() < enthalpy(best, pressure).sum():
            best = state
        if not observe(step, state):
            break
    if converged:
        best = state
    left = residual(best, pressure, cell)
    return Minimum(first, best.system, best.evaluation, step, left, converged)


def residual(state: Descent, pressure: float, cell: CellChange) -> float:
    """The largest force on an atom or, if larger, the stress that is left times `AREA`, eV/Å."""
    force = state.evaluation.forces.square().sum(1).max().sqrt()
    stress = unbalanced_stress(state.evaluation, pressure, cell).abs().max()
    return float(force if cell == "none" else torch.maximum(force, AREA * stress))


def _check(state: Descent, step: int, first_volume: Tensor) -> None:
    """Raises where going on makes no sense."""
    if not bool(torch.isfinite(state.evaluation.energy).all()):
        raise UnstableError(
            f"step {step}: the energy is not a finite number; the atoms are where the model was"
            " never trained: start from another structure"
        )
    change = volume(state.system) / torch.where(first_volume > 0.0, first_volume, torch.nan)
    worst = float(torch.maximum(change, 1.0 / change).nan_to_num(1.0).max())
    if worst > LARGEST_CHANGE:
        raise UnstableError(
            f"step {step}: the volume of the cell has changed by a factor of {worst:.1f} (limit"
            f" {LARGEST_CHANGE:g}); it collapses or falls apart: check --pressure, and whether the"
            " model was trained on such densities"
        )
