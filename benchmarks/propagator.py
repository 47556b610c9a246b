"""How long a learned propagator is any good, against velocity Verlet from the same starts.

    python benchmarks/propagator.py ethanol-run data/ethanol.xyz --folder propagators --epochs 3

Everything is done by `mdlearn`: 16 replicas at constant energy make the data, a propagator is
trained for each stride, and the last frames of four replicas, whose end no training has seen, are
where all runs begin. Energies of the frames of a run with a propagator are those of MODEL. What is
in the folder already is not done again. Times are of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase.data import chemical_symbols
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from mdlearn import Trajectory
from mdlearn.analysis import BONDED, follow_bonds
from mdlearn.atoms import to_system
from mdlearn.neighbors import build
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.evaluate import evaluate
from mdlearn.system import concatenate

STARTS = 4
BETWEEN_FS = 40
"""Between frames of the runs that are compared."""
MOVED = (0.010, 0.050)
"""eV per atom, by which the energy may have moved; 0.05 is kT at 580 K."""


def mdlearn(*arguments: object) -> float:
    """Runs a verb; returns seconds of the processor. Replicas that a guard stops are no failure."""
    command = [sys.executable, "-m", "mdlearn", *map(str, arguments)]
    print("$ mdlearn", *command[3:], flush=True)
    before = os.times()
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode not in (0, 5):
        raise SystemExit(done.returncode)
    after = os.times()
    return after.children_user + after.children_system - sum(before[2:4])


def energies(model: Path, trajectory: Trajectory) -> NDArray[np.float64]:
    """Potential and kinetic energy of every frame, eV per atom."""
    network = load_model(model, torch.float32).network
    frames = [trajectory.atoms(index) for index in range(len(trajectory))]
    potential: list[float] = []
    for first in range(0, len(frames), 64):
        batch = concatenate([to_system(each) for each in frames[first : first + 64]])
        found = evaluate(network, batch, build(batch, network.cutoff)).energy
        potential += found.tolist()
    kinetic = [each.get_kinetic_energy() for each in frames]
    return (np.array(potential) + np.array(kinetic)) / len(trajectory.numbers)


def bond_lengths(
    trajectories: Sequence[Trajectory], ends: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """Lengths of all bonds, Å, by the elements at their ends, in so many frames of each run."""
    lengths: dict[str, list[NDArray[np.float64]]] = {}
    for each, end in zip(trajectories, ends, strict=True):
        start = each.atoms(0)
        radii = ase.data.covalent_radii[start.numbers]
        for i, j in zip(*neighbor_list("ij", start, list(BONDED * radii)), strict=True):
            if i < j:
                x = each.positions(slice(end))
                a, b = sorted(chemical_symbols[each.numbers[n]] for n in (i, j))
                lengths.setdefault(f"{a}-{b}", []).append(np.linalg.norm(x[:, i] - x[:, j], axis=1))
    return {name: np.concatenate(found) for name, found in sorted(lengths.items())}


def describe(name: str, path: Path, model: Path, seconds: float, errors: str) -> None:
    """Prints what became of a run."""
    replicas = [Trajectory(path, index) for index in range(STARTS)]
    kept: dict[float, list[float]] = {limit: [] for limit in MOVED}
    ends, whole, late = [], [], []
    for each in replicas:
        time = each.times_fs / 1000.0
        energy = energies(model, each)
        for limit, until in kept.items():
            off = np.flatnonzero(~(np.abs(energy - energy[0]) <= limit))
            until.append(time[off[0]] if len(off) else time[-1])
        broken = follow_bonds(each).broken
        ends.append(broken.frame if broken else len(time))
        whole.append(time[ends[-1] - 1])
        late.append(each.observable("temperature")[ends[-1] * 4 // 5 : ends[-1]].mean())
    bonds = bond_lengths(replicas, ends)
    print(f"\n{name}: {seconds:.0f} s; {errors}")
    for limit, until in kept.items():
        text = " ".join(f"{each:.2f}" for each in until)
        print(f"  energy within {1000.0 * limit:g} meV/atom until, ps: {text}")
    print("  no guard and no broken bond until, ps:", *(f"{each:.2f}" for each in whole))
    print("  temperature of the last fifth of that, K:", *(f"{each:.0f}" for each in late))
    for pair, length in bonds.items():
        print(f"  {pair}: {length.mean():.4f} ± {length.std():.4f} Å")


def last_errors(folder: Path) -> str:
    """Errors of a stride on the validation strides, of the best epoch."""
    with (folder / "metrics.csv").open() as stream:
        row = min(csv.DictReader(stream), key=lambda each: float(each["valid_loss"]))
    return (
        f"rms errors of a stride {float(row['valid_position_mA']):.2f} mÅ,"
        f" {float(row['valid_velocity_mA_per_fs']):.3f} mÅ/fs: {float(row['valid_position']):.3f}"
        f" and {float(row['valid_velocity']):.3f} of what free flight misses"
    )


def main() -> None:
    """Prints what became of every run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("structures", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("propagators"))
    parser.add_argument("--frames", default="0:512:32", help="of STRUCTURES, to begin the data at")
    parser.add_argument("--length", default="1.5ps", help="of the data, for each replica")
    parser.add_argument("--strides", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--size", default="small")
    parser.add_argument("--time", default="10ps", help="of the runs that are compared")
    parser.add_argument("--verlet", type=float, default=1.0, help="time step of the others, fs")
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(exist_ok=True)
    data, starts = folder / "data.h5", folder / "starts.extxyz"
    if not data.exists():
        mdlearn(
            *("simulate", given.model, given.structures, "--frame", given.frames),
            *("--ensemble", "nve", "--timestep", 0.5, "--every", 2, "--time", given.length),
            *("--output", data),
        )
    if not starts.exists():
        frames = [Trajectory(data, index) for index in range(STARTS)]
        last = [each.atoms(len(each) - 1) for each in frames]
        for atoms in last:
            atoms.calc = None
        ase.io.write(starts, last, columns=["symbols", "positions", "masses", "momenta"])
    with Trajectory(data) as trajectory:
        times = trajectory.times_fs
        count = trajectory.n_replicas
    temperatures = [Trajectory(data, n).observable("temperature").mean() for n in range(count)]
    print(
        f"data: {len(times)} frames of {count} replicas, {times[1]:g} fs apart,"
        f" {np.mean(temperatures):.0f} K"
    )
    for stride in given.strides:
        trained, run = folder / f"{stride}fs", folder / f"{stride}fs.h5"
        if not trained.exists():
            mdlearn(
                *("train", "--propagator", data, "--stride", f"{stride}fs", "--size", given.size),
                *("--epochs", given.epochs, "--output", trained),
            )
        seconds = mdlearn(
            *("simulate", trained, starts, "--frame", "all", "--integrator", "learned"),
            *("--time", given.time, "--every", BETWEEN_FS // stride, "--output", run),
            "--overwrite",
        )
        describe(f"stride {stride} fs", run, given.model, seconds, last_errors(trained))
    run = folder / "verlet.h5"
    seconds = mdlearn(
        *("simulate", given.model, starts, "--frame", "all", "--ensemble", "nve", "--timestep"),
        *(given.verlet, "--time", given.time, "--every", round(BETWEEN_FS / given.verlet)),
        *("--output", run, "--overwrite"),
    )
    describe(f"velocity Verlet, {given.verlet:g} fs", run, given.model, seconds, "the reference")


if __name__ == "__main__":
    main()
