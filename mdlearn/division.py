"""A batch in parts: some atoms at a time, with those around them that they depend on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.neighbors import Neighbors
from mdlearn.system import System

Indices = NDArray[np.int64]


class Part(NamedTuple):
    """Some atoms and their surroundings."""

    atoms: Tensor
    """(P,) whose energies are taken from this part."""
    members: Tensor
    """(M,) these, and those around them, in order."""


def divide(system: System, neighbors: Neighbors, reach: int, most: int) -> Iterator[Part]:
    """All atoms in parts that have at most `most` members, or a single atom of their own.

    Atoms are halved where they are longest, until every half fits; so parts are compact, and have
    as little around them as may be. Systems that stand in one batch come apart first.
    """
    batch, listed = system.system.cpu().numpy(), neighbors.j.cpu().numpy()
    x = _wrapped(system, neighbors)
    waiting = [np.arange(len(x))]
    while waiting:
        atoms = waiting.pop()
        members = surroundings(atoms, listed, reach)
        if len(members) <= most or len(atoms) == 1:
            yield Part(*(torch.from_numpy(each).to(neighbors.j) for each in (atoms, members)))
            continue
        half = len(atoms) // 2
        if batch[atoms[0]] != batch[atoms[-1]]:
            ends = np.flatnonzero(np.diff(batch[atoms])) + 1
            half = int(ends[np.abs(ends - half).argmin()])
            waiting += [atoms[half:], atoms[:half]]
            continue
        axis = np.ptp(x[atoms], axis=0).argmax()
        order = atoms[x[atoms, axis].argsort(kind="stable")]
        waiting += [np.sort(order[half:]), np.sort(order[:half])]


def _wrapped(system: System, neighbors: Neighbors) -> NDArray[np.float64]:
    """Positions (n_atoms, 3) Å in the cell, wherever atoms have gone."""
    inverse = neighbors.inverse_cell[system.system]  # (n_atoms, 3, 3)
    fractions = torch.bmm(system.positions[:, None], inverse)
    whole = torch.where(system.pbc[system.system][:, None], fractions.floor(), 0.0)
    inside = system.positions[:, None] - torch.bmm(whole, system.cell[system.system])
    wrapped: NDArray[np.float64] = inside[:, 0].detach().cpu().numpy()
    return wrapped


def surroundings(atoms: Indices, listed: Indices, reach: int) -> Indices:
    """Atoms, and all that can be reached from them in so many steps; in order.

    Args:
        atoms: where to start.
        listed: (n_atoms, K) of a neighbor list.
        reach: steps.
    """
    inside = np.zeros(len(listed), bool)
    inside[atoms] = True
    latest = atoms
    for _ in range(reach):
        found = listed[latest].ravel()
        latest = np.unique(found[~inside[found]])
        inside[latest] = True
    return np.flatnonzero(inside)


def among_themselves(members: Tensor, neighbors: Neighbors) -> Neighbors:
    """The list of some atoms (M,), in order, among themselves; other pairs become padding."""
    n_atoms, capacity = neighbors.j.shape
    rank = torch.arange(len(members), device=members.device)
    place = torch.full((n_atoms,), -1, device=members.device).index_copy(0, members, rank)
    other, reverse = place[neighbors.j[members]], neighbors.reverse[members]
    valid = neighbors.valid[members] & (other >= 0)
    slots = rank[:, None] * capacity + torch.arange(capacity, device=members.device)
    twin = place[reverse.div(capacity, rounding_mode="floor")] * capacity + reverse % capacity
    return neighbors._replace(
        j=torch.where(valid, other, rank[:, None]),
        shift=neighbors.shift[members],
        reverse=torch.where(valid, twin, slots),
        valid=valid,
        reference=neighbors.reference[members],
    )
