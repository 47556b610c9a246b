"""Quantities of a trajectory."""

from __future__ import annotations

from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from ase.data import covalent_radii
from numpy.typing import NDArray

from mdlearn.atoms import to_system
from mdlearn.neighbors import build, pair_vectors
from mdlearn.trajectory import Trajectory

BONDED = 1.2
"""Atoms closer than this many sums of covalent radii share a bond in the first frame."""
BROKEN = 1.7
"""And the bond is broken when they are further apart than this many."""


BLOCKS = 20
"""Of a trajectory, whose means the error of its drift is judged by."""
VECTORS_AT_ONCE = 1_000_000
"""Positions and bonds of some frames that are in memory together."""


class Drift(NamedTuple):
    """Straight line through the conserved energy."""

    slope: float
    """eV per atom and ps."""
    error: float
    """Standard error of the slope; NaN where frames are too few for it."""
    fluctuation: float
    """Standard deviation around the line, eV per atom."""

    def __str__(self) -> str:
        """For people."""
        error = "" if np.isnan(self.error) else f" ± {1000 * self.error:.5f}"
        return f"{1000 * self.slope:+.5f}{error} meV/atom/ps"


class Bonds(NamedTuple):
    """What became of the bonds of the first frame."""

    number: int
    """How many there are."""
    unbound: tuple[int, ...]
    """Atoms that share none of them, so that nothing can be said of theirs."""
    broken: BrokenBond | None
    """The first to break."""

    def __str__(self) -> str:
        """For people."""
        if self.broken:
            a, b = self.broken.atoms
            text = (
                f"{a}-{b} broken at frame {self.broken.frame}: {self.broken.distance:.2f} Å apart"
            )
        else:
            text = f"none of {self.number} broken" if self.number else "none"
        if self.number and self.unbound:
            more = f" and {len(self.unbound) - 1} more" if len(self.unbound) > 1 else ""
            text += f"; atom {self.unbound[0]}{more} had none at the start"
        return text


class BrokenBond(NamedTuple):
    """A bond of the first frame that a later one has not."""

    frame: int
    atoms: tuple[int, int]
    distance: float
    """Å, in that frame."""


def energy_drift(trajectory: Trajectory) -> Drift | None:
    """Least-squares drift of the conserved energy; zero for fewer than three frames.

    The error of the slope is made of two. What fluctuates is correlated from frame to frame: this
    part is that of a line through the means of `BLOCKS` blocks, which are nearly independent. And
    rounding, or a thermostat that takes from K what the time step conserves as K + O(dt²), makes
    the energy wander: a random walk of variance D t has a slope of variance 6 D / 5 T. Means of
    blocks of length L that are one and two blocks apart tell D from the rest: their differences
    have variances 2 s² + 2 D L / 3 and 2 s² + 5 D L / 3.

    Returns:
        None where the energy is unknown, as it is to a propagator.
    """
    if "conserved_energy" not in trajectory.observable_names:
        return None
    energy = trajectory.observable("conserved_energy") / len(trajectory.numbers)
    time_ps = trajectory.times_fs / 1000.0
    if len(energy) < 3:
        return Drift(0.0, np.nan, 0.0)
    slope, offset = np.polyfit(time_ps, energy, 1)
    rest, error = energy - slope * time_ps - offset, np.nan
    if (width := len(energy) // BLOCKS) >= 2:
        x, y = (each[: BLOCKS * width].reshape(BLOCKS, width).mean(1) for each in (time_ps, rest))
        _, covariance = np.polyfit(x, y, 1, cov=True)
        near, far = y[1:] - y[:-1], y[2:] - y[:-2]
        walk = max(0.0, np.mean(far**2) - np.mean(near**2)) / (x[1] - x[0])
        error = float((covariance[0, 0] + 1.2 * walk / (time_ps[-1] - time_ps[0])) ** 0.5)
    return Drift(float(slope), error, float(np.std(rest)))


def follow_bonds(trajectory: Trajectory) -> Bonds:
    """The bonds of the first frame, and the first to break, judged by covalent radii."""
    start = trajectory.atoms(0)
    i, j, shift = _find_bonds(start)
    limit = BROKEN * (covalent_radii[start.numbers[i]] + covalent_radii[start.numbers[j]])
    bound = np.zeros(len(start), np.bool_)
    bound[i] = bound[j] = True
    count, unbound = len(i), tuple(np.flatnonzero(~bound).tolist())
    at_once = max(1, VECTORS_AT_ONCE // (len(start) + len(i)))
    for first in range(0, len(trajectory), at_once):
        chosen = slice(first, first + at_once)
        positions, cells = trajectory.positions(chosen), trajectory.cells(chosen)
        bonds = positions[:, j] - positions[:, i] + shift @ cells  # (n_frames, n_bonds, 3)
        distance = np.linalg.norm(bonds, axis=2)
        broken = np.argwhere(distance > limit)
        if len(broken):
            frame, bond = broken[0]
            atoms = (int(i[bond]), int(j[bond]))
            torn = BrokenBond(first + int(frame), atoms, float(distance[frame, bond]))
            return Bonds(count, unbound, torn)
    return Bonds(count, unbound, None)


def _find_bonds(atoms: ase.Atoms) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Bonds, each of them once: from which atoms to which, and with what lattice translations."""
    system, radii = to_system(atoms), torch.from_numpy(covalent_radii)[atoms.numbers]
    pairs = build(system, 2.0 * BONDED * float(radii.max()))
    slots = torch.arange(pairs.j.numel()).view_as(pairs.j)
    near = pair_vectors(system, pairs).norm(dim=2) < BONDED * (radii[:, None] + radii[pairs.j])
    i, k = torch.nonzero(near & pairs.valid & (slots < pairs.reverse), as_tuple=True)
    return i.numpy(), pairs.j[i, k].numpy(), pairs.shift[i, k].numpy()
