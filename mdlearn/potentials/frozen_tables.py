"""Tables of filters, from which compiled loops blend them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlearn.lanes import WIDTH
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.spline import ROWS, blend_once

TOLERANCE = {torch.float32: 5e-7, torch.float64: 1e-12}
"""By how much a table may be off, as a share of its largest value. Slopes are off by about twenty
times as much, as a share of the largest slope."""
MOST_INTERVALS = 8192
MARGIN = 48
"""Knots beyond the ends; what is wrong there has died away by a factor of 0.43 for each."""


def tabulate(function: Callable[[Tensor], Tensor], precision: torch.dtype) -> Array:
    """Coefficients of splines for functions of a number from 0 to 1.

    The spline goes through the function at all knots. These are doubled until it is as good between
    them as the precision asks for.

    Args:
        function: (n,) float64 -> (n, F), of which derivatives of all orders are continuous.
        precision: of the network.

    Returns:
        (intervals + 5, F) float64.
    """
    intervals = 32
    while True:
        intervals *= 2
        knots = torch.arange(-MARGIN, intervals + MARGIN + 1, dtype=torch.float64) / intervals
        rows = _coefficients(function(knots).numpy())[MARGIN - 2 : MARGIN + intervals + 3]
        error = max(_error(function, rows, t) for t in (0.25, 0.5, 0.75))
        if error <= TOLERANCE[precision] or intervals == MOST_INTERVALS:
            return rows


def _coefficients(samples: Array) -> Array:
    """Of the spline through samples (n, F), which are taken for a period: a division of waves."""
    angle = 2.0 * np.pi * np.fft.rfftfreq(len(samples))
    bump = (66.0 + 52.0 * np.cos(angle) + 2.0 * np.cos(2.0 * angle)) / 120.0
    return np.fft.irfft(np.fft.rfft(samples, axis=0) / bump[:, None], len(samples), 0)


def _error(function: Callable[[Tensor], Tensor], rows: Array, t: float) -> float:
    """The largest error at t between all knots, as a share of the largest value."""
    intervals = len(rows) - ROWS + 1
    exact = function((torch.arange(intervals, dtype=torch.float64) + t) / intervals).numpy()
    weights = np.empty(2 * ROWS)
    blend_once(t / intervals, 1.0, 1.0, 0.0, intervals, np.empty(ROWS), weights)
    found = sum(weights[i] * rows[i : i + intervals] for i in range(ROWS))
    return float(np.abs(found - exact).max() / max(np.abs(exact).max(), 1e-300))


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


def pair_room(n_atoms: int, capacity: int, dtype: Any) -> dict[str, Array]:
    """What `spline.approach` fills, by name."""
    return {
        "near": np.zeros((n_atoms, capacity), np.int64),
        "places": np.zeros((n_atoms, capacity), np.int64),
        "blends": np.zeros((n_atoms, capacity, 2 * ROWS), dtype),
    }
