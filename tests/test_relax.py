"""`mdlearn relax`, and what `mdlearn simulate` thinks about before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.constraints import FixAtoms
from checks import Run

from mdlearn import MDLearnCalculator, Trajectory


@pytest.fixture
def here(lennard_jones_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, a cluster and a crystal, both shaken."""
    atoms = ase.build.bulk("C", "fcc", a=1.75, cubic=True) * (2, 1, 1)
    atoms.numbers = [1, 6, 8, 6, 1, 8, 6, 1]
    atoms.rattle(0.05, seed=3)
    monkeypatch.chdir(tmp_path)
    ase.io.write("crystal.xyz", atoms)
    ase.io.write("cluster.xyz", ase.Atoms(atoms.numbers, atoms.positions))
    (tmp_path / "lj").symlink_to(lennard_jones_path)
    return tmp_path


INPUTS = {"crystal.xyz", "cluster.xyz", "lj"}


def outputs(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()} - INPUTS


def forces_of(atoms: ase.Atoms) -> np.ndarray:
    return np.linalg.norm(MDLearnCalculator("lj", precision="float64").get_forces(atoms), axis=1)


class TestRelax:
    def test_writes_what_it_found(self, here: Path, run: Run) -> None:
        code, out, err = run("relax", "lj", "cluster.xyz", "--precision", "float64")
        assert (code, err) == (0, "")
        assert "converged after" in out
        assert "largest force, eV/Å" in out
        assert outputs(here) == {"cluster-relaxed.extxyz"}
        relaxed = ase.io.read("cluster-relaxed.extxyz")
        forces = forces_of(relaxed)
        assert forces.max() <= 0.01 < forces_of(ase.io.read("cluster.xyz")).max()
        relaxed_energy = MDLearnCalculator("lj").get_potential_energy(relaxed)
        assert relaxed.get_potential_energy() == pytest.approx(relaxed_energy, abs=1e-5)

    def test_cell_comes_to_the_pressure(self, here: Path, run: Run) -> None:
        relax = ["relax", "lj", "crystal.xyz", "--cell", "full", "--pressure", 3, "--json"]
        code, out, _ = run(*relax, "--precision", "float64")
        assert code == 0
        found = json.loads(out)
        before, after = found["before"], found["after"]
        assert after["pressure, GPa"] == pytest.approx(3.0, abs=0.06)
        assert abs(before["pressure, GPa"] - 3.0) > 1.0
        assert after["enthalpy, eV"] < before["enthalpy, eV"]
        relaxed = ase.io.read(found["output"])
        assert relaxed.get_volume() == pytest.approx(after["volume, Å³"], rel=1e-6)
        assert relaxed.get_volume() != pytest.approx(before["volume, Å³"], rel=1e-3)

    def test_too_few_steps_leave_the_best_structure(self, here: Path, run: Run) -> None:
        code, _, err = run("relax", "lj", "cluster.xyz", "--steps", 5)
        assert code == 5
        assert "not converged after 5 steps" in err
        assert "cluster-relaxed.extxyz holds the best structure" in err
        first = MDLearnCalculator("lj").get_potential_energy(ase.io.read("cluster.xyz"))
        best = ase.io.read("cluster-relaxed.extxyz")
        assert best.get_potential_energy() < first
        assert run("relax", "lj", "cluster-relaxed.extxyz", "--output", "end.xyz")[0] == 0

    def test_atoms_that_are_held_stay(self, here: Path, run: Run) -> None:
        atoms = ase.io.read("cluster.xyz")
        atoms.set_constraint(FixAtoms([1]))
        ase.io.write("held.extxyz", atoms)
        assert run("relax", "lj", "held.extxyz", "--fix", "4-5", "--output", "end.xyz")[0] == 0
        relaxed = ase.io.read("end.xyz")
        moved = np.abs(relaxed.positions - atoms.positions).max(1)
        assert moved[[1, 4, 5]].max() < 1e-7
        assert moved[[0, 2, 3, 6, 7]].min() > 1e-4
        assert relaxed.constraints[0].get_indices().tolist() == [1]
        forces = forces_of(ase.Atoms(relaxed.numbers, relaxed.positions))
        assert forces[[0, 2, 3, 6, 7]].max() < 0.011 < forces[[1, 4, 5]].max()

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (["cluster.xyz", "--cell", "full"], 2, "not periodic in all three"),
            (["crystal.xyz", "--pressure", "1"], 2, "--pressure: acts on the cell only"),
            (["cluster.xyz", "--fmax", "0"], 2, "--fmax"),
            (["cluster.xyz", "--fix", "0-7"], 2, "all atoms are held"),
            (["cluster.xyz", "--output", "crystal.xyz"], 6, "already exists"),
            (["ghost.xyz"], 3, "no such file"),
        ],
    )
    def test_what_cannot_be(
        self, here: Path, run: Run, arguments: list[str], code: int, said: str
    ) -> None:
        found, out, err = run("relax", "lj", *arguments)
        assert (found, out) == (code, "")
        assert said in err
        assert outputs(here) == set()


