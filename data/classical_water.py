"""A flexible three-site water model: cheap, decorrelated starts for the xTB dynamics.

Charges and Lennard-Jones terms are those of SPC/Fw (Wu, Tepper and Voth, J. Chem. Phys. 124,
024503 (2006)); the harmonic bonds and angle are those of the GFN1-xTB monomer instead, so that
little is left to relax when the dynamics changes over to GFN1-xTB. Pairs end at half the cell:
damped and shifted forces for the charges (Fennell and Gezelter, J. Chem. Phys. 124, 234104
(2006)), shifted forces for Lennard-Jones.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from scipy.special import erfc

COULOMB_EV_A = 14.399645
CHARGE_O, CHARGE_H = -0.82, 0.41
SIGMA_A = 3.165492
EPSILON_EV = 0.1554253 * 0.0433641  # kcal/mol to eV
# Minimum and second derivatives of the GFN1-xTB monomer.
BOND_A, BOND_K = 0.958, 48.7  # eV/Å^2
ANGLE_RAD, ANGLE_K = np.radians(107.1), 3.31  # eV/rad^2
DAMPING_PER_A = 0.2


class ClassicalWater(Calculator):
    """Energy and forces of water given as O, H, H, O, H, H, ... in a periodic cell."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: tuple[str, ...] = ("energy",),
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill ``results`` for the atoms."""
        super().calculate(atoms, properties, system_changes)
        positions, cell = self.atoms.positions, self.atoms.cell.array
        bonded, bonded_forces = _within_molecules(positions)
        between, between_forces = _between_molecules(positions, cell)
        self.results["energy"] = bonded + between
        self.results["forces"] = bonded_forces + between_forces


def _within_molecules(positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Harmonic bonds and angle; molecules are whole, so no images are needed."""
    forces = np.zeros_like(positions)
    arms = [positions[k::3] - positions[0::3] for k in (1, 2)]
    lengths = [np.linalg.norm(arm, axis=1) for arm in arms]
    units = [arm / length[:, None] for arm, length in zip(arms, lengths, strict=True)]
    cosine = np.clip((units[0] * units[1]).sum(axis=1), -1.0, 1.0)
    bend = np.arccos(cosine) - ANGLE_RAD
    energy = 0.5 * ANGLE_K * (bend**2).sum()
    torque = ANGLE_K * bend / np.sqrt(1.0 - cosine**2)  # -dE/d(cosine)
    for k, (unit, length) in enumerate(zip(units, lengths, strict=True)):
        stretch = length - BOND_A
        energy += 0.5 * BOND_K * (stretch**2).sum()
        across = (units[1 - k] - cosine[:, None] * unit) / length[:, None]
        force = -BOND_K * stretch[:, None] * unit + torque[:, None] * across
        forces[k + 1 :: 3] += force
        forces[0::3] -= force
    return energy, forces


def _between_molecules(positions: np.ndarray, cell: np.ndarray) -> tuple[float, np.ndarray]:
    """Charges on all atoms and Lennard-Jones on oxygen, of the nearest images."""
    inverse = np.linalg.inv(cell)
    cutoff = 0.499 / np.linalg.norm(inverse, axis=0).max()  # of the narrowest width
    first, second = _pairs(len(positions))
    delta = positions[second] - positions[first]
    delta -= np.round(delta @ inverse) @ cell
    r2 = (delta**2).sum(axis=1)
    near = r2 < cutoff**2
    first, second, delta, r = first[near], second[near], delta[near], np.sqrt(r2[near])
    charges = np.where(np.arange(len(positions)) % 3 == 0, CHARGE_O, CHARGE_H)
    strength = COULOMB_EV_A * charges[first] * charges[second]
    value, slope = _damped(r)
    value_end, slope_end = _damped(cutoff)
    energy = (strength * (value - value_end - slope_end * (r - cutoff))).sum()
    slopes = strength * (slope - slope_end)
    oxygens = (first % 3 == 0) & (second % 3 == 0)
    value, slope = _lennard_jones(r[oxygens])
    value_end, slope_end = _lennard_jones(cutoff)
    energy += (value - value_end - slope_end * (r[oxygens] - cutoff)).sum()
    slopes[oxygens] += slope - slope_end
    pull = (slopes / r)[:, None] * delta
    forces = np.zeros_like(positions)
    for axis in range(3):
        forces[:, axis] = np.bincount(first, pull[:, axis], len(positions))
        forces[:, axis] -= np.bincount(second, pull[:, axis], len(positions))
    return energy, forces


def _pairs(n_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of atoms of different molecules."""
    first, second = np.triu_indices(n_atoms, k=1)
    apart = first // 3 != second // 3
    return first[apart], second[apart]


def _damped(r: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """``erfc(a r) / r`` and its derivative."""
    value = erfc(DAMPING_PER_A * r) / r
    gauss = 2.0 * DAMPING_PER_A / np.sqrt(np.pi) * np.exp(-((DAMPING_PER_A * r) ** 2))
    return value, -(value + gauss) / r


def _lennard_jones(r: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """The 12-6 potential and its derivative."""
    sixth = (SIGMA_A / r) ** 6
    value = 4.0 * EPSILON_EV * (sixth**2 - sixth)
    return value, -24.0 * EPSILON_EV * (2.0 * sixth**2 - sixth) / r
