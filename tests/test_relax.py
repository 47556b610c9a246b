"""`mdlearn relax`: what it writes, says, and refuses."""

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

from mdlearn import MDLearnCalculator


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