class TestStartOfDynamics:
    def test_relaxes_first(self, here: Path, run: Run) -> None:
        simulate = ["simulate", "lj", "cluster.xyz", "--relax", "--fix", "2", "--temperature", 0]
        code, _, err = run(*simulate, "--steps", 0)
        assert code == 0
        assert "relaxed     in" in err
        with Trajectory("cluster-traj.h5") as trajectory:
            start = trajectory.atoms(0)
        before = ase.io.read("cluster.xyz")
        assert np.abs(start.positions - before.positions)[2].max() < 1e-12
        mobile = [0, 1, 3, 4, 5, 6, 7]
        assert forces_of(start)[mobile].max() < 0.1001 < forces_of(before)[mobile].max()

    def test_finds_a_time_step_and_keeps_it(self, here: Path, run: Run) -> None:
        simulate = ["simulate", "lj", "cluster.xyz", "--timestep", "auto", "--temperature", 30]
        code, _, err = run(*simulate, "--steps", 40, "--output", "whole.h5")
        assert code == 0
        said = err.split("time step   ")[1].split(" fs: a 20th of the fastest vibration, ")
        timestep, wavenumber = float(said[0]), float(said[1].split(" 1/cm")[0].replace(",", ""))
        assert timestep == pytest.approx(1e15 / (20 * wavenumber * 2.998e10), rel=0.05)
        assert run(*simulate, "--steps", 20, "--output", "split.h5")[0] == 0
        code, _, err = run("simulate", "--resume", "split.h5", "--steps", 40)
        assert code == 0
        assert "time step" not in err
        with Trajectory("whole.h5") as whole, Trajectory("split.h5") as split:
            configuration = json.loads(str(split.provenance["configuration"]))
            assert configuration["timestep"] == timestep
            assert whole.times_fs[-1] == pytest.approx(40 * timestep)
            assert np.array_equal(whole.positions(slice(None)), split.positions(slice(None)))

    @pytest.mark.parametrize("text", ["0", "21", "nan", "fast"])
    def test_time_steps_that_cannot_be(self, here: Path, run: Run, text: str) -> None:
        code, _, err = run("simulate", "lj", "cluster.xyz", "--timestep", text)
        assert code == 2
        assert "--timestep: expected a number of fs above 0 and at most 20, or auto" in err

    def test_dry_run_tells_and_writes_nothing(self, here: Path, run: Run) -> None:
        options = ["--timestep", "auto", "--temperature", "30:60", "--time", "1ns", "--every", 5]
        code, out, err = run("simulate", "lj", "crystal.xyz", "--dry-run", *options)
        assert code == 0
        assert outputs(here) == set()
        timestep = err.split("time step   ")[1].split()[0]
        lines = dict(line.split(maxsplit=1) for line in out.splitlines() if " " in line)
        assert lines["timestep"] == f"{timestep} fs"
        assert lines["ensemble"] == "langevin"
        assert lines["friction"] == "5.0 1/ps"
        assert lines["atoms"].startswith("8, ")
        steps = round(1e6 / float(timestep))
        assert lines["run"].startswith(f"{steps} steps, 1")
        assert f"{steps // 5 + 1:,} frames" in lines["trajectory"]
        rate, per_day = (float(each.split()[0]) for each in lines["speed"].split(", "))
        assert per_day == pytest.approx(rate * float(timestep) * 86400e-6, rel=0.02)
        assert "atoms like these fit in" in lines["memory"]

    def test_size_of_the_trajectory_is_known_before(self, here: Path, run: Run) -> None:
        simulate = ["simulate", "lj", "cluster.xyz", "--steps", 600, "--every", 1]
        assert run(*simulate)[0] == 0
        _, out, _ = run(*simulate, "--dry-run", "--output", "other.h5")
        said = out.split("601 frames, ")[1].split(" kB")[0]
        size = (here / "cluster-traj.h5").stat().st_size / 1000.0
        assert 0.9 * size - 50.0 < float(said) < size

    def test_disk_without_room_is_an_error_at_once(self, here: Path, run: Run) -> None:
        simulate = ["simulate", "lj", "cluster.xyz"]
        code, _, err = run(*simulate, "--time", "1000000ns", "--every", 1)
        assert code == 6
        assert "2000000000001 frames need 1,39" in err
        assert "are free there: raise --every" in err
        assert outputs(here) == set()
        assert run(*simulate, "--steps", 10)[0] == 0
        code, _, err = run("simulate", "--resume", "cluster-traj.h5", "--time", "1000000ns")
        assert code == 6
        with Trajectory("cluster-traj.h5") as trajectory:
            assert len(trajectory) == 2

    @pytest.mark.parametrize("verb", [["simulate", "--replicas", "3"], ["relax"]])
    def test_memory_that_does_not_suffice_is_an_error_at_once(
        self, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, verb: list[str]
    ) -> None:
        monkeypatch.setattr("mdlearn.cli.memory._free", lambda device: 10_000)
        code, _, err = run(verb[0], "lj", "crystal.xyz", *verb[1:])
        assert code == 7
        n = 24 if verb[1:] else 8
        assert f"crystal.xyz: {n} atoms need about" in err
        assert "10 kB are free, enough for about" in err
        assert outputs(here) == set()

    def test_memory_of_a_resumed_run_is_looked_at_too(
        self, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start = ["simulate", "lj", "crystal.xyz", "--replicas", "3", "--steps", "2"]
        assert run(*start, "--output", "out.h5")[0] == 0
        monkeypatch.setattr("mdlearn.cli.memory._free", lambda device: 10_000)
        code, _, err = run("simulate", "--resume", "out.h5", "--steps", "4")
        assert code == 7
        assert "out.h5: 24 atoms need about" in err
