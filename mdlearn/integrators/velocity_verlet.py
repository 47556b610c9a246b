"""Velocity Verlet: constant energy (NVE)."""

from __future__ import annotations

from mdlearn.integrators.integrator import (
    Forces,
    Integrator,
    Splitting,
    State,
    Surroundings,
    drift,
    kick,
    refresh,
    start,
)


def velocity_verlet(dt: float) -> Integrator:
    """Half a kick, a drift, half a kick: B A B.

    Swope, Andersen, Berens, Wilson, J. Chem. Phys. 76, 637 (1982), eqs. 5-8. Symplectic,
    reversible, of second order in dt.

    Args:
        dt: Å·sqrt(u/eV), time step.
    """

    def step(state: State, forces: Forces, surroundings: Surroundings) -> State:
        state = kick(state, 0.5 * dt)
        state = drift(state, dt)
        state = refresh(state, forces)
        state = kick(state, 0.5 * dt)
        return state._replace(step=state.step + 1)

    return Integrator(start, step, draws=0, keeps_momentum=True, splitting=Splitting(dt))
