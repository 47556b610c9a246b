"""A learned integrator: a network takes the atoms over many steps of another one at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mdlearn.integrators.integrator import Forces, Integrator, State, Surroundings, start
from mdlearn.neighbors import Neighbors
from mdlearn.system import System

Propagation = Callable[[System, Tensor, Neighbors], tuple[Tensor, Tensor]]
"""(system, momenta, pairs) -> how far each atom goes, (n_atoms, 3) Å, and what its momentum changes
by, (n_atoms, 3) u·Å/(Å·sqrt(u/eV))."""


def learned(propagate: Propagation) -> Integrator:
    """X' = x + Δx, p' = p + Δp, as a propagator says.

    It asks for no forces, so the evaluation of the state stays that of the first one.

    Args:
        propagate: what a stride brings; it keeps the total momentum.
    """

    def step(state: State, forces: Forces, surroundings: Surroundings) -> State:
        assert surroundings.neighbors is not None
        with torch.no_grad():
            displacement, impulse = propagate(state.system, state.momenta, surroundings.neighbors)
        system = state.system._replace(positions=state.system.positions + displacement)
        return state._replace(system=system, momenta=state.momenta + impulse, step=state.step + 1)

    return Integrator(init=start, step=step, draws=0, keeps_momentum=True)
