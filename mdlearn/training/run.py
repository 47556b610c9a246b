"""A training run: from files of frames to a folder with a model in it."""

from __future__ import annotations

import copy
import csv
import io
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import mdlearn
from mdlearn.atoms import Frame, Keys, read_frames
from mdlearn.certificate import certify
from mdlearn.config import to_toml
from mdlearn.device import PRECISIONS, choose_device, choose_threads
from mdlearn.errors import DataError, OutputError
from mdlearn.files import make_run_folder, refuse_existing, sha256, write_atomically
from mdlearn.potentials.architectures import default_size, learning_rate, make_potential
from mdlearn.potentials.checkpoint import Claim, add_certificate, load_model, save_model
from mdlearn.potentials.network import ParametricPotential, Settings
from mdlearn.training.config import TrainConfig
from mdlearn.training.dataset import (
    Example,
    ReferenceEnergies,
    average_neighbors,
    closest_distances,
    concatenate,
    find_species,
    fit_reference_energies,
    force_scale,
    make_example,
    split_frames,
    to,
)
from mdlearn.training.loop import Epoch, Schedule, fit
from mdlearn.training.loss import Errors, Weights, measure

ATOMS_PER_BATCH = 100
GOLDEN_STRUCTURES = 2
OUTPUTS = ("config.toml", "metrics.csv", "model.safetensors")


class Data(NamedTuple):
    """The frames of a run, and what was settled about them."""

    train: list[Frame]
    valid: list[Frame]
    test: list[Frame]
    keys: Keys
    reference: ReferenceEnergies
    batch_size: int


class Result(NamedTuple):
    """What a run leaves behind."""

    model: Path
    epoch: int
    """The epoch that the model is from; counted from 1."""
    valid: Errors
    test: Errors | None
    certificate: tuple[Claim, ...]


class Watcher(NamedTuple):
    """Whom a run tells how it goes."""

    on_data: Callable[[Data, ParametricPotential], None]
    """Before the first step."""
    on_step: Callable[[int, int], None]
    """After each step: steps done in this epoch, and steps in an epoch."""
    on_epoch: Callable[[Epoch], bool]
    """After each epoch; returns whether to go on."""


def read_data(config: TrainConfig) -> Data:
    """Reads, checks and splits the frames that a configuration names.

    Raises:
        DataError: see `atoms.read_frames`; or there are fewer than two frames; or validation or
            test frames have elements that the training frames have not.
    """

    def read(path: Path | None) -> tuple[list[Frame], Keys | None]:
        if path is None:
            return [], None
        return read_frames(
            path,
            energy_key=config.energy_key,
            forces_key=config.forces_key,
            stress_key=config.stress_key,
            dipole_key=config.dipole_key,
            energy_only=config.energy_only or path == config.isolated_atoms,
            skip_bad=config.skip_bad,
        )

    frames, keys = read(config.frames)
    valid, test = read(config.valid)[0], read(config.test)[0]
    isolated = read(config.isolated_atoms)[0]
    isolated += [frame for frame in frames if len(frame.system.numbers) == 1]
    frames = [frame for frame in frames if len(frame.system.numbers) > 1]
    if len(frames) < (1 if valid else 2):
        raise DataError(
            f"{config.frames}: {len(frames)} usable frames of more than one atom; expected at least"
            " two, one to train on and one to validate on"
        )
    if not valid:
        generator = np.random.default_rng(config.seed)
        frames, valid = split_frames(frames, config.valid_fraction, generator)
    known = set(find_species([*frames, *isolated]))
    for frame in [*valid, *test]:
        unknown = set(frame.system.numbers.tolist()) - known
        if unknown:
            raise DataError(
                f"{frame.name}: has elements that the training frames have not (atomic numbers"
                f" {sorted(unknown)}); add such frames to {config.frames}, or leave this one out"
            )
    mean_atoms = np.mean([len(frame.system.numbers) for frame in frames])
    size = config.batch_size or max(1, round(ATOMS_PER_BATCH / float(mean_atoms)))
    assert keys is not None
    return Data(frames, valid, test, keys, fit_reference_energies(frames, isolated), size)


