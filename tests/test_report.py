"""What is shown of a model: tables, pictures, the page of a run, and scalars for TensorBoard."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from checks import Run, crystal, random_network

from mdlearn.atoms import Frame, read_frames, to_system
from mdlearn.errors import ModelError, OutputError, ResourceError
from mdlearn.files import sha256
from mdlearn.parity import plot_errors, plot_parity
from mdlearn.plots import plot_learning
from mdlearn.potentials.checkpoint import Claim, add_certificate, load_model, save_model
from mdlearn.potentials.schnet import SchNet
from mdlearn.report import REPORT_OUTPUTS, open_tensorboard, tables, write_report
from mdlearn.training.comparison import compare, digits, summarize

PNG = b"\x89PNG\r\n\x1a\n"
METRICS = """epoch,seconds,learning_rate,train_loss,valid_energy_mae_meV,\
valid_energy_mae_meV_per_atom,valid_forces_mae_meV_per_A,valid_forces_rmse_meV_per_A,\
valid_stress_mae_meV_per_A3,valid_dipole_mae_meA,valid_loss
1,2,0.003,0.37,99,11,303,424,nan,nan,0.38
2,4,0.002,0.23,57,6.3,190,268,nan,nan,0.21
3,6,0.001,0.18,58,6.4,191,269,nan,nan,0.22
"""
CONFIG = """frames = "a & b <c>.xyz"
cutoff = 3.5
"""


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    found, _ = read_frames(str(files("mdlearn.data") / "ethanol.xyz"))
    return list(found)[:6]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder as a training leaves it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(CONFIG)
    (run / "metrics.csv").write_text(METRICS)
    network = random_network(SchNet)
    provenance = {
        "configuration": {"model": "schnet"},
        "frames": {"name": "a & b <c>.xyz", "sha256": "abc123"},
        "versions": {"mdlearn": "0.0.7", "torch": "2.99"},
    }
    save_model(run / "model.safetensors", network, provenance, [to_system(crystal())])
    good = Claim("rotation", "energy of <turned> copies", 1e-14, "relative", 1e-10, "holds")
    bad = Claim("drift", "of the energy", float("nan"), "meV", 5.0, "does not hold")
    add_certificate(run / "model.safetensors", (good, bad))
    return run


class Page(HTMLParser):
    """Which tags are open, which text there is, and what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


class TestReport:
    def test_page_holds_everything_and_loads_nothing(
        self, folder: Path, frames: list[Frame]
    ) -> None:
        before = {each.name: sha256(each) for each in folder.iterdir()}
        write_report(folder, {"validation": frames, "test": frames[:2], "empty": []})
        assert {each.name for each in folder.iterdir()} == {*before, *REPORT_OUTPUTS}
        assert all(sha256(folder / name) == each for name, each in before.items())
        source = (folder / "report.html").read_text("utf-8")
        page = Page()
        page.feed(source)
        assert not page.open
        assert not page.tags & {"script", "link", "iframe", "object"}
        assert len(page.loads) == 3
        for name, link in zip(("parity", "errors", "learning"), page.loads, strict=True):
            data = base64.b64decode(link.removeprefix("data:image/png;base64,"))
            assert data == (folder / f"{name}.png").read_bytes()
        assert "http" not in re.sub(r"base64,[^\"]*", "", source)
        text = " ".join(page.text)
        for said in ("a & b <c>.xyz", "abc123", "0.0.7", "2.99", "energy of <turned> copies"):
            assert said in text
        assert "validation: 6 frames, 54 atoms" in text
        assert "test: 2 frames, 18 atoms" in text
        assert "empty" not in text
        found = summarize(compare(load_model(folder).network, frames)).whole.errors
        assert digits(found["forces_meV_per_A"].rmse) in text

    def test_errors_are_grouped_by_kind_where_frames_have_one(
        self, folder: Path, frames: list[Frame]
    ) -> None:
        assert frames[0].config_type == "ethanol_300K"
        kinds = ["<hot>"] * 2 + [frames[0].config_type] * 4
        mixed = [f._replace(config_type=kind) for f, kind in zip(frames, kinds, strict=True)]
        write_report(folder, {"validation": mixed})
        source = (folder / "report.html").read_text("utf-8")
        assert "<caption>by kind of structure</caption>" in source
        assert "<td>&lt;hot&gt;</td><td>2</td>" in source
        assert "<td>ethanol_300K</td><td>4</td>" in source
        write_report(folder, {"validation": [each._replace(config_type="") for each in frames]})
        assert "by kind of structure" not in (folder / "report.html").read_text("utf-8")

    def test_a_claim_that_does_not_hold_is_marked(self, folder: Path, frames: list[Frame]) -> None:
        write_report(folder, {"validation": frames})
        source = (folder / "report.html").read_text("utf-8")
        assert source.count('<td class="bad">does not hold</td>') == 1
        assert source.count('<td class="good">holds</td>') == 1
        assert "<td>no number</td>" in source

    def test_interrupted_run(self, folder: Path, frames: list[Frame]) -> None:
        """One epoch, and no certificate."""
        network = load_model(folder, torch.float64).network
        save_model(folder / "model.safetensors", network, {}, [])
        (folder / "metrics.csv").write_text("".join(METRICS.splitlines(keepends=True)[:2]))
        write_report(folder, {"validation": frames[:1]})
        assert "did not come to its end" in (folder / "report.html").read_text("utf-8")

    def test_no_model(self, folder: Path, frames: list[Frame]) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="no such model"):
            write_report(folder, {"validation": frames})
        assert not (folder / "report.html").exists()


