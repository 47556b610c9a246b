"""The shape of every integrator, and the words that they are made of: kick, drift, energies."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mdlearn.neighbors import Neighbors
from mdlearn.system import Evaluation, System, sum_by_system, volume

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
    """(n_systems,) eV, energy handed to thermostat and barostat so far; zero without them."""
    variables: Tensor
    """(n_systems, V), of a thermostat and a barostat with a motion of their own; V may be zero."""
    freedom: Tensor
    """(n_systems,), degrees of freedom that the kinetic energy is spread over."""
    step: int
    """Steps done since the start of the simulation."""


class Surroundings(NamedTuple):
    """What the world does to the systems in one step."""

    noise: Tensor
    """(draws, n_atoms, 3) normal deviates."""
    kT: Tensor
    """(n_systems,) eV."""
    pressure: Tensor
    """(n_systems,) eV/Å³."""
    neighbors: Neighbors | None = None
    """The pairs of the state that a step starts from, for one that asks for more than forces."""


class Splitting(NamedTuple):
    """A step that compiled loops can do around the forces.

    B A B, or B A O A B with friction; or B A B between two halves of a thermostat.
    """

    dt: float
    """Å·sqrt(u/eV), time step."""
    remember: float = 1.0
    """What momenta keep of themselves in O; one if there is none."""
    thermostat: str = ""
    """`csvr` or `nose-hoover`; or none."""
    time: float = 0.0
    """τ of the thermostat, Å·sqrt(u/eV)."""


class Integrator(NamedTuple):
    """A pair of pure functions, and what the driver must know about them."""

    init: Callable[[System, Tensor, Forces, Tensor], State]
    """(system, momenta, forces, freedom) -> the state at step zero."""
    step: Callable[[State, Forces, Surroundings], State]
    """(state, forces, surroundings) -> the state one time step later."""
    draws: int
    """Normal deviates that a step needs per atom and axis."""
    keeps_momentum: bool
    """Whether a system at rest as a whole stays at rest, so that this is no degree of freedom."""
    splitting: Splitting | None = None
    """The same step for compiled loops, if they can do it; but for rounding, the same it is."""


def start(system: System, momenta: Tensor, forces: Forces, freedom: Tensor) -> State:
    """The state at step zero; the `init` of integrators without variables of their own."""
    evaluation = forces(system)
    nothing = evaluation.energy * 0.0
    return State(system, momenta, evaluation, nothing, nothing[:, None][:, :0], freedom, 0)


def kick(state: State, dt: float) -> State:
    """P' = p + F dt."""
    return state._replace(momenta=torch.add(state.momenta, state.evaluation.forces, alpha=dt))


def drift(state: State, dt: float) -> State:
    """X' = x + p/m dt. The evaluation of the state is out of date until `refresh`."""
    system = state.system
    positions = torch.addcdiv(system.positions, state.momenta, system.masses[:, None], value=dt)
    return state._replace(system=system._replace(positions=positions))


def refresh(state: State, forces: Forces) -> State:
    """Evaluates the potential where the atoms are now."""
    return state._replace(evaluation=forces(state.system))


def scale_momenta(state: State, factor: Tensor) -> State:
    """P' = a p, with (n_systems,) factors."""
    return state._replace(momenta=state.momenta * factor[state.system.system, None])


def rank(system: System) -> Tensor:
    """Which atom of its system each atom is, from zero; (n_atoms,), a floating number."""
    ones = torch.ones_like(system.masses)
    n_atoms = sum_by_system(ones, system)
    began = n_atoms.cumsum(0) - n_atoms
    return ones.cumsum(0) - 1.0 - began[system.system]


def kinetic_energy(state: State) -> Tensor:
    """K = sum p²/2m of each system, (n_systems,) eV."""
    per_atom = state.momenta.square().sum(1) / (2.0 * state.system.masses)
    return sum_by_system(per_atom, state.system)


def pressure_tensor(state: State) -> Tensor:
    """(sum p p/m)/V - stress of each system, (n_systems, 3, 3) eV/Å³; positive when compressed."""
    momenta = state.momenta
    flow = momenta[:, :, None] * momenta[:, None] / state.system.masses[:, None, None]
    kinetic = sum_by_system(flow, state.system) / volume(state.system)[:, None, None]
    return kinetic - state.evaluation.stress


def pressure(state: State) -> Tensor:
    """A third of the trace of the pressure tensor, (n_systems,) eV/Å³."""
    return torch.diagonal(pressure_tensor(state), dim1=1, dim2=2).mean(1)


def conserved_energy(state: State) -> Tensor:
    """Potential, kinetic and bath energy, (n_systems,) eV: constant but for the step's error."""
    return state.evaluation.energy + kinetic_energy(state) + state.bath
