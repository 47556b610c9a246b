"""Steps of dynamics on a GPU, in two to four launches besides the forces.

A GPU takes about a microsecond for an operation on a few atoms, also in a graph. A step with
friction has 34 of them, one with velocity rescaling 249, and one with a chain of thermostats 527;
the forces on a molecule take some sixty.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mdlearn.integrators.integrator import Forces, Integrator, State, Surroundings, refresh


def launched(integrator: Integrator, like: Tensor) -> Integrator:
    """The same integrator, but for rounding, in kernels; itself if it has no `Splitting`.

    Args:
        integrator: for float64.
        like: a tensor of the device.

    Returns:
        One whose step takes tensors that are contiguous.
    """
    splitting = integrator.splitting
    if splitting is None:
        return integrator
    from mdlearn.potentials.frozen_cuda import ATOMS, blocks_of, run  # with Triton
    from mdlearn.potentials.kernels import triton_motion as kernel

    dt, remember, time = splitting.dt, splitting.remember, splitting.time
    forget, fades = math.sqrt(1.0 - remember**2), math.exp(-0.5 * dt / time) if time else 0.0
    given = torch.tensor([0.5 * dt, remember, forget, fades, time], dtype=torch.float64).to(like)
    thermostats = {"": 0, "csvr": kernel.CSVR.value, "nose-hoover": kernel.NOSE_HOOVER.value}
    friction, thermostat = remember < 1.0, thermostats[splitting.thermostat]

    def step(state: State, forces: Forces, surroundings: Surroundings) -> State:
        noise, kT = surroundings.noise, surroundings.kT
        factors = state.bath
        if thermostat:
            state, factors = thermalize(state, noise, kT, kicked=False)
        state = depart(state, noise, kT, factors)
        state = refresh(state, forces)
        if thermostat:
            state, factors = thermalize(state, noise[1:], kT, kicked=True)
        momenta = torch.empty_like(state.momenta)
        known = (state.momenta, state.evaluation.forces, state.system.system, factors, given)
        n_atoms = len(momenta)
        scaled = bool(thermostat)
        run(kernel.arrive, blocks_of(n_atoms, ATOMS), *known, momenta, n_atoms, scaled, ATOMS)
        return state._replace(momenta=momenta, step=state.step + 1)

    def depart(state: State, noise: Tensor, kT: Tensor, factors: Tensor) -> State:
        """Half a kick and a drift, with friction between the halves of that, if any."""
        system, n_atoms = state.system, len(state.momenta)
        positions, momenta = torch.empty_like(system.positions), torch.empty_like(state.momenta)
        bath, heat = state.bath, torch.empty_like(system.masses)
        run(
            kernel.depart,
            blocks_of(n_atoms, ATOMS),
            system.positions,
            state.momenta,
            state.evaluation.forces,
            system.masses,
            system.system,
            noise,
            kT,
            factors,
            given,
            positions,
            momenta,
            heat,
            n_atoms,
            bool(thermostat),
            friction,
            ATOMS,
        )
        if friction:
            bath = torch.empty_like(bath)
            taken = (heat, system.system, state.bath, bath)
            run(kernel.book, (len(bath),), *taken, n_atoms, ATOMS)
        system = system._replace(positions=positions)
        return state._replace(system=system, momenta=momenta, bath=bath)

    def thermalize(
        state: State, noise: Tensor, kT: Tensor, *, kicked: bool
    ) -> tuple[State, Tensor]:
        """The thermostat's variables and its bath half a step later, and factors of momenta."""
        factors, bath = torch.empty_like(state.bath), torch.empty_like(state.bath)
        variables = torch.empty_like(state.variables)
        run(
            kernel.thermalize,
            (len(bath),),
            state.momenta,
            state.evaluation.forces,
            state.system.masses,
            state.system.system,
            noise,
            kT,
            state.freedom,
            state.bath,
            state.variables,
            given,
            factors,
            bath,
            variables,
            len(state.momenta),
            kicked,
            thermostat,
            ATOMS,
        )
        return state._replace(bath=bath, variables=variables), factors

    return integrator._replace(step=step)
