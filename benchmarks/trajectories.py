"""The same Lennard-Jones trajectory by mdlearn, ASE, LAMMPS and OpenMM.

    python benchmarks/trajectories.py [--steps 500] [--cells 3]

Argon at the density 0.82 σ⁻³, periodic, from a crystal with velocities of 200 K, so that it melts;
constant energy, steps of 5 fs, float64. LAMMPS and OpenMM run in environments of their own and
take the formula with its envelope as text; ASE takes it from a calculator below. Everyone starts
from the first frame of mdlearn's file, in ASE's units. Printed is the largest distance of an atom
from where mdlearn has it, after half of the steps and at the end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from argon import EPSILON, SIGMA, crystal, formula, save_argon
from ase.calculators.calculator import Calculator, all_changes
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray
from peers import add_arguments, ask

from mdlearn import Trajectory, units

TIMESTEP_FS = 5.0
CUTOFF = 2.5 * SIGMA
ATOL = 1e-6
"""Å."""


class Switched(Calculator):
    """Lennard-Jones times the envelope, by the minimum image: for boxes of two cutoffs at least."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  declared so by ASE

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = tuple(all_changes),
    ) -> None:
        """Energy and forces from all pairs; called by ASE."""
        Calculator.calculate(self, atoms, properties, system_changes)
        assert self.atoms is not None
        x, length = self.atoms.positions, self.atoms.cell[0, 0]
        r = x[:, None] - x
        r -= length * np.round(r / length)
        d = np.sqrt((r**2).sum(2))
        np.fill_diagonal(d, np.inf)
        u, s = np.minimum(d / CUTOFF, 1.0), (SIGMA / d) ** 6
        envelope = 1.0 - 28.0 * u**6 + 48.0 * u**7 - 21.0 * u**8
        slope = -168.0 * u**5 * (1.0 - u) ** 2 / CUTOFF
        energy = 4.0 * EPSILON * (s * s - s)
        pull = 24.0 * EPSILON * (2.0 * s * s - s) / d * envelope - energy * slope
        self.results = {
            "energy": 0.5 * float((energy * envelope).sum()),
            "forces": ((pull / d)[..., None] * r).sum(1),
        }


def by_mdlearn(folder: Path, cells: int, steps: int) -> tuple[ase.Atoms, NDArray[np.float64]]:
    """The start, and the positions at the end."""
    model, start, output = folder / "model.safetensors", folder / "0.extxyz", folder / f"{steps}.h5"
    save_argon(model, CUTOFF)
    ase.io.write(start, crystal(cells, 0.82))
    command = [sys.executable, "-m", "mdlearn", "simulate", model, start, "--ensemble", "nve"]
    command += ["--temperature", 200, "--timestep", TIMESTEP_FS, "--steps", steps]
    command += ["--precision", "float64", "--every", steps, "--output", output]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    with Trajectory(output) as trajectory:
        return trajectory.atoms(0), trajectory.positions(-1)


def by_ase(atoms: ase.Atoms, steps: int) -> NDArray[np.float64]:
    """The positions at the end."""
    atoms = atoms.copy()
    atoms.calc = Switched()
    VelocityVerlet(atoms, timestep=TIMESTEP_FS * units.fs).run(steps)
    return np.array(atoms.positions)


def main() -> None:
    """Prints a table; exit code 1 if someone is further away than a millionth of an Å."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--cells", type=int, default=3, help="4 n³ atoms, n at least 3")
    add_arguments(parser)
    options = parser.parse_args()
    away: dict[str, list[float]] = {"ASE": [], "lammps": [], "openmm": []}
    for steps in (options.steps // 2, options.steps):
        with tempfile.TemporaryDirectory() as name:
            start, ours = by_mdlearn(Path(name), options.cells, steps)
        request = {
            "action": "trajectory",
            "positions": start.positions.tolist(),
            "velocities": start.get_velocities().tolist(),
            "mass": float(start.get_masses()[0]),
            "length": float(start.cell[0, 0]),
            "formula": formula(EPSILON, SIGMA, CUTOFF),
            "cutoff": CUTOFF,
            "timestep": TIMESTEP_FS * units.fs,
            "steps": steps,
        }
        for engine, distances in away.items():
            if engine == "ASE":
                theirs = by_ase(start, steps)
            else:
                answer = ask(engine, request, options.environments, options.threads)
                if "error" in answer:
                    raise SystemExit(f"{engine}: {answer['error']}")
                theirs = np.array(answer["positions"])
            distances.append(float(np.linalg.norm(theirs - ours, axis=1).max()))
    moved = np.linalg.norm(ours - start.positions, axis=1).mean()
    print(f"{len(start)} atoms, which moved by {moved:.1f} Å on average in {options.steps} steps\n")
    print(f"| | after {options.steps // 2} steps, Å | after {options.steps} steps, Å |")
    print("|---|---|---|")
    for engine, distances in away.items():
        print(f"| {engine} | {distances[0]:.1e} | {distances[1]:.1e} |")
    raise SystemExit(0 if max(map(max, away.values())) < ATOL else 1)


if __name__ == "__main__":
    main()
