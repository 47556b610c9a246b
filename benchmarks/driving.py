"""What the drivers share: requests and answers in JSON, structures, timing, and predictions.

Needs nothing but torch and ASE, which all environments have.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

TIMESTEP_FS = 0.5
LEG = 20
"""Steps that are timed together. 10 fs at 300 K move the fastest hydrogen by some 0.5 Å: so lists
of neighbors wear out as they do in a simulation, and a system that comes back after each leg stays
what it is, whatever the forces."""


def run(actions: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Reads a request, carries out the action that it names, and answers.

    Args:
        actions: by the name in the request's `action`; called with its other entries.
    """
    request = json.load(sys.stdin)
    torch.set_num_threads(request.pop("threads"))
    # What libraries print goes to the log; standard output is for the answer.
    answer, sys.stdout = sys.stdout, sys.stderr
    result = actions[request.pop("action")](**request)
    print("\n" + json.dumps(result), file=answer, flush=True)


def time_steps(
    step: Callable[[], torch.Tensor], seconds: float, parameters: int, pairs: int
) -> dict[str, Any]:
    """Repeats a training step, after a warm-up that is not counted, for a while.

    Args:
        step: does everything and returns the loss.
        seconds: how long; at least two steps are timed.
        parameters: of the network, for the answer.
        pairs: of the batch, likewise.

    Returns:
        `times` of the steps in seconds, their mean `processor_time` in seconds (of all threads;
        with one thread it does not count waiting for a core), the first and the last `loss`, and
        the last arguments.
    """
    began = time.perf_counter()
    losses = [float(step())]
    if time.perf_counter() - began < seconds:
        step()  # TorchScript, which some packages use, optimizes during the second call
    times: list[float] = []
    before = time.process_time()
    while len(times) < 2 or sum(times) < seconds:
        began = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - began)
    work = time.process_time() - before
    losses.append(float(loss))
    return {
        "times": times,
        "processor_time": work / len(times),
        "loss": [losses[0], losses[-1]],
        "parameters": parameters,
        "pairs": pairs,
    }


def grow(path: str | Path, n_atoms: int) -> Atoms:
    """The first structure of a file, repeated as evenly as may be, with velocities of 300 K.

    Raises:
        ValueError: so many atoms are no multiple of it, or it cannot be repeated.
    """
    first = ase.io.read(path, 0)
    atoms = Atoms(first.symbols, first.positions, cell=first.cell, pbc=first.pbc)
    times, left = divmod(n_atoms, len(atoms))
    if left or times == 0 or (times > 1 and not all(atoms.pbc)):
        raise ValueError(f"{path}: {len(atoms)} atoms do not make {n_atoms}")
    factor = 2
    while times > 1:
        if times % factor:
            factor += 1
            continue
        times //= factor
        repeats = [1, 1, 1]
        repeats[int(np.argmin(atoms.cell.lengths()))] = factor
        atoms = atoms.repeat(repeats)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300.0, rng=np.random.default_rng(0))
    Stationary(atoms)
    return atoms


