"""Training of a propagator: from recordings to a folder with a model in it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdlearn import units
from mdlearn.config import to_toml
from mdlearn.device import PRECISIONS, choose_device
from mdlearn.errors import UnstableError
from mdlearn.files import make_run_folder, refuse_existing, sha256, write_atomically
from mdlearn.potentials.propagator import Propagator, PropagatorSettings, propagate
from mdlearn.potentials.propagator_checkpoint import save_propagator
from mdlearn.potentials.threads import leave_one_thread
from mdlearn.system import System
from mdlearn.training.adam import BETAS, CLIP
from mdlearn.training.config import TrainConfig
from mdlearn.training.dataset import deal
from mdlearn.training.history import to_csv, versions
from mdlearn.training.schedule import WARMUP, Schedule, cosine
from mdlearn.training.statistics import (
    USUAL_CUTOFF,
    average_neighbors,
    choose_cutoff,
    closest_distances,
)
from mdlearn.training.strides import (
    Recording,
    Stride,
    Strides,
    concatenate,
    frames_of_stride,
    split_strides,
    thin,
)

OUTPUTS = ("config.toml", "metrics.csv", "model.safetensors")
GOLDEN_STRUCTURES = 2
LEARNING_RATE = 5e-3


class StrideErrors(NamedTuple):
    """Root mean square errors of strides, on whatever they were measured."""

    loss: float
    position: float
    """In units of what free flight misses: one is no better than that."""
    velocity: float
    """In units of what velocities change by."""
    position_mA: float  # noqa: N815
    """10⁻³ Å."""
    velocity_mA_per_fs: float  # noqa: N815
    """10⁻³ Å/fs."""


class Epoch(NamedTuple):
    """What is known after each epoch."""

    epoch: int
    epochs: int
    """How many there will be, as far as is known."""
    seconds: float
    learning_rate: float
    loss: float
    valid: StrideErrors
    best: bool


class Scale(NamedTuple):
    """What strides are typically like."""

    position: float
    """Å, root mean square of what free flight misses of a component of a position."""
    velocity: float
    """Å·sqrt(eV/u), root mean square of what a component of a velocity changes by."""


class Start(NamedTuple):
    """A training that is about to begin."""

    folder: Path
    config: TrainConfig
    """With what was settled for it."""
    train: Strides
    valid: Strides
    propagator: Propagator
    scale: Scale
    spacing_fs: float
    """Of the frames."""


class Result(NamedTuple):
    """What a training leaves behind."""

    model: Path
    epoch: int
    """The epoch that the model is from; counted from 1."""
    errors: StrideErrors
    history: list[Epoch]


def make_propagator(
    config: TrainConfig, train: Strides, species: tuple[int, ...], cutoff: float
) -> tuple[Propagator, Scale]:
    """The network that a configuration asks for, fitted in size and scale to the strides."""
    assert config.stride_fs is not None
    size = Propagator.sizes[config.size]
    batch = concatenate(train[:])
    mass, dt = batch.system.masses[:, None], config.stride_fs * units.fs
    missed = batch.displacement - batch.momenta / mass * dt
    scale = Scale(_rms(missed), _rms(batch.impulse / mass))
    ways = batch.displacement.norm(dim=1)
    settings = PropagatorSettings(
        stride_fs=config.stride_fs,
        cutoff=cutoff,
        features=config.features or size.features,
        interactions=config.interactions or size.interactions,
        radial=config.radial or size.radial,
        average_neighbors=average_neighbors(train),
        impulse=_rms(batch.impulse),
        displacement=_rms(ways),
        longest=float(ways.max()),
        closest=tuple(closest_distances(train)),
    )
    return Propagator(species, settings), scale


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt().clamp_min(1e-9))


def squares(propagator: Propagator, stride: Stride) -> tuple[Tensor, Tensor]:
    """Mean square errors of a component of a position, Å², and of a velocity, Å² eV/(Å² u), ()."""
    displacement, impulse = propagate(propagator, stride.system, stride.momenta, stride.neighbors)
    velocity = (impulse - stride.impulse) / stride.system.masses[:, None]
    return (displacement - stride.displacement).square().mean(), velocity.square().mean()


def loss_of(position: Tensor, velocity: Tensor, scale: Scale) -> Tensor:
    """The mean of both squares, each in units of what is typical."""
    return 0.5 * (position / scale.position**2 + velocity / scale.velocity**2)


@torch.no_grad()
def measure(propagator: Propagator, batches: Sequence[Stride], scale: Scale) -> StrideErrors:
    """The errors of strides of equal weight."""
    found = torch.tensor([[*squares(propagator, each)] for each in batches])
    weight = torch.tensor([len(each.momenta) for each in batches], dtype=torch.float64)
    position, velocity = ((found * weight[:, None]).sum(0) / weight.sum()).unbind()
    x, v = float(position.sqrt()), float(velocity.sqrt())
    loss = float(loss_of(position, velocity, scale))
    return StrideErrors(
        loss, x / scale.position, v / scale.velocity, 1000.0 * x, 1000.0 * v * units.fs
    )


def fit(
    start: Start, schedule: Schedule, stops: Callable[[int, int], bool]
) -> Iterator[tuple[Epoch, Propagator]]:
    """Trains a propagator, and yields after every pass over the strides.

    Adam with a linear warm-up and then a cosine to zero, of the steps, or of the time where there
    is a budget; validation is of the running average of the weights, which is what is yielded. What
    is drawn at random is a function of the seed and of the pass.

    Args:
        start: what is trained in place, and on what.
        schedule: how long and how.
        stops: called after each step with the step within the pass and their number; returns
            whether to stop there.

    Raises:
        UnstableError: the loss is not a number any more.
    """
    network, scale = start.propagator, start.scale
    averaged = copy.deepcopy(network).requires_grad_(False)
    parameters: list[Tensor] = [*network.parameters()]
    average: list[Tensor] = [*averaged.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=BETAS, weight_decay=0.0)
    sizes = np.array(start.train.sizes())
    costs, limit = (
        (np.ones_like(sizes), schedule.batch_size)
        if schedule.batch_size
        else (sizes, schedule.batch_atoms)
    )
    valid_sizes = np.array(start.valid.sizes())
    groups = deal(np.arange(len(valid_sizes)), valid_sizes, 10 * schedule.batch_atoms)
    valid = [concatenate([start.valid[index] for index in group]) for group in groups]
    began, steps, epoch, lowest, progress = time.monotonic(), 0, 0, math.inf, 0.0
    while progress < 1.0:
        order = np.random.default_rng([schedule.seed, epoch]).permutation(len(sizes))
        groups, losses = deal(order, costs, limit), []
        for step, group in enumerate(groups):
            total = (schedule.epochs or 1) * len(groups)
            batch = concatenate([start.train[index] for index in group])
            loss = loss_of(*squares(network, batch), scale)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            rate = schedule.learning_rate * min((steps + 1) / WARMUP, 1.0 - cosine(progress, 0, 1))
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            decay = min(schedule.ema, (1 + steps) / (10 + steps))
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1.0 - decay)
            losses.append(loss.detach())
            steps += 1
            seconds = time.monotonic() - began
            progress = steps / total if schedule.epochs else seconds / schedule.budget_s
            stop = stops(step + 1, len(groups))
            if progress >= 1.0 or stop:
                break
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise UnstableError(
                f"epoch {epoch + 1}: the loss is {mean}; the best model so far is kept: start again"
                " with a lower --learning-rate"
            )
        errors = measure(averaged, valid, scale)
        epoch += 1
        epochs = schedule.epochs or max(epoch, round(epoch / progress))
        best, lowest = errors.loss < lowest, min(errors.loss, lowest)
        yield Epoch(epoch, epochs, seconds, rate, mean, errors, best), averaged
        if stop:
            return


def train_propagator(
    config: TrainConfig,
    recordings: Sequence[Recording],
    on_start: Callable[[Start], None],
    stops: Callable[[int, int], bool],
    on_epoch: Callable[[Epoch], None],
) -> Result:
    """Trains a propagator and leaves it in the run folder with configuration and metrics.

    Args:
        config: what to train, and how.
        recordings: to learn from.
        on_start: is told before the first step, and before anything is written.
        stops: see `fit`.
        on_epoch: is told after each pass.

    Raises:
        DataError: see `frames_of_stride` and `split_strides`.
        OutputError: the folder exists or cannot be written to.
        UnstableError: see `fit`.
        ResourceError: see `device.choose_device`.
    """
    start = _set_up(config, recordings)
    folder, config = start.folder, start.config
    on_start(start)
    make_run_folder(folder, overwrite=config.overwrite, contents=OUTPUTS)
    write_atomically(folder / "config.toml", to_toml(config).encode())
    schedule = Schedule(
        config.epochs,
        60.0 * config.budget_min,
        None,
        config.batch_size,
        config.learning_rate or LEARNING_RATE,
        config.ema,
        config.seed,
        config.batch_atoms,
    )
    golden = [(each.system, each.momenta) for each in start.valid[:GOLDEN_STRUCTURES]]
    golden = [(System(*(x.cpu() for x in system)), p.cpu()) for system, p in golden]
    history: list[Epoch] = []
    for epoch, averaged in fit(start, schedule, stops):
        history.append(epoch)
        if epoch.best:
            provenance = _provenance(start, epoch)
            save_propagator(folder / "model.safetensors", averaged, provenance, golden)
        write_atomically(folder / "metrics.csv", _metrics(history).encode())
        on_epoch(epoch)
    best = max((each for each in history if each.best), key=lambda each: each.epoch)
    return Result(folder / "model.safetensors", best.epoch, best.valid, history)


def _set_up(config: TrainConfig, recordings: Sequence[Recording]) -> Start:
    """The strides and the network that a configuration asks for."""
    assert config.propagator is not None
    assert config.stride_fs is not None
    stem = config.propagator.name.split(".")[0]
    folder = config.output or Path(f"{stem}-propagator")
    refuse_existing(folder, overwrite=config.overwrite)
    device = choose_device(config.device)
    lengths = {frames_of_stride(each, config.stride_fs) for each in recordings}
    (length,) = lengths  # replicas of one trajectory share their spacing
    train, valid = split_strides(recordings, length, config.valid_fraction)
    cutoff = config.cutoff_A
    if cutoff is None:
        seen = Strides(recordings, thin(train, 100), length, USUAL_CUTOFF, device)
        cutoff = choose_cutoff(seen).radius
        config = config.model_copy(update={"cutoff_A": cutoff})
    strides = Strides(recordings, train, length, cutoff, device)
    species = sorted({int(z) for each in recordings for z in each.system.numbers})
    torch.manual_seed(config.seed)
    propagator, scale = make_propagator(config, strides, tuple(species), cutoff)
    propagator = propagator.to(device, PRECISIONS[config.precision])
    batch = max(config.batch_atoms, (config.batch_size or 1) * max(strides.sizes()))
    leave_one_thread(round(batch * propagator.settings.average_neighbors))
    judged = Strides(recordings, valid, length, cutoff, device)
    times = recordings[0].times_fs
    return Start(folder, config, strides, judged, propagator, scale, float(times[1] - times[0]))


def _metrics(epochs: Sequence[Epoch]) -> str:
    """The history of a training as CSV."""
    rows = [
        (each.epoch, each.seconds, each.learning_rate, each.loss, *each.valid) for each in epochs
    ]
    return to_csv(StrideErrors._fields, rows)


def _provenance(start: Start, epoch: Epoch) -> dict[str, object]:
    """Where a propagator came from, for the header of its file."""
    config = start.config
    assert config.propagator is not None
    return {
        "configuration": config.model_dump(mode="json", by_alias=True, exclude_none=True),
        "trajectory": {"name": config.propagator.name, "sha256": sha256(config.propagator)},
        "counts": {"train": len(start.train), "valid": len(start.valid)},
        "epoch": epoch.epoch,
        "training_seconds": round(epoch.seconds),
        "valid": epoch.valid._asdict(),
        "versions": versions(),
    }
