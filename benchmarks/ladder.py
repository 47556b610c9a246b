"""Every network of the symmetry ladder on the same frames for the same time: errors, size, speed.

    python benchmarks/ladder.py train.xyz valid.xyz test.xyz --budget 15min --output ladder

Trains one network after the other (those whose run is already in the output folder are not trained
again, so names after --models can be shared out among processes), then times an evaluation (energy,
forces and stress of the first test frame, float32) of all of them in turns, and writes a table.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from mdlearn.atoms import read_frames
from mdlearn.neighbors import build
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.evaluate import evaluate
from mdlearn.training.dataset import concatenate, make_example
from mdlearn.training.loss import Weights, measure

LADDER = ("composition", "unconstrained", "schnet", "egnn", "painn", "equivariant")
ROUNDS = 40


def train(name: str, options: argparse.Namespace) -> None:
    """Trains one network by the command that a user would type."""
    folder = options.output / name
    if (folder / "done").exists():
        return
    command = [sys.executable, "-m", "mdlearn", "train", options.train, "--model", name]
    command += ["--valid", options.valid, "--budget", options.budget, "--seed", str(options.seed)]
    command += ["--output", folder, "--overwrite", *options.extra]
    print(*command, flush=True)
    subprocess.run([str(each) for each in command], check=True)
    (folder / "done").touch()


def report(names: list[str], options: argparse.Namespace) -> str:
    """Errors on the test frames and times of an evaluation, as a table."""
    frames = read_frames(options.test)[0]
    networks = {name: load_model(options.output / name).network for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name, network in networks.items():
            neighbors = build(frames[0].system, network.cutoff)
            evaluate(network, frames[0].system, neighbors)
            began = time.perf_counter()
            evaluate(network, frames[0].system, neighbors)
            times[name].append(1e3 * (time.perf_counter() - began))
    rows = [
        "| network | parameters | energy, meV | forces, meV/Å | (rmse) | one evaluation, ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, network in networks.items():
        examples = [make_example(frame, network.cutoff) for frame in frames]
        batches = [concatenate(examples[first : first + 10]) for first in range(0, len(frames), 10)]
        errors = measure(network, batches, Weights(1.0, 1.0, 1.0), network.settings.scale)
        size = sum(each.numel() for each in network.parameters())
        low, middle, high = np.percentile(times[name], (25, 50, 75))
        rows.append(
            f"| {name} | {size:,} | {errors.energy_mae_meV:.2f} |"
            f" {errors.forces_mae_meV_per_A:.2f} | {errors.forces_rmse_meV_per_A:.2f} |"
            f" {middle:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(rows)


def main() -> None:
    """Trains what is missing, and reports on what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--budget", default="15min")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=list(LADDER), choices=LADDER)
    parser.add_argument("--output", type=Path, default=Path("ladder"))
    parser.add_argument("--extra", nargs="*", default=[], help="options of `mdlearn train`")
    options = parser.parse_args()
    for name in options.models:
        train(name, options)
    there = [name for name in LADDER if (options.output / name / "done").exists()]
    torch.set_num_threads(1)
    table = report(there, options)
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
