"""What each size of each network costs: parameters, and times of an evaluation and a training step.

    python benchmarks/sizes.py frames.xyz [more.xyz ...]

Takes the first frame of each file, builds every network with random weights (float32, cutoff 5 Å),
and times, in turns, energy + forces + stress, and the loss with its gradient by the parameters.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mdlearn.atoms import read_frames
from mdlearn.potentials.architectures import ARCHITECTURES, make_potential
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import Network, ParametricPotential, Settings
from mdlearn.training.dataset import Example, make_example
from mdlearn.training.loss import Weights, loss_of
from mdlearn.training.statistics import (
    average_neighbors,
    find_species,
    fit_reference_energies,
    force_scale,
)

ROUNDS = 7


def step(network: ParametricPotential, example: Example, scale: float) -> None:
    """Loss and gradient of one training step on one frame."""
    evaluation = evaluate(network, example.system, example.neighbors, create_graph=True)
    loss_of(evaluation, None, example, Weights(1.0, 1.0, 1.0), scale).backward()


def main() -> None:
    """Prints a table for each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frames", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for path in options.frames:
        frames = read_frames(path)[0][:2]
        example, scale = make_example(frames[0], 5.0), force_scale(frames)
        energies = fit_reference_energies(frames, []).energies
        pairs = int(example.neighbors.valid.sum())
        print(f"\n{path.name}: {len(example.system.numbers)} atoms, {pairs} pairs\n")
        print("| network | size | parameters | evaluation, ms | training step, ms |")
        print("|---|---|---|---|---|")
        work: dict[tuple[str, str, int], list[Callable[[], object]]] = {}
        for name, kind in ARCHITECTURES.items():
            if not issubclass(kind, Network):
                continue
            for size, numbers in kind.sizes.items():
                mean = average_neighbors([example])
                settings = Settings(name, 5.0, *numbers, average_neighbors=mean, scale=scale)
                torch.manual_seed(0)
                network = make_potential(find_species(frames), energies, settings).float()
                count = sum(each.numel() for each in network.parameters())
                work[name, size, count] = [
                    partial(evaluate, network, example.system, example.neighbors),
                    partial(step, network, example, scale),
                ]
        times: dict[tuple[str, str, int], list[list[float]]] = {key: [[], []] for key in work}
        for _ in range(ROUNDS):
            for key, functions in work.items():
                for index, function in enumerate(functions):
                    function()
                    began = time.perf_counter()
                    function()
                    times[key][index].append(1e3 * (time.perf_counter() - began))
        for (name, size, count), both in times.items():
            spans = [np.percentile(each, (25, 50, 75)) for each in both]
            cells = [f"{middle:.1f} ({low:.1f} to {high:.1f})" for low, middle, high in spans]
            print(f"| {name} | {size} | {count:,} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
