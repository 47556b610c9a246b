"""What mdlearn does in the benchmarks against its peers; see `peers.py`."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import driving
import numpy as np
import torch
from numpy.typing import NDArray

from mdlearn import units
from mdlearn.atoms import read_frames, to_system
from mdlearn.calculator import MDLearnCalculator
from mdlearn.cli import keep_freed_memory
from mdlearn.cli.ensembles import SimulateConfig, make_dynamics, skin_of
from mdlearn.guards import make_limits
from mdlearn.integrators import velocity_verlet
from mdlearn.momenta import maxwell_boltzmann
from mdlearn.neighbors import PAIRWISE_SKIN, build
from mdlearn.potentials.architectures import learning_rate, make_potential
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.evaluate import Evaluable, choose_threads
from mdlearn.potentials.frozen import freeze
from mdlearn.potentials.network import ParametricPotential, Settings, Size
from mdlearn.potentials.threads import leave_one_thread
from mdlearn.simulate import Snapshot, isolated, simulate, start
from mdlearn.steps import Steps
from mdlearn.system import System
from mdlearn.system import concatenate as concatenate_systems
from mdlearn.training.dataset import concatenate, make_example
from mdlearn.training.loop import Training
from mdlearn.training.loss import Weights
from mdlearn.training.schedule import Schedule
from mdlearn.training.statistics import (
    average_neighbors,
    closest_distances,
    find_species,
    fit_reference_energies,
    force_scale,
)
from mdlearn.training.step import gradient
from mdlearn.training.team import ALONE


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
    rate = learning_rate(architecture) / 10.0
    training = Training(network, weights, Schedule(1, 0.0, None, None, rate, 0.999, 0))
    training.try_loops(batch)
    if training.loops is None:
        leave_one_thread(batch.neighbors.j.numel())

    def step() -> torch.Tensor:
        loss = gradient(training, [batch], [()], weights, ALONE, most_parts=1)
        training.advance(loss, rate)
        return loss

    pairs = int(batch.neighbors.valid.sum())
    return driving.time_steps(step, seconds, driving.count(network), pairs)


def step(
    structure: str,
    seconds: float,
    cutoff: float,
    architecture: str,
    features: int,
    interactions: int,
    radial: int,
    replicas: int,
    frozen: bool,
    device: str = "cpu",
) -> dict[str, Any]:
    """Times a step of dynamics as `mdlearn simulate --ensemble nve` does it, guards included."""
    atoms = ase.io.read(structure)
    system = concatenate_systems([to_system(atoms)] * replicas)
    sizes = Size(features, interactions, radial)
    network = random_network(system, cutoff, architecture, sizes).to(device)
    system = System(*(each.to(device) for each in system))
    momenta = np.tile(atoms.get_momenta(), (replicas, 1))
    run = Run(network, freeze(network) if frozen else network, system, momenta)
    parameters = driving.count(network)
    return driving.time_dynamics(run.advance, run.turn, seconds) | {"parameters": parameters}


def random_network(
    system: System, cutoff: float, architecture: str, sizes: Size
) -> ParametricPotential:
    """A network in float32 for the elements of a system, with forces that hardly move atoms."""
    torch.manual_seed(0)
    species = tuple(sorted(set(system.numbers.tolist())))
    neighbors = float(build(system, cutoff).valid.sum()) / len(system.numbers)
    settings = Settings(architecture, cutoff, *sizes, neighbors, 1e-3)
    return make_potential(species, dict.fromkeys(species, 0.0), settings).float()


class Run:
    """A simulation that goes on and on."""

    def __init__(
        self,
        network: ParametricPotential,
        potential: Evaluable,
        system: System,
        momenta: NDArray[np.float64],
    ) -> None:
        """Starts it, with as many threads as `mdlearn simulate` takes of those there are."""
        neighbors = build(system, network.cutoff, skin_of(potential, system))
        choose_threads(potential, system, neighbors, neighbors.j.numel())
        config = SimulateConfig(ensemble="nve", timestep=driving.TIMESTEP_FS)
        self.dynamics = make_dynamics(config, network, potential, system)
        self.block = Steps(self.dynamics)
        given = torch.from_numpy(momenta).to(system.positions)
        self.snapshot = start(self.dynamics, system, given)

    def advance(self, steps: int) -> None:
        """Does so many steps."""
        target = self.snapshot.state.step + steps
        self.snapshot = simulate(
            self.dynamics,
            self.snapshot,
            steps=target,
            every=steps,
            observe=lambda _: True,
            block=self.block,
        )

    def turn(self) -> None:
        """Changes the sign of the momenta."""
        state = self.snapshot.state
        self.snapshot = self.snapshot._replace(state=state._replace(momenta=-state.momenta))


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


def lennard_jones(cells: int, steps: int, timestep: float) -> dict[str, Any]:
    """Times dynamics of argon by the frozen potential; the time step is in fs."""
    settings = Settings("lennard-jones", 8.5, 1, 1, 1, 1.0, 1.0, ((18, 18, 2.9),))
    potential = make_potential((18,), {18: 0.0}, settings).double()
    potential.get_parameter("log_sigma").data.fill_(math.log(3.405))
    potential.get_parameter("log_epsilon").data.fill_(math.log(0.010323))
    system = to_system(ase.build.bulk("Ar", "fcc", a=5.72, cubic=True) * (cells, cells, cells))
    kT = torch.tensor([180.0 * units.kB], dtype=torch.float64)
    limits = make_limits(((18, 18, 2.9),), ((18, 1.0),), kT)
    dynamics = isolated(freeze(potential), velocity_verlet(timestep * units.fs), system)
    dynamics = dynamics._replace(limits=limits, skin=PAIRWISE_SKIN)
    snapshot = start(dynamics, system, maxwell_boltzmann(system, kT, [0]))
    choose_threads(dynamics.potential, system, snapshot.neighbors, snapshot.neighbors.j.numel())

    def advance(snapshot: Snapshot, steps: int) -> Snapshot:
        end = snapshot.state.step + steps
        return simulate(dynamics, snapshot, steps=end, every=steps, observe=lambda _: True)

    snapshot = advance(snapshot, 100)
    began = time.process_time()
    advance(snapshot, steps)
    return {"ms_per_step": 1e3 * (time.process_time() - began) / steps}


if __name__ == "__main__":
    keep_freed_memory()
    actions = {"throughput": throughput, "step": step, "train": train, "predict": predict}
    driving.run(actions | {"lennard_jones": lennard_jones})
