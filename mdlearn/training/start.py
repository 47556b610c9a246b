"""What a training begins with, new or saved: frames, a network and a schedule."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mdlearn.atoms import Frame, read_frames
from mdlearn.config import resolve
from mdlearn.device import PRECISIONS
from mdlearn.doctor import Finding, examine, refused, require_findings
from mdlearn.errors import DataError, MDLearnError, UsageError
from mdlearn.files import refuse_existing, sha256
from mdlearn.labels import Keys
from mdlearn.potentials.architectures import (
    default_size,
    learning_rate,
    long_training,
    make_potential,
)
from mdlearn.potentials.checkpoint import Model, load_model
from mdlearn.potentials.classical import PairPotential
from mdlearn.potentials.network import ParametricPotential, Settings
from mdlearn.potentials.threads import leave_one_thread
from mdlearn.training.config import TrainConfig
from mdlearn.training.dataset import Example, Examples, frame_sizes, select, split_frames
from mdlearn.training.finetune import SLOWER, adapt, freeze
from mdlearn.training.guess import begin
from mdlearn.training.loop import Training
from mdlearn.training.loss import Weights
from mdlearn.training.schedule import Schedule
from mdlearn.training.statistics import (
    USUAL_CUTOFF,
    Cutoff,
    average_neighbors,
    choose_cutoff,
    closest_distances,
    find_species,
    fit_reference_energies,
    force_scale,
    largest_forces,
    neighbor_counts,
    sample,
)
from mdlearn.training.team import ALONE, Team

STATE = "training.safetensors"
"""What a training that is not finished goes on from."""


class Data(NamedTuple):
    """The frames of a run, and what was settled about them."""

    train: Sequence[Frame]
    valid: Sequence[Frame]
    test: Sequence[Frame]
    isolated: list[Frame]
    """Single atoms."""
    keys: Keys


class Old(NamedTuple):
    """The model that a fine-tuning starts from."""

    network: ParametricPotential
    valid: Sequence[Frame]
    """What it was validated on; empty if these frames are not there any more."""


class Start(NamedTuple):
    """A training that is about to begin, or to go on."""

    folder: Path
    config: TrainConfig
    """With what was settled for it."""
    reasons: dict[str, str]
    """Why cutoff, batch and length are what they are, for people."""
    data: Data
    sha256: str
    """Of the file of the frames."""
    examples: Examples
    reference: str
    """Where the energies of isolated atoms are from, for people."""
    training: Training
    findings: list[Finding]
    """What the doctor of the data has to say."""
    old: Old | None
    """What it starts from, if not from random weights."""


def read_data(config: TrainConfig, team: Team = ALONE) -> Data:
    """Reads, checks and splits the frames that a configuration names.

    Args:
        config: names the files.
        team: the processes among which frames that are not kept in memory are shared out.

    Raises:
        DataError: see `atoms.read_frames`; or there are fewer than two frames; or validation or
            test frames have elements that the training frames have not.
    """

    def read(path: Path | None) -> tuple[Sequence[Frame], Keys | None]:
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
    sizes = frame_sizes(frames)
    isolated = [*read(config.isolated_atoms)[0]]
    isolated += [frames[index] for index, size in enumerate(sizes) if size == 1]
    frames = select(frames, [index for index, size in enumerate(sizes) if size > 1])
    if len(frames) < (1 if valid else 2):
        raise DataError(
            f"{config.frames}: {len(frames)} usable frames of more than one atom; expected at least"
            " two, one to train on and one to validate on"
        )
    if not valid:
        generator = np.random.default_rng(config.seed)
        frames, valid = split_frames(frames, config.valid_fraction, generator)
    known = {*find_species(frames, team), *find_species(isolated)}
    if not known.issuperset(find_species(valid, team) + find_species(test, team)):
        for frame in itertools.chain(valid, test):
            unknown = set(frame.system.numbers.tolist()) - known
            if unknown:
                raise DataError(
                    f"{frame.name}: has elements that the training frames have not (atomic"
                    f" numbers {sorted(unknown)}); add such frames to {config.frames}, or leave"
                    " this one out"
                )
    assert keys is not None
    return Data(frames, valid, test, isolated, keys)


def prepare(config: TrainConfig, device: torch.device, team: Team) -> Start:
    """A new training; nothing is written yet.

    Raises:
        DataError: see `read_data`; or the doctor of the data refuses the frames.
        UsageError: no finding has a name that is accepted.
        OutputError: the folder exists.
    """
    assert config.frames is not None
    folder = config.output or Path(f"{config.frames.name.split('.')[0]}-run")
    require_findings(_accepted(config))
    if team.rank == 0:
        refuse_existing(folder, overwrite=config.overwrite)
    start = _set_up(config, folder, device, team)
    if team.rank == 0:
        start = start._replace(findings=_examine(start.data, config))
    return start


def resume(config: TrainConfig, device: torch.device, team: Team) -> Start:
    """An old training, as it was when it was saved.

    Raises:
        DataError: see `read_data`; or there is no training; or its frames are not what they were.
        UsageError: it is finished, or that of a propagator.
    """
    folder = config.resume
    assert folder is not None
    if not (folder / "config.toml").is_file():
        raise DataError(f"{folder}: no training to go on with; expected a run of `mdlearn train`")
    now = {"device": config.device, "auto_batch": config.auto_batch or None}
    stored = resolve(TrainConfig, folder / "config.toml", now)
    if stored.propagator:
        raise UsageError(
            f"{folder}: the training of a propagator cannot be resumed; start it again: mdlearn"
            f" train --propagator {stored.propagator} --stride {stored.stride_fs:g}fs --output"
            f" {folder} --overwrite"
        )
    model = folder / "model.safetensors"
    if not (folder / STATE).is_file() and model.is_file() and load_model(model).certificate:
        raise UsageError(
            f"{folder}: this training is finished; to train its model further, on these frames or"
            f" others: mdlearn train FRAMES --from {folder}"
        )
    start = _set_up(stored, folder, device, team)
    before = f"as in {folder / 'config.toml'}"
    start = start._replace(reasons=dict.fromkeys(start.reasons, before))
    # One that was stopped before it was ever saved begins again.
    if (folder / STATE).is_file():
        start.training.load(folder / STATE)
    return start


def _set_up(config: TrainConfig, folder: Path, device: torch.device, team: Team) -> Start:
    """The frames, the network and the schedule that a configuration asks for."""
    frames = config.frames
    assert frames is not None
    data = read_data(config, team)
    torch.manual_seed(config.seed)
    dtype = PRECISIONS[config.precision]
    model = load_model(config.from_, dtype) if config.from_ else None
    cutoff, examples = _see(config, model, data.train, device, team)
    if not model:
        config = config.model_copy(update={"cutoff_A": cutoff.radius})
    closest = closest_distances(examples, team)
    forces = largest_forces(data.train, team)
    if model:
        counts = neighbor_counts(examples, team)
        network = adapt(model.network, examples, data.isolated, closest, forces, counts, team)
        old = _old(model)
        reference = "those of the model, shifted by least squares to fit the frames"
    else:
        energies, reference = fit_reference_energies(data.train, data.isolated, team)
        network = make_network(config, data, examples, energies, closest, forces, team)
        old = None
    network = network.to(device, dtype)
    if isinstance(network, PairPotential) and not model:
        begin(network, examples, data.isolated, team)
    if config.freeze:
        freeze(network, config.freeze.split(","))
    architecture = network.settings.architecture
    schedule = Schedule(
        config.epochs,
        60.0 * config.budget_min,
        config.patience,
        config.batch_size,
        config.learning_rate or learning_rate(architecture) * (SLOWER if old else 1.0),
        config.ema,
        config.seed,
        config.batch_atoms,
        None if config.learning_rate or old else long_training(architecture),
    )
    weights = Weights(
        config.energy_weight,
        config.forces_weight,
        config.stress_weight,
        config.dipole_weight,
        config.loss,
    )
    fingerprint = _hash(frames, team)
    training = Training(network, weights, schedule, fingerprint)
    if training.loops is None:
        n_atoms = max(config.batch_atoms, (config.batch_size or 1) * max(examples.sizes()))
        leave_one_thread(round(n_atoms * network.settings.average_neighbors))
    reasons = {
        "cutoff": cutoff.reason,
        "batch": _why(
            config, "about enough; --batch-atoms changes it", "batch_atoms", "batch_size"
        ),
        "length": _why(config, "the usual time; --budget changes it", "budget_min", "epochs"),
    }
    return Start(folder, config, reasons, data, fingerprint, examples, reference, training, [], old)


def _see(
    config: TrainConfig,
    model: Model | None,
    frames: Sequence[Frame],
    device: torch.device,
    team: Team,
) -> tuple[Cutoff, Examples]:
    """How far atoms see, and the frames as seen that far."""
    if model:
        cutoff = Cutoff(model.network.cutoff, f"that of {config.from_}")
    elif config.cutoff_A:
        cutoff = Cutoff(config.cutoff_A, "as given")
    else:
        usual = Examples(frames, USUAL_CUTOFF, device)
        cutoff = choose_cutoff(usual, team)
        cutoff = cutoff._replace(reason=f"{cutoff.reason}; --cutoff changes it")
        if cutoff.radius == USUAL_CUTOFF:
            return cutoff, usual
    return cutoff, Examples(frames, cutoff.radius, device)


def _hash(path: Path, team: Team) -> str:
    """The hash of a file, which one process reads for all."""
    digest = bytes.fromhex(sha256(path)) if team.rank == 0 else bytes(32)
    return bytes(team.add(torch.tensor(list(digest))).tolist()).hex()


def _why(config: TrainConfig, usual: str, *fields: str) -> str:
    """Why something is what it is: because somebody said so, or because that is usual."""
    return "as given" if config.model_fields_set.intersection(fields) else usual


def _accepted(config: TrainConfig) -> list[str]:
    """The findings that somebody trains in spite of, by name."""
    return config.accept.split(",") if config.accept else []


def _examine(data: Data, config: TrainConfig) -> list[Finding]:
    """Looks for what would poison a model, and refuses to train on it."""
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    splits = {name: list(sample(each)) for name, each in parts.items() if each}
    findings = examine(splits, data.keys)
    bad = refused(findings, _accepted(config))
    if bad:
        first, names = bad[0], ",".join(dict.fromkeys(each.name for each in bad))
        which = f" ({', '.join(first.frames)}; {first.total} in all)" if first.frames else ""
        raise DataError(
            f"{config.frames}: {first.name}: {first.message}{which}; {first.fix}; train in spite of"
            f" it with --accept {names}"
        )
    return [each for each in findings if each.severity != "note"]


def _old(model: Model) -> Old:
    """The model of a fine-tuning, and what it was validated on, if that can still be found."""
    valid: Sequence[Frame] = []
    with suppress(MDLearnError, LookupError):
        config = resolve(TrainConfig, None, model.provenance["configuration"])
        if config.frames and sha256(config.frames) == model.provenance["frames"]["sha256"]:
            valid = read_data(config).valid
    return Old(model.network, valid)


def make_network(
    config: TrainConfig,
    data: Data,
    examples: Sequence[Example],
    energies: Mapping[int, float],
    closest: Sequence[tuple[int, int, float]],
    forces: Sequence[tuple[int, float]],
    team: Team,
) -> ParametricPotential:
    """The network that a configuration asks for, fitted in size and scale to the frames."""
    assert config.cutoff_A is not None
    size = default_size(config.model, config.size)
    settings = Settings(
        architecture=config.model,
        cutoff=config.cutoff_A,
        features=config.features or size.features,
        interactions=config.interactions or size.interactions,
        radial=config.radial or size.radial,
        average_neighbors=average_neighbors(examples, team),
        scale=force_scale(data.train, team),
        closest=tuple(closest),
        parity=config.parity,
        dipole=data.keys.dipole is not None and config.dipole_weight > 0.0,
        largest_forces=tuple(forces),
        neighbor_counts=tuple(neighbor_counts(examples, team)),
    )
    return make_potential(tuple(sorted(energies)), energies, settings)
