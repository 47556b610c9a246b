"""Guards: what no sound simulation exceeds.

`shares` belongs to a step: fixed shapes, and nothing waits for a value. The driver keeps the
largest that it has seen in a block and looks once, at the end. Everything else looks at values.
Who did it, once a guard has tripped, is for `trips` to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.integrators.integrator import State, conserved_energy, kinetic_energy
from mdlearn.jit import compiled
from mdlearn.neighbors import Neighbors
from mdlearn.potentials.kernels.usage import largest_of, squared_distance, usage
from mdlearn.potentials.wall import WALL_MARGIN
from mdlearn.system import System, largest_by_system, sum_by_system
from mdlearn.units import kB

NEAREST = 0.75
"""Of the shortest distance of two elements in the training frames. There the `Wall` costs 2.5 eV,
which no collision below some 2,000 K has to spend."""
UNSEEN = 0.13
"""Å, in place of it for elements that never came near each other there: they overlap at 0.1 Å."""
STRONGEST = 5.0
"""Times the largest force on an atom of an element in the training frames."""
STRONG = 10.0
"""eV/Å that are always allowed: about twice what a bond has at room temperature, even if all
training frames are relaxed."""
HOTTEST = 3.0
"""Times the highest temperature of the thermostat, besides what fluctuations do."""
WARM = 300.0 * kB
"""eV. Colder targets are taken for this one: a strained structure warms up before it cools."""
CROWDED, FORLORN = 1.5, 0.5
"""Times the most, and the fewest, neighbors of an atom of an element in the training frames; heat
changes them by less."""
LARGEST_DRIFT = 0.3
"""eV per atom that the conserved energy may move before the run is called unstable. A bond's energy
spread over a molecule: far beyond any error of integration that one could live with."""


Array: TypeAlias = NDArray[Any]


class Limits(NamedTuple):
    """What is known of a model and a run that a simulation is held to."""

    distance: Tensor
    """(119, 119) Å by atomic numbers, the shortest of the training frames."""
    nearest: float
    """The share of it that atoms may come near."""
    force: Tensor
    """(119,) eV/Å by atomic number; infinite where nothing is known."""
    kT: Tensor
    """(n_systems,) eV, the highest of the thermostat; infinite where there is none."""
    drift: float = LARGEST_DRIFT
    """eV per atom that the conserved energy may move; infinite where nobody knows it."""


class Watched(NamedTuple):
    """Pairs that could come too near while a neighbor list is good: they are few."""

    n: Tensor
    """(pairs,) int64, one atom,"""
    j: Tensor
    """(pairs,) int64, the other one,"""
    shift: Tensor
    """(pairs, 3), and the lattice translation of that."""
    nearest: Tensor
    """(pairs,) Å, how near they may come."""


def make_limits(
    closest: Sequence[tuple[int, int, float]],
    largest_forces: Sequence[tuple[int, float]],
    kT: Tensor,
) -> Limits:
    """Limits from what a model knows of its training frames.

    Args:
        closest: pairs of atomic numbers, and where their wall begins, Å.
        largest_forces: atomic numbers, and the largest force on such an atom, eV/Å.
        kT: (n_systems,) eV, the highest of the thermostat; infinite where there is none.
    """
    n = len(chemical_symbols)
    distance, force = kT.new_full((n, n), UNSEEN), kT.new_full((n,), torch.inf)
    for one, other, wall in closest:
        distance[one, other] = distance[other, one] = max(UNSEEN, wall / WALL_MARGIN)
    for element, largest in largest_forces:
        force[element] = max(STRONG, STRONGEST * largest)
    return Limits(distance, NEAREST, force, kT.clamp_min(WARM))


def at_start(limits: Limits) -> Limits:
    """The limits before the first step, when nothing can have collided yet."""
    return limits._replace(nearest=WALL_MARGIN)


def watch(neighbors: Neighbors, system: System, limits: Limits | None, skin: float) -> Watched:
    """Pairs of a list that the guard of distance is to look at, each of them once.

    All that can come too near while atoms move by no more than skin/2 from where the list was
    built, or further where that does not wear it; a limit beyond the cutoff, where nothing is felt,
    counts from there. Looks at values.

    Args:
        neighbors: a list that reaches a cutoff and the skin.
        system: gives the elements.
        limits: None to watch nothing.
        skin: Å; infinite to watch all pairs of the list.
    """
    shift = neighbors.shift
    if limits is None:
        nothing = neighbors.j.new_empty(0)
        return Watched(nothing, nothing, shift.new_empty(0, 3), shift.new_empty(0))
    closest = limits.distance * limits.nearest
    if shift.device.type != "cpu":
        return watch_by_operations(neighbors, system, closest, skin)
    lists = (neighbors.j, shift, neighbors.reverse, neighbors.valid)
    places = (neighbors.reference, neighbors.reference_cell, system.system, system.numbers)
    reach = (skin / neighbors.wear).numpy()
    chosen = np.empty(neighbors.j.numel() // 2, np.int64)
    count = _choose(_arrays(lists), _arrays(places), closest.numpy(), reach, chosen)
    slots = torch.from_numpy(chosen[:count].copy())
    n, j = slots // neighbors.j.shape[1], neighbors.j.view(-1)[slots]
    nearest = closest[system.numbers[n], system.numbers[j]]
    return Watched(n, j, shift.view(-1, 3)[slots], nearest.to(shift))


def watch_by_operations(
    neighbors: Neighbors, system: System, closest: Tensor, skin: float
) -> Watched:
    """`watch`, for a GPU; how near pairs may come is (119, 119) Å, by atomic numbers."""
    slots = torch.arange(neighbors.j.numel(), device=closest.device).view_as(neighbors.j)
    n, k = torch.nonzero(neighbors.valid & (neighbors.reverse >= slots), as_tuple=True)
    j, shift = neighbors.j[n, k], neighbors.shift[n, k]
    nearest = closest[system.numbers[n], system.numbers[j]].to(shift)
    translation = torch.bmm(shift[:, None], neighbors.reference_cell[system.system[n]])[:, 0]
    x = neighbors.reference
    squared = (x[j] - x[n] + translation).square().sum(1)
    reach = nearest + (skin / neighbors.wear)[system.system[n]]
    chosen = torch.nonzero(squared <= reach.square())[:, 0]
    return Watched(n[chosen], j[chosen], shift[chosen], nearest[chosen])


@compiled()
def _choose(
    lists: tuple[Array, ...],
    places: tuple[Array, ...],
    nearest: Array,
    reach: Array,
    chosen: Array,
) -> int:
    """Which slots `watch` chooses, in `chosen`, and how many."""
    others, shift, reverse, valid = lists
    positions, cell, system, numbers = places
    (n_atoms, capacity), count = others.shape, 0
    for n in range(n_atoms):
        box = cell[system[n]]
        for k in range(capacity):
            if not valid[n, k] or reverse[n, k] < n * capacity + k:
                continue
            j = others[n, k]
            squared = squared_distance(positions, n, j, shift[n, k], box)
            limit = nearest[numbers[n], numbers[j]] + reach[system[n]]
            if not squared > limit * limit:
                chosen[count] = n * capacity + k
                count += 1
    return count


def shares(state: State, watched: Watched, conserved: Tensor, limits: Limits | None) -> Tensor:
    """How much of its limit each guarded quantity of each system has used.

    A sound one is at most one; those of distance and force are squared.

    Args:
        state: after a step.
        watched: pairs of a list that is good for it.
        conserved: (n_systems,) eV, the conserved energy at the start.
        limits: None for no guard but that of the energy.

    Returns:
        (4, n_systems): of distance, force, kinetic and conserved energy; or of the last alone. NaN
        where there is no number.
    """
    if limits is None:
        return drift_per_atom(state, conserved).abs()[None] / LARGEST_DRIFT
    system, evaluation = state.system, state.evaluation
    if system.positions.device.type == "cpu":
        places = (system.positions, system.cell, system.system)
        atoms = (system.masses, state.momenta, system.numbers, evaluation.forces)
        energies = (evaluation.energy, state.bath, conserved, state.freedom)
        known = (limits.force, limits.kT)
        found = torch.empty(5, len(conserved), dtype=conserved.dtype)
        usage(
            _arrays(places),
            _arrays(atoms),
            _arrays(energies),
            _arrays(watched),
            _arrays(known),
            limits.drift,
            HOTTEST,
            found.numpy(),
        )
        return found[:4]
    return _shares_by_operations(state, watched, conserved, limits)


def _arrays(tensors: tuple[Tensor, ...]) -> tuple[Array, ...]:
    return tuple([each.numpy() for each in tensors])


def _shares_by_operations(
    state: State, watched: Watched, conserved: Tensor, limits: Limits
) -> Tensor:
    system = state.system
    n, j, shift, nearest = watched
    translation = torch.bmm(shift[:, None], system.cell[system.system[n]])[:, 0]
    squared = (system.positions[j] - system.positions[n] + translation).square().sum(1)
    close = squared.new_zeros(len(system.cell))
    close = close.scatter_reduce(0, system.system[n], nearest.square() / squared, "amax")
    strong = state.evaluation.forces.square().sum(1) / limits.force[system.numbers].square()
    hot = kinetic_energy(state) / largest_kinetic_energy(state, limits)
    drift = drift_per_atom(state, conserved).abs() / limits.drift
    return torch.stack([close, largest_by_system(strong, system), hot, drift])


def largest_kinetic_energy(state: State, limits: Limits) -> Tensor:
    """What equilibrium never has, (n_systems,) eV."""
    largest: Tensor = largest_of(state.freedom, limits.kT, HOTTEST)
    return largest


def unfamiliar_atom(
    system: System, neighbors: Neighbors, counts: Sequence[tuple[int, int, int]]
) -> str | None:
    """Says of the first atom whose surroundings are like none of the training frames.

    What tells is crude, and so raises no false alarm: the number of neighbors within the cutoff.

    Args:
        system: a batch of them.
        neighbors: its list, without a skin.
        counts: atomic numbers, and the fewest and the most neighbors in the training frames; other
            elements are not looked at.
    """
    found = neighbors.valid.sum(1)
    for z, fewest, most in counts:
        few, many = FORLORN * fewest, CROWDED * most
        odd = torch.nonzero((system.numbers == z) & ((found < few) | (found > many))).flatten()
        if len(odd):
            n = int(odd[0])
            index = int(system.system[n])
            own = n - int((system.system < index).sum())
            element, usual = chemical_symbols[z], str(fewest)
            usual += f" to {most}" if most > fewest else ""
            return (
                f"atom {own} ({element}) has {int(found[n])} neighbors within"
                f" {float(neighbors.reach):g} Å, where {element} has {usual} in the training frames"
            )
    return None


def lonely_atoms(system: System, neighbors: Neighbors) -> list[int]:
    """Atoms that had no neighbor when the list was built, but for systems of a single atom."""
    n_atoms = sum_by_system(torch.ones_like(system.masses), system)
    alone = ~neighbors.valid.any(1) & (n_atoms[system.system] > 1.0)
    found: list[int] = torch.nonzero(alone).flatten().tolist()
    return found


def drift_per_atom(state: State, conserved: Tensor) -> Tensor:
    """How far the conserved energy has moved, (n_systems,) eV per atom."""
    n_atoms = sum_by_system(torch.ones_like(state.system.masses), state.system)
    return (conserved_energy(state) - conserved) / n_atoms
