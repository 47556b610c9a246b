"""What replicas gain: aggregate steps per second of 1, 4, 16, 64 in one batch.

    python benchmarks/replicas.py ethanol-run ethanol.xyz [--frame 0] [--unfrozen] [--profile]

What `mdlearn simulate` does by default, guards included, on one thread. Every batch
is first run in; then all are timed in turns, by the time that this process had the processor, so
that other programs disturb little. Medians, quartiles, and the ratio to one replica. Writing of
the trajectory is not timed.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from pathlib import Path

import numpy as np
import torch

from mdlearn.atoms import read_atoms, to_system
from mdlearn.cli.ensembles import SimulateConfig, make_dynamics
from mdlearn.momenta import maxwell_boltzmann
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.frozen import freeze
from mdlearn.simulate import Snapshot, simulate, start
from mdlearn.system import concatenate

STEPS = 20
"""In one measurement."""
WARM_UP = 40


class Batch:
    """A simulation that goes on and on."""

    def __init__(
        self, model: Path, structure: Path, frame: int, n_replicas: int, unfrozen: bool
    ) -> None:
        network = load_model(model, torch.float32).network
        potential = network if unfrozen else freeze(network)
        batch = concatenate([to_system(read_atoms(structure)[frame])] * n_replicas)
        self._dynamics = make_dynamics(SimulateConfig(), network, potential, batch)
        momenta = maxwell_boltzmann(batch, self._dynamics.kT(0), self._dynamics.seeds)
        self._snapshot = start(self._dynamics, batch, momenta)
        self.n_replicas = n_replicas
        self.advance(WARM_UP)

    def advance(self, steps: int) -> float:
        """Seconds of the processor for so many steps of each replica."""

        def observe(snapshot: Snapshot) -> bool:
            return True

        began = time.process_time()
        target = self._snapshot.state.step + steps
        self._snapshot = simulate(
            self._dynamics, self._snapshot, steps=target, every=steps, observe=observe
        )
        return time.process_time() - began


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("--frame", type=int, default=0)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--unfrozen", action="store_true", help="the network and its derivative")
    parser.add_argument("--profile", action="store_true", help="where the time of the last goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    batches = [
        Batch(options.model, options.structure, options.frame, n, options.unfrozen)
        for n in options.replicas
    ]
    seconds: list[list[float]] = [[] for _ in batches]
    for _ in range(options.rounds):
        for batch, times in zip(batches, seconds, strict=True):
            times.append(batch.advance(STEPS))
    print("| replicas | ms per step | steps/s of all (quartiles) | against one |")
    print("|---|---|---|---|")
    one = float(np.median(seconds[0])) / batches[0].n_replicas
    for batch, times in zip(batches, seconds, strict=True):
        low, middle, high = np.percentile(times, (25, 50, 75))
        work = batch.n_replicas * STEPS
        print(
            f"| {batch.n_replicas} | {1e3 * middle / STEPS:.2f} |"
            f" {work / middle:.0f} ({work / high:.0f} to {work / low:.0f}) |"
            f" {one * batch.n_replicas / middle:.1f} |"
        )
    if options.profile:
        with cProfile.Profile() as profile:
            batches[-1].advance(STEPS)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
