"""Replicas: each is the run that it would be alone, also when another one leaves."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from checks import CUTOFF, REFERENCE_ENERGIES, SPECIES, Run, crystal, molecule
from oracles import LennardJones
from test_simulate import INTEGRATORS, every_ensemble

from mdlearn import Trajectory
from mdlearn.atoms import to_system
from mdlearn.cli import simulate as cli_simulate
from mdlearn.errors import UnstableError
from mdlearn.momenta import maxwell_boltzmann
from mdlearn.neighbors import SKIN
from mdlearn.replicas import choose, keep, merge
from mdlearn.simulate import Dynamics, Snapshot, piecewise_linear_each, save, simulate, start
from mdlearn.system import System, concatenate, split
from mdlearn.units import GPa, fs, kB

STEPS = 100


def systems_of(ensemble: str) -> list[System]:
    """Systems of different sizes; without a volume where nothing asks for a pressure."""
    flexible = ensemble in ("npt", "npt-flexible", "mtk")
    second = crystal(seed=1).repeat((2, 1, 1)) if flexible else molecule("C2H6", seed=1)
    return [to_system(each) for each in (crystal(), second, crystal(seed=2))]


def start_batch(ensemble: str, members: list[int]) -> tuple[Dynamics, Snapshot]:
    """Some of three systems, each with a temperature, a pressure and a seed of its own."""
    potential = LennardJones(SPECIES, REFERENCE_ENERGIES, cutoff=CUTOFF).double()
    batch = concatenate([systems_of(ensemble)[i] for i in members])
    kT = [[(0, (600.0 + 100.0 * i) * kB), (STEPS, (900.0 - 50.0 * i) * kB)] for i in members]
    pressure = [[(0, (1.0 + i) * GPa)] for i in members]
    seeds = [10 + i for i in members]
    dynamics = Dynamics(
        potential,
        INTEGRATORS[ensemble],
        piecewise_linear_each(kT, batch),
        piecewise_linear_each(pressure, batch),
        seeds,
    )
    return dynamics, start(dynamics, batch, maxwell_boltzmann(batch, dynamics.kT(0), seeds))


def assert_same(found: Snapshot, expected: Snapshot) -> None:
    """Two snapshots agree to the last digits, and so do the ages of their lists."""
    first, second = save(found), save(expected)
    for name in set(first) - {"capacity"}:
        scale = max(1.0, np.abs(second[name]).max(initial=0.0))
        assert np.abs(first[name] - second[name]).max(initial=0.0) <= 1e-12 * scale, name


@every_ensemble
def test_batch_is_its_parts(ensemble: str) -> None:
    dynamics, first = start_batch(ensemble, [0, 1, 2])
    last = simulate(dynamics, first, steps=STEPS, every=STEPS, observe=lambda _: True)
    moved = (last.neighbors.reference - first.neighbors.reference).norm(dim=1).max()
    assert moved > SKIN / 2, "no list was renewed"
    for i in range(3):
        alone, began = start_batch(ensemble, [i])
        expected = simulate(alone, began, steps=STEPS, every=STEPS, observe=lambda _: True)
        system = last.state.system
        part = choose(save(last), system, torch.arange(3) == i)
        for name, array in save(expected).items():
            if name != "capacity":
                scale = max(1.0, np.abs(array).max(initial=0.0))
                worst = np.abs(part[name] - array).max(initial=0.0)
                assert worst <= 1e-12 * scale, (i, name, worst)


@every_ensemble
def test_the_others_go_on_as_if_it_had_never_been_there(ensemble: str) -> None:
    dynamics, first = start_batch(ensemble, [0, 1, 2])
    healthy = simulate(dynamics, first, steps=20, every=20, observe=lambda _: True)
    momenta = healthy.state.momenta.clone()
    atom = 8 + 3  # of the second system; it would fly more than any list follows in a step
    momenta[atom] = healthy.state.system.masses[atom] * 12.0 / fs
    spoiled = healthy._replace(state=healthy.state._replace(momenta=momenta))
    with pytest.raises(UnstableError) as raised:
        simulate(dynamics, spoiled, steps=STEPS, every=10, observe=lambda _: True)
    assert list(raised.value.systems) == [1]
    assert "step 21: atom" in raised.value.systems[1]
    left, snapshot = keep(dynamics, spoiled, torch.tensor([True, False, True]))
    assert list(left.seeds) == [10, 12]
    found = simulate(left, snapshot, steps=STEPS, every=10, observe=lambda _: True)
    never, began = start_batch(ensemble, [0, 2])
    assert_same(found, simulate(never, began, steps=STEPS, every=10, observe=lambda _: True))


def test_what_is_saved_of_a_batch_keeps_its_shape() -> None:
    dynamics, first = start_batch("nose-hoover", [0, 1, 2])
    whole, system = save(first), first.state.system
    staying = torch.tensor([True, False, True])
    left, snapshot = keep(dynamics, first, staying)
    later = simulate(left, snapshot, steps=5, every=5, observe=lambda _: True)
    merged = merge(whole, save(later), system, staying)
    assert {name: each.shape for name, each in merged.items()} == {
        name: each.shape for name, each in whole.items()
    }
    for name, array in choose(merged, system, staying).items():
        assert np.array_equal(array, save(later)[name])
    for name, array in choose(merged, system, ~staying).items():
        if array.ndim:
            assert np.array_equal(array, choose(whole, system, ~staying)[name])
    assert [len(each.numbers) for each in split(later.state.system)] == [8, 8]


# The command line


@pytest.fixture
def here(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, three crystals of two sizes, and a molecule."""
    (tmp_path / "model.safetensors").symlink_to(model_path)
    crystals = [crystal(), crystal(seed=1).repeat((2, 1, 1)), crystal(seed=2)]
    ase.io.write(tmp_path / "start.xyz", crystals)
    ase.io.write(tmp_path / "molecule.xyz", molecule())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulation(structure: str, *options: object) -> list[object]:
    settings = ["--precision", "float64", "--every", 5, "--barostat-time", "200fs"]
    return ["simulate", "model.safetensors", structure, *settings, *options]


