"""Quantities of a trajectory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from mdlearn.trajectory import Trajectory

BONDED = 1.2
"""Atoms closer than this many sums of covalent radii share a bond in the first frame."""
BROKEN = 1.7
"""And the bond is broken when they are further apart than this many."""


FRAMES_AT_ONCE = 256


class Drift(NamedTuple):
    """Straight line through the conserved energy."""

    slope: float
    """eV per atom and ps."""
    fluctuation: float
    """Standard deviation around the line, eV per atom."""


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

    None where the energy is unknown, as it is to a propagator.
    """
    if "conserved_energy" not in trajectory.observable_names:
        return None
    energy = trajectory.observable("conserved_energy") / len(trajectory.numbers)
    time_ps = trajectory.times_fs / 1000.0
    if len(energy) < 3:
        return Drift(0.0, 0.0)
    slope, offset = np.polyfit(time_ps, energy, 1)
    return Drift(float(slope), float(np.std(energy - slope * time_ps - offset)))


def follow_bonds(trajectory: Trajectory) -> Bonds:
    """The bonds of the first frame, and the first to break, judged by covalent radii."""
    start = trajectory.atoms(0)
    radii = covalent_radii[start.numbers]
    elements = set(start.numbers.tolist())
    bonded = {
        (a, b): BONDED * (covalent_radii[a] + covalent_radii[b]) for a in elements for b in elements
    }
    i, j, shift = neighbor_list("ijS", start, bonded)
    limit = BROKEN * (radii[i] + radii[j])
    count, unbound = len(i) // 2, tuple(sorted(set(range(len(start))) - set(i.tolist())))
    for first in range(0, len(trajectory), FRAMES_AT_ONCE):
        chosen = slice(first, first + FRAMES_AT_ONCE)
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
