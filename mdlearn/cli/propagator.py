"""`mdlearn train --propagator`."""

from __future__ import annotations

from pathlib import Path

import ase
from rich.table import Table

from mdlearn.atoms import to_system
from mdlearn.cli.console import Line, err, hms, interruptible, out
from mdlearn.training.comparison import digits
from mdlearn.training.config import TrainConfig
from mdlearn.training.propagator import Epoch, Start, train_propagator
from mdlearn.training.strides import Recording
from mdlearn.trajectory import Trajectory


def run(config: TrainConfig) -> int:
    """Trains a propagator, and says what came of it."""
    assert config.propagator is not None
    recordings = read_recordings(config.propagator)
    last: list[Epoch] = []
    with Line() as line, interruptible() as interruption:
        interruption.at_once = True

        def on_start(start: Start) -> None:
            interruption.at_once = False
            _describe(start, len(recordings))

        def stops(step: int, steps: int) -> bool:
            line.show(f"{_progress(last[-1]) if last else 'first epoch'} | step {step}/{steps}")
            return interruption.received > 0

        def on_epoch(epoch: Epoch) -> None:
            last.append(epoch)
            line.show(_progress(epoch))

        result = train_propagator(config, recordings, on_start, stops, on_epoch)
    x, v, position, velocity = result.errors[1:]
    table = Table(box=None, pad_edge=False)
    for name in ("rms errors of a stride", "positions\nmÅ", "velocities\nmÅ/fs"):
        table.add_column(name, justify="left" if table.columns == [] else "right")
    table.add_row("validation", digits(position), digits(velocity))
    table.add_row("free flight", digits(position / x), digits(velocity / v))
    out.print(table)
    out.print(f"{last[-1].epoch} epochs in {hms(last[-1].seconds)}; best: epoch {result.epoch}")
    out.print(f"propagator in {result.model}")
    folder = result.model.parent
    out.print(f"next: mdlearn simulate {folder} {config.propagator} --integrator learned")
    return 128 + interruption.received if interruption.received else 0


def read_recordings(path: Path) -> list[Recording]:
    """The replicas of a trajectory.

    Raises:
        DataError, OutputError: see `Trajectory`.
    """
    with Trajectory(path) as trajectory:
        count = trajectory.n_replicas
    recordings = []
    for replica in range(count):
        with Trajectory(path, replica) as trajectory:
            chosen = slice(len(trajectory))
            positions = trajectory.positions(chosen)
            atoms = ase.Atoms(
                trajectory.numbers,
                positions[0],
                cell=trajectory.cells(0),
                pbc=trajectory.pbc,
                masses=trajectory.masses,
            )
            recordings.append(
                Recording(
                    f"{path}, replica {replica}" if count > 1 else str(path),
                    to_system(atoms),
                    positions,
                    trajectory.velocities(chosen),
                    trajectory.cells(chosen),
                    trajectory.times_fs[chosen],
                )
            )
    return recordings


def _describe(start: Start, count: int) -> None:
    """Says what goes in, before the wait."""
    config, settings = start.config, start.propagator.settings
    err.print(
        f"strides     {len(start.train)} to train, {len(start.valid)} to validate, of"
        f" {settings.stride_fs:g} fs; frames every {start.spacing_fs:g} fs of"
        f" {count} system{'s' if count > 1 else ''}"
    )
    weights = sum(each.numel() for each in start.propagator.parameters())
    err.print(f"network     propagator, {weights:,} weights, cutoff {settings.cutoff} Å")
    length = f"{config.epochs} epochs" if config.epochs else f"{config.budget_min:.3g} min"
    err.print(f"length      {length}, seed {config.seed}")


def _progress(epoch: Epoch) -> str:
    valid = epoch.valid
    left = epoch.seconds / epoch.epoch * (epoch.epochs - epoch.epoch)
    return (
        f"epoch {epoch.epoch}/{epoch.epochs} | loss {epoch.loss:.5f}, valid {valid.loss:.5f} |"
        f" {valid.position_mA:.3g} mÅ, {valid.velocity_mA_per_fs:.3g} mÅ/fs | {hms(left)} left"
    )