def train(config: TrainConfig, watcher: Watcher) -> Result:
    """Trains a model and leaves it in the run folder with the configuration and the metrics.

    The folder is written as the run goes: `config.toml` first, `metrics.csv` after every epoch, and
    `model.safetensors` whenever the validation loss is the lowest yet, so it always holds the best
    model so far. At the end that one receives its physics certificate.

    Raises:
        DataError: see `read_data`.
        OutputError: the folder exists or cannot be written to.
        UnstableError: see `loop.fit`.
        ResourceError: see `device.choose_device`.
    """
    folder = config.output or Path(f"{config.frames.name.split('.')[0]}-run")
    refuse_existing(folder, overwrite=config.overwrite)
    device = choose_device(config.device)
    data = read_data(config)
    torch.manual_seed(config.seed)
    examples = [make_example(frame, config.cutoff_A) for frame in data.train]
    choose_threads(data.batch_size * max(each.neighbors.j.numel() for each in examples))
    network = make_network(config, data, examples).to(device, PRECISIONS[config.precision])
    averaged = copy.deepcopy(network)
    make_run_folder(folder, overwrite=config.overwrite, contents=OUTPUTS)
    resolved = config.model_copy(update={"output": folder, "batch_size": data.batch_size})
    write_atomically(folder / "config.toml", to_toml(resolved).encode())
    watcher.on_data(data, network)

    weights = Weights(
        config.energy_weight, config.forces_weight, config.stress_weight, config.dipole_weight
    )
    schedule = Schedule(
        config.epochs,
        60.0 * config.budget_min,
        config.patience,
        data.batch_size,
        config.learning_rate or learning_rate(config.model),
        config.ema,
        config.seed,
    )
    train_set = [to(example, device) for example in examples]
    valid_set = _in_batches(data.valid, config.cutoff_A, data.batch_size, device)
    epochs: list[Epoch] = []
    best: Epoch | None = None
    for epoch in fit(network, averaged, train_set, valid_set, weights, schedule, watcher.on_step):
        epochs.append(epoch)
        if epoch.best:
            best = epoch
            provenance = _provenance(resolved, data, epoch)
            golden = [frame.system for frame in data.valid[:GOLDEN_STRUCTURES]]
            save_model(folder / "model.safetensors", averaged, provenance, golden)
        write_atomically(folder / "metrics.csv", _metrics(epochs).encode())
        if not watcher.on_epoch(epoch):
            break
    if best is None:
        raise OutputError(f"{folder}: stopped before there was a model; run again with --overwrite")
    test = None
    if data.test:
        final = load_model(folder, PRECISIONS[config.precision]).network.to(device)
        batches = _in_batches(data.test, config.cutoff_A, data.batch_size, device)
        test = measure(final, batches, weights, network.settings.scale)
    path = folder / "model.safetensors"
    exact, single = load_model(path, torch.float64), load_model(path, torch.float32)
    certificate = certify(exact.network, single.network, exact.golden)
    add_certificate(path, certificate)
    return Result(path, best.epoch, best.valid, test, certificate)


def make_network(
    config: TrainConfig, data: Data, examples: Sequence[Example]
) -> ParametricPotential:
    """The network that a configuration asks for, fitted in size and scale to the frames."""
    size = default_size(config.model, config.size)
    settings = Settings(
        architecture=config.model,
        cutoff=config.cutoff_A,
        features=config.features or size.features,
        interactions=config.interactions or size.interactions,
        radial=config.radial or size.radial,
        average_neighbors=average_neighbors(examples),
        scale=force_scale(data.train),
        closest=tuple(closest_distances(examples)),
        parity=config.parity,
        dipole=data.keys.dipole is not None and config.dipole_weight > 0.0,
    )
    species = tuple(sorted(data.reference.energies))
    return make_potential(species, data.reference.energies, settings)


def _in_batches(
    frames: Sequence[Frame], cutoff: float, size: int, device: torch.device
) -> list[Example]:
    examples = [make_example(frame, cutoff) for frame in frames]
    groups = (examples[first : first + size] for first in range(0, len(examples), size))
    return [to(concatenate(group), device) for group in groups]


def _metrics(epochs: Sequence[Epoch]) -> str:
    """The history of a run as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [f"valid_{name}" for name in Errors._fields]
    writer.writerow(["epoch", "seconds", "learning_rate", "train_loss", *names])
    for each in epochs:
        row = (each.seconds, each.learning_rate, each.loss, *each.valid)
        writer.writerow([each.epoch, *(f"{value:.6g}" for value in row)])
    return stream.getvalue()


def _provenance(config: TrainConfig, data: Data, epoch: Epoch) -> dict[str, Any]:
    """Where a model came from, for the header of its file."""
    return {
        "configuration": config.model_dump(mode="json", by_alias=True, exclude_none=True),
        "frames": {"name": config.frames.name, "sha256": sha256(config.frames)},
        "counts": {"train": len(data.train), "valid": len(data.valid)},
        "label_keys": data.keys._asdict(),
        "reference_energies": data.reference.source,
        "epoch": epoch.epoch,
        "training_seconds": round(epoch.seconds),
        # JSON has no NaN; a quantity without labels has no error.
        "valid": {name: value for name, value in epoch.valid._asdict().items() if value == value},
        "versions": {
            "mdlearn": mdlearn.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }
