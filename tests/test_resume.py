"""What a training refuses; how one that was stopped goes on to the same bits; and teams."""

from __future__ import annotations

import csv
import math
import random
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from checks import Run

from mdlearn.atoms import Frame, read_frames
from mdlearn.errors import DataError, UnstableError
from mdlearn.potentials.architectures import make_potential
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import Settings
from mdlearn.training import loop
from mdlearn.training import run as training_run
from mdlearn.training.dataset import concatenate, make_example
from mdlearn.training.loop import Training, fit
from mdlearn.training.loss import Weights
from mdlearn.training.schedule import Schedule
from mdlearn.training.statistics import find_species, fit_reference_energies, force_scale

WEIGHTS = Weights(1.0, 1.0, 1.0)
LAST_LAYER = ("energy_head.out.weight", "energy_head.linear.weight")
EAGER = (  # saves at every step, so that a kill finds something
    "import mdlearn.training.loop as loop; loop.SAVE_EVERY_S = 0.0;"
    "from mdlearn.cli import main; main()"
)

SLOW = (  # takes its time with the statistics
    "import pathlib, time; import mdlearn.training.start as start;"
    "start.closest_distances = lambda *_: [pathlib.Path('begun').touch(), time.sleep(100)];"
    "from mdlearn.cli import main; main()"
)


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return list(read_frames(str(files("mdlearn.data") / "ethanol.xyz"))[0][:14])


def begin(frames: list[Frame], name: str = "unconstrained", epochs: int = 5) -> Training:
    """A training of a network that also draws rotations at random."""
    torch.manual_seed(0)
    energies = fit_reference_energies(frames, []).energies
    settings = Settings(name, 4.0, 8, 2, 6, average_neighbors=8.0, scale=force_scale(frames))
    network = make_potential(find_species(frames), energies, settings).float()
    return Training(network, WEIGHTS, Schedule(epochs, 0.0, epochs, 3, 1e-2, 0.9, 7), "frames")


def same(one: Training, other: Training) -> bool:
    """Whether two trainings agree in every bit but the clock's."""
    ours, theirs = one._tensors(), other._tensors()
    history = [[e._replace(seconds=0.0) for e in each.history] for each in (one, other)]
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
        and repr(history[0]) == repr(history[1])  # NaN is equal to itself
    )


@pytest.mark.parametrize("name", ["unconstrained", "equivariant"])
def test_goes_on_to_the_same_bits_from_any_step(
    frames: list[Frame], tmp_path: Path, name: str
) -> None:
    examples = [make_example(frame, 4.0) for frame in frames]
    valid = [concatenate(examples[:4])]
    unbroken = begin(frames, name)
    assert len(list(fit(unbroken, examples, valid))) == 5
    assert unbroken.steps == 25  # of 14 frames, three at a time
    for last in (1, 4, 5, 12, 24):
        training, path = begin(frames, name), tmp_path / "state"
        count = 0

        def stops(step: int, steps: int, last: int = last) -> bool:
            nonlocal count
            count += 1
            return count == last

        list(fit(training, examples, valid, stops, path=path))
        assert training.steps == last
        resumed = begin(frames, name)
        resumed.load(path)
        assert same(resumed, training)
        list(fit(resumed, examples, valid))
        assert same(resumed, unbroken)
        assert not same(resumed, training)


def test_does_not_take_the_state_of_another_training(frames: list[Frame], tmp_path: Path) -> None:
    path = tmp_path / "state"
    examples = [make_example(frame, 4.0) for frame in frames]
    next(fit(begin(frames), examples, [concatenate(examples)], lambda *_: True, path=path), None)
    other = begin(frames)
    other.frames_sha256 = "others"
    with pytest.raises(DataError, match="the training frames have changed"):
        other.load(path)
    with pytest.raises(DataError, match="no state of this training"):
        begin(frames, "equivariant").load(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="no state of this training"):
        begin(frames).load(path)


