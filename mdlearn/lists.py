"""Neighbor lists in compiled loops: how pairs become rows, and how far atoms have moved since.

See `mdlearn.neighbors`, whose words are used here. Nothing here takes torch, so that a process that
only compiles need not import it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdlearn.jit import HELPER, compiled
from mdlearn.words import Exact3, Flags2, Index1, Index2, Short1, Short2


def width_of_rows(widest: int, capacity: int) -> int:
    """That rows of neighbors are to have: no less than before, and if more, by a tenth."""
    if widest <= capacity:
        return capacity
    return -(-max(widest, int(1.1 * capacity)) // 4) * 4


def lay_out(
    i: NDArray[np.int64],
    j: NDArray[np.int64],
    shift: NDArray[np.int32],
    n_atoms: int,
    capacity: int,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows of neighbors from a half list: `j`, `shift`, `reverse` and `valid` of `Neighbors`.

    What is allocated here takes a compiler no time.
    """
    counts = np.bincount(i, minlength=n_atoms) + np.bincount(j, minlength=n_atoms)
    first = np.zeros(n_atoms + 1, np.int64)
    np.cumsum(counts, out=first[1:])
    width = width_of_rows(int(counts.max(initial=1)), capacity)
    shape, size = (n_atoms, width), 2 * len(i)
    # 32 bits do: a list of 2³¹ slots would be larger than any memory.
    scratch = (np.empty(size, np.int32), np.empty(size, np.int32), np.empty(shape, np.int32))
    target, reverse = np.empty(shape, np.int64), np.empty(shape, np.int64)
    translation, valid = np.zeros((*shape, 3)), np.zeros(shape, np.bool_)
    ends = (first, first[:-1].copy(), np.zeros(n_atoms, np.int64))
    HELPER.wait(fill_rows)
    fill_rows(i, j, shift, ends, scratch, target, translation, reverse, valid)
    return target, translation, reverse, valid


@compiled()
def fill_rows(
    i: Index1,
    j: Index1,
    shift: Short2,
    ends: tuple[Index1, Index1, Index1],
    scratch: tuple[Short1, Short1, Short2],
    target: Index2,
    translation: Exact3,
    reverse: Index2,
    valid: Flags2,
) -> None:
    """Fills in what `lay_out` returns; only padding of shifts and validity is there before.

    A pair p fills two slots that know each other, with entries 2p of atom i and 2p + 1 of atom j. A
    fixed order within each row, by neighbor and translation, makes sums independent of how the
    search walked its cells. Atoms that hand over their entries in turn bring it about, but for
    images of the same atom.
    """
    (first, filled, counts), (entries, slots, row) = ends, scratch
    n_atoms, width = target.shape
    for p in range(len(i)):
        entries[filled[i[p]]] = 2 * p
        filled[i[p]] += 1
        entries[filled[j[p]]] = 2 * p + 1
        filled[j[p]] += 1
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


@compiled()
def furthest(
    positions: NDArray[Any],
    reference: NDArray[Any],
    system: NDArray[np.int64],
    cells: tuple[NDArray[Any], ...],
    reach: NDArray[Any],
    strains: NDArray[Any],
    largest: NDArray[Any],
) -> None:
    """`neighbors.moved_since_build` in one loop.

    Operations would be half of a step of a small system. Cells are those now, those of the lists,
    their inverse, and the wear of lists. What is found is written to `largest` (n_systems,), and
    strains (n_systems, 3, 3) are overwritten.
    """
    cell, reference_cell, inverse_cell, wear = cells
    for s in range(len(cell)):
        largest[s] = 0.0
        for row in range(3):
            for axis in range(3):
                strain = 0.0
                for k in range(3):
                    change = cell[s, k, axis] - reference_cell[s, k, axis]
                    strain += inverse_cell[s, row, k] * change
                strains[s, row, axis] = strain
    for n in range(len(positions)):
        x, strain = reference[n], strains[system[n]]
        square = 0.0
        for axis in range(3):
            taken = x[0] * strain[0, axis] + x[1] * strain[1, axis] + x[2] * strain[2, axis]
            way = positions[n, axis] - x[axis] - taken
            square += way * way
        if square > largest[system[n]] or math.isnan(square):
            largest[system[n]] = square
    for s in range(len(cell)):
        square = 0.0
        for row in range(3):
            for axis in range(3):
                square += strains[s, row, axis] * strains[s, row, axis]
        closer = 0.5 * reach[()] * math.sqrt(square)
        largest[s] = wear[s] * (math.sqrt(largest[s]) + closer)