def test_tables_have_the_figures(frames: list[Frame]) -> None:
    kinds = ["hot", "cold"] * 3
    named = [f._replace(config_type=kind) for f, kind in zip(frames, kinds, strict=True)]
    summary = summarize(compare(random_network(SchNet), named))
    whole, elements, kinds, worst = tables("set", summary)
    for table in (whole, elements, kinds, worst):
        assert {len(row) for row in table.rows} == {len(table.head)}
    forces = summary.whole.errors["forces_meV_per_A"]
    row = dict(zip(whole.head, whole.rows[2], strict=True))
    assert (row["quantity"], row["unit"]) == ("forces", "meV/Å")
    assert row["RMSE"] == digits(forces.rmse)
    assert row["RMSE/spread"] == f"{digits(100.0 * forces.relative_rmse)} %"
    assert [each[0] for each in elements.rows] == ["H", "C", "O"]
    assert [each[:2] for each in kinds.rows] == [("cold", "3"), ("hot", "3")]
    assert kinds.rows[0][2] == digits(
        summary.config_types["cold"].errors["energy_meV_per_atom"].mae
    )
    assert worst.rows[0][0].startswith("ethanol.xyz:")
    plain = [each._replace(config_type="") for each in frames]
    assert len(tables("set", summarize(compare(random_network(SchNet), plain)))) == 3


class TestPictures:
    def test_are_pictures(self, tmp_path: Path, frames: list[Frame]) -> None:
        comparison = compare(random_network(SchNet), frames)
        for name, plot in (("parity", plot_parity), ("errors", plot_errors)):
            plot(tmp_path / name, {"validation": comparison})
            assert (tmp_path / name).read_bytes().startswith(PNG)

    def test_of_hardly_anything(self, tmp_path: Path, frames: list[Frame]) -> None:
        """One frame without forces, and a prediction that is no number."""
        labels = frames[0].labels
        frame = frames[0]._replace(
            labels=labels._replace(forces=torch.full_like(labels.forces, torch.nan))
        )
        network = random_network(SchNet)
        one, broken = compare(network, [frame]), compare(network, frames[:2])
        broken.predictions.energy[:] = np.nan
        broken.predictions.forces[0] = np.inf
        for plot in (plot_parity, plot_errors):
            plot(tmp_path / "picture.png", {"one": one, "broken": broken})
        one.predictions.energy[:] = one.labels.energy  # no error at all
        plot_errors(tmp_path / "picture.png", {"one": one})
        assert (tmp_path / "picture.png").read_bytes().startswith(PNG)

    @pytest.mark.parametrize("value", [0.0, np.nan], ids=["zero", "nan"])
    def test_of_a_strange_training(self, tmp_path: Path, value: float) -> None:
        metrics = {
            "epoch": np.arange(1.0, 4.0),
            "train_loss": np.full(3, value),
            "valid_loss": np.full(3, value),
            "learning_rate": np.zeros(3),
        }
        plot_learning(tmp_path / "learning.png", metrics)
        assert (tmp_path / "learning.png").read_bytes().startswith(PNG)

    def test_where_nothing_can_be_written(self, tmp_path: Path, frames: list[Frame]) -> None:
        comparison = compare(random_network(SchNet), frames[:1])
        with pytest.raises(OutputError, match=r"parity\.png"):
            plot_parity(tmp_path / "missing" / "parity.png", {"one": comparison})