def test_a_loss_that_is_no_number_is_never_saved(
    frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    examples = [make_example(frame, 4.0) for frame in frames]
    training, path = begin(frames), tmp_path / "state"
    epochs = fit(training, examples, [concatenate(examples)], path=path)
    next(epochs)
    labels = examples[5].labels
    examples[5] = examples[5]._replace(labels=labels._replace(energy=labels.energy + torch.inf))
    with pytest.raises(UnstableError, match=r"epoch 2, step .*ethanol.xyz:5\b"):
        list(epochs)
    resumed = begin(frames)
    resumed.load(path)
    assert all(each.isfinite().all() for each in resumed._tensors().values())
    examples[5] = make_example(frames[5], 4.0)
    unbroken = begin(frames)
    list(fit(resumed, examples, [concatenate(examples)]))
    list(fit(unbroken, examples, [concatenate(examples)]))
    assert same(resumed, unbroken)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with frames, and with a whole training of them."""
    monkeypatch.chdir(tmp_path)
    atoms = ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), ":23")
    ase.io.write("frames.xyz", atoms)
    return tmp_path


TRAIN = ["train", "frames.xyz", "--features", "8", "--epochs", "12", "--output"]


def test_a_folder_lacks_nothing_of_what_is_saved(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though files are written more seldom than epochs end."""
    monkeypatch.setattr(training_run, "WRITE_EVERY_S", math.inf)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    save, seen = Training.save, list[tuple[int, int]]()

    def checked(training: Training, path: Path) -> None:
        save(training, path)
        best = [each.epoch for each in training.history if each.best]
        if best:
            rows = (path.parent / "metrics.csv").read_text().splitlines()
            model = load_model(path.parent / "model.safetensors")
            seen.append((len(rows) - 1, model.provenance["epoch"]))
            assert seen[-1] == (len(training.history), best[-1])

    monkeypatch.setattr(Training, "save", checked)
    assert run(*TRAIN[:4], "--epochs", "4", "--output", "whole")[0] == 0
    assert len({epochs for epochs, _ in seen}) == 4


def test_kills_leave_no_trace(here: Path, run: Run) -> None:
    train = [*TRAIN[:4], "--epochs", "60", "--output"]
    assert run(*train, "whole")[0] == 0
    dice = random.Random(0)
    arguments, kills, state = [*train, "cut"], 0, here / "cut/training.safetensors"
    finished = False
    while not finished:
        process = subprocess.Popen(
            [sys.executable, "-c", EAGER, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60.0
        while process.poll() is None and not state.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if kills < 4:
            time.sleep(dice.uniform(0.0, 1.0) if kills == 0 else dice.uniform(2.0, 5.0))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            finished = not state.exists()  # the last kill may come too late
        else:
            assert process.wait(timeout=120.0) == 0
            finished = True
        arguments = ["train", "--resume", "cut"]
    assert kills >= 1
    one, other = (load_model(name).network.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not state.exists()
    code, _, err = run("train", "--resume", "cut")
    assert code == 2
    assert "this training is finished" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_ends_at_once(here: Path, number: signal.Signals) -> None:
    """And leaves what was there as it was, even if it was to be overwritten."""
    (here / "old").mkdir()
    (here / "old" / "metrics.csv").write_text("precious")
    command = [sys.executable, "-c", SLOW, *TRAIN, "old", "--overwrite"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300.0
    while not (here / "begun").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60.0)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == "mdlearn: interrupted"
    assert {each.name for each in here.iterdir()} == {"frames.xyz", "begun", "old"}
    assert [each.read_text() for each in (here / "old").iterdir()] == ["precious"]


def test_two_processes_learn_what_one_does(here: Path, run: Run) -> None:
    train = [*TRAIN[:4], "--precision", "float64", "--batch-size", "7", "--epochs", "3"]
    train += ["--patience", "3", "--output"]
    for model in ("schnet", "unconstrained"):
        command = [*train, model, "--model", model]
        assert run(*command)[0] == 0
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command = [*torchrun, "--master-port", "29511", "-m", "mdlearn", *train, f"two-{model}"]
        process = subprocess.run([*command, "--model", model], capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        assert process.stdout.count("certificate:") == 1  # one speaks for both
        curves = []
        for folder in (model, f"two-{model}"):
            with (here / folder / "metrics.csv").open() as stream:
                rows = list(csv.DictReader(stream))
            names = ("learning_rate", "train_loss", "valid_loss", "valid_forces_mae_meV_per_A")
            curves.append([[float(row[name]) for name in names] for row in rows])
        assert len(curves[0]) == 3
        np.testing.assert_allclose(curves[1], curves[0], rtol=2e-6)  # they are printed so
        one, two = (
            load_model(here / folder, torch.float64).network for folder in (model, f"two-{model}")
        )
        for name, each in one.named_parameters():
            if name not in LAST_LAYER:
                torch.testing.assert_close(two.get_parameter(name), each, rtol=1e-9, atol=1e-11)
        # The last layer is solved for, which may move it far along what no label depends on.
        for frame in read_frames("frames.xyz")[0]:
            neighbors = make_example(frame, one.cutoff).neighbors
            ours, theirs = (evaluate(each, frame.system, neighbors) for each in (one, two))
            torch.testing.assert_close(theirs.energy, ours.energy, rtol=1e-10, atol=0.0)
            torch.testing.assert_close(theirs.forces, ours.forces, rtol=0.0, atol=1e-6)


def test_says_what_cannot_be_resumed(here: Path, run: Run) -> None:
    code, _, err = run("train", "--resume", "nowhere")
    assert code == 3
    assert "no training to go on with" in err
    code, _, err = run("train", "--resume", "whole", "--batch-size", 3)
    assert code == 2
    assert "--batch-size: a resumed training keeps its settings" in err
    code, _, err = run("train")
    assert code == 2
    assert "expected FRAMES" in err


def test_refuses_what_would_poison_a_model(here: Path, run: Run) -> None:
    frames = ase.io.read("frames.xyz", ":")
    for atoms in frames:
        atoms.calc.results = {
            "energy": atoms.calc.results["energy"],
            "forces": 23.06 * atoms.calc.results["forces"],
        }
    ase.io.write("wrong.xyz", frames)
    code, _, err = run("train", "wrong.xyz", "--epochs", "1", "--features", "8")
    assert code == 3
    assert "forces-units" in err
    assert "--accept" in err
    assert not (here / "wrong-run").exists()
    names = err.split("--accept ")[1].split()[0]
    code, _, _ = run("train", "wrong.xyz", "--epochs", "1", "--features", "8", "--accept", names)
    assert code == 0
    assert (here / "wrong-run" / "report.html").exists()
