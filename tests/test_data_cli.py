"""`mdlearn data` as a user meets it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.constraints import FixAtoms
from checks import Run

from mdlearn.atoms import read_frames

FRAME = """3
Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="F F F"
O 0.00 0.00 0.00 0.1 0.0 0.0
H 0.96 0.00 0.00 -0.1 0.0 0.0
H 0.00 0.96 0.00 0.0 0.0 0.0
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with thirty frames of ethanol."""
    ase.io.write(
        tmp_path / "good.xyz", ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), ":30")
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def findings(run: Run, *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
    code, out, _ = run("data", "check", *arguments, "--json")
    return code, {each["name"]: each for each in json.loads(out)["findings"]}


class TestCheck:
    def test_good_frames(self, here: Path, run: Run) -> None:
        code, out, err = run("data", "check", "good.xyz")
        assert (code, err) == (0, "")
        assert "30 C2H6O" in out
        assert "energy from 'energy', forces from 'forces'" in out

    @pytest.mark.parametrize(
        ("old", "new", "name"),
        [
            ("energy=-1.5", "energy=nan", "bad-frames"),
            ("H 0.96", "H nan", "bad-frames"),
            ("H 0.96", "X 0.96", "bad-frames"),
            ("energy=-1.5", "", "missing-energy"),
            (":forces:R:3", ":momenta:R:3", "missing-forces"),
        ],
    )
    def test_what_training_would_refuse_is_found(
        self, here: Path, run: Run, old: str, new: str, name: str
    ) -> None:
        changed = FRAME.replace(old, new)
        (here / "bad.xyz").write_text(FRAME + changed + changed)
        code, found = findings(run, "bad.xyz")
        assert code == 3
        assert found[name]["frames"] == ["bad.xyz:1", "bad.xyz:2"]
        assert found[name]["total"] == 2

    def test_other_spellings(self, here: Path, run: Run) -> None:
        text = (here / "good.xyz").read_text()
        text = text.replace("forces:R:3", "REF_forces:R:3").replace(" energy=", " REF_energy=")
        (here / "other.xyz").write_text(text)
        code, out, err = run("data", "check", "other.xyz")
        assert code == 3
        assert "--energy-key REF_energy" in " ".join(out.split())
        assert "--forces-key REF_forces" in " ".join(out.split())
        assert "unusual-keys" in err
        keys = ["--energy-key", "REF_energy", "--forces-key", "REF_forces"]
        assert run("data", "check", "other.xyz", *keys)[0] == 0

    def test_refused_until_accepted(self, here: Path, run: Run) -> None:
        frames = ase.io.read(here / "good.xyz", ":")
        for each in frames[:7]:
            each.calc.results["forces"] *= 0.0
        ase.io.write("bad.xyz", frames)
        code, out, err = run("data", "check", "bad.xyz")
        assert code == 3
        assert "bad.xyz:4, ..." in " ".join(out.split())
        assert err.count("\n") == 1
        assert "--accept zero-forces" in err
        accept = ["--accept", "net-force", "--accept", "zero-forces"]
        code, out, err = run("data", "check", "bad.xyz", *accept)
        assert (code, err) == (0, "")
        assert "accepted" in out

    def test_accepts_only_what_there_is_to_find(self, here: Path, run: Run) -> None:
        code, _, err = run("data", "check", "good.xyz", "--accept", "zero-force")
        assert code == 2
        assert "no finding is named 'zero-force'; did you mean 'zero-forces'?" in err
        train = ["train", "good.xyz", "--epochs", "1", "--accept"]
        code, _, err = run(*train, "net-force,acros-splits")
        assert code == 2
        assert "did you mean 'across-splits'?" in err
        code, _, err = run(*train, "xyzzy")
        assert code == 2
        assert "expected bad-frames, " in err
        assert not (here / "good-run").exists()

    def test_across_files(self, here: Path, run: Run) -> None:
        code, found = findings(run, "good.xyz", "good.xyz")
        assert code == 0  # one file is one split, however often it is named
        ase.io.write("test.xyz", ase.io.read(here / "good.xyz", "10:20"))
        code, found = findings(run, "good.xyz", "test.xyz")
        assert code == 3
        assert found["across-splits"]["total"] == 10

    def test_constraints_do_not_hide_forces(self, here: Path, run: Run) -> None:
        frames = ase.io.read(here / "good.xyz", ":")
        for each in frames:
            each.set_constraint(FixAtoms([0, 1]))
        ase.io.write("fixed.traj", frames)
        code, found = findings(run, "fixed.traj")
        assert code == 0
        assert found["constraints"]["total"] == 30

    def test_two_energies(self, here: Path, run: Run) -> None:
        text = FRAME.replace("energy=-1.5", "energy=-1.5 free_energy=-1.8")
        (here / "two.xyz").write_text(2 * text)
        assert "100 meV/atom" in str(findings(run, "two.xyz")[1]["two-energies"]["message"])

    def test_no_files(self, here: Path, run: Run) -> None:
        assert run("data", "check")[0] == 2


class TestConvert:
    def test_gives_standard_keys_and_units(self, here: Path, run: Run) -> None:
        frames = ase.io.read(here / "good.xyz", ":")
        original = read_frames(here / "good.xyz")[0]
        for each in frames:
            each.info["E"] = each.get_potential_energy() / 27.211386
            each.arrays["gradient"] = -each.get_forces() * 0.529177 / 27.211386
            each.calc = None
        ase.io.write("old.xyz", frames)
        keys = ["--energy-key", "E", "--forces-key", "gradient", "--flip-forces"]
        units = ["--energy-unit", "Ha", "--forces-unit", "hartree/bohr"]
        code, out, _ = run("data", "convert", "old.xyz", "new.xyz", *keys, *units)
        assert code == 0
        assert "forces from 'gradient'" in out
        found, names = read_frames(here / "new.xyz")
        assert names.forces == "forces"
        for one, other in zip(original, found, strict=True):
            assert abs(float(one.labels.energy - other.labels.energy)) < 1e-3
            assert (one.labels.forces - other.labels.forces).abs().max() < 1e-4
        assert "config_type" in ase.io.read("new.xyz").info

    def test_virial_becomes_stress(self, here: Path, run: Run) -> None:
        atoms = ase.io.read(str(files("mdlearn.data") / "water.xyz"), "0")
        stress = atoms.get_stress(voigt=False)
        atoms.info["w"] = -(stress * atoms.get_volume()).ravel()
        ase.io.write("w.xyz", [atoms, atoms])
        options = ["--stress-key", "w", "--stress-unit", "eV", "--flip-stress"]
        assert run("data", "convert", "w.xyz", "new.xyz", *options)[0] == 0
        assert np.allclose(ase.io.read("new.xyz").get_stress(voigt=False), stress, atol=1e-9)

    def test_six_numbers_of_vasp(self, here: Path, run: Run) -> None:
        atoms = ase.io.read(str(files("mdlearn.data") / "water.xyz"), "0")
        stress = atoms.get_stress(voigt=False)
        of = [stress[a, b] for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0))]
        atoms.info["s"] = np.array(of)
        ase.io.write("v.xyz", [atoms, atoms])
        options = ["--stress-key", "s", "--stress-order", "xx,yy,zz,xy,yz,zx"]
        assert run("data", "convert", "v.xyz", "new.xyz", *options)[0] == 0
        assert np.allclose(ase.io.read("new.xyz").get_stress(voigt=False), stress, atol=1e-9)
        code, _, err = run(
            "data", "convert", "v.xyz", "other.xyz", "--stress-order", "xx,yy,zz,xy,yz"
        )
        assert code == 2
        assert "--stress-order: expected xx,yy,zz,yz,xz,xy" in err

    def test_leaves_outputs_alone(self, here: Path, run: Run) -> None:
        (here / "new.xyz").write_text("precious")
        code, _, err = run("data", "convert", "good.xyz", "new.xyz")
        assert code == 6
        assert "--overwrite" in err
        assert (here / "new.xyz").read_text() == "precious"
        (here / "bad.xyz").write_text(FRAME + FRAME.replace("-1.5", "nan"))
        assert run("data", "convert", "bad.xyz", "other.xyz")[0] == 3
        assert {each.name for each in here.iterdir()} == {"good.xyz", "new.xyz", "bad.xyz"}

    def test_unknown_unit(self, here: Path, run: Run) -> None:
        code, _, err = run("data", "convert", "good.xyz", "new.xyz", "--energy-unit", "furlong")
        assert code == 2
        assert "furlong" in err


class TestSplit:
    def test_every_frame_once(self, here: Path, run: Run) -> None:
        assert run("data", "split", "good.xyz", "--seed", "3")[0] == 0
        parts = [read_frames(here / f"good-{part}.xyz")[0] for part in ("train", "valid", "test")]
        assert [len(each) for each in parts] == [24, 3, 3]
        energies = sorted(float(frame.labels.energy) for part in parts for frame in part)
        whole = sorted(float(frame.labels.energy) for frame in read_frames(here / "good.xyz")[0])
        assert energies == whole

    def test_seed_decides(self, here: Path, run: Run) -> None:
        texts = []
        for seed in ("1", "1", "2"):
            run("data", "split", "good.xyz", "--seed", seed, "--overwrite")
            texts.append((here / "good-test.xyz").read_text())
        assert texts[0] == texts[1] != texts[2]

    def test_duplicates_stay_together(self, here: Path, run: Run) -> None:
        frames = ase.io.read(here / "good.xyz", ":")
        copies = [each.copy() for each in frames for _ in range(2)]
        for number, each in enumerate(copies):
            each.calc = frames[number // 2].calc
            each.info = {"molecule": number // 2}
        ase.io.write("twice.xyz", copies)
        shares = ["--train", "0.5", "--valid", "0.25", "--test", "0.25"]
        assert run("data", "split", "twice.xyz", *shares)[0] == 0
        parts = [
            {each.info["molecule"] for each in ase.io.read(f"twice-{part}.xyz", ":")}
            for part in ("train", "valid", "test")
        ]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 30
        assert [len(each) for each in parts] == [15, 8, 7]

    def test_refusals(self, here: Path, run: Run) -> None:
        code, _, err = run("data", "split", "good.xyz", "--train", "0.9")
        assert code == 2
        assert "add up to 1" in err
        (here / "good-test.xyz").write_text("precious")
        assert run("data", "split", "good.xyz")[0] == 6
        assert not (here / "good-train.xyz").exists()
        (here / "two.xyz").write_text(2 * FRAME)
        assert run("data", "split", "two.xyz")[0] == 3


class TestPack:
    def test_pack_and_use(self, here: Path, run: Run) -> None:
        code, out, _ = run("data", "pack", "good.xyz", "good.xyz", "--output", "all.h5")
        assert code == 0
        assert "60 of 540 atoms" in out
        assert len(read_frames(here / "all.h5")[0]) == 60
        code, found = findings(run, "all.h5")
        assert found["duplicate-frames"]["total"] == 30
        assert run("data", "convert", "all.h5", "again.xyz")[0] == 0
        assert len(ase.io.read("again.xyz", ":")) == 60
        assert run("data", "pack", "good.xyz")[0] == 0
        assert (here / "good.h5").exists()
        code, _, err = run("data", "pack", "good.xyz")
        assert code == 6
        assert "--overwrite" in err
