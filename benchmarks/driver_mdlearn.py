"""What mdlearn does in the benchmarks against its peers; see `peers.py`."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import driving
import torch

from mdlearn.atoms import read_frames
from mdlearn.calculator import MDLearnCalculator
from mdlearn.device import choose_threads
from mdlearn.potentials.architectures import learning_rate, make_potential
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import Settings
from mdlearn.training.dataset import (
    average_neighbors,
    closest_distances,
    concatenate,
    find_species,
    fit_reference_energies,
    force_scale,
    make_example,
)
from mdlearn.training.loop import CLIP
from mdlearn.training.loss import Weights, loss_of


def throughput(
    frames: str,
    seconds: float,
    cutoff: float,
    architecture: str,
    features: int,
    interactions: int,
    radial: int,
) -> dict[str, Any]:
    """Times the step of `training.loop.fit` on one batch of all frames of a file."""
    read = read_frames(frames)[0]
    examples = [make_example(frame, cutoff) for frame in read]
    batch = concatenate(examples)
    choose_threads(batch.neighbors.j.numel())
    torch.manual_seed(0)
    settings = Settings(
        architecture,
        cutoff,
        features,
        interactions,
        radial,
        average_neighbors(examples),
        force_scale(read),
        tuple(closest_distances(examples)),
    )
    energies = fit_reference_energies(read, []).energies
    network = make_potential(find_species(read), energies, settings).float()
    weights = Weights(1.0, 1.0, 1.0)
    parameters = list(network.parameters())
    rate = learning_rate(architecture) / 10.0
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)

    def step() -> torch.Tensor:
        evaluation = evaluate(network, batch.system, batch.neighbors, create_graph=True)
        loss = loss_of(evaluation, None, batch, weights, settings.scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return loss.detach()

    pairs = int(batch.neighbors.valid.sum())
    return driving.time_steps(step, seconds, driving.count(network), pairs)


def train(data: str, output: str, budget: float, seed: int, cutoff: float) -> dict[str, Any]:
    """Trains by the command that a user would type, with nothing but defaults."""
    folder = Path(output) / "run"
    command = [sys.executable, "-m", "mdlearn", "train", f"{data}/train.xyz"]
    command += ["--valid", f"{data}/valid.xyz", "--energy-key", "REF_energy"]
    command += ["--forces-key", "REF_forces", "--budget", f"{budget}s", "--seed", str(seed)]
    command += ["--cutoff", str(cutoff), "--output", str(folder), "--overwrite"]
    with (Path(output) / "train.log").open("w", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    network = load_model(folder).network
    settings = network.settings
    return {
        "about": f"{settings.architecture}, {settings.features} features,"
        f" {settings.interactions} interactions, all options at their defaults",
        "epochs": len(rows),
        "seconds": float(rows[-1]["seconds"]),
        "parameters": driving.count(network),
    }


def predict(output: str, frames: str) -> dict[str, Any]:
    """Energies and forces by the model that was trained."""
    return driving.predict(MDLearnCalculator(Path(output) / "run"), frames)


if __name__ == "__main__":
    driving.run({"throughput": throughput, "train": train, "predict": predict})
