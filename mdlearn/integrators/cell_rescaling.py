"""Stochastic cell rescaling: constant temperature and pressure (NPT)."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlearn.integrators.csvr import rescale
from mdlearn.integrators.integrator import (
    Forces,
    Integrator,
    State,
    Surroundings,
    drift,
    kick,
    kinetic_energy,
    pressure_tensor,
    rank,
    refresh,
    start,
)
from mdlearn.system import sum_by_system, volume


def cell_rescaling(
    dt: float, time: float, barostat_time: float, compressibility: float, *, flexible: bool = False
) -> Integrator:
    """Velocity Verlet, momenta rescaled as in `csvr`, and a cell that is strained at random.

    All components of the cell: h' = exp(Λ) h, momenta by the inverse, with

        Λ = β/3τ (P - P₀) dt + sqrt(2 kT β/(3 V τ)) dW,

    of which the symmetric part is kept, since turning a cell means nothing (V. Del Tatto, P.
    Raiteri, M. Bernetti, G. Bussi, Appl. Sci. 12, 1139, 2022, eq. 5; the exponential makes their
    term kT/V disappear). Isotropic, only its trace: M. Bernetti and G. Bussi, J. Chem. Phys. 153,
    114107 (2020), for log V. The energy that both baths take out is booked; of a change of the
    cell, by the mean of stress times volume before and after.

    Args:
        dt: Å·sqrt(u/eV), time step.
        time: of the thermostat, Å·sqrt(u/eV).
        barostat_time: τ, Å·sqrt(u/eV).
        compressibility: β, Å³/eV; roughly that of the material, which makes τ what it says.
        flexible: whether the shape of the cell changes too.
    """
    rate = compressibility * dt / barostat_time

    def step(state: State, forces: Forces, surroundings: Surroundings) -> State:
        kT, noise = surroundings.kT, surroundings.noise
        state = rescale(state, kT, noise[0], 0.5 * dt, time)
        state = kick(state, 0.5 * dt)
        state = drift(state, 0.5 * dt)
        strain = draw_strain(state, surroundings)
        before = work(state, strain)
        state, heat = deform(state, strain)
        state = drift(state, 0.5 * dt)
        state = refresh(state, forces)
        heat = heat - 0.5 * (before + work(state, strain))
        state = kick(state, 0.5 * dt)
        state = rescale(state, kT, noise[1], 0.5 * dt, time)
        return state._replace(bath=state.bath + heat, step=state.step + 1)

    def draw_strain(state: State, surroundings: Surroundings) -> Tensor:
        v = volume(state.system)
        identity = torch.eye(3, dtype=v.dtype, device=v.device)
        excess = pressure_tensor(state) - surroundings.pressure[:, None, None] * identity
        spread = (2.0 * rate * surroundings.kT / (3.0 * v)).sqrt()
        # Nine deviates for each system: those of its first atom.
        first = (rank(state.system) == 0.0).to(v.dtype)[:, None]
        normals = surroundings.noise[2:].transpose(0, 1).flatten(1)  # (n_atoms, 9)
        dW = sum_by_system(first * normals, state.system).view(-1, 3, 3)  # noqa: N806
        strain = rate / 3.0 * excess + spread[:, None, None] * dW
        if flexible:
            return 0.5 * (strain + strain.transpose(1, 2))
        return torch.diagonal(strain, dim1=1, dim2=2).mean(1)[:, None, None] * identity

    return Integrator(init=start, step=step, draws=5, keeps_momentum=True)


def deform(state: State, strain: Tensor) -> tuple[State, Tensor]:
    """Strains cell and positions by exp(Λ), and momenta by its inverse.

    Args:
        state: as it is before.
        strain: Λ, (n_systems, 3, 3), symmetric and small: the third power is neglected.

    Returns:
        The state after it, and the kinetic energy (n_systems,) eV that it has lost.
    """
    identity = torch.eye(3, dtype=strain.dtype, device=strain.device)
    half_square = 0.5 * strain @ strain
    stretch, shrink = identity + strain + half_square, identity - strain + half_square
    system = state.system
    positions = torch.bmm(system.positions[:, None], stretch[system.system])[:, 0]
    momenta = torch.bmm(state.momenta[:, None], shrink[system.system])[:, 0]
    strained = system._replace(positions=positions, cell=system.cell @ stretch)
    after = state._replace(system=strained, momenta=momenta)
    return after, kinetic_energy(state) - kinetic_energy(after)


def work(state: State, strain: Tensor) -> Tensor:
    """What the potential energy gains by a strain at the stress of a state, (n_systems,) eV."""
    return volume(state.system) * (state.evaluation.stress * strain).sum((1, 2))
