"""Langevin dynamics: constant temperature (NVT)."""

from __future__ import annotations

import math

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
from mdlearn.system import sum_by_system


def langevin(dt: float, friction: float) -> Integrator:
    """Half a kick, half a drift, friction and noise, half a drift, half a kick: B A O A B.

    Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34, eq. 7; positions are sampled with an
    error of fourth order at high friction. O is the exact solution of dp = -γ p dt + sqrt(2 γ m kT)
    dW. The energy that O takes out is booked to the bath, so that `conserved_energy` shows the
    error of the time step alone.

    Args:
        dt: Å·sqrt(u/eV), time step.
        friction: γ, 1/(Å·sqrt(u/eV)).
    """
    remember = math.exp(-friction * dt)
    forget = math.sqrt(1.0 - remember**2)

    def step(state: State, forces: Forces, surroundings: Surroundings) -> State:
        state = kick(state, 0.5 * dt)
        state = drift(state, 0.5 * dt)
        state = ornstein_uhlenbeck(state, surroundings)
        state = drift(state, 0.5 * dt)
        state = refresh(state, forces)
        state = kick(state, 0.5 * dt)
        return state._replace(step=state.step + 1)

    def ornstein_uhlenbeck(state: State, surroundings: Surroundings) -> State:
        spread = (state.system.masses * surroundings.kT[state.system.system]).sqrt()[:, None]
        thermal = forget * spread * surroundings.noise[0]
        after = remember * state.momenta + thermal
        # The difference of squares as a product: in one sum, and without rounding what stays.
        lost = ((state.momenta - after) * (state.momenta + after)).sum(1)
        given = sum_by_system(lost / (2.0 * state.system.masses), state.system)
        return state._replace(momenta=after, bath=state.bath + given)

    splitting = Splitting(dt, remember)
    return Integrator(start, step, draws=1, keeps_momentum=False, splitting=splitting)
