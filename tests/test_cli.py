"""The verbs as a user meets them: the main job, and what is said when something is wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from importlib.resources import files
from pathlib import Path

import ase.io
import numpy as np
import pytest
from checks import Run

from mdlearn import Trajectory, cli
from mdlearn.cli.ensembles import SimulateConfig

FRAME = """3
Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="F F F"
O 0.00 0.00 0.00 0.1 0.0 0.0
H 0.96 0.00 0.00 -0.1 0.0 0.0
H 0.00 0.96 0.00 0.0 0.0 0.0
"""
PERIODIC = 'Lattice="8 0 0 0 8 0 0 0 8" pbc="T T T"'


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few frames of ethanol, and a model hastily trained on them."""
    folder = tmp_path_factory.mktemp("work")
    frames = ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), ":24")
    ase.io.write(folder / "frames.xyz", frames)
    ase.io.write(folder / "start.xyz", frames[0])
    train = ["train", "frames.xyz", "--epochs", "60", "--patience", "60", "--output", "run"]
    train += ["--features", "16"]
    subprocess.run([sys.executable, "-m", "mdlearn", *train], cwd=folder, check=True)
    return folder


@pytest.fixture
def here(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory beside the frames and the model."""
    for name in ("frames.xyz", "start.xyz", "run"):
        (tmp_path / name).symlink_to(work / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(folder: Path) -> set[str]:
    """What is in a folder that was not there at first."""
    return {each.name for each in folder.iterdir()} - {"frames.xyz", "start.xyz", "run", "bad.xyz"}


class TestTrain:
    def test_leaves_model_configuration_and_metrics(self, work: Path) -> None:
        assert {each.name for each in (work / "run").iterdir()} == {
            "config.toml",
            "metrics.csv",
            "model.safetensors",
            "learning.png",
            "parity.png",
            "errors.png",
            "report.html",
        }
        assert len((work / "run" / "metrics.csv").read_text().splitlines()) == 1 + 60

    def test_model_knows_the_largest_forces(self, here: Path) -> None:
        from mdlearn import load_model

        frames = ase.io.read(here / "frames.xyz", ":")
        forces = np.linalg.norm([each.get_forces() for each in frames], axis=2)
        elements = frames[0].numbers
        found = dict(load_model("run").network.settings.largest_forces)
        assert set(found) == {1, 6, 8}
        for element, force in found.items():  # of those frames that were trained on
            largest = forces[:, elements == element].max(1)
            assert force == pytest.approx(largest[np.abs(largest - force).argmin()], rel=1e-9)
            assert force >= np.sort(largest)[-4]

    def test_configuration_gives_the_same_model(self, here: Path, run: Run) -> None:
        again = (here / "run" / "config.toml").read_text().replace('"run"', '"again"')
        (here / "again.toml").write_text(again)
        assert run("train", "--config", "again.toml")[0] == 0
        first, second = (
            np.genfromtxt(here / name / "metrics.csv", delimiter=",", names=True)
            for name in ("run", "again")
        )
        assert first["valid_loss"].tolist() == second["valid_loss"].tolist()

    def test_says_what_was_settled_and_keeps_it(self, here: Path, run: Run) -> None:
        train = ["train", "frames.xyz", "--epochs", "2", "--features", "8", "--output"]
        code, _, err = run(*train, "usual")
        assert code == 0
        said = " ".join(err.split())
        assert "cutoff 5.0 Å: 8 neighbors per atom (the usual radius; --cutoff changes it)" in said
        assert "batch 110 atoms per step (about enough; --batch-atoms changes it)" in said
        assert "length 2 epochs (as given)" in said
        kept = tomllib.loads((here / "usual" / "config.toml").read_text())
        assert (kept["cutoff"], kept["batch_atoms"], kept["budget"]) == (5.0, 110, 20.0)
        code, _, err = run(*train, "other", "--cutoff", "4.25", "--batch-size", "5")
        said = " ".join(err.split())
        assert "cutoff 4.25 Å: 8 neighbors per atom (as given)" in said
        assert "batch 5 frames per step (as given)" in said
        assert tomllib.loads((here / "other" / "config.toml").read_text())["cutoff"] == 4.25

    def test_learns(self, work: Path) -> None:
        metrics = np.genfromtxt(work / "run" / "metrics.csv", delimiter=",", names=True)
        forces = metrics["valid_forces_mae_meV_per_A"]
        assert forces[-1] < 0.9 * forces[0]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", ["empty"]),
            (FRAME + FRAME[:-30], ["bad.xyz:1", "cannot be read"]),
            (FRAME + FRAME.replace("H 0.96", "Qq 0.96"), ["bad.xyz:1", "Qq"]),
            (FRAME + FRAME.replace("H 0.96", "X 0.96"), ["bad.xyz:1", "atom 1", "dummy"]),
            (FRAME + FRAME.replace("-1.5", "nan"), ["bad.xyz:1", "energy", "nan"]),
            (FRAME + FRAME.replace("-0.1", "nan"), ["bad.xyz:1", "atom 1", "forces", "nan"]),
            (FRAME + FRAME.replace("H 0.96", "H nan"), ["bad.xyz:1", "atom 1", "position"]),
            (FRAME + FRAME.replace("H 0.96", "H 0.01"), ["bad.xyz:1", "0.010 Å", "atoms 0"]),
            (FRAME + "0\n\n", ["bad.xyz:1", "no atoms"]),
            (FRAME, ["1 usable", "at least two"]),
            (
                FRAME + FRAME.replace("forces", "REF_forces").replace("energy", "REF_energy"),
                ["REF_energy", "bad.xyz:1", "--energy-key"],
            ),
            (2 * FRAME.replace(":forces:R:3", ":force:R:3"), ["force", "--forces-key"]),
            (
                FRAME + FRAME.replace('pbc="F F F"', PERIODIC.replace("8", "0")),
                ["bad.xyz:1", "volume"],
            ),
            ("not a structure\n", ["cannot be read"]),
        ],
        ids=lambda each: each[0] if isinstance(each, list) else "",
    )
    def test_bad_frames(self, here: Path, run: Run, content: str, said: list[str]) -> None:
        (here / "bad.xyz").write_text(content)
        code, out, err = run("train", "bad.xyz", "--epochs", "1")
        assert code == 3
        assert all(each in err for each in said), err
        assert err.count("\n") == 1  # one line, no traceback
        assert not out
        assert not outputs(here)

    def test_missing_file(self, here: Path, run: Run) -> None:
        code, _, err = run("train", "nowhere.xyz")
        assert code == 3
        assert "nowhere.xyz: no such file" in err

    def test_other_keys_when_named(self, here: Path, run: Run) -> None:
        renamed = FRAME.replace("forces", "REF_forces").replace("energy", "REF_energy")
        (here / "bad.xyz").write_text(2 * renamed)
        keys = ["--energy-key", "REF_energy", "--forces-key", "REF_forces"]
        code, _, err = run("train", "bad.xyz", "--epochs", "1", *keys)
        assert code == 0
        assert "energy from 'REF_energy', forces from 'REF_forces'" in err

    def test_bad_frames_are_left_out_if_so_asked(self, here: Path, run: Run) -> None:
        (here / "bad.xyz").write_text(2 * FRAME + FRAME.replace("-1.5", "nan"))
        code, _, err = run("train", "bad.xyz", "--epochs", "1", "--skip-bad")
        assert code == 0
        assert "1 to train, 1 to validate" in err

    def test_existing_output_is_not_touched(self, here: Path, run: Run) -> None:
        before = (here / "run" / "model.safetensors").read_bytes()
        code, _, err = run("train", "frames.xyz", "--epochs", "1", "--output", "run")
        assert code == 6
        assert "run: already exists" in err
        assert "--overwrite" in err
        assert (here / "run" / "model.safetensors").read_bytes() == before

    def test_overwriting_spares_what_is_not_a_run(self, here: Path, run: Run) -> None:
        (here / "thesis").mkdir()
        (here / "thesis" / "chapter.tex").write_text("years")
        train = ["train", "frames.xyz", "--epochs", "1", "--output", "thesis", "--overwrite"]
        code, _, err = run(*train)
        assert code == 6
        assert "chapter.tex" in err
        assert (here / "thesis" / "chapter.tex").read_text() == "years"
        (here / "thesis" / "chapter.tex").unlink()
        assert run(*train)[0] == 0
        assert run(*train)[0] == 0

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("cutof = 4.0", "did you mean 'cutoff'?"),
            ("cutoff = -4.0", "--cutoff"),
            ("cutoff = nan", "--cutoff"),
            ("budget = '5 parsecs'", "units s, min, h"),
            ("cutoff", "not TOML"),
        ],
    )
    def test_bad_configuration(self, here: Path, run: Run, line: str, said: str) -> None:
        (here / "bad.toml").write_text(line)
        code, _, err = run("train", "frames.xyz", "--config", "bad.toml")
        assert code == 2
        assert said in err
        assert outputs(here) == {"bad.toml"}

    def test_gpu_that_is_not_there(self, here: Path, run: Run) -> None:
        import torch

        if torch.cuda.is_available():
            assert run("evaluate", "run", "frames.xyz", "--device", "cuda")[0] == 0
            return
        code, _, err = run("train", "frames.xyz", "--device", "cuda")
        assert code == 7
        assert "no GPU" in err

    def test_interrupted_training_leaves_the_best_model_and_goes_on(
        self, here: Path, run: Run
    ) -> None:
        train = ["train", "frames.xyz", "--epochs", "1000000", "--features", "8", "--output", "cut"]
        process = subprocess.Popen(
            [sys.executable, "-m", "mdlearn", *train], stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while not (here / "cut" / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "go on: mdlearn train --resume cut" in err
        assert (here / "cut" / "training.safetensors").exists()
        assert run("evaluate", "cut", "frames.xyz")[0] == 0


class TestEvaluate:
    def test_errors_are_those_of_a_plain_loop(self, here: Path, run: Run) -> None:
        from mdlearn import MDLearnCalculator

        code, out, _ = run("evaluate", "run", "frames.xyz", "--json", "--precision", "float64")
        assert code == 0
        found = json.loads(out)
        calculator = MDLearnCalculator(here / "run", precision="float64")
        energies, forces = [], []
        for atoms in ase.io.read(here / "frames.xyz", ":"):
            labels = atoms.calc.results
            energies.append(calculator.get_potential_energy(atoms) - labels["energy"])
            forces.append(calculator.get_forces(atoms) - labels["forces"])
        # The calculator's network is frozen, and sums its numbers in another order.
        mae = 1e3 * np.abs(energies).mean()
        assert found["energy_meV"]["mae"] == pytest.approx(mae, rel=1e-9)
        mae = 1e3 * np.abs(forces).mean()
        assert found["forces_meV_per_A"]["mae"] == pytest.approx(mae, rel=1e-9)
        rmse = 1e3 * np.sqrt(np.square(forces).mean())
        assert found["forces_meV_per_A"]["rmse"] == pytest.approx(rmse, rel=1e-9)

    def test_average_over_rotations(self, here: Path, run: Run) -> None:
        import torch

        from mdlearn.atoms import read_frames
        from mdlearn.potentials.checkpoint import load_model
        from mdlearn.potentials.unconstrained import RotationAverage
        from mdlearn.training.dataset import make_example
        from mdlearn.training.loss import Weights, measure

        train = ["train", "frames.xyz", "--model", "unconstrained", "--features", "8"]
        assert run(*train, "--epochs", 2, "--output", "free")[0] == 0
        evaluate = ["frames.xyz", "--json", "--precision", "float64"]

        def errors(model: str, rotations: int) -> dict[str, dict[str, float]]:
            code, out, _ = run("evaluate", model, *evaluate, "--rotations", rotations)
            assert code == 0
            return json.loads(out)

        three, one = (errors("run", count)["forces_meV_per_A"] for count in (3, 1))
        assert three == pytest.approx(one, rel=1e-9)  # it is invariant
        network = load_model(here / "free", torch.float64).network
        average = RotationAverage(network, 3).double()
        frames, _ = read_frames(here / "frames.xyz")
        examples = [make_example(frame, network.cutoff) for frame in frames]
        scale = network.settings.scale
        expected = measure(average, examples, Weights(1.0, 1.0, 1.0), scale)
        found, plain = errors("free", 3), errors("free", 1)
        mae = found["forces_meV_per_A"]["mae"]
        assert mae == pytest.approx(expected.forces_mae_meV_per_A)
        assert found["energy_meV"]["mae"] != pytest.approx(plain["energy_meV"]["mae"], rel=1e-4)
        code, _, err = run("evaluate", "free", *evaluate, "--rotations", 0)
        assert code == 2
        assert "--rotations" in err

    def test_unknown_element(self, here: Path, run: Run) -> None:
        (here / "bad.xyz").write_text(FRAME.replace("O 0.00", "Si 0.00"))
        code, _, err = run("evaluate", "run", "bad.xyz")
        assert code == 4
        assert "bad.xyz:0: atom 0 is Si; the model was trained on H, C, O" in err

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}", b"\x80\x04model"])
    def test_files_that_are_no_models(self, here: Path, run: Run, content: bytes) -> None:
        (here / "bad.safetensors").write_bytes(content)
        code, _, err = run("evaluate", "bad.safetensors", "frames.xyz")
        assert code == 4
        assert "bad.safetensors: not a model" in err


class TestCheck:
    def test_trained_model_holds(self, here: Path, run: Run) -> None:
        code, out, err = run("check", "run", "start.xyz")
        assert code == 0
        assert "all 17 claims hold" in out
        assert "rotation" in out
        assert not err

    def test_training_stores_what_the_verb_measures(self, here: Path, run: Run) -> None:
        from mdlearn import load_model

        code, out, _ = run("check", "run", "--json")
        assert code == 0
        stored = load_model("run").certificate
        assert stored is not None
        for found, expected in zip(json.loads(out), stored, strict=True):
            assert found["value"] == pytest.approx(expected.value, rel=0.5, abs=1e-12)
            assert found == {**expected._asdict(), "value": found["value"]}
        code, out, _ = run("info", "run")
        assert code == 0
        assert "certificate  all 17 claims hold" in out
        assert "energy excursion" in out

    def test_training_says_what_holds(
        self, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train = ["train", "frames.xyz", "--epochs", "1", "--features", "8", "--output", "hasty"]
        monkeypatch.setattr("mdlearn.certificate.DRIFT", np.inf)
        monkeypatch.setattr("mdlearn.certificate.EXCURSION", 1e-9)
        code, out, _ = run(*train, "--model", "schnet")
        assert code == 0  # there is a model, whatever it is worth
        assert "certificate: does not hold: energy excursion (" in out
        # A network that has seen every frame once may be too rough for any dynamics.
        monkeypatch.setattr("mdlearn.certificate.EXCURSION", np.inf)
        code, out, _ = run(*train, "--parity", "so3", "--overwrite")
        assert code == 0
        assert "certificate: all 16 claims hold; reported only: reflection" in out

    def test_older_model_has_no_certificate(self, here: Path, run: Run) -> None:
        from test_checkpoint import edit

        path = here / "run" / "model.safetensors"
        edit(path, lambda header: header.pop("certificate"), here / "older.safetensors")
        code, out, _ = run("info", "older.safetensors")
        assert code == 0
        assert "certificate  none" in out
        assert run("check", "older.safetensors")[0] == 0

    @pytest.mark.parametrize("options", [[], ["--json"]], ids=" ".join)
    def test_claim_that_does_not_hold_is_named(
        self, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, options: list[str]
    ) -> None:
        monkeypatch.setattr("mdlearn.certificate.EXCURSION", 1e-9)
        code, out, err = run("check", "run", *options)
        assert code == 4
        assert "does not hold" in out  # the report comes first
        assert "run/model.safetensors: does not hold: energy excursion (" in err
        assert "limit 1e-09)" in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("content", "code", "said"),
        [
            (FRAME.replace("O 0.00", "Si 0.00"), 4, "bad.xyz: atom 0 is Si"),
            (FRAME.replace("H 0.96", "H 0.01"), 3, "0.010 Å apart"),
            (FRAME.replace("H 0.96", "H nan"), 3, "atom 1 has the position"),
            ("", 3, "empty"),
        ],
    )
    def test_bad_structures(self, here: Path, run: Run, content: str, code: int, said: str) -> None:
        (here / "bad.xyz").write_text(content)
        found, out, err = run("check", "run", "bad.xyz")
        assert found == code
        assert said in err
        assert not out

    def test_files_that_are_not_there_or_no_models(self, here: Path, run: Run) -> None:
        for arguments, code, said in (
            ([], 2, "--model"),
            (["ghost"], 4, "ghost: no such model"),
            (["start.xyz"], 4, "start.xyz: not a model"),
            (["run", "ghost.xyz"], 3, "ghost.xyz: no such file"),
        ):
            found, out, err = run("check", *arguments)
            assert (found, out) == (code, "")
            assert said in err


class TestSimulate:
    @pytest.mark.parametrize("ensemble", ["nve", "langevin", "csvr", "nose-hoover"])
    def test_resumed_run_has_the_same_bits(self, here: Path, run: Run, ensemble: str) -> None:
        settings = ["simulate", "run", "start.xyz", "--ensemble", ensemble]
        assert run(*settings, "--steps", 60, "--output", "whole.h5")[0] == 0
        assert run(*settings, "--steps", 30, "--output", "split.h5")[0] == 0
        code, _, err = run("simulate", "--resume", "split.h5", "--temperature", 500)
        assert code == 2
        assert "--temperature: a resumed run keeps its settings" in err
        assert run("simulate", "--resume", "split.h5", "--steps", 60)[0] == 0
        with Trajectory("whole.h5") as whole, Trajectory("split.h5") as split:
            assert whole.steps.tolist() == split.steps.tolist() == list(range(0, 61, 10))
            assert np.array_equal(whole.positions(slice(None)), split.positions(slice(None)))
            assert np.array_equal(whole.velocities(slice(None)), split.velocities(slice(None)))

    def test_stops_when_told_to_and_goes_on(self, here: Path, run: Run) -> None:
        settings = ["simulate", "run", "start.xyz", "--ensemble", "csvr", "--steps", 60]
        assert run(*settings, "--output", "whole.h5")[0] == 0
        code, _, err = run(*settings, "--output", "split.h5", "--max-time", "0.001s")
        assert code == 124
        assert "--resume split.h5" in err
        (here / "EXIT").touch()
        assert run("simulate", "--resume", "split.h5")[0] == 124
        assert not (here / "EXIT").exists()
        with Trajectory("split.h5") as split:
            assert split.steps.tolist() == [0, 10, 20]
        assert run("simulate", "--resume", "split.h5", "--extend", "20fs")[0] == 0
        with Trajectory("whole.h5") as whole, Trajectory("split.h5") as split:
            assert split.steps.tolist() == whole.steps.tolist()
            assert np.array_equal(whole.positions(slice(None)), split.positions(slice(None)))

    def test_extending_needs_something_to_extend(self, here: Path, run: Run) -> None:
        code, _, err = run("simulate", "run", "start.xyz", "--extend", "1ps")
        assert code == 2
        assert "--extend: only with --resume" in err

    def test_held_atoms_stay_and_the_others_warm_up(self, here: Path, run: Run) -> None:
        settings = ["simulate", "run", "start.xyz", "--temperature", "0:300", "--time", "50fs"]
        assert run(*settings, "--fix", "0,2-3", "--output", "held.h5")[0] == 0
        with Trajectory("held.h5") as trajectory:
            moved = np.abs(trajectory.positions(-1) - trajectory.positions(0)).max(1)
            configuration = str(trajectory.provenance["configuration"])
        assert moved[[0, 2, 3]].max() == 0.0
        assert moved[[1, 4, 5]].min() > 1e-4
        assert "300.0@50.0fs" in configuration
        code, _, err = run(*settings, "--fix", "2-99", "--output", "none.h5")
        assert code == 2
        assert "--fix: there is no atom 99" in err

    @pytest.mark.parametrize("ramp", ["1:2:3", "100@0ps:300", "300@5ps:100@2ps", "warm"])
    def test_ramps_that_cannot_be(self, here: Path, run: Run, ramp: str) -> None:
        code, _, err = run("simulate", "run", "start.xyz", "--temperature", ramp)
        assert code == 2
        assert "--temperature" in err
        assert ramp in err

    def test_a_molecule_has_no_pressure(self, here: Path, run: Run) -> None:
        code, _, err = run("simulate", "run", "start.xyz", "--ensemble", "npt")
        assert code == 2
        assert "not periodic" in err
        assert "csvr" in err
        assert outputs(here) == set()

    def test_summary_says_what_happened(self, here: Path, run: Run) -> None:
        code, out, err = run("simulate", "run", "start.xyz", "--time", "20fs", "--every", "5")
        assert code == 0
        assert "steps        40 in" in out
        assert "start-traj.h5, 9 frames" in out
        assert "bonds        none of 8 broken\n" in out
        assert "drawn at 300 K, seed 0" in err
        assert "surroundings" not in err
        code, out, _ = run("info", "start-traj.h5")
        assert code == 0
        assert "9 frames of C2H6O" in out
        assert "bonds        none of 8 broken\n" in out
        code, out, _ = run("info", "run")
        assert code == 0
        assert "H, C, O" in out

    def test_a_bond_that_is_broken_at_the_start_is_no_bond(self, here: Path, run: Run) -> None:
        atoms = ase.io.read("start.xyz")
        away = atoms.positions[8] - atoms.positions[:8].mean(0)
        atoms.positions[8] += 1.5 * away / np.linalg.norm(away)
        ase.io.write("torn.xyz", atoms)
        code, out, _ = run("simulate", "run", "torn.xyz", "--steps", "2", "--guards", "off")
        assert code == 0
        assert "bonds        none of 7 broken; atom 8 had none at the start" in out

    @pytest.mark.parametrize(
        "verb",
        [["simulate", "--guards", "off", "--steps", "2"], ["relax", "--steps", "2"], ["evaluate"]],
    )
    def test_surroundings_that_were_never_seen_are_told(
        self, here: Path, run: Run, verb: list[str]
    ) -> None:
        """A molecule of water has the elements of ethanol, and nothing else of it."""
        (here / "bad.xyz").write_text(FRAME)
        _, _, err = run(verb[0], "run", "bad.xyz", *verb[1:])
        assert "atom 1 (H) has 2 neighbors within 5 Å, where H has" in err
        assert "train with frames like this one" in err

    def test_goes_on_from_a_trajectory_with_its_velocities(self, here: Path, run: Run) -> None:
        assert run("simulate", "run", "start.xyz", "--steps", "20", "--output", "hot.h5")[0] == 0
        settings = ["--ensemble", "nve", "--steps", "0", "--output", "next.h5"]
        code, _, err = run("simulate", "run", "hot.h5", *settings)
        assert code == 0
        assert "velocities  of hot.h5" in err
        with Trajectory("hot.h5") as first, Trajectory("next.h5") as second:
            np.testing.assert_allclose(first.velocities(-1), second.velocities(0), rtol=1e-12)
            assert np.array_equal(first.positions(-1), second.positions(0))

    @pytest.mark.parametrize(
        ("content", "code", "said"),
        [
            (FRAME.replace("O 0.00", "Si 0.00"), 4, "atom 0 is Si"),
            (FRAME.replace("H 0.96", "H 0.01"), 5, "atom 0 (O) and atom 1 (H) are 0.010 Å apart"),
            (FRAME.replace("H 0.96", "H 0.70"), 5, "--relax"),
            (FRAME.replace("H 0.96", "H nan"), 3, "atom 1 has the position"),
            (FRAME.replace('pbc="F F F"', PERIODIC.replace("8", "0")), 3, "no volume"),
            ("", 3, "empty"),
        ],
    )
    def test_bad_structures(self, here: Path, run: Run, content: str, code: int, said: str) -> None:
        (here / "bad.xyz").write_text(content)
        found, _, err = run("simulate", "run", "bad.xyz", "--steps", "10")
        assert found == code
        assert said in err
        assert not outputs(here)

    @pytest.mark.parametrize("text", ["0.4", "0.4fs", "0.4 fs"])
    def test_a_time_step_may_have_its_unit(self, text: str) -> None:
        assert SimulateConfig.model_validate({"timestep": text}).timestep == 0.4

    @pytest.mark.parametrize(
        "options",
        [
            ["--steps", "-1"],
            ["--timestep", "nan"],
            ["--timestep", "-0.5"],
            ["--timestep", "0.5ps"],
            ["--temperature", "-1"],
            ["--temperature", "inf"],
            ["--time", "10"],
            ["--time", "10 parsecs"],
            ["--frame", "7"],
            ["--ensemble", "nvt"],
            ["--every", "0"],
        ],
        ids=" ".join,
    )
    def test_bad_options(self, here: Path, run: Run, options: list[str]) -> None:
        code, _, err = run("simulate", "run", "start.xyz", *options)
        assert code == 2
        assert options[0] in err
        assert not outputs(here)

    def test_zero_steps_and_zero_temperature(self, here: Path, run: Run) -> None:
        code, out, _ = run("simulate", "run", "start.xyz", "--steps", "0", "--temperature", "0")
        assert code == 0
        assert "1 frame\n" in out

    def test_existing_trajectory_is_not_touched(self, here: Path, run: Run) -> None:
        (here / "start-traj.h5").write_text("precious")
        code, _, err = run("simulate", "run", "start.xyz", "--steps", "10")
        assert code == 6
        assert "start-traj.h5: already exists" in err
        assert (here / "start-traj.h5").read_text() == "precious"

    def test_explosion_is_explained_and_what_was_done_is_kept(self, here: Path, run: Run) -> None:
        options = ["--timestep", "15", "--steps", "2000", "--every", "1"]
        code, _, err = run("simulate", "run", "start.xyz", *options)
        assert code == 5
        assert err.count("\n") == 2  # where the velocities come from, and what happened
        assert re.search(r"step \d+, \d+ fs: .*atom \d \([HCO]\).* \(limit .*Å", err)
        period, advice = re.findall(r"takes ([0-9.]+) fs.* --timestep ([0-9.]+)", err)[0]
        assert 7.0 < float(period) < 13.0  # O-H 9 fs, C-H 11 fs
        assert float(advice) == pytest.approx(float(period) / 20.0, rel=0.2)
        crash = ase.io.read("start-traj-crash.extxyz", ":")
        with Trajectory("start-traj.h5") as trajectory:
            assert np.isfinite(trajectory.positions(slice(None))).all()
            for atoms in crash[: len(trajectory)]:
                step = atoms.info["step"]
                assert atoms.info["time_fs"] == 15.0 * step
                np.testing.assert_allclose(atoms.positions, trajectory.positions(step), atol=1e-7)
                np.testing.assert_allclose(atoms.get_forces(), trajectory.forces(step), atol=1e-6)
        assert outputs(here) == {"start-traj.h5", "start-traj-crash.extxyz"}
        options = ["--steps", "10", "--overwrite"]
        assert run("simulate", "run", "start.xyz", *options)[0] == 0
        assert outputs(here) == {"start-traj.h5"}  # the old crash is not that of the new run

    def test_options_that_mean_nothing_are_named(self, here: Path, run: Run) -> None:
        options = ["--pressure", "1", "--friction", "3", "--thermostat-time", "50fs"]
        for ensemble, idle in (
            ("nve", ["pressure", "thermostat-time", "friction"]),
            ("langevin", ["pressure", "thermostat-time"]),
            ("csvr", ["pressure", "friction"]),
        ):
            settings = ["--steps", "2", "--ensemble", ensemble, "--overwrite"]
            code, _, err = run("simulate", "run", "start.xyz", *settings, *options)
            assert code == 0
            named = re.findall(r"warning +--([a-z-]+) means nothing with --ensemble (\S+),", err)
            assert named == [(each, ensemble) for each in idle]
            code, _, err = run("simulate", "run", "start.xyz", *settings)
            assert "warning" not in err

    def test_the_way_to_a_crash_is_kept_at_full_rate(
        self, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = ["simulate", "run", "start.xyz", "--temperature", "100:600", "--friction", "20"]
        options = ["--steps", "160", "--output"]
        assert run(*settings, *options, "whole.h5", "--every", "1")[0] == 0
        with Trajectory("whole.h5") as whole:
            heat = whole.observable("temperature").tolist()
            step = next(n for n in range(101, 160) if heat[n] > max(heat[:n]))
            between = 0.5 * (heat[step] + max(heat[:step]))
            # 27 degrees of freedom, and 1e-13 of a chi-squared variable.
            share = between / 600.0 * 27.0 / (27.0 + 2.0 * (27.0 * 30.0) ** 0.5 + 60.0)
            monkeypatch.setattr("mdlearn.guards.HOTTEST", share)
            monkeypatch.setattr("mdlearn.cli.crash.EARLY", 100)
            code, _, err = run(*settings, *options, "split.h5", "--every", "50")
            assert code == 5
            assert f"step {step}, {step / 2:g} fs: the temperature is {heat[step]:.0f} K" in err
            assert "compute labels for frames of split-crash.extxyz" in err
            assert f"split.h5 ends at step {step - step % 50}" in err
            crash = ase.io.read("split-crash.extxyz", ":")
            assert [each.info["step"] for each in crash] == list(range(step - 49, step + 1))
            for atoms in crash:
                expected = whole.positions(atoms.info["step"])
                np.testing.assert_allclose(atoms.positions, expected, atol=1e-7)
        with Trajectory("split.h5") as split:
            assert split.steps.tolist() == list(range(0, step, 50))

    def test_atom_without_neighbors_is_told_once(self, here: Path, run: Run) -> None:
        (here / "bad.xyz").write_text(FRAME.replace("H 0.96", "H 20.0"))
        settings = ["--steps", "30", "--temperature", "10", "--guards", "off"]
        code, _, err = run("simulate", "run", "bad.xyz", *settings)
        assert code == 0
        assert err.count("atom 1 (H) has no neighbor within 6.5 Å") == 1

    def test_cell_smaller_than_the_cutoff(self, here: Path, run: Run) -> None:
        small = 'Lattice="3.1 0 0 0 3.1 0 0 0 3.1" pbc="T T T"'
        (here / "small.xyz").write_text(FRAME.replace('pbc="F F F"', small))
        code, _, err = run("simulate", "run", "small.xyz", "--steps", "10")
        assert code == 5  # no ethanol has its hydrogen atoms so near
        assert "atom 1 (H) and atom 2 (H) are 1.358 Å apart" in err
        code, out, _ = run("simulate", "run", "small.xyz", "--steps", "10", "--guards", "off")
        assert code == 0
        assert "2 frames" in out

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_signal_ends_in_a_state_to_go_on_from(
        self, here: Path, run: Run, number: signal.Signals, code: int
    ) -> None:
        verb = ["simulate", "run", "start.xyz", "--steps", "1000000", "--every", "5"]
        process = subprocess.Popen(
            [sys.executable, "-m", "mdlearn", *verb], stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while not (here / "start-traj.h5").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert "mdlearn simulate --resume start-traj.h5" in err
        with Trajectory("start-traj.h5") as trajectory:
            last = int(trajectory.restart()["step"])
            assert trajectory.steps[-1] == last - last % 5
        assert run("simulate", "--resume", "start-traj.h5", "--steps", last + 5)[0] == 0
        before = Path("start-traj.h5").read_bytes()
        code, _, err = run("simulate", "--resume", "start-traj.h5", "--steps", last)
        assert code == 2
        assert f"at step {last + 5} already, and the run was to end at step {last}" in err
        assert Path("start-traj.h5").read_bytes() == before


def test_only_one_network_tells_mirror_images_apart(run: Run, here: Path) -> None:
    code, _, err = run("train", "frames.xyz", "--model", "schnet", "--parity", "so3")
    assert code == 2
    assert "--parity so3: only the model equivariant" in err
    assert outputs(here) == set()


def test_unknown_network_names_the_nearest(run: Run, here: Path) -> None:
    code, _, err = run("train", "frames.xyz", "--model", "equivarient")
    assert code == 2
    assert "did you mean 'equivariant'?" in err
    assert outputs(here) == set()


def test_help_has_examples_and_starts_without_torch(run: Run) -> None:
    for verb in cli.VERBS:
        code, out, _ = run(verb, "--help")
        assert code == 0
        assert f"mdlearn {verb}" in out
    code = "import sys, mdlearn.cli; sys.exit('torch' in sys.modules or 'ase' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_verb(run: Run) -> None:
    code, _, err = run("simulat")
    assert code == 2
    assert "simulat" in err