def contents(path: str) -> list[list[np.ndarray]]:
    """Everything that a trajectory holds of each replica."""
    found, count = [], 1
    while len(found) < count:
        with Trajectory(path, len(found)) as replica:
            count = replica.n_replicas
            vectors = (replica.positions, replica.velocities, replica.forces, replica.cells)
            numbers = [replica.observable(name) for name in replica.observable_names]
            found.append([replica.steps, *(each(slice(None)) for each in vectors), *numbers])
    return found


def assert_equal(found: list[list[np.ndarray]], expected: list[list[np.ndarray]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [each.tobytes() for each in one] == [each.tobytes() for each in other]


@every_ensemble
def test_resumed_batch_has_the_same_bits(here: Path, run: Run, ensemble: str) -> None:
    settings = simulation("start.xyz", "--frame", "all", "--temperature", "600,700:800,900")
    settings += ["--ensemble", ensemble, "--time", "20fs"]
    assert run(*settings, "--output", "whole.h5")[0] == 0
    assert run(*settings, "--output", "split.h5", "--max-time", "0.001s")[0] == 124
    assert run("simulate", "--resume", "split.h5", "--steps", 17)[0] == 0
    assert run("simulate", "--resume", "split.h5", "--time", "20fs")[0] == 0
    whole = contents("whole.h5")
    assert [each[0].tolist() for each in whole] == [list(range(0, 41, 5))] * 3
    assert_equal(contents("split.h5"), whole)


def test_a_batch_has_the_same_threads_when_it_is_resumed(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What autograd shares out may change bits; so what decides is known before the first step."""
    asked: list[float] = []
    original = cli_simulate.choose_threads

    def choose_threads(*arguments: Any) -> None:
        asked.append(arguments[-1])
        original(*arguments)

    monkeypatch.setattr(cli_simulate, "choose_threads", choose_threads)
    settings = simulation("molecule.xyz", "--replicas", 3, "--steps", 4, "--output", "three.h5")
    assert run(*settings)[0] == 0
    assert run("simulate", "--resume", "three.h5", "--steps", 8)[0] == 0
    assert len(asked) == 4
    assert set(asked) == {3.0 * len(molecule()) * 8.0}


def test_threads_are_chosen_again_in_the_course_of_a_run(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = simulation("start.xyz", "--frame", 1, "--ensemble", "langevin", "--steps", 20)
    assert run(*settings, "--output", "once.h5")[0] == 0
    steps: list[Any] = []
    original = cli_simulate.choose_threads

    def choose_threads(potential: Any, system: System, *others: Any) -> None:
        steps.append(system.positions.clone())
        original(potential, system, *others)

    monkeypatch.setattr(cli_simulate, "choose_threads", choose_threads)
    monkeypatch.setattr(cli_simulate, "CHOOSE_EVERY_S", -1.0)
    assert run(*settings, "--output", "often.h5")[0] == 0
    assert len(steps) == 6  # before the first step, as the run begins, and at each frame
    assert not any(torch.equal(*each) for each in pairwise(steps[1:]))
    assert_equal(contents("often.h5"), contents("once.h5"))


KILLED = """
import os, signal, sys
from mdlearn.cli import main, recording, simulate
simulate.COMMIT_S, simulate.COMMIT_SHARE = 0.0, float('inf')
commit, count, commits = recording.Recorder.commit, 0, int(sys.argv.pop())
def killed(recorder, snapshot):
    global count
    if count == commits:
        os.kill(os.getpid(), signal.SIGKILL)
    commit(recorder, snapshot)
    count += 1
recording.Recorder.commit = killed
main()
"""


@pytest.mark.parametrize("commits", [0, 4])
def test_killed_batch_goes_on_with_the_same_bits(here: Path, run: Run, commits: int) -> None:
    settings = simulation("start.xyz", "--replicas", 3, "--frame", 0, "--steps", 40)
    assert run(*settings, "--output", "whole.h5")[0] == 0
    command = [sys.executable, "-c", KILLED, *map(str, settings), "--output", "split.h5"]
    assert subprocess.run([*command, str(commits)]).returncode == -9
    frames = commits + 1 if commits else 0  # the first two are committed together
    assert [len(each[0]) for each in contents("split.h5")] == [frames] * 3
    assert run("simulate", "--resume", "split.h5")[0] == 0
    whole = contents("whole.h5")
    assert_equal(contents("split.h5"), whole)
    assert not np.allclose(whole[0][1][0], whole[1][1][-1], atol=1e-3)


def test_one_that_explodes_leaves_the_others_alone(here: Path, run: Run) -> None:
    hot = ["--temperature", "300,300@0fs:300@6fs:1e9@60fs,400", "--ensemble", "csvr"]
    code, out, err = run(*simulation("molecule.xyz", *hot, "--steps", 60, "--output", "three.h5"))
    assert code == 5
    assert "replica 1 stopped at step" in err
    assert "replica 1 stopped: step" in out
    three = contents("three.h5")
    assert three[0][0].tolist() == three[2][0].tolist() == list(range(0, 61, 5))
    assert 1 < len(three[1][0]) < 13
    for replica, kelvin in ((0, 300), (2, 400)):
        alone = ["--temperature", kelvin, "--ensemble", "csvr", "--seed", replica]
        name = f"{replica}.h5"
        settings = simulation("molecule.xyz", *alone, "--steps", 60, "--output", name)
        assert run(*settings)[0] == 0
        for one, other in zip(three[replica], contents(name)[0], strict=True):
            scale = max(1.0, np.abs(other).max())
            assert np.abs(one - other).max() <= 1e-12 * scale
    with Trajectory("three.h5", 1) as stopped, Trajectory("three.h5", 2) as other:
        assert "moved" in stopped.stopped
        step = int(stopped.stopped.split(",")[0].removeprefix("step "))
        assert 0 < step - stopped.steps[-1] <= 5
        assert other.stopped == ""
    crash = ase.io.read("three-replica_001-crash.extxyz", ":")
    assert crash[0].info["step"] == 0
    assert step - crash[-1].info["step"] in (0, 1)
    for i, step in enumerate(three[1][0]):
        assert np.abs(crash[step].positions - three[1][1][i]).max() < 1e-7
    code, out, _ = run("info", "three.h5")
    assert code == 0
    assert "replica 1 stopped: step" in out


def test_resumed_batch_keeps_who_has_stopped(here: Path, run: Run) -> None:
    hot = ["--temperature", "300,300@0fs:300@6fs:1e9@60fs,400", "--ensemble", "langevin"]
    settings = simulation("molecule.xyz", *hot)
    assert run(*settings, "--steps", 60, "--output", "whole.h5")[0] == 5
    assert run(*settings, "--steps", 40, "--output", "split.h5")[0] == 5
    code, _, err = run("simulate", "--resume", "split.h5", "--steps", 60)
    assert code == 5
    assert "replica 1 stopped" not in err  # it has been said
    assert_equal(contents("split.h5"), contents("whole.h5"))
    with Trajectory("whole.h5", 1) as one, Trajectory("split.h5", 1) as other:
        assert one.stopped
        assert one.stopped.replace("whole", "split") == other.stopped


def test_a_batch_of_which_nothing_is_left(here: Path, run: Run) -> None:
    settings = simulation("molecule.xyz", "--replicas", 2, "--timestep", 15, "--steps", 2000)
    code, out, err = run(*settings)
    assert code == 5
    assert "replica 0 stopped" in err
    assert "replica 1 stopped" in err
    assert out.count("stopped: ") == 2
    code, _, err = run("simulate", "--resume", "molecule-traj.h5")
    assert code == 5
    assert "all replicas have stopped" in err


def test_nve_replicas_of_one_structure_differ(here: Path, run: Run) -> None:
    atoms = molecule()
    atoms.set_momenta(np.ones((9, 3)) * 0.1)
    ase.io.write("moving.xyz", [atoms, atoms])
    nve = ["--ensemble", "nve", "--steps", 0]
    for options, said in (
        ([], "velocities  of moving.xyz"),
        (["--frame", "all"], "velocities  of moving.xyz"),
        (["--replicas", 2], "velocities  drawn at 300 K, seeds 0 to 1"),
    ):
        code, _, err = run(*simulation("moving.xyz", *nve, *options, "--overwrite"))
        assert code == 0
        assert said in err
    first, second = contents("moving-traj.h5")
    assert np.abs(first[2] - second[2]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replicas", "3", "--temperature", "200,300"], "found 2 and 3"),
        (["--frame", "all", "--replicas", "2"], "found 3 and 2"),
        (["--frame", "3:"], "has 3 structures"),
        (["--frame", "first"], "--frame"),
        (["--temperature", "300,-1"], "--temperature"),
        (["--temperature", "300,"], "--temperature"),
        (["--replicas", "0"], "--replicas"),
    ],
    ids=str,
)
def test_batches_that_cannot_be(here: Path, run: Run, options: list[str], said: str) -> None:
    code, _, err = run(*simulation("start.xyz", *options))
    assert code == 2
    assert said in err
    assert not (here / "start-traj.h5").exists()


def test_held_atoms_of_every_replica_stay(here: Path, run: Run) -> None:
    settings = simulation("start.xyz", "--frame", "0:2", "--fix", "1,3", "--steps", 10)
    assert run(*settings)[0] == 0
    for replica in contents("start-traj.h5"):
        moved = np.abs(replica[1][-1] - replica[1][0]).max(1)
        assert np.flatnonzero(moved == 0.0).tolist() == [1, 3]
