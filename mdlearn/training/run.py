"""A training run: from files of frames to a folder with a model in it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mdlearn.atoms import Frame
from mdlearn.certificate import certify
from mdlearn.config import to_toml
from mdlearn.device import PRECISIONS, choose_device
from mdlearn.errors import is_out_of_memory
from mdlearn.files import make_run_folder, write_atomically
from mdlearn.potentials.checkpoint import Claim, add_certificate, load_model, save_model
from mdlearn.potentials.network import ParametricPotential
from mdlearn.report import REPORT_OUTPUTS, open_tensorboard, write_report
from mdlearn.training.config import TrainConfig
from mdlearn.training.dataset import Batches, Examples, frame_sizes
from mdlearn.training.history import to_csv, versions
from mdlearn.training.loop import Epoch, fit
from mdlearn.training.loss import Errors, measure
from mdlearn.training.readout import find_readout, solve_readout
from mdlearn.training.schedule import balance
from mdlearn.training.start import STATE, Start, prepare, resume
from mdlearn.training.statistics import find_species, sample
from mdlearn.training.step import MOST_PARTS
from mdlearn.training.team import assemble

GOLDEN_STRUCTURES = 2
WRITE_EVERY_S = 5.0
"""Seconds between two looks that others may take at a training."""
FRAMES_TO_SOLVE = 1000
"""For the last layer; hundreds of numbers are to be had from them."""
ATOMS_TO_SOLVE = 500
"""In a frame, on an average. It takes as many passes over frames, whatever their size: for these,
minutes."""
ROUNDS_OF_SOLVING = 2
SOLVED = "last_layer_solved_for"
"""What a model file says once that is so."""
OUTPUTS = ("config.toml", "metrics.csv", "model.safetensors", STATE, *REPORT_OUTPUTS, "tensorboard")


class Result(NamedTuple):
    """What a run leaves behind."""

    model: Path
    epoch: int
    """The epoch that the model is from; counted from 1."""
    errors: dict[str, Errors]
    """By what they were measured on, for people."""
    certificate: tuple[Claim, ...]
    history: list[Epoch]


class Watcher(NamedTuple):
    """Whom a run tells how it goes."""

    on_start: Callable[[Start], None]
    """Before the first step, and before anything is written."""
    stops: Callable[[int, int], bool]
    """After each step: steps done in this epoch, and steps in an epoch; returns whether to stop."""
    on_epoch: Callable[[Epoch], None]
    """After each epoch."""


def train(config: TrainConfig, watcher: Watcher) -> Result | None:
    """Trains a model and leaves it in the run folder with the configuration and the metrics.

    The folder is written as the run goes: `config.toml` first, and every few seconds `metrics.csv`
    and the best model so far, that of the lowest validation loss. `training.safetensors` is what
    `--resume` goes on from; it goes when the training is finished and the model has received its
    physics certificate.

    Returns:
        None if it was stopped before its end, and in all processes of a team but the first.

    Raises:
        DataError: see `start.read_data`; or the frames of a resumed training are not what they
            were.
        OutputError: the folder exists or cannot be written to.
        UnstableError: see `loop.fit`.
        ResourceError: see `device.choose_device` and `loop.fit`.
    """
    device = choose_device(config.device)
    with assemble(device) as team:
        start = resume(config, device, team) if config.resume else prepare(config, device, team)
        folder, training = start.folder, start.training
        watcher.on_start(start)
        if team.rank == 0 and not config.resume:
            _open_folder(start)
        valid = Batches(
            Examples(team.share(start.data.valid), start.examples.cutoff, device),
            start.config.batch_atoms,
        )
        outputs = Outputs(start)
        epochs = fit(
            training,
            start.examples,
            valid,
            watcher.stops,
            path=folder / STATE,
            before_saving=outputs.write,
            team=team,
            most_parts=MOST_PARTS if start.config.auto_batch else 1,
        )
        wanted = start.config.tensorboard and team.rank == 0
        log = open_tensorboard(folder / "tensorboard") if wanted else None
        try:
            for epoch in epochs:
                if team.rank == 0:
                    outputs.add(epoch)
                if log:
                    scalars = {f"valid/{name}": x for name, x in epoch.valid._asdict().items()}
                    scalars |= {"loss/train": epoch.loss, "learning_rate": epoch.learning_rate}
                    log(epoch.epoch, scalars)
                watcher.on_epoch(epoch)
        finally:
            if team.rank == 0:
                outputs.write()
        if team.rank > 0 or not training.finished():
            return None
        return _finish(start, device)


def _open_folder(start: Start) -> None:
    """Makes the folder of a new training, with its configuration."""
    folder, config = start.folder, start.config
    make_run_folder(folder, overwrite=config.overwrite, contents=OUTPUTS)
    # A training may be resumed from another folder.
    inputs = {name: value.resolve() for name, value in config if isinstance(value, Path)}
    stored = config.model_copy(update={**inputs, "output": folder})
    write_atomically(folder / "config.toml", to_toml(stored).encode())


class Outputs:
    """What a run folder shows of a training.

    It is written every few seconds, as an epoch may take less than files do, and before the state
    of the training is: so of what that has, nothing is missing.
    """

    def __init__(self, start: Start) -> None:
        """Writes nothing yet."""
        self.start = start
        self.network = copy.deepcopy(start.training.averaged)
        """The best so far."""
        self.best: Epoch | None = None
        """That it is from, if it has not been written."""
        self.shown = len(start.training.history)
        """Epochs that have been."""
        self.written = -math.inf

    def add(self, epoch: Epoch) -> None:
        """Takes note of what an epoch has brought."""
        if epoch.best:
            with torch.no_grad():
                averaged = self.start.training.averaged.parameters()
                torch._foreach_copy_(list(self.network.parameters()), list(averaged))
            self.best = epoch
        if time.monotonic() - self.written > WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Writes what has not been written."""
        folder, data, history = self.start.folder, self.start.data, self.start.training.history
        if self.best:
            golden = [frame.system for frame in data.valid[:GOLDEN_STRUCTURES]]
            provenance = _provenance(self.start, self.best)
            save_model(folder / "model.safetensors", self.network, provenance, golden)
            self.best = None
        if self.shown < len(history):
            write_atomically(folder / "metrics.csv", _metrics(history).encode())
            self.shown = len(history)
        self.written = time.monotonic()


