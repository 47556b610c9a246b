"""Kills `mdlearn simulate` and `mdlearn train` at random moments, and compares what comes of it.

    python benchmarks/kills.py MODEL STRUCTURE [--kills 20] [--steps 1000] [--train FRAMES]

For every ensemble a run is made that nobody disturbs. Then, as often as `--kills` says, the same
run is ended by SIGKILL at a moment drawn evenly from the time that the undisturbed one took, from
when its process started, and goes on with `--resume`; every other one is killed once more. At the
end frames, observables and restart state must be the same, bit for bit. Before the file is there,
there is nothing to resume: then the run starts again. Choose MODEL, STRUCTURE (periodic) and
`--steps` so that a run takes some seconds: a commit is made after every 50 ms, where a user's are
2 s apart, so that there is much to be killed in. With `--train`, trainings on FRAMES likewise; they
save at every step, and must end with the same weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch._dynamo  # noqa: F401  what torch imports late takes longer than a run
from numpy.typing import NDArray
from safetensors.numpy import load_file

from mdlearn import Trajectory
from mdlearn.cli import main as mdlearn
from mdlearn.cli import simulate
from mdlearn.training import loop

ENSEMBLES = ("nve", "langevin", "nose-hoover", "npt")
Contents = dict[str, NDArray[Any]]


class Case(NamedTuple):
    """A command, and what it leaves."""

    name: str
    begin: list[str]
    """Makes `output`."""
    resume: list[str]
    saved: Path
    """Is there as soon as there is something to resume."""
    output: Path
    read: Callable[[Path], Contents]


def trajectory(path: Path) -> Contents:
    """All that a trajectory holds."""
    with Trajectory(path) as found:
        arrays = {"steps": found.steps, "times": found.times_fs}
        everything = slice(None)
        arrays |= {"positions": found.positions(everything), "cells": found.cells(everything)}
        arrays |= {"velocities": found.velocities(everything), "forces": found.forces(everything)}
        arrays |= {name: found.observable(name) for name in found.observable_names}
        return arrays | {f"restart {name}": each for name, each in found.restart().items()}


def weights(folder: Path) -> Contents:
    """All parameters of a model."""
    return load_file(folder / "model.safetensors")


def same(one: Contents, other: Contents) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(
        each.dtype == other[name].dtype
        and each.shape == other[name].shape
        and each.tobytes() == other[name].tobytes()
        for name, each in one.items()
    )


def launch(arguments: list[str], log: Path) -> ForkProcess:
    """`mdlearn` with these arguments, in a process of its own.

    Forked: this process must never differentiate, since torch's threads for that do not survive it.
    """
    process = multiprocessing.get_context("fork").Process(target=work, args=(arguments, log))
    process.start()
    return process


def work(arguments: list[str], log: Path) -> None:
    """What happens in that process."""
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    simulate.COMMIT_S, loop.SAVE_EVERY_S = 0.05, 0.0
    sys.argv = ["mdlearn", *arguments]
    mdlearn()


def discard(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def finish(process: ForkProcess, log: Path) -> None:
    """Waits for the end, which must be a good one."""
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"exit code {process.exitcode}\n{log.read_text(encoding='utf-8')}")


def measure(case: Case, folder: Path, kills: int, dice: random.Random) -> str:
    """A row of the table: the undisturbed run, and all that are killed."""
    log = folder / "log"
    began = time.monotonic()
    finish(launch(case.begin, log), log)
    seconds = time.monotonic() - began
    whole = case.read(case.output)
    signals = early = passed = 0
    for number in range(kills):
        left = 1 + number % 2
        while left == 1 + number % 2:  # a run that ends before its first kill does not count
            discard(case.output)
            arguments = case.begin
            while True:
                process = launch(arguments, log)
                if left == 0:
                    finish(process, log)
                    break
                process.join(dice.uniform(0.0, seconds))
                if process.exitcode is not None:
                    finish(process, log)
                    break
                process.kill()
                process.join()
                left, signals = left - 1, signals + 1
                early += not case.saved.exists()
                arguments = case.resume if case.saved.exists() else case.begin
        passed += same(case.read(case.output), whole)
        print(f"{case.name}: {passed} of {number + 1}", file=sys.stderr, flush=True)
    discard(case.output)
    return f"| {case.name} | {seconds:.1f} | {signals} | {early} | {passed} of {kills} |"


def main() -> None:
    """Prints a table; exit code 1 if one run is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("structure")
    parser.add_argument("--kills", type=int, default=20, help="for each ensemble [%(default)s]")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--timestep", default="0.5", help="fs [%(default)s]")
    parser.add_argument("--temperature", default="300", help="K [%(default)s]")
    parser.add_argument("--ensembles", nargs="*", default=ENSEMBLES)
    parser.add_argument("--train", metavar="FRAMES", help="kill trainings on these, too")
    parser.add_argument("--epochs", type=int, default=20, help="of a training")
    options = parser.parse_args()
    dice = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = []
        for ensemble in options.ensembles:
            output = folder / f"{ensemble}.h5"
            begin = ["simulate", options.model, options.structure, "--ensemble", ensemble]
            begin += ["--steps", str(options.steps), "--timestep", options.timestep]
            begin += ["--temperature", options.temperature, "--output", str(output)]
            resume = ["simulate", "--resume", str(output)]
            cases.append(Case(ensemble, begin, resume, output, output, trajectory))
        if options.train:
            output = folder / "run"
            begin = ["train", options.train, "--features", "8", "--epochs", str(options.epochs)]
            begin += ["--output", str(output), "--overwrite"]
            resume = ["train", "--resume", str(output)]
            saved = output / "training.safetensors"
            cases.append(Case("training", begin, resume, saved, output, weights))
        rows = [measure(case, folder, options.kills, dice) for case in cases]
    print("| | seconds undisturbed | kills | before anything was saved | the same bits |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))
    done = f"{options.kills} of {options.kills} |"
    raise SystemExit(0 if all(row.endswith(done) for row in rows) else 1)


if __name__ == "__main__":
    main()
