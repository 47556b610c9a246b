"""Tables of filters, from which compiled loops blend them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mdlearn.lanes import WIDTH
from mdlearn.potentials.frozen_network import BLOCK, MANY_ATOMS
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.spline import ROWS, blend_once

TOLERANCE = {torch.float32: 3e-6, torch.float64: 3e-11}
"""By how much slopes of a table may be off, as a share of the largest one: that is what forces are
made of. Values are off by a twentieth of it at most."""
MOST_INTERVALS = 8192
BETWEEN = (0.0, 0.25, 0.5, 0.75)
"""Where slopes are compared, in each interval."""
MARGIN = 48
"""Knots beyond the ends; what is wrong there has died away by a factor of 0.36 for each."""


def tabulate(function: Callable[[Tensor], Tensor], precision: torch.dtype) -> Array:
    """Coefficients of splines for functions of a number from 0 to 1.

    The spline goes through the function at all knots. These are doubled until that changes its
    slopes by no more than the precision permits.

    Args:
        function: (n,) float64 -> (n, F), of which derivatives of all orders are continuous.
        precision: of the network.

    Returns:
        (intervals + 5, F) float64.
    """
    intervals = 64
    rows = spline(function, intervals)
    while intervals < MOST_INTERVALS:
        finer = spline(function, 2 * intervals)
        slopes = [(_slopes(rows, t, intervals), _slopes(finer, t, intervals)) for t in BETWEEN]
        largest = max(float(np.abs(exact).max()) for _, exact in slopes)
        if all(np.abs(a - b).max() <= TOLERANCE[precision] * largest for a, b in slopes):
            break
        intervals, rows = 2 * intervals, finer
    return rows


def spline(function: Callable[[Tensor], Tensor], intervals: int) -> Array:
    """Coefficients (intervals + 5, F) for a function as `tabulate` takes it, with so many knots."""
    knots = torch.arange(-MARGIN, intervals + MARGIN + 1, dtype=torch.float64) / intervals
    return _coefficients(function(knots).numpy())[MARGIN - 2 : MARGIN + intervals + 3]


def _coefficients(samples: Array) -> Array:
    """Of the spline through samples (n, F), which are taken for a period: a division of waves."""
    angle = 2.0 * np.pi * np.fft.rfftfreq(len(samples))
    bump = (230.0 + 152.0 * np.cos(angle) + 2.0 * np.cos(2.0 * angle)) / 384.0
    return np.fft.irfft(np.fft.rfft(samples, axis=0) / bump[:, None], len(samples), 0)


def _slopes(rows: Array, t: float, count: int) -> Array:
    """The derivatives (count, F) of a spline at t between the ends of each of so many parts."""
    intervals, weights = len(rows) - ROWS, np.empty(2 * ROWS)
    first = blend_once(t / count, 1.0, 1.0, 0.0, intervals, np.empty(ROWS), weights) // WIDTH
    places = range(first, first + ROWS)
    step = intervals // count
    parts = [rows[place : place + intervals : step] for place in places]
    slopes: Array = np.tensordot(weights[ROWS:], parts, 1)
    return slopes


def bundled(rows: Array, count: int, precision: torch.dtype) -> Array:
    """Tables of `count` sets of channels as the loops read them.

    Args:
        rows: (intervals + 5, count F).
        count: of sets.
        precision: of the network.

    Returns:
        (count, F / `WIDTH`, (intervals + 5) `WIDTH`), F filled up with zeros.
    """
    sets = rows.reshape(len(rows), count, -1)
    sets = np.pad(sets, ((0, 0), (0, 0), (0, -sets.shape[2] % WIDTH)))
    tables = sets.reshape(len(rows), count, -1, WIDTH).transpose(1, 2, 0, 3)
    dtype = torch.zeros(0, dtype=precision).numpy().dtype
    return np.ascontiguousarray(tables.reshape(count, tables.shape[1], -1).astype(dtype))


def shares_of(n_atoms: int) -> int:
    """Into how many shares atoms are divided whose pairs are worked on side by side.

    Each share has sums of its own, which all are cleared and added up: few are less work, and many
    are work for more threads. This may not depend on how many there are, or sums would.
    """
    return 1 if n_atoms <= BLOCK else 2 if n_atoms < MANY_ATOMS else 4


def pair_room(n_atoms: int, capacity: int) -> dict[str, Array]:
    """What `spline.approach` fills, by name, but for `blends`."""
    return {
        "own": np.zeros(n_atoms, np.int64),
        "near": np.zeros((n_atoms, capacity), np.int64),
        "places": np.zeros((n_atoms, capacity), np.int64),
        "span": np.zeros((n_atoms, 2), np.int64),
        "reached": np.zeros((shares_of(n_atoms), 2), np.int64),
    }
