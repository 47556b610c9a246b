"""Which frames are the same: a fingerprint of distances, and the pairs of frames it finds close.

A fingerprint does not change under translation, rotation, reflection or renumbering of like atoms.
Between two molecules its Euclidean distance is at most the root mean square difference of their
sorted interatomic distances, in Å; so it overlooks no pair of frames that are close in that sense.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mdlearn.system import System

_PIECES = 16
"""Numbers kept for each pair of elements; each the mean of as many neighboring sorted distances."""
_ALL_PAIRS = 300
"""Atoms up to which every pair counts; in larger frames each atom with so many others / 2."""
_SKETCH = 32
_CROWD = 200
"""Where so many frames are one, a chain of them is found, not all pairs."""


Kind: TypeAlias = tuple[bytes, bytes, float]


class ClosePairs(NamedTuple):
    """Pairs of frames, by index, and how far apart their fingerprints are."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    distance: NDArray[np.float64]
    """Å."""


class _Plan(NamedTuple):
    """What a fingerprint needs to know of the elements."""

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    kind: NDArray[np.int64]
    """Which pair of elements each pair of atoms is."""
    starts: NDArray[np.int64]
    """Where the pieces begin among the sorted distances."""
    weights: NDArray[np.float64]


def fingerprints(system: System) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What tells a single system from others of the same elements, in two ways.

    Returns:
        The fingerprint, Å; and a sketch, Å, that sees the order of the atoms. Distances
        between sketches are those between the vectors of `separations`, divided by the root of
        their length, kept by random projections to about a tenth (Johnson and Lindenstrauss).
        Both end with the lengths of the cell.
    """
    plan = _plan(system.numbers.numpy().tobytes())
    d = separations(system)
    lengths = np.linalg.norm(_edges(system), axis=1)
    if not len(d):
        return lengths, lengths
    means = np.add.reduceat(d[np.lexsort((d, plan.kind))], plan.starts)
    counts = np.diff([*plan.starts, len(d)])
    sketch = d @ _projection(len(d)) / np.sqrt(len(d) * _SKETCH)
    prints = means / counts * plan.weights
    return np.concatenate([prints, lengths]), np.concatenate([sketch, lengths])


def separations(system: System) -> NDArray[np.float64]:
    """Distances between the atoms in the order of the file, Å.

    Along periodic directions the fractional difference s enters through sin(πs)/π and
    sin(2πs)/2π: smooth everywhere, the same for all images, and the distance itself where it is
    short against the cell.
    """
    plan = _plan(system.numbers.numpy().tobytes())
    x, cell = system.positions.numpy(), _periodic_cell(system)
    r = x[plan.j] - x[plan.i]  # (n_pairs, 3)
    if not len(cell):
        plain: NDArray[np.float64] = np.linalg.norm(r, axis=1)
        return plain
    # What is left of r beyond the periodic directions is an ordinary distance.
    s = r @ np.linalg.pinv(cell)  # (n_pairs, n_periodic)
    rest = r - s @ cell
    v = (np.sin(2 * np.pi * s) / (2 * np.pi)) @ cell
    u = np.sin(np.pi * s) ** 4 @ np.square(cell).sum(1) / np.pi**2  # sin² - (sin cos)² = sin⁴
    distance: NDArray[np.float64] = np.sqrt(np.square(v).sum(1) + u + np.square(rest).sum(1))
    return distance


def close_pairs(fingerprints: NDArray[np.float64], tolerance: float) -> ClosePairs:
    """All pairs of frames whose fingerprints differ by at most a tolerance.

    Frames are sorted along the direction in which they differ most, and compared with those that
    are within reach along it; so the work grows with the number of frames and of close ones.

    Args:
        fingerprints: (n_frames, n), of frames of the same elements.
        tolerance: Å.
    """
    centered = fingerprints - fingerprints.mean(0)
    direction = np.linalg.eigh(centered.T @ centered)[1][:, -1]
    along = centered @ direction
    order = np.argsort(along, kind="stable")
    along, rows = along[order], fingerprints[order]
    found = [ClosePairs(order[:0], order[:0], along[:0])]
    for step in range(1, min(len(order), _CROWD)):
        low = np.flatnonzero(along[step:] - along[:-step] <= tolerance)
        if not len(low):
            break
        distance = np.linalg.norm(rows[low + step] - rows[low], axis=1)
        low, distance = low[distance <= tolerance], distance[distance <= tolerance]
        found.append(ClosePairs(order[low], order[low + step], distance))
    first, second, distance = (np.concatenate(each) for each in zip(*found, strict=True))
    return ClosePairs(np.minimum(first, second), np.maximum(first, second), distance)


def same_coordinates(one: System, other: System, tolerance: float) -> bool:
    """Whether two systems are one, atom by atom, but for a rigid motion or a mirror image.

    Unlike equal fingerprints, this sees the numbering: equivalent strains of a crystal differ.
    """
    if one.numbers.tolist() != other.numbers.tolist() or one.pbc.tolist() != other.pbc.tolist():
        return False
    cells = np.abs(_edges(one) @ _edges(one).T - _edges(other) @ _edges(other).T)
    scale = np.linalg.norm(_edges(one), axis=1).max(initial=1.0)
    apart = np.abs(separations(one) - separations(other)).max(initial=0.0)
    return bool(cells.max(initial=0.0) <= 2.0 * scale * tolerance and apart <= tolerance)


def kind_of(system: System, *, ordered: bool) -> Kind:
    """What two systems must share before they can be compared, numbering included or not."""
    numbers = system.numbers.numpy()
    numbers = numbers if ordered else np.sort(numbers)
    return numbers.tobytes(), system.pbc.numpy().tobytes(), float(system.charge[0])


def groups(kinds: Sequence[Kind]) -> list[NDArray[np.int64]]:
    """Indices of the frames of each kind, in order of first appearance."""
    members: dict[Kind, list[int]] = {}
    for index, kind in enumerate(kinds):
        members.setdefault(kind, []).append(index)
    return [np.array(each) for each in members.values()]


def _edges(system: System) -> NDArray[np.float64]:
    """Periodic cell vectors and the diagonals between them, (6, 3, 1 or 0; 3) Å."""
    cell = _periodic_cell(system)
    diagonals = [cell[a] + cell[b] for a in range(len(cell)) for b in range(a)]
    return np.concatenate([cell, *(each[None] for each in diagonals)])


def _periodic_cell(system: System) -> NDArray[np.float64]:
    cell: NDArray[np.float64] = system.cell[0].numpy()[system.pbc[0].numpy()]
    return cell


@lru_cache(maxsize=16)
def _projection(length: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).choice((-1.0, 1.0), (length, _SKETCH))


@lru_cache(maxsize=256)
def _plan(numbers_of: bytes) -> _Plan:
    numbers = np.frombuffer(numbers_of, np.int64)
    n = len(numbers)
    if n <= _ALL_PAIRS:
        i, j = np.triu_indices(n, 1)
    else:
        offsets = np.arange(1, _ALL_PAIRS // 2)
        i, j = np.repeat(np.arange(n), len(offsets)), np.tile(offsets, n)
        j = (i + j) % n
    kind = np.minimum(numbers[i], numbers[j]) * 1000 + np.maximum(numbers[i], numbers[j])
    starts, weights, first = [], [], 0
    for count in np.unique(kind, return_counts=True)[1]:
        pieces = np.linspace(0, count, min(_PIECES, count) + 1).astype(int)
        starts.append(first + pieces[:-1])
        weights.append(np.sqrt(np.diff(pieces) / len(kind)))
        first += count
    if not starts:
        return _Plan(i, j, kind, np.zeros(0, np.int64), np.zeros(0))
    return _Plan(i, j, kind, np.concatenate(starts), np.concatenate(weights))
