"""Martyna, Tobias and Klein: constant temperature and pressure (NPT), deterministic."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlearn.integrators.integrator import (
    Forces,
    Integrator,
    State,
    Surroundings,
    kick,
    kinetic_energy,
    refresh,
    scale_momenta,
    start,
)
from mdlearn.integrators.nose_hoover import LENGTH, drive_chain, thermalize
from mdlearn.system import System, volume


def martyna_tobias_klein(dt: float, time: float, barostat_time: float) -> Integrator:
    """A piston for the volume, Nosé-Hoover chains for atoms and piston, and the atoms between.

    G. J. Martyna, D. J. Tobias, M. L. Klein, J. Chem. Phys. 101, 4177 (1994), eqs. 2.9, in the
    splitting of M. E. Tuckerman et al., J. Phys. A 39, 5629 (2006), section 5. The cell keeps its
    shape. The bath holds what the conserved quantity has besides the energy of the atoms, less its
    value at the start: thermostats, P₀V, and the kinetic energy of the piston; temperatures and
    pressures that vary are booked there, too.

    Args:
        dt: Å·sqrt(u/eV), time step.
        time: τ, Å·sqrt(u/eV), of the thermostats.
        barostat_time: τ, Å·sqrt(u/eV); the piston has the mass (f + 3) kT τ².
    """

    def init(system: System, momenta: Tensor, forces: Forces, freedom: Tensor) -> State:
        state = start(system, momenta, forces, freedom)
        # Velocities of two chains, and of the piston: d(log V)/dt / 3.
        return state._replace(variables=state.bath[:, None].repeat(1, 2 * LENGTH + 1))

    def step(state: State, forces: Forces, surroundings: Surroundings) -> State:
        kT, target = surroundings.kT, surroundings.pressure
        # 3 (f + 3)/f kT would do as well; of the order of what it moves against.
        mass = (state.freedom + 3.0) * kT * barostat_time**2

        def bath(state: State) -> Tensor:
            piston = state.variables[:, -1]
            return target * volume(state.system) + 0.5 * mass * piston * piston

        def thermostats(state: State) -> State:
            state = thermalize(state, kT, 0.5 * dt, time)
            chain, piston = state.variables[:, LENGTH:-1], state.variables[:, -1]
            one = torch.ones_like(kT)
            chain, factor, heat = drive_chain(
                chain, mass * piston * piston, one, kT, 0.5 * dt, barostat_time
            )
            variables = [state.variables[:, :LENGTH], chain, (piston * factor)[:, None]]
            return state._replace(variables=torch.cat(variables, 1), bath=state.bath + heat)

        def push(state: State) -> State:
            """The piston is accelerated by the pressure, over half a step."""
            v = volume(state.system)
            trace = torch.diagonal(state.evaluation.stress, dim1=1, dim2=2).sum(1)
            kinetic = (1.0 + 3.0 / state.freedom) * 2.0 * kinetic_energy(state)
            force = kinetic - v * (trace + 3.0 * target)
            piston = state.variables[:, -1] + 0.5 * dt * force / mass
            return state._replace(
                variables=torch.cat([state.variables[:, :-1], piston[:, None]], 1)
            )

        def scaled_kick(state: State) -> State:
            """Half a kick between two halves of what the piston does to the momenta."""
            piston = (1.0 + 3.0 / state.freedom) * state.variables[:, -1]
            factor = torch.exp(-0.25 * dt * piston)
            return scale_momenta(kick(scale_momenta(state, factor), 0.5 * dt), factor)

        begun = bath(state)
        state = push(thermostats(state))
        state = scaled_kick(state)
        state = refresh(_flow(state, dt), forces)
        state = scaled_kick(state)
        state = thermostats(push(state))
        bath_now = state.bath + bath(state) - begun
        return state._replace(bath=bath_now, step=state.step + 1)

    return Integrator(init=init, step=step, draws=0, keeps_momentum=True)


def _flow(state: State, dt: float) -> State:
    """X' = x exp(v dt) + p/m dt exp(v dt/2) sinh(v dt/2)/(v dt/2), and the cell with it."""
    system = state.system
    half = 0.5 * dt * state.variables[:, -1]
    growth = torch.exp(half)
    # sinh(x)/x, where the velocity of the piston is tiny.
    series = 1.0 + half * half / 6.0 * (1.0 + half * half / 20.0)
    velocity = state.momenta / system.masses[:, None]
    stretch, reach = (growth * growth)[system.system, None], (growth * series)[system.system, None]
    positions = system.positions * stretch + velocity * (dt * reach)
    cell = system.cell * (growth * growth)[:, None, None]
    return state._replace(system=system._replace(positions=positions, cell=cell))
