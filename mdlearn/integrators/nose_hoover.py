"""Nosé-Hoover chains: constant temperature (NVT), deterministic and reversible."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlearn.chain import SUZUKI_YOSHIDA, drive_chains
from mdlearn.integrators.integrator import (
    Forces,
    Integrator,
    Splitting,
    State,
    Surroundings,
    drift,
    kick,
    kinetic_energy,
    refresh,
    scale_momenta,
    start,
)
from mdlearn.system import System

LENGTH = 3
"""Thermostats in a chain: two more than one, which alone would not be ergodic."""


def nose_hoover(dt: float, time: float) -> Integrator:
    """Velocity Verlet between two halves of a chain of thermostats.

    Martyna, Tuckerman, Tobias, Klein, Mol. Phys. 87, 1117 (1996), eqs. 22-33, with three
    thermostats. The bath holds what the conserved quantity (eq. 21) has besides the energy of the
    atoms, less its value at the start; a temperature that varies is booked there, too.

    Args:
        dt: Å·sqrt(u/eV), time step.
        time: τ, Å·sqrt(u/eV): the thermostats have masses f kT τ² and kT τ².
    """

    def init(system: System, momenta: Tensor, forces: Forces, freedom: Tensor) -> State:
        state = start(system, momenta, forces, freedom)
        return state._replace(variables=state.bath[:, None].repeat(1, LENGTH))

    def step(state: State, forces: Forces, surroundings: Surroundings) -> State:
        state = thermalize(state, surroundings.kT, 0.5 * dt, time)
        state = kick(state, 0.5 * dt)
        state = drift(state, dt)
        state = refresh(state, forces)
        state = kick(state, 0.5 * dt)
        state = thermalize(state, surroundings.kT, 0.5 * dt, time)
        return state._replace(step=state.step + 1)

    splitting = Splitting(dt, thermostat="nose-hoover", time=time)
    return Integrator(init, step, draws=0, keeps_momentum=True, splitting=splitting)


def thermalize(state: State, kT: Tensor, dt: float, time: float) -> State:
    """The chain alone, over a time; its velocities are the first variables of the state."""
    velocities, rest = state.variables[:, :LENGTH], state.variables[:, LENGTH:]
    kinetic = kinetic_energy(state)
    velocities, factor, heat = drive_chain(velocities, 2.0 * kinetic, state.freedom, kT, dt, time)
    state = scale_momenta(state, factor)
    variables = torch.cat([velocities, rest], 1)
    return state._replace(variables=variables, bath=state.bath + heat)


def drive_chain(
    velocities: Tensor, twice_kinetic: Tensor, freedom: Tensor, kT: Tensor, dt: float, time: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Moves a chain of thermostats in time together with the kinetic energy that it controls.

    Args:
        velocities: (n_systems, LENGTH) of the thermostats, 1/(Å·sqrt(u/eV)).
        twice_kinetic: (n_systems,) eV, what the first thermostat holds at `freedom` kT.
        freedom: (n_systems,).
        kT: (n_systems,) eV.
        dt: Å·sqrt(u/eV).
        time: τ, Å·sqrt(u/eV).

    Returns:
        The velocities after it, the factor (n_systems,) of what has the kinetic energy, and the
        energy (n_systems,) eV that the chain has received.
    """
    if velocities.device.type == "cpu":
        return drive_chains(velocities, twice_kinetic, freedom, kT, dt, time)
    return drive_by_operations(velocities, twice_kinetic, freedom, kT, dt, time)


def drive_by_operations(
    velocities: Tensor, twice_kinetic: Tensor, freedom: Tensor, kT: Tensor, dt: float, time: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`drive_chain`, for a GPU."""
    size = torch.cat([freedom[:, None], torch.ones_like(velocities[:, 1:])], 1)
    masses = size * kT[:, None] * time**2
    v = list(velocities.unbind(1))
    q = list(masses.unbind(1))
    factor, heat = torch.ones_like(kT), torch.zeros_like(kT)

    def stored() -> Tensor:
        return 0.5 * torch.stack([m * u * u for m, u in zip(q, v, strict=True)]).sum(0)

    def pushed(index: int) -> Tensor:
        """The acceleration of one thermostat."""
        if index == 0:
            return (twice_kinetic * factor * factor - freedom * kT) / q[0]
        return (q[index - 1] * v[index - 1] * v[index - 1] - kT) / q[index]

    def accelerate(index: int, dt: float) -> Tensor:
        if index == LENGTH - 1:
            return v[index] + pushed(index) * 0.5 * dt
        brake = torch.exp(-0.25 * dt * v[index + 1])
        return (v[index] * brake + pushed(index) * 0.5 * dt) * brake

    before = stored()
    for weight in SUZUKI_YOSHIDA:
        h = weight * dt
        for index in reversed(range(LENGTH)):
            v[index] = accelerate(index, h)
        factor = factor * torch.exp(-h * v[0])
        heat = heat + kT * h * (freedom * v[0] + torch.stack(v[1:]).sum(0))
        for index in range(LENGTH):
            v[index] = accelerate(index, h)
    return torch.stack(v, 1), factor, heat + stored() - before
