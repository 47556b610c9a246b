"""`mdlearn train`."""

from __future__ import annotations

import math

from rich.table import Table

from mdlearn.cli.check import summary
from mdlearn.cli.console import Line, err, hms, interruptible, out
from mdlearn.cli.options import verb
from mdlearn.potentials.network import ParametricPotential
from mdlearn.training.config import TrainConfig
from mdlearn.training.loop import Epoch
from mdlearn.training.loss import Errors
from mdlearn.training.run import Data, Result, Watcher, train


def run(config: TrainConfig) -> int:
    """Trains, and says what came of it."""
    with Line() as line, interruptible() as interruption:
        last: list[Epoch] = []

        def on_data(data: Data, network: ParametricPotential) -> None:
            _describe(config, data, network)

        def on_step(step: int, steps: int) -> None:
            line.show(f"{_progress(last[-1]) if last else 'first epoch'} | step {step}/{steps}")
            if interruption.received and not last:
                raise KeyboardInterrupt

        def on_epoch(epoch: Epoch) -> bool:
            last.append(epoch)
            line.show(_progress(epoch))
            return not interruption.received

        result = train(config, Watcher(on_data, on_step, on_epoch))
    report(config, result, last[-1])
    return 128 + interruption.received if interruption.received else 0


def _describe(config: TrainConfig, data: Data, network: ParametricPotential) -> None:
    """Says what goes in, before the long wait."""
    keys = data.keys
    n_test = f", {len(data.test)} to test" if data.test else ""
    err.print(f"frames      {len(data.train)} to train, {len(data.valid)} to validate{n_test}")
    err.print(
        f"labels      energy from '{keys.energy}'"
        + (f", forces from '{keys.forces}'" if keys.forces else ", no forces")
        + (f", stress from '{keys.stress}'" if keys.stress else ", no stress")
        + (f", dipole from '{keys.dipole}'" if keys.dipole else "")
        + f" (taken as eV, eV/Å, eV/Å³{', e Å' if keys.dipole else ''})"
    )
    err.print(f"atoms       energies of isolated atoms: {data.reference.source}")
    weights = sum(each.numel() for each in network.parameters())
    err.print(
        f"network     {config.model}, {weights:,} weights, cutoff {config.cutoff_A} Å,"
        f" {network.settings.average_neighbors:.1f} neighbors per atom"
    )
    length = f"{config.epochs} epochs" if config.epochs else f"{config.budget_min:.3g} min"
    size = f"{data.batch_size} frames" if data.batch_size > 1 else "one frame"
    err.print(f"training    {length}, {size} per step, seed {config.seed}")


def _progress(epoch: Epoch) -> str:
    valid = epoch.valid
    left = epoch.seconds / epoch.epoch * (epoch.epochs - epoch.epoch)
    return (
        f"epoch {epoch.epoch}/{epoch.epochs} | loss {epoch.loss:.4f}, valid {valid.loss:.4f} | E"
        f" {valid.energy_mae_meV_per_atom:.2f} meV/atom | F {valid.forces_mae_meV_per_A:.1f} meV/Å"
        f" | {hms(left)} left"
    )


def report(config: TrainConfig, result: Result, last: Epoch) -> None:
    """The errors of the model and where it is."""
    table = error_table()
    add_errors(table, "validation", result.valid)
    if result.test:
        add_errors(table, "test", result.test)
    out.print(table)
    out.print(f"{last.epoch} epochs in {hms(last.seconds)}; best: epoch {result.epoch}")
    out.print(f"certificate: {summary(result.certificate)}")
    out.print(f"model in {result.model}")
    out.print(f"next: mdlearn simulate {result.model.parent} {config.frames}")


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
    table.add_row(name, *(_figure(x) for x in errors[:6]))


def _figure(value: float) -> str:
    """Three digits, without an exponent; a dash for what was not measured."""
    if math.isnan(value):
        return "–"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


command = verb(
    "train",
    TrainConfig,
    ["frames"],
    run,
    """Train a potential on FRAMES: labelled structures in any format that ASE reads.

    Energies in eV, forces in eV/Å, stress in eV/Å³. The run folder receives the model, the resolved
    configuration (config.toml) and the metrics of every epoch (metrics.csv). Ctrl-C ends the
    training and keeps the best model so far.

    \b
    Example:
      mdlearn train ethanol.xyz --budget 10min --output ethanol-run
    """,
)
