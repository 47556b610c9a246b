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
from mdlearn.jit import place_of
from mdlearn.neighbors import WORN
from mdlearn.potentials.frozen_network import FrozenNetwork
from mdlearn.potentials.kernels import thermostats
from mdlearn.potentials.kernels.motion import Motion
from mdlearn.potentials.kernels.rows import Array
from mdlearn.words import kind_of

if TYPE_CHECKING:
    from mdlearn.simulate import Dynamics, Lists

THERMOSTATS = {"csvr": thermostats.csvr, "nose-hoover": thermostats.nose_hoover}
"""By what `Splitting` calls them."""


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
        self.dynamics, self.masses, self.mobile = dynamics, _array(system.masses), mobile
        self.drift, self.limits = limits.drift, (_array(limits.force), _array(limits.kT))
        self.place = 0
        """Of the thermostat, once it is compiled; see `Motion`."""

    def run(
        self, state: State, lists: Lists, conserved: Tensor, length: int
    ) -> tuple[State, int, Array, float]:
        """Does so many steps or fewer, see `steps.Done`."""
        dynamics, neighbors = self.dynamics, lists.neighbors
        potential, splitting = dynamics.potential, dynamics.integrator.splitting
        assert isinstance(potential, FrozenNetwork)
        assert splitting is not None
        system = state.system._replace(
            positions=state.system.positions.clone(memory_format=torch.contiguous_format)
        )
        old = state.evaluation
        changing = (state.momenta, old.forces, old.energy, state.bath, state.variables)
        momenta, forces, energy, bath, variables = (_array(each).copy() for each in changing)
        noise, kT, _ = dynamics.world(state, length)
        reference, cells = _array(neighbors.reference), _array(neighbors.reference_cell)
        inverse, wear = _array(neighbors.inverse_cell), _array(neighbors.wear)
        first, second, shift, nearest = map(_array, lists.watched)
        motion = Motion(
            steps=length,
            dt=splitting.dt,
            remember=splitting.remember,
            thermostat=self.place,
            time=splitting.time,
            good=dynamics.skin / 2,
            worn=WORN * dynamics.skin,
            drift=self.drift,
            hottest=guards.HOTTEST,
            masses=self.masses,
            mobile=self.mobile,
            numbers=_array(system.numbers),
            momenta=momenta,
            forces=forces,
            energy=energy,
            bath=bath,
            variables=variables,
            before=np.empty((2, *momenta.shape)),
            bath_before=bath.copy(),
            variables_before=variables.copy(),
            heat=np.empty(len(momenta)),
            noise=_array(noise),
            kT=np.array([each.numpy() for each in kT]),
            listed=(reference, cells, inverse, wear),
            reach=neighbors.reach.numpy(),
            watched=(first, second, shift, nearest),
            limits=self.limits,
            conserved=_array(conserved),
            freedom=_array(state.freedom),
            moved=np.zeros((2, len(energy))),
            share=np.zeros(1),
            done=np.zeros(2, np.int64),
            scratch=np.empty((5, len(energy))),
            strains=np.empty((len(energy), 3, 3)),
        )
        if splitting.thermostat and self.place == 0:
            half = THERMOSTATS[splitting.thermostat]
            inputs = potential.look(system, neighbors).value
            self.place = place_of(half, 0, 0, kind_of(inputs), kind_of(motion))
            motion = motion._replace(thermostat=self.place)
        evaluation = potential.move(system, neighbors, motion)
        done = int(motion.done[0])
        if done == 0:
            return state, 0, motion.moved[1], 0.0
        after = State(
            system,
            torch.from_numpy(momenta),
            evaluation._replace(energy=torch.from_numpy(energy), forces=torch.from_numpy(forces)),
            torch.from_numpy(bath),
            torch.from_numpy(variables),
            state.freedom,
            state.step + done,
        )
        return after, done, motion.moved[0], float(motion.share[0])


def _array(tensor: Tensor) -> Array:
    """The numbers of a tensor in the only layout that loops are compiled for."""
    return tensor.contiguous().numpy()
