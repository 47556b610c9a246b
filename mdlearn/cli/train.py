"""`mdlearn train`."""

from __future__ import annotations

import os
from pathlib import Path

from rich.table import Table

from mdlearn.cli import propagator
from mdlearn.cli.check import summary
from mdlearn.cli.console import Line, counted, err, hms, interruptible, out
from mdlearn.cli.inputs import COMPILING
from mdlearn.cli.options import verb
from mdlearn.training.comparison import digits
from mdlearn.training.config import TrainConfig
from mdlearn.training.loop import Epoch
from mdlearn.training.loss import Errors
from mdlearn.training.run import Result, Watcher, train
from mdlearn.training.start import Start


def run(config: TrainConfig) -> int:
    """Trains, and says what came of it."""
    if config.propagator:
        return propagator.run(config)
    if int(os.environ.get("RANK", "0")) > 0:  # torchrun's: the first process speaks for all
        out.quiet = err.quiet = True
    starts: list[Start] = []
    with Line() as line, interruptible() as interruption:
        last: list[Epoch] = []
        parts, slow = 1, ""
        interruption.at_once = True

        def on_start(start: Start) -> None:
            interruption.at_once = False
            starts.append(start)
            last.extend(start.training.history)
            _describe(start)
            if start.training.loops:
                line.show(COMPILING)

        def stops(step: int, steps: int) -> bool:
            nonlocal slow
            if slow != (slow := starts[0].training.without_loops):
                err.print(f"gradient    {slow}; by autograd instead, which is slower")
            line.show(f"{_progress(last[-1]) if last else 'first epoch'} | step {step}/{steps}")
            return interruption.received > 0

        def on_epoch(epoch: Epoch) -> None:
            nonlocal parts
            last.append(epoch)
            if (now := starts[0].training.parts) > parts:
                parts = now
                err.print(f"memory      ran out; batches are computed in {parts} parts")
            line.show(_progress(epoch))

        result = train(config, Watcher(on_start, stops, on_epoch))
    if result:
        report(result, config.frames or starts[0].config.frames)
        return 0
    if interruption.received:
        folder = starts[0].folder
        done = counted(len(last), "epoch")
        err.print(f"interrupted after {done}; go on: mdlearn train --resume {folder}")
    return 128 + interruption.received if interruption.received else 0


def _describe(start: Start) -> None:
    """Says what goes in, before the long wait."""
    config, data, keys, training = start.config, start.data, start.data.keys, start.training
    network = training.network
    n_test = f", {len(data.test)} to test" if data.test else ""
    err.print(f"frames      {len(data.train)} to train, {len(data.valid)} to validate{n_test}")
    err.print(
        f"labels      energy from '{keys.energy}'"
        + (f", forces from '{keys.forces}'" if keys.forces else ", no forces")
        + (f", stress from '{keys.stress}'" if keys.stress else ", no stress")
        + (f", dipole from '{keys.dipole}'" if keys.dipole else "")
        + f" (taken as eV, eV/Å, eV/Å³{', e Å' if keys.dipole else ''})"
    )
    for each in start.findings:
        which = f" ({', '.join(each.frames)}; {each.total} in all)" if each.frames else ""
        err.print(f"data        {each.name}: {each.message}{which}; {each.fix}")
    err.print(f"atoms       energies of isolated atoms: {start.reference}")
    weights = sum(each.numel() for each in network.parameters())
    frozen = weights - sum(each.numel() for each in training.parameters)
    err.print(
        f"network     {network.settings.architecture}, {weights:,} weights"
        + (f" ({frozen:,} frozen)" if frozen else "")
    )
    why = start.reasons
    heard = f"{network.settings.average_neighbors:.0f} neighbors per atom"
    err.print(f"cutoff      {network.cutoff} Å: {heard} ({why['cutoff']})")
    if start.old:
        err.print(f"start       the weights of {config.from_}")
    length = counted(config.epochs, "epoch") if config.epochs else f"{config.budget_min:.3g} min"
    size = (
        counted(config.batch_size, "frame")
        if config.batch_size
        else counted(config.batch_atoms, "atom")
    )
    err.print(f"batch       {size} per step ({why['batch']})")
    err.print(f"length      {length} ({why['length']})")
    err.print(f"loss        {config.loss}, seed {config.seed}")
    if training.history:
        err.print(f"resumed     after {counted(len(training.history), 'epoch')}")


def _progress(epoch: Epoch) -> str:
    valid = epoch.valid
    left = epoch.seconds / epoch.epoch * (epoch.epochs - epoch.epoch)
    return (
        f"epoch {epoch.epoch}/{epoch.epochs} | loss {epoch.loss:.4f}, valid {valid.loss:.4f} | E"
        f" {valid.energy_mae_meV_per_atom:.2f} meV/atom | F {valid.forces_mae_meV_per_A:.1f} meV/Å"
        f" | {hms(left)} left"
    )


def report(result: Result, frames: Path | None) -> None:
    """The errors of the model and where it is."""
    table = error_table()
    for name, errors in result.errors.items():
        add_errors(table, name, errors)
    out.print(table)
    last = result.history[-1]
    out.print(f"{counted(last.epoch, 'epoch')} in {hms(last.seconds)}; best: epoch {result.epoch}")
    out.print(f"certificate: {summary(result.certificate)}")
    out.print(f"model in {result.model}")
    out.print(f"next: mdlearn simulate {result.model.parent} {frames}")


def error_table() -> Table:
    """An empty table of errors."""
    table = Table(box=None, pad_edge=False)
    table.add_column("mean absolute errors")
    for name in (
        "energy\nmeV",
        "energy\nmeV/atom",
        "forces\nmeV/Å",
        "(rmse)\nmeV/Å",
        "stress\nmeV/Å³",
        "dipole\nme Å",
    ):
        table.add_column(name, justify="right")
    return table


def add_errors(table: Table, name: str, errors: Errors) -> None:
    """Adds a row of errors; a dash where there are no labels."""
    table.add_row(name, *(digits(x) for x in errors[:6]))


command = verb(
    "train",
    TrainConfig,
    ["frames"],
    run,
    """Train a potential on FRAMES: labelled structures in any format that ASE reads.

    Energies in eV, forces in eV/Å, stress in eV/Å³. The run folder receives the model, the resolved
    configuration (config.toml) and the metrics of every epoch (metrics.csv). A training that was
    stopped, by Ctrl-C, a signal or a power cut, goes on with --resume as if nothing had happened.

    With --propagator, train on a trajectory of `mdlearn simulate` instead: a network that takes
    atoms over a whole --stride (fs) of time at once, without forces, and for a while.

    \b
    Example:
      mdlearn train ethanol.xyz --budget 10min --output ethanol-run
      mdlearn train --resume ethanol-run
      mdlearn train my-frames.xyz --from ethanol-run --freeze products.0
      mdlearn train --propagator nve.h5 --stride 4fs --budget 5min --output ethanol-4fs
      torchrun --nproc-per-node 2 -m mdlearn train ethanol.xyz
    """,
)
