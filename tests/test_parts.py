"""Large systems in parts: the same energies, forces and stress."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ase.io
import pytest
import torch
from checks import Run, assert_same, crystal, molecule, random_potential

from mdlearn.atoms import to_system
from mdlearn.cli.memory import estimate_memory
from mdlearn.division import divide
from mdlearn.neighbors import SKIN, build
from mdlearn.potentials import parts
from mdlearn.potentials.architectures import ARCHITECTURES
from mdlearn.potentials.checkpoint import load_model, save_model
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.parts import InParts, reach_of
from mdlearn.system import concatenate
from mdlearn.trajectory import Trajectory

LONG = to_system(crystal().repeat((8, 1, 1)))


@pytest.mark.parametrize("name", [*ARCHITECTURES, "painn+zbl"])
def test_parts_add_up_to_the_whole(name: str) -> None:
    potential = random_potential(name)
    neighbors = build(LONG, potential.cutoff, 0.4)
    cut = InParts(potential, 40, 0)
    found = evaluate(cut, LONG, neighbors)
    assert_same(found, evaluate(potential, LONG, neighbors), 1e-11)
    assert len(cut.parts) > 1
    assert all(len(part.members) < len(LONG.numbers) for part in cut.parts)


def test_fewer_steps_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    potential = random_potential("equivariant")
    neighbors = build(LONG, potential.cutoff)
    monkeypatch.setattr(parts, "reach_of", lambda _: reach_of(potential) - 1)
    off = evaluate(InParts(potential, 40, 0), LONG, neighbors).forces
    assert (off - evaluate(potential, LONG, neighbors).forces).abs().max() > 1e-6


@pytest.mark.parametrize("most", [1, 30, 50, 1000])
def test_every_atom_is_in_one_part(most: int) -> None:
    neighbors = build(LONG, 3.5)
    found = list(divide(LONG, neighbors, 2, most))
    counts = Counter(torch.cat([part.atoms for part in found]).tolist())
    assert counts == Counter(range(len(LONG.numbers)))
    assert all(len(part.members) <= most or len(part.atoms) == 1 for part in found)


def test_where_atoms_have_gone_is_nothing_to_parts() -> None:
    """Atoms of a liquid diffuse into other cells, and are as near to each other as ever."""
    whole = torch.randint(-3, 4, LONG.positions.shape, dtype=torch.float64)
    gone = LONG._replace(positions=LONG.positions + whole @ LONG.cell[0])
    here, there = (list(divide(each, build(each, 3.5), 2, 40)) for each in (LONG, gone))
    assert len(here) == len(there) < 12
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.atoms, other.atoms)
        assert torch.equal(one.members, other.members)


def test_systems_of_a_batch_come_apart_without_surroundings() -> None:
    names = ["CH3CH2OH", "H2O", "CH3CH2OH", "CH3OH"]
    batch = concatenate([to_system(molecule(name)) for name in names])
    found = list(divide(batch, build(batch, 3.5), 3, 13))
    assert [len(part.members) for part in found] == [12, 9, 6]
    assert all(torch.equal(part.atoms, part.members) for part in found)
    potential = random_potential("schnet")
    neighbors = build(batch, potential.cutoff)
    whole = evaluate(potential, batch, neighbors)
    assert_same(evaluate(InParts(potential, 13, 0), batch, neighbors), whole, 1e-11)


def test_parts_follow_the_list() -> None:
    potential = random_potential("egnn")
    cut = InParts(potential, 40, 0)
    for seed in (0, 1):
        moved = to_system(crystal(seed=seed).repeat((8, 1, 1)))
        neighbors = build(moved, potential.cutoff)
        assert_same(evaluate(cut, moved, neighbors), evaluate(potential, moved, neighbors), 1e-11)


class TestFromTheCommandLine:
    @pytest.fixture
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder with a wire of atoms and a model that is not frozen."""
        monkeypatch.chdir(tmp_path)
        potential = random_potential("egnn", scale=0.01)
        save_model(Path("model.safetensors"), potential, {}, [to_system(crystal())])
        ase.io.write("wire.xyz", crystal().repeat((8, 1, 1)))
        return tmp_path

    def test_a_run_that_would_not_fit_is_in_parts_to_its_end(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, run: Run
    ) -> None:
        simulate = ["simulate", "model.safetensors", "wire.xyz", "--ensemble", "nve"]
        simulate += ["--precision", "float64", "--timestep", "0.5", "--every", "1"]
        assert run(*simulate, "--steps", "4", "--output", "whole.h5")[0] == 0
        network = load_model("model.safetensors", torch.float64).network
        need = estimate_memory(network, [LONG], build(LONG, network.cutoff, SKIN))
        monkeypatch.setattr("mdlearn.cli.memory._free", lambda device: int(0.8 * need))
        code, _, err = run(*simulate, "--steps", "2", "--output", "cut.h5")
        assert code == 0
        assert "forces are computed in parts, one after another" in err
        monkeypatch.setattr("mdlearn.cli.memory._free", lambda device: int(10 * need))
        code, _, err = run("simulate", "--resume", "cut.h5", "--steps", "4")
        assert code == 0
        assert "forces are computed in parts, one after another" in err
        with Trajectory("whole.h5") as whole, Trajectory("cut.h5") as cut:
            assert len(cut) == len(whole) == 5
            assert abs(cut.positions(slice(0, 5)) - whole.positions(slice(0, 5))).max() < 1e-12