def _finish(start: Start, device: torch.device) -> Result:
    """The best model with its last layer solved for, its errors, and its certificate."""
    folder, config, history = start.folder, start.config, start.training.history
    path, dtype = folder / "model.safetensors", PRECISIONS[config.precision]
    best = max((each for each in history if each.best), key=lambda each: each.epoch)
    model = load_model(path, dtype)
    network = model.network.to(device)
    errors: dict[str, Errors | None] = {}
    if start.old:
        before = start.old.network.to(device)
        errors["validation, before"] = _errors_of(before, start.data.valid, start)
    errors["validation"] = best.valid
    if SOLVED in model.provenance:  # and killed after that
        errors["validation"] = _errors_of(network, start.data.valid, start)
    elif _solve(network, start):
        errors["validation, as learned"] = errors.pop("validation")
        errors["validation"] = valid = _errors_of(network, start.data.valid, start)
        provenance = _provenance(start, best._replace(valid=valid or best.valid)) | {SOLVED: True}
        save_model(path, network, provenance, model.golden)
    errors["test"] = _errors_of(network, start.data.test, start)
    if start.old:
        errors["its own validation, before"] = _errors_of(before, start.old.valid, start)
        errors["its own validation, now"] = _errors_of(network, start.old.valid, start)
    exact, single = load_model(path, torch.float64), load_model(path, torch.float32)
    certificate = certify(exact.network, single.network, exact.golden)
    add_certificate(path, certificate)
    elements = set(network.species)
    shown = {"validation": start.data.valid, "test": start.data.test}
    write_report(
        folder, {n: e for n, e in shown.items() if elements >= set(find_species(e))}, device
    )
    (folder / STATE).unlink(missing_ok=True)
    known = {name: each for name, each in errors.items() if each is not None}
    return Result(path, best.epoch, known, certificate, history)


def _errors_of(
    network: ParametricPotential, frames: Sequence[Frame], start: Start
) -> Errors | None:
    """The errors of a network, if there are frames, all of elements that it knows."""
    known = set(network.species) >= set(find_species(frames))
    if not frames or not known:
        return None
    weights, device = balance(start.training.weights, 1.0), network.wall.start.device
    batches = Batches(Examples(frames, network.cutoff, device), start.config.batch_atoms)
    return measure(network, batches, weights, network.settings.scale)


def _product(errors: Errors | None) -> float:
    """Of the errors of energies and forces: a tenth off one is worth a tenth on the other."""
    if errors is None:
        return math.nan
    parts = errors.energy_mae_meV_per_atom, errors.forces_mae_meV_per_A
    return math.prod(each for each in parts if each == each)


def _solve(potential: ParametricPotential, start: Start) -> bool:
    """Solves for the last layer of a potential, as long as validation frames are better off.

    Returns:
        Whether it has changed.
    """
    network = find_readout(potential)
    if find_readout(start.training.network) is None or network is None:
        return False
    data, solved = start.data, False
    frames = sample(data.train, most=FRAMES_TO_SOLVE)
    if sum(frame_sizes(frames)) > ATOMS_TO_SOLVE * len(frames):
        return False
    examples = Examples(frames, potential.cutoff, potential.wall.start.device)
    batches = Batches(examples, start.config.batch_atoms)
    best = _product(_errors_of(potential, data.valid, start))
    kept = copy.deepcopy(network.energy_head.state_dict())
    try:
        for _ in range(ROUNDS_OF_SOLVING):
            solve_readout(potential, network, batches, balance(start.training.weights, 1.0))
            found = _product(_errors_of(potential, data.valid, start))
            if not found < best:
                break
            best, solved = found, True
            kept = copy.deepcopy(network.energy_head.state_dict())
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    network.energy_head.load_state_dict(kept)
    return solved


def _metrics(epochs: Sequence[Epoch]) -> str:
    """The history of a training as CSV."""
    rows = [
        (each.epoch, each.seconds, each.learning_rate, each.loss, *each.valid) for each in epochs
    ]
    return to_csv(Errors._fields, rows)


def _provenance(start: Start, epoch: Epoch) -> dict[str, Any]:
    """Where a model came from, for the header of its file."""
    config, data = start.config, start.data
    assert config.frames is not None
    return {
        "configuration": config.model_dump(mode="json", by_alias=True, exclude_none=True),
        "frames": {"name": config.frames.name, "sha256": start.sha256},
        "counts": {"train": len(data.train), "valid": len(data.valid)},
        "label_keys": data.keys._asdict(),
        "reference_energies": start.reference,
        "epoch": epoch.epoch,
        "training_seconds": round(epoch.seconds),
        # JSON has no NaN; a quantity without labels has no error.
        "valid": {name: value for name, value in epoch.valid._asdict().items() if value == value},
        "versions": versions(),
    }
