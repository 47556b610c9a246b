"""Who is near whom in one system, as rows of a neighbor list: on a processor, or on a GPU.

The search is vesin's. What is ours is how pairs are laid out (`lists`). Both ways give the same
rows, slot for slot, in an order that does not depend on how the search walked its cells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import vesin
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.errors import DataError, UnstableError
from mdlearn.lists import lay_out, width_of_rows
from mdlearn.system import System

LARGEST_EXTENT = 1e5
"""Å. The cell list ends the whole process for open systems that span ten times this."""


class Rows(NamedTuple):
    """Of a neighbor list, K slots each; see `Neighbors`."""

    j: Tensor
    """(n_atoms, K) int64"""
    shift: Tensor
    """(n_atoms, K, 3)"""
    reverse: Tensor
    """(n_atoms, K) int64"""
    valid: Tensor
    """(n_atoms, K) bool"""


def search(system: System, index: int, reach: float, capacity: int) -> Rows:
    """The rows of a single system, as wide as those before or as its busiest atom needs.

    Args:
        system: on a CPU.
        index: what messages call it by.
        reach: Å, how far to look.
        capacity: K of the list before.

    Raises:
        UnstableError, DataError: see `neighbors.build`.
    """
    positions, cell = system.positions.double().numpy(), system.cell[0].double().numpy()
    pbc = system.pbc[0].numpy()
    _check_geometry(positions, cell, pbc, index)
    pairs = vesin.NeighborList(cutoff=reach, full_list=False)
    i, j, shift = pairs.compute(positions, _complete(cell, pbc), pbc, "ijS")
    rows = lay_out(i.astype(np.int64), j.astype(np.int64), shift, len(positions), capacity)
    return Rows(*map(torch.from_numpy, rows))


def search_on_device(system: System, index: int, reach: float, capacity: int) -> Rows:
    """The same of a system on a GPU, which both searches and lays out; for arguments see there."""
    positions, device = system.positions.detach(), system.positions.device
    cell, pbc = system.cell[0].detach().cpu().double().numpy(), system.pbc[0].cpu().numpy()
    corners = torch.stack([positions.amin(0), positions.amax(0)])
    seen = corners if bool(corners.isfinite().all()) else positions  # to say which atom it is
    _check_geometry(seen.cpu().double().numpy(), cell, pbc, index)
    pairs = vesin.NeighborList(cutoff=reach, full_list=True)
    box = torch.from_numpy(_complete(cell, pbc)).to(device)
    i, j, shift = pairs.compute(positions.double(), box, system.pbc[0], "ijS")
    base = 2 * int(shift.abs().max()) + 1 if len(i) else 1
    if len(positions) ** 2 * base**3 >= 2**63:  # atoms have gone too far for pairs to be numbered
        rows = search(System(*(each.detach().cpu() for each in system)), index, reach, capacity)
        return Rows(*(each.to(device) for each in rows))
    i, j = (each.view(torch.int64) for each in (i, j))  # of torch's young unsigned type
    return _lay_out_full(i, j, shift.long(), base, len(positions), capacity)


def _lay_out_full(
    i: Tensor, j: Tensor, shift: Tensor, base: int, n_atoms: int, capacity: int
) -> Rows:
    """Rows of neighbors from a full list, in any order: `lay_out` by operations, for a GPU.

    Args:
        i: (pairs,) int64, one atom,
        j: (pairs,) int64, the other,
        shift: (pairs, 3) int64, and the lattice translation of that.
        base: how many values the components of translations have, about zero.
        n_atoms: how many rows.
        capacity: of the list before.
    """

    def number(i: Tensor, j: Tensor, shift: Tensor) -> Tensor:
        """Sorts by atom, neighbor and translation, and is found again from the other end."""
        key = i * n_atoms + j
        for s in reversed(shift.unbind(1)):
            key = key * base + s + base // 2
        return key

    keys, order = number(i, j, shift).sort()
    i, j, shift = i[order], j[order], shift[order]
    counts = torch.bincount(i, minlength=n_atoms)
    width = width_of_rows(max(1, int(counts.max())), capacity)
    place = torch.arange(len(i), device=i.device)
    slot = i * width + place - (counts.cumsum(0) - counts)[i]
    twin = torch.searchsorted(keys, number(j, i, -shift))
    slots = torch.arange(n_atoms * width, device=i.device)
    target = (slots // width).index_copy(0, slot, j).view(n_atoms, width)
    reverse = slots.index_copy(0, slot, slot[twin]).view(n_atoms, width)
    translation = shift.new_zeros(n_atoms * width, 3).index_copy(0, slot, shift)
    valid = slots.new_zeros(len(slots), dtype=torch.bool).index_fill(0, slot, True)
    return Rows(target, translation.view(n_atoms, width, 3), reverse, valid.view(n_atoms, width))


def _check_geometry(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_], index: int
) -> None:
    """Turns away what a search would answer with silence or a crash."""
    bad = np.flatnonzero(~np.isfinite(positions).all(1))
    if len(bad) or not np.isfinite(cell).all():
        where = f"atom {bad[0]}" if len(bad) else "the cell"
        why = (
            f"{where}: the position is not a finite number; the forces before this step were too"
            " large or the input was broken: use a shorter time step or relax first"
        )
        raise UnstableError(f"system {index}, {why}", {index: why})
    if not pbc.all() and np.ptp(positions, axis=0).max(initial=0.0) > LARGEST_EXTENT:
        why = (
            f"its atoms spread over more than {LARGEST_EXTENT:g} Å; the system has blown apart:"
            " use a shorter time step or relax first"
        )
        raise UnstableError(f"system {index}: {why}", {index: why})
    if pbc.any() and abs(np.linalg.det(_complete(cell, pbc))) < 1e-6:
        raise DataError(
            f"system {index}: periodic, but its cell {cell.tolist()} has no volume; give a cell"
            " with three independent vectors, or set pbc to F F F"
        )


def _complete(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Gives open directions a unit vector normal to the others; a periodic one stays what it is."""
    if not cell.any() and not pbc.any():
        return np.eye(3)
    full: NDArray[np.float64] = cell.copy()
    for axis in np.flatnonzero(~pbc & (np.abs(cell).max(1) == 0.0)):
        # The right singular vector of the smallest singular value is normal to all other rows.
        full[axis] = np.linalg.svd(full)[2][-1]
    return full
