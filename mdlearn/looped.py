"""Steps of dynamics in the compiled loops of a frozen network, on a CPU.

To ask for a step, to look at lists and guards and to put a state together takes the interpreter as
long as the forces on a few atoms take. `kernels.motion` does all of that in the loops, for as many
steps as lists are good for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mdlearn import guards
from mdlearn.integrators.integrator import State
from mdlearn.neighbors import WORN
from mdlearn.potentials.frozen_network import FrozenNetwork
from mdlearn.potentials.kernels.motion import Motion
from mdlearn.potentials.kernels.rows import Array

if TYPE_CHECKING:
    from mdlearn.simulate import Dynamics, Lists


def has_loops(dynamics: Dynamics, state: State) -> bool:
    """Whether loops can do steps of these dynamics."""
    looped = isinstance(dynamics.potential, FrozenNetwork)
    double = state.momenta.dtype == torch.float64
    return looped and double and dynamics.integrator.splitting is not None


class LoopedSteps:
    """Steps of some dynamics, in loops."""

    def __init__(self, dynamics: Dynamics, state: State) -> None:
        """Lays out what stays the same for the batch of a state."""
        system, n_atoms = state.system, len(state.momenta)
        mobile = np.ones(n_atoms) if dynamics.mobile is None else _array(dynamics.mobile[:, 0])
        limits = dynamics.limits
        if limits is None:
            limits = guards.make_limits((), (), torch.full_like(system.charge, torch.inf))
        self.dynamics, self.limits = dynamics, (_array(limits.force), _array(limits.kT))
        self.drift = limits.drift
        self.atoms = (_array(system.masses), mobile, _array(system.numbers))
        self.scratch = (np.zeros((2, n_atoms, 3)), np.zeros(n_atoms))

    def run(
        self, state: State, lists: Lists, conserved: Tensor, length: int
    ) -> tuple[State, int, Array, float]:
        """Does so many steps or fewer, see `steps.Done`."""
        dynamics, neighbors = self.dynamics, lists.neighbors
        potential, splitting = dynamics.potential, dynamics.integrator.splitting
        assert isinstance(potential, FrozenNetwork)
        assert splitting is not None
        system = state.system._replace(positions=state.system.positions.clone())
        old = state.evaluation
        changing = (state.momenta, old.forces, old.energy, state.bath)
        momenta, forces, energy, bath = (_array(each).copy() for each in changing)
        noise, kT, _ = dynamics.world(state, length)
        listed = (neighbors.reference, neighbors.reference_cell, neighbors.inverse_cell)
        motion = Motion(
            *(length, *splitting, dynamics.skin / 2, WORN * dynamics.skin),
            *(self.drift, guards.HOTTEST),
            *(*self.atoms, momenta, forces, energy, bath, *self.scratch),
            *(_array(noise.flatten(0, 1)), np.array([each.numpy() for each in kT])),
            *(tuple(map(_array, (*listed, neighbors.wear))), neighbors.reach.numpy()),
            *(tuple(map(_array, lists.watched)), self.limits),
            *(_array(conserved), _array(state.freedom)),
            *(np.zeros((2, len(energy))), np.zeros(1), np.zeros(2, np.int64)),
        )
        evaluation = potential.move(system, neighbors, motion)
        done = int(motion.done[0])
        if done == 0:
            return state, 0, motion.moved[1], 0.0
        after = State(
            system,
            torch.from_numpy(momenta),
            evaluation._replace(energy=torch.from_numpy(energy), forces=torch.from_numpy(forces)),
            torch.from_numpy(bath),
            state.variables,
            state.freedom,
            state.step + done,
        )
        return after, done, motion.moved[0], float(motion.share[0])


def _array(tensor: Tensor) -> Array:
    """The numbers of a tensor in the only layout that loops are compiled for."""
    return tensor.contiguous().numpy()