def time_dynamics(
    advance: Callable[[int], object], turn: Callable[[], object], seconds: float
) -> dict[str, Any]:
    """Times steps of dynamics in legs, there and back again.

    Args:
        advance: does so many steps, with all that belongs to them.
        turn: changes the sign of the momenta; not timed.
        seconds: how long; at least three legs are timed, of fewer steps where a step is so long
            that legs would not fit.

    Returns:
        `times` of a step in seconds, the mean of each leg; the `steps` of a leg; the mean
        `processor_time` of a step in seconds, of all threads; and `peak_MB`, the largest memory
        that this process has had.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):  # TorchScript optimizes during the second call
        began = time.perf_counter()
        advance(1)
        wait()
        once = time.perf_counter() - began
    leg = max(1, min(LEG, int(seconds / 5.0 / once)))
    advance(leg)
    wait()
    times: list[float] = []
    work = 0.0
    while len(times) < 3 or sum(times) * leg < seconds:
        turn()
        before, began = time.process_time(), time.perf_counter()
        advance(leg)
        wait()
        times.append((time.perf_counter() - began) / leg)
        work += time.process_time() - before
    return {
        "times": times,
        "steps": leg,
        "processor_time": work / len(times) / leg,
        "peak_MB": peak_memory(),
    }


def peak_memory() -> float:
    """The largest resident memory of this process so far, in MB; of a GPU if it has used one."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` counts what ran before in the same process, too
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        assert found is not None
        return int(found[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def time_ase(atoms: Atoms, calculator: Calculator, seconds: float) -> dict[str, Any]:
    """Times the velocity Verlet of ASE with a calculator; see `time_dynamics`."""
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, TIMESTEP_FS * units.fs)

    def turn() -> None:
        atoms.set_momenta(-atoms.get_momenta())

    return time_dynamics(dynamics.run, turn, seconds)


def count(network: torch.nn.Module) -> int:
    """The number of parameters of a network."""
    return sum(each.numel() for each in network.parameters())


def predict(calculator: Calculator, frames: str) -> dict[str, Any]:
    """Energies and forces of all frames of a file, one after the other."""
    energies, forces = [], []
    for atoms in ase.io.read(frames, ":"):
        atoms.calc = calculator
        energies.append(float(atoms.get_potential_energy()))
        forces.append(atoms.get_forces().tolist())
    return {"energies": energies, "forces": forces}


class Watched(NamedTuple):
    """How a program fared."""

    epochs: list[float]
    """Seconds from the beginning of training to the end of each epoch."""
    seconds: float
    """From the beginning of training to its end."""
    stopped: bool
    """Whether it was stopped because its time was up."""


def watch(
    command: Sequence[str],
    log: Path,
    marks: tuple[str, str, str],
    seconds: float = math.inf,
    epochs: float = math.inf,
) -> Watched:
    """Runs a program that trains, keeps what it says, and stops it when its time is up.

    Args:
        command: what to run.
        log: where to append its output.
        marks: patterns of the lines that say that training begins, that an epoch is over, and that
            training is over; what comes before and after does not count.
        seconds: of training after which to stop it.
        epochs: after which to stop it.

    Raises:
        RuntimeError: the program failed.
    """
    begins, ends_epoch, ends = (re.compile(mark) for mark in marks)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTHONUNBUFFERED": "1"}
    began = finished = math.nan
    times: list[float] = []
    stopped = threading.Event()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )

    def stop() -> None:
        stopped.set()
        process.terminate()

    clock = threading.Timer(min(seconds, threading.TIMEOUT_MAX), stop)
    clock.daemon = True
    assert process.stdout is not None
    with log.open("a", encoding="utf-8") as file:
        file.write(" ".join(command) + "\n")
        for line in process.stdout:
            now = time.monotonic()
            file.write(line)
            file.flush()
            if began != began and begins.search(line):
                began = now
                clock.start()
            elif ends_epoch.search(line):
                times.append(now - began)
                if len(times) >= epochs:
                    stop()
            elif ends.search(line):
                finished = now
                clock.cancel()
    status = process.wait()
    clock.cancel()
    if status != 0 and not stopped.is_set():
        raise RuntimeError(f"{command[0]} ended with status {status}; see {log}")
    if finished != finished:
        finished = time.monotonic()
    return Watched(times, finished - began, stopped.is_set())


def epochs_within(seconds: float, pilot: Watched) -> int:
    """How many epochs fit into a time, from how long the first two of a trial took.

    A little less than the whole time is filled, so that a program whose schedule ends with its last
    epoch comes to that end.
    """
    first, second = pilot.epochs[0], pilot.epochs[1] - pilot.epochs[0]
    return max(2, 1 + int((0.96 * seconds - first) / second))
