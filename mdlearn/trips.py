"""What happened when a guard tripped: which atom, how much of what, and what was allowed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from ase.data import chemical_symbols
from torch import Tensor

from mdlearn.guards import (
    LARGEST_DRIFT,
    UNSEEN,
    Limits,
    drift_per_atom,
    largest_kinetic_energy,
    shares,
    watch,
)
from mdlearn.integrators.integrator import State, kinetic_energy
from mdlearn.neighbors import Neighbors, pair_vectors
from mdlearn.units import kB


class Trip(NamedTuple):
    """A guard that has tripped."""

    step: int
    system: int
    atom: int
    """Of that system, from 0."""
    value: float
    limit: float
    text: str
    """What happened: atom, element, value, limit, unit."""


def find_trips(
    state: State, neighbors: Neighbors, conserved: Tensor, limits: Limits | None
) -> list[Trip]:
    """The guards that have tripped, the first one of each system; see `shares`."""
    watched = watch(neighbors, state.system, limits, math.inf)
    exceeded = ~(shares(state, watched, conserved, limits) <= 1.0)  # True for NaN
    trips = []
    for index in torch.nonzero(exceeded.any(0)).flatten().tolist():
        guard = int(torch.nonzero(exceeded[:, index])[0]) + 4 - len(exceeded)
        if limits is None or guard == 3:
            trips.append(_torn(state, index, float(drift_per_atom(state, conserved)[index])))
        elif guard == 0:
            trips.append(_close(state, index, neighbors, limits))
        elif guard == 1:
            trips.append(_strong(state, index, limits))
        else:
            trips.append(_hot(state, index, limits))
    return trips


def leap(state: State, trial: State, index: int, limit: float) -> Trip:
    """The atom of a system that moved further in one step than a neighbor list can follow, Å."""
    distance = (trial.system.positions - state.system.positions).norm(dim=1)
    n, _ = _most(state, index, distance)  # of a NaN, if there is one
    value = float(distance[n])
    if math.isfinite(value):
        text = f"{_name(state, n)} moved {value:.2f} Å in one step (limit {limit:.2f} Å)"
    else:
        text = f"{_name(state, n)} has no finite position: the force on it was not a number"
    return _trip(trial, n, value, limit, text)


def _nearest(state: State, neighbors: Neighbors, limits: Limits) -> Tensor:
    """How near the atoms of each pair may come, (n_atoms, K) Å."""
    numbers = state.system.numbers
    return limits.nearest * limits.distance[numbers[:, None], numbers[neighbors.j]]


def _close(state: State, index: int, neighbors: Neighbors, limits: Limits) -> Trip:
    mine = state.system.system == index
    distance = pair_vectors(state.system, neighbors).norm(dim=2)  # (n_atoms, K)
    nearest = _nearest(state, neighbors, limits)
    share = torch.where(mine[:, None], nearest / distance, 0.0)
    n, k = divmod(int(share.argmax()), share.shape[1])
    value, limit = float(distance[n, k]), float(nearest[n, k])
    n, m = sorted((n, int(neighbors.j[n, k])))
    known = f", {limits.nearest:g} of the shortest in the training frames"
    return _trip(
        state,
        n,
        value,
        limit,
        f"{_name(state, n)} and {_name(state, m)} are {value:.3f} Å apart (limit {limit:.3f} Å"
        f"{known if limit > limits.nearest * UNSEEN else ''})",
    )


def _strong(state: State, index: int, limits: Limits) -> Trip:
    size, limit_of = state.evaluation.forces.norm(dim=1), limits.force[state.system.numbers]
    n, _ = _most(state, index, size / limit_of)
    value, limit = float(size[n]), float(limit_of[n])
    if math.isnan(value):
        return _trip(state, n, value, limit, f"the force on {_name(state, n)} is not a number")
    return _trip(
        state,
        n,
        value,
        limit,
        f"the force on {_name(state, n)} is {value:.3g} eV/Å (limit {limit:.3g} eV/Å; the model was"
        " trained on smaller ones)",
    )


def _hot(state: State, index: int, limits: Limits) -> Trip:
    per_atom = state.momenta.square().sum(1) / (2.0 * state.system.masses)
    n, most = _most(state, index, per_atom)
    kelvin = 2.0 / (float(state.freedom[index]) * kB)
    value = float(kinetic_energy(state)[index]) * kelvin
    limit = float(largest_kinetic_energy(state, limits)[index]) * kelvin
    return _trip(
        state,
        n,
        value,
        limit,
        f"the temperature is {value:.0f} K (limit {limit:.0f} K, which no fluctuation reaches);"
        f" {_name(state, n)} is the fastest, with {most:.2g} eV",
    )


def _torn(state: State, index: int, drift: float) -> Trip:
    n, force = _most(state, index, state.evaluation.forces.norm(dim=1))
    return _trip(
        state,
        n,
        drift,
        LARGEST_DRIFT,
        f"the conserved energy has moved by {drift:.2g} eV per atom (limit {LARGEST_DRIFT} eV);"
        f" the largest force, {force:.3g} eV/Å, is on {_name(state, n)}",
    )


def _most(state: State, index: int, values: Tensor) -> tuple[int, float]:
    """The atom of a system that has most of something (or what is not a number), and how much."""
    n = int(torch.where(state.system.system == index, values, -1.0).argmax())
    return n, float(values[n])


def _trip(state: State, n: int, value: float, limit: float, text: str) -> Trip:
    system = int(state.system.system[n])
    return Trip(state.step, system, _own(state, n), value, limit, text)


def _own(state: State, n: int) -> int:
    """The index of an atom in its own system."""
    return n - int((state.system.system < state.system.system[n]).sum())


def _name(state: State, n: int) -> str:
    """An atom as messages call it, as in `atom 3 (O)`."""
    return f"atom {_own(state, n)} ({chemical_symbols[int(state.system.numbers[n])]})"
