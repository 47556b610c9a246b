"""Who is near whom in one system, as rows of a neighbor list: on a processor, or on a GPU.

The search is vesin's. What is ours is how pairs are laid out. Both ways give the same rows, slot
for slot, in an order that does not depend on how the search walked its cells.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import vesin
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.errors import DataError, UnstableError
from mdlearn.jit import compiled
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
    rows = _lay_out(i.astype(np.int64), j.astype(np.int64), shift, len(positions), capacity)
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


def _width(widest: int, capacity: int) -> int:
    """That rows of neighbors are to have: no less than before, and if more, by a tenth."""
    if widest <= capacity:
        return capacity
    return -(-max(widest, int(1.1 * capacity)) // 4) * 4


_width_of_rows = compiled(inner=True)(_width)


@compiled()
def _lay_out(
    i: NDArray[np.int64],
    j: NDArray[np.int64],
    shift: NDArray[np.int32],
    n_atoms: int,
    capacity: int,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows of neighbors from a half list: `j`, `shift`, `reverse` and `valid` of `Neighbors`.

    A pair p fills two slots that know each other, with entries 2p of atom i and 2p + 1 of atom j. A
    fixed order within each row, by neighbor and translation, makes sums independent of how the
    search walked its cells. Atoms that hand over their entries in turn bring it about, but for
    images of the same atom.
    """
    # 32 bits do: a list of 2³¹ slots would be larger than any memory.
    first, counts = np.zeros(n_atoms + 1, np.int64), np.zeros(n_atoms, np.int64)
    for p in range(len(i)):
        counts[i[p]] += 1
        counts[j[p]] += 1
    widest = 1
    for n in range(n_atoms):
        first[n + 1] = first[n] + counts[n]
        widest = max(widest, counts[n])
    width = _width_of_rows(widest, capacity)
    entries = np.empty(2 * len(i), np.int32)
    filled = first[:-1].copy()
    for p in range(len(i)):
        entries[filled[i[p]]] = 2 * p
        filled[i[p]] += 1
        entries[filled[j[p]]] = 2 * p + 1
        filled[j[p]] += 1
    row, target = np.empty((n_atoms, width), np.int32), np.empty((n_atoms, width), np.int64)
    slots = np.empty(2 * len(i), np.int32)
    counts[:] = 0
    for n in range(n_atoms):
        for entry in entries[first[n] : first[n + 1]]:
            p, twin = entry // 2, entry ^ 1  # the twin belongs to the other atom and points here
            other = i[p] if twin % 2 == 0 else j[p]
            k = counts[other]
            while k > 0 and target[other, k - 1] == n:
                before = row[other, k - 1]
                q = before // 2
                order = 0
                for axis in (2, 1, 0):
                    one = shift[p, axis] if twin % 2 == 0 else -shift[p, axis]
                    two = shift[q, axis] if before % 2 == 0 else -shift[q, axis]
                    if one != two:
                        order = 1 if one > two else -1
                        break
                if order > 0:
                    break
                row[other, k] = before
                slots[before] += 1
                k -= 1
            row[other, k], slots[twin] = twin, other * width + k
            target[other, counts[other]] = n
            counts[other] += 1
    reverse = np.empty((n_atoms, width), np.int64)
    translation = np.zeros((n_atoms, width, 3))
    valid = np.zeros((n_atoms, width), np.bool_)
    for n in range(n_atoms):
        for k in range(counts[n]):
            entry = row[n, k]
            reverse[n, k] = slots[entry ^ 1]
            valid[n, k] = True
            for axis in range(3):
                s = shift[entry // 2, axis]
                translation[n, k, axis] = s if entry % 2 == 0 else -s
        for k in range(counts[n], width):
            target[n, k], reverse[n, k] = n, n * width + k
    return target, translation, reverse, valid


def _lay_out_full(
    i: Tensor, j: Tensor, shift: Tensor, base: int, n_atoms: int, capacity: int
) -> Rows:
    """Rows of neighbors from a full list, in any order: `_lay_out` by operations, for a GPU.

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
    width = _width(max(1, int(counts.max())), capacity)
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