class TestVerb:
    @pytest.fixture
    def mixed(self, tmp_path: Path, folder: Path) -> Iterator[tuple[Path, Path]]:
        """Molecules and crystals with labels, the former without a kind."""
        rng = np.random.default_rng(0)
        structures = list(ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), ":3"))
        for atoms in structures:
            atoms.info.clear()
        for seed in range(2):
            atoms = crystal(seed=seed)
            atoms.info["config_type"] = "bulk"
            forces = rng.normal(size=(len(atoms), 3))
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=forces)
            structures.append(atoms)
        path = tmp_path / "mixed.xyz"
        ase.io.write(path, structures)
        yield folder, path
        shutil.rmtree(tmp_path)

    def test_json(self, mixed: tuple[Path, Path], run: Run) -> None:
        code, out, err = run("evaluate", *mixed, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["frames"] == 5
        assert set(found["config_types"]) == {"bulk", "unnamed"}
        assert found["config_types"]["bulk"]["frames"] == 2
        assert set(found["elements"]) == {"H", "C", "O"}
        assert "stress_meV_per_A3" not in found
        names = {each["name"] for each in found["worst_frames"]}
        assert names == {f"{mixed[1]}:{index}" for index in range(5)}
        frames, _ = read_frames(mixed[1])
        expected = summarize(compare(load_model(mixed[0]).network, frames)).whole.errors
        assert found["forces_meV_per_A"]["max"] == pytest.approx(expected["forces_meV_per_A"].max)

    def test_tables_and_pictures(self, mixed: tuple[Path, Path], run: Run) -> None:
        pictures = mixed[0].parent / "pictures"
        code, out, err = run("evaluate", *mixed, "--plots", pictures)
        assert code == 0, err
        assert {each.name for each in pictures.iterdir()} == {"parity.png", "errors.png"}
        for said in ("mixed.xyz: 5 frames", "forces by element", "bulk", "worst frames"):
            assert said in out
        code, _, err = run("evaluate", *mixed, "--plots", pictures)
        assert code == 6
        assert "--overwrite" in err
        assert run("evaluate", *mixed, "--plots", pictures, "--overwrite")[0] == 0


class TestTensorboard:
    def test_is_asked_for_when_it_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [each for each in sys.modules if each.startswith("torch.utils.tensorboard")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "tensorboard", None)
        with pytest.raises(ResourceError, match=r"pip install 'mdlearn\[tensorboard\]'") as error:
            open_tensorboard(tmp_path / "log")
        assert error.value.exit_code == 7
        assert not (tmp_path / "log").exists()

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_scalars_come_back(self, tmp_path: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        log = open_tensorboard(tmp_path / "log")
        log(1, {"train_loss": 0.5, "valid/stress": float("nan")})
        log(2, {"train_loss": 0.25, "valid/stress": float("nan")})
        events = EventAccumulator(str(tmp_path / "log")).Reload()
        assert events.Tags()["scalars"] == ["train_loss"]
        found = [(each.step, each.value) for each in events.Scalars("train_loss")]
        assert found == [(1, 0.5), (2, 0.25)]
