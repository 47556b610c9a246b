"""The shape of every integrator, and the words that they are made of: kick, drift, energies."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from mdlearn.system import Evaluation, System, sum_by_system

Forces = Callable[[System], Evaluation]
"""Evaluates a potential; the neighbor list is bound to it by the driver."""


class State(NamedTuple):
    """Everything that the next step depends on. Changed only by `_replace`."""

    system: System
    momenta: Tensor
    """(n_atoms, 3) u·Å/(Å·sqrt(u/eV))."""
    evaluation: Evaluation
    """Of the potential, at the positions of `system`."""
    bath: Tensor
    """(n_systems,) eV, energy handed to the thermostat so far; zero without one."""
    step: int
    """Steps done since the start of the simulation."""


class Integrator(NamedTuple):
    """A pair of pure functions."""

    init: Callable[[System, Tensor, Forces], State]
    """(system, momenta, forces) -> the state at step zero."""
    step: Callable[[State, Forces, Tensor], State]
    """(state, forces, noise) -> the state one time step later."""
    draws: int
    """Normal deviates that a step needs per atom and axis: noise is (draws, n_atoms, 3)."""


def start(system: System, momenta: Tensor, forces: Forces) -> State:
    """The state at step zero; the `init` of integrators without variables of their own."""
    evaluation = forces(system)
    return State(system, momenta, evaluation, evaluation.energy * 0.0, 0)


def kick(state: State, dt: float) -> State:
    """P' = p + F dt."""
    return state._replace(momenta=state.momenta + state.evaluation.forces * dt)


def drift(state: State, dt: float) -> State:
    """X' = x + p/m dt. The evaluation of the state is out of date until `refresh`."""
    velocity = state.momenta / state.system.masses[:, None]
    system = state.system._replace(positions=state.system.positions + velocity * dt)
    return state._replace(system=system)


def refresh(state: State, forces: Forces) -> State:
    """Evaluates the potential where the atoms are now."""
    return state._replace(evaluation=forces(state.system))


def kinetic_energy(state: State) -> Tensor:
    """K = sum p²/2m of each system, (n_systems,) eV."""
    per_atom = state.momenta.square().sum(1) / (2.0 * state.system.masses)
    return sum_by_system(per_atom, state.system)


def conserved_energy(state: State) -> Tensor:
    """Potential, kinetic and bath energy, (n_systems,) eV: constant but for the step's error."""
    return state.evaluation.energy + kinetic_energy(state) + state.bath
