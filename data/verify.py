"""Check the data sets: labels against finite differences, net forces, ranges, duplicates, sha256.

The figures it prints are those in ``README.md``. Finite differences recompute labels, so they need
PySCF and tblite; ``--no-labels`` leaves them out.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import make_ethanol
import make_water
import numpy as np
from ase import Atoms
from ase.io import read
from common import near_duplicates

HERE = Path(__file__).resolve().parent
FILES = ("ethanol", "ethanol_isolated_atoms", "water", "water_isolated_atoms")
CHECKED_FRAMES = 3
DIRECTIONS = 3
STEP_A = 0.002
STRAIN_STEP = 0.0005
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))

Labeller = Callable[[Atoms], dict]


def label_ethanol(atoms: Atoms) -> dict:
    """The label of a gas-phase frame, computed anew."""
    return make_ethanol.label(list(atoms.symbols), atoms.positions)


def label_water(atoms: Atoms) -> dict:
    """The label of a periodic frame, computed anew."""
    return make_water.label(list(atoms.symbols), atoms.positions, atoms.cell.array)


def central_difference(energy: Callable[[float], float], step: float) -> float:
    """Derivative at 0 from four points; its error is of the fourth power of the step."""
    near = energy(step) - energy(-step)
    far = energy(2 * step) - energy(-2 * step)
    return (8 * near - far) / (12 * step)


def check_forces(frames: list[Atoms], labeller: Labeller) -> None:
    """Stored force along random directions against -dE/dx; the stored label against a new one."""
    rng = np.random.default_rng(0)
    errors, relabelled = [], []
    for atoms in frames:
        again = labeller(atoms)
        relabelled.append(abs(again["energy"] - atoms.get_potential_energy()))
        for _ in range(DIRECTIONS):
            direction = rng.normal(size=atoms.positions.shape)
            # A length of one atom's step times sqrt(n): the error compares to a force component.
            direction /= np.sqrt((direction**2).mean())

            def energy(step: float, atoms: Atoms = atoms, along: np.ndarray = direction) -> float:
                moved = atoms.copy()
                moved.positions += step * along
                return labeller(moved)["energy"]

            slope = -central_difference(energy, STEP_A)
            stored = (atoms.get_forces() * direction).sum()
            errors.append(abs(slope - stored) / np.linalg.norm(direction))
    print(f"  energy computed anew, largest difference: {max(relabelled):.1e} eV")
    print(
        f"  force along a random unit vector, {len(errors)} directions, against finite differences:"
        f" largest error {max(errors):.1e}, rms {np.sqrt(np.mean(np.square(errors))):.1e} eV/Å"
    )


def check_stress(frames: list[Atoms], labeller: Labeller) -> None:
    """All six components of the stored stress against (1/V) dE/d(strain)."""
    errors = []
    for atoms in frames:
        for number, (row, column) in enumerate(VOIGT):
            # A symmetric strain; off the diagonal its two halves share one step.
            pattern = np.zeros((3, 3))
            pattern[row, column] += 0.5
            pattern[column, row] += 0.5

            def energy(step: float, atoms: Atoms = atoms, along: np.ndarray = pattern) -> float:
                strained = atoms.copy()
                strained.set_cell(atoms.cell.array @ (np.eye(3) + step * along), scale_atoms=True)
                return labeller(strained)["energy"]

            slope = central_difference(energy, STRAIN_STEP) / atoms.get_volume()
            errors.append(abs(slope - atoms.get_stress()[number]))
    print(
        f"  stress, {len(errors)} components, against finite differences:"
        f" largest error {max(errors):.1e} eV/Å^3"
    )


def report_ranges(frames: list[Atoms], duplicate_rms: float) -> None:
    """Counts, ranges of the labels, net forces, shortest distances and near-duplicates."""
    n_atoms = len(frames[0])
    energies = np.array([atoms.get_potential_energy() for atoms in frames])
    forces = np.array([atoms.get_forces() for atoms in frames])
    print(f"  {len(frames)} frames of {n_atoms} atoms")
    for config_type, count in sorted(Counter(a.info["config_type"] for a in frames).items()):
        print(f"    {config_type}: {count}")
    print(f"  energy {energies.min():.4f} to {energies.max():.4f} eV", end="")
    print(f", standard deviation {1000 * energies.std() / n_atoms:.2f} meV/atom")
    print(f"  force components: rms {np.sqrt((forces**2).mean()):.3f}", end="")
    print(f", largest {np.abs(forces).max():.3f} eV/Å")
    net = np.linalg.norm(forces.sum(axis=1), axis=1)
    print(f"  net force: largest {net.max():.1e} eV/Å")
    report_distances(frames)
    pairs = sum(1 for _ in near_duplicates(frames, duplicate_rms))
    print(f"  near-duplicates (rms of sorted distances below {duplicate_rms} Å): {pairs}")
    if frames[0].pbc.any():
        report_cells(frames)


def report_distances(frames: list[Atoms]) -> None:
    """The shortest distance of each pair of species, over all frames."""
    shortest: dict[str, float] = {}
    for atoms in frames:
        distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
        np.fill_diagonal(distances, np.inf)
        symbols = np.array(atoms.symbols)
        for first in np.unique(symbols):
            for second in np.unique(symbols[symbols >= first]):
                found = distances[np.ix_(symbols == first, symbols == second)].min()
                pair = f"{first}-{second}"
                shortest[pair] = min(found, shortest.get(pair, np.inf))
    listed = ", ".join(f"{pair} {d:.3f}" for pair, d in shortest.items() if np.isfinite(d))
    print(f"  shortest distances (Å): {listed}")


def report_cells(frames: list[Atoms]) -> None:
    """Volumes, densities and stresses of periodic frames."""
    volumes = np.array([atoms.get_volume() for atoms in frames])
    stresses = np.array([atoms.get_stress() for atoms in frames])
    kinds = dict(sorted(Counter(a.info["strain"] for a in frames).items()))
    print(f"  strains: {kinds}; volume {volumes.min():.1f} to {volumes.max():.1f} Å^3")
    for name, part in (("normal", stresses[:, :3]), ("shear", stresses[:, 3:])):
        print(f"  {name} stress: {part.min():.5f} to {part.max():.5f}", end="")
        print(f", standard deviation {part.std():.5f} eV/Å^3")


def main() -> None:
    """Report on every file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=["ethanol", "water"], help="ethanol, water")
    parser.add_argument("--no-labels", action="store_true", help="recompute no label")
    args = parser.parse_args()
    for name in args.sets:
        frames = read(HERE / f"{name}.xyz", ":")
        print(name)
        made_by = make_ethanol if name == "ethanol" else make_water
        report_ranges(frames, made_by.DUPLICATE_RMS_A)
        for atoms in read(HERE / f"{name}_isolated_atoms.xyz", ":"):
            print(f"  isolated {atoms.symbols}: {atoms.get_potential_energy():.6f} eV")
        if not args.no_labels:
            labeller = label_ethanol if name == "ethanol" else label_water
            check_forces(frames[:CHECKED_FRAMES], labeller)
            if name == "water":
                check_stress(frames[:CHECKED_FRAMES], labeller)
    print("sha256")
    for name in FILES:
        path = HERE / f"{name}.xyz"
        if path.exists():
            print(f"  {hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


if __name__ == "__main__":
    main()
