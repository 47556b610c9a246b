"""Stochastic velocity rescaling: constant temperature (NVT), with little harm to the dynamics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mdlearn.integrators.integrator import (
    Forces,
    Integrator,
    Splitting,
    State,
    Surroundings,
    drift,
    kick,
    kinetic_energy,
    rank,
    refresh,
    scale_momenta,
    start,
)
from mdlearn.system import sum_by_system


def csvr(dt: float, time: float) -> Integrator:
    """Velocity Verlet between two halves of a thermostat that scales all momenta alike.

    Bussi, Donadio, Parrinello, J. Chem. Phys. 126, 014101 (2007): the kinetic energy follows the
    stochastic equation 7, solved exactly over half a step (eq. A7). The energy that the thermostat
    takes out is booked to the bath.

    Args:
        dt: Å·sqrt(u/eV), time step.
        time: τ, Å·sqrt(u/eV), over which the kinetic energy forgets.
    """

    def step(state: State, forces: Forces, surroundings: Surroundings) -> State:
        state = rescale(state, surroundings.kT, surroundings.noise[0], 0.5 * dt, time)
        state = kick(state, 0.5 * dt)
        state = drift(state, dt)
        state = refresh(state, forces)
        state = kick(state, 0.5 * dt)
        state = rescale(state, surroundings.kT, surroundings.noise[1], 0.5 * dt, time)
        return state._replace(step=state.step + 1)

    splitting = Splitting(dt, thermostat="csvr", time=time)
    return Integrator(start, step, draws=2, keeps_momentum=True, splitting=splitting)


def rescale(state: State, kT: Tensor, noise: Tensor, dt: float, time: float) -> State:
    """The thermostat alone, over a time.

    Args:
        state: as it is before.
        kT: (n_systems,) eV.
        noise: (n_atoms, 3) normal deviates; as many are used as there are degrees of freedom.
        dt: Å·sqrt(u/eV).
        time: τ, Å·sqrt(u/eV).
    """
    remember = math.exp(-dt / time)
    first, squares = _deviates(state, noise)
    before = kinetic_energy(state)
    # Half of kT for each degree of freedom, over what they have; atoms at rest are left alone.
    ratio = torch.where(before > 0.0, 0.5 * kT / torch.where(before > 0.0, before, 1.0), 0.0)
    gain = (1.0 - remember) * ratio
    square = remember + gain * squares + 2.0 * first * (remember * gain).sqrt()
    # The sign matters for stronger coupling than anyone uses (Bussi and Parrinello, Comput. Phys.
    # Commun. 179, 26, 2008, eq. 8); without it the limit of weak friction would not be reversible.
    sign = torch.where(first + (remember / gain.clamp_min(1e-300)).sqrt() < 0.0, -1.0, 1.0)
    after = scale_momenta(state, sign * square.clamp_min(0.0).sqrt())
    return after._replace(bath=state.bath + before - kinetic_energy(after))


def _deviates(state: State, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A normal deviate for each system, and a sum of squares of `freedom` that it is one of."""
    system = state.system
    axes = torch.arange(3, dtype=noise.dtype, device=noise.device)
    places = 3.0 * rank(system)[:, None] + axes  # (n_atoms, 3)
    used = (places < state.freedom[system.system, None]).to(noise.dtype)
    sums = sum_by_system(torch.cat([used * noise**2, (places == 0.0) * noise], 1), system)
    return sums[:, 3], sums[:, :3].sum(1)
