"""The learned integrator: what it keeps by construction, what it learns, what it refuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms
from checks import (
    CUTOFF,
    PERIODIC,
    SPECIES,
    SYSTEMS,
    Run,
    assert_close,
    every_system,
    molecule,
    random_rotation,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mdlearn import Trajectory
from mdlearn.atoms import to_system
from mdlearn.cli.propagator import read_recordings
from mdlearn.errors import DataError, ModelError
from mdlearn.guards import make_limits, shares, watch
from mdlearn.integrators import kinetic_energy, learned
from mdlearn.neighbors import SKIN, build
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.propagator import NoEnergy, Propagator, PropagatorSettings, propagate
from mdlearn.potentials.propagator_checkpoint import load_propagator, save_propagator
from mdlearn.simulate import CrashError, Dynamics, piecewise_linear, simulate, start
from mdlearn.system import System, concatenate
from mdlearn.training.config import TrainConfig
from mdlearn.training.propagator import train_propagator
from mdlearn.training.strides import Recording, split_strides
from mdlearn.units import fs

STRIDE_FS = 4.0


def random_propagator(push: float = 1.0, longest: float = 0.1) -> Propagator:
    """A small one in float64 whose every parameter is random."""
    torch.manual_seed(0)
    settings = PropagatorSettings(
        STRIDE_FS, CUTOFF, 12, 3, 8, 8.0, 0.5 * push, 0.1, longest, ((1, 6, 0.9),)
    )
    propagator = Propagator(SPECIES, settings).double()
    with torch.no_grad():
        for parameter in propagator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return propagator


def moving(atoms: ase.Atoms, kT: float = 0.03) -> tuple[System, Tensor]:
    """A structure with thermal momenta, moving and turning as a whole, too."""
    system = to_system(atoms)
    normals = torch.randn(len(atoms), 3, dtype=torch.float64)
    return system, normals * (system.masses[:, None] * kT).sqrt()


def stride(
    propagator: Propagator, system: System, momenta: Tensor, skin: float = 0.0, capacity: int = 0
) -> tuple[Tensor, Tensor]:
    neighbors = build(system, propagator.cutoff, skin, capacity)
    with torch.no_grad():
        return propagate(propagator, system, momenta, neighbors)


class TestStride:
    @every_system
    @pytest.mark.parametrize("sign", [1.0, -1.0], ids=["rotation", "reflection"])
    def test_turns_along(self, name: str, sign: float) -> None:
        propagator, q = random_propagator(), sign * random_rotation()
        system, momenta = moving(SYSTEMS[name]())
        turned = system._replace(positions=system.positions @ q, cell=system.cell @ q)
        expected, found = (
            stride(propagator, system, momenta),
            stride(propagator, turned, momenta @ q),
        )
        for one, other in zip(expected, found, strict=True):
            assert one.abs().max() > 1e-2
            assert_close(other, one @ q, 1e-10)

    @every_system
    def test_does_not_see_where_the_system_is(self, name: str) -> None:
        propagator, (system, momenta) = random_propagator(), moving(SYSTEMS[name]())
        shifted = system._replace(positions=system.positions + torch.tensor([3.0, -7.0, 11.0]))
        pairs = zip(
            stride(propagator, shifted, momenta), stride(propagator, system, momenta), strict=True
        )
        for found, expected in pairs:
            assert_close(found, expected, 1e-10)

    @every_system
    def test_does_not_see_the_order_of_atoms(self, name: str) -> None:
        propagator, (system, momenta) = random_propagator(), moving(SYSTEMS[name]())
        order = torch.randperm(len(momenta))
        mixed = system._replace(
            positions=system.positions[order],
            numbers=system.numbers[order],
            masses=system.masses[order],
        )
        expected, found = (
            stride(propagator, system, momenta),
            stride(propagator, mixed, momenta[order]),
        )
        for one, other in zip(expected, found, strict=True):
            assert_close(other, one[order], 1e-10)

    @every_system
    def test_motion_as_a_whole_is_added(self, name: str) -> None:
        """Galileo: nothing but the velocity of the whole changes."""
        propagator, (system, momenta) = random_propagator(), moving(SYSTEMS[name]())
        velocity, mass = torch.tensor([0.2, -0.1, 0.3]).double(), system.masses[:, None]
        resting, pushed = stride(propagator, system, momenta)
        moved, pushed_too = stride(propagator, system, momenta + mass * velocity)
        assert_close(moved, resting + velocity * STRIDE_FS * fs, 1e-10)
        assert_close(pushed_too, pushed, 1e-10)

    @every_system
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_keeps_momentum(self, name: str, dtype: torch.dtype) -> None:
        """To rounding of sums in float64, whatever the network computes in."""
        propagator, (system, momenta) = random_propagator().to(dtype), moving(SYSTEMS[name]())
        _, impulse = stride(propagator, system, momenta)
        assert impulse.abs().max() > 1e-2
        assert impulse.sum(0).abs().max() < 1e-13

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_keeps_angular_momentum(self, dtype: torch.dtype) -> None:
        propagator, (system, momenta) = random_propagator().to(dtype), moving(molecule())
        displacement, impulse = stride(propagator, system, momenta)
        before = torch.linalg.cross(system.positions, momenta).sum(0)
        positions = system.positions + displacement
        after = torch.linalg.cross(positions, momenta + impulse).sum(0)
        assert before.abs().max() > 0.1
        assert (after - before).abs().max() < 1e-13

    def test_is_free_flight_without_pushes(self) -> None:
        propagator, (system, momenta) = random_propagator(push=0.0), moving(molecule())
        displacement, impulse = stride(propagator, system, momenta)
        assert_close(displacement, momenta / system.masses[:, None] * STRIDE_FS * fs, 1e-15)
        assert impulse.abs().max() == 0.0

    def test_atoms_beyond_the_cutoff_fly_freely(self) -> None:
        far = ase.Atoms("CO", positions=[[0.0, 0.0, 0.0], [CUTOFF + 1e-3, 0.0, 0.0]])
        system, momenta = moving(far)
        assert stride(random_propagator(), system, momenta, skin=1.0)[1].abs().max() == 0.0
        near = system._replace(positions=system.positions * 0.5)
        assert stride(random_propagator(), near, momenta)[1].abs().max() > 1e-3

    @every_system
    def test_pairs_that_are_too_far_are_not_seen(self, name: str) -> None:
        propagator, (system, momenta) = random_propagator(), moving(SYSTEMS[name]())
        expected = stride(propagator, system, momenta)
        found = stride(propagator, system, momenta, skin=1.3, capacity=40)
        for one, other in zip(expected, found, strict=True):
            assert_close(other, one, 1e-12)

    def test_batch_is_its_parts(self) -> None:
        propagator = random_propagator()
        parts = [moving(make()) for make in SYSTEMS.values()]
        batch = concatenate([system for system, _ in parts])
        found = stride(propagator, batch, torch.cat([momenta for _, momenta in parts]))
        alone = [stride(propagator, *each) for each in parts]
        for one, others in zip(found, zip(*alone, strict=True), strict=True):
            assert_close(one, torch.cat(others), 1e-12)

    @pytest.mark.parametrize("name", PERIODIC)
    def test_supercell_is_two_cells(self, name: str) -> None:
        atoms = SYSTEMS[name]()
        system, momenta = moving(atoms)
        double = to_system(atoms.repeat((2, 1, 1)))
        expected = stride(random_propagator(), system, momenta)
        found = stride(random_propagator(), double, momenta.repeat(2, 1))
        for one, other in zip(expected, found, strict=True):
            assert_close(other, one.repeat(2, 1), 1e-10)


def dynamics_of(propagator: Propagator, system: System, kT: float = 0.03) -> Dynamics:
    nothing = piecewise_linear([(0, 0.0)], system)
    limits = make_limits((), (), torch.full_like(system.charge, kT))._replace(drift=torch.inf)
    return Dynamics(
        NoEnergy(propagator.species, propagator.cutoff),
        learned(partial(propagate, propagator)),
        nothing,
        nothing,
        [0],
        limits=limits,
        skin=propagator.skin,
    )


class TestDriver:
    def test_is_stride_after_stride(self) -> None:
        """On lists that live for some strides, as on a list that is new for each."""
        propagator, (system, momenta) = random_propagator(push=0.05), moving(molecule())
        dynamics = dynamics_of(propagator, system)
        first = start(dynamics, system, momenta)
        last = simulate(dynamics, first, steps=25, every=25, observe=lambda snapshot: True).state
        expected, p = system, momenta
        for _ in range(25):
            displacement, impulse = stride(propagator, expected, p)
            expected = expected._replace(positions=expected.positions + displacement)
            p = p + impulse
        assert (expected.positions - system.positions).norm(dim=1).max() > SKIN
        assert_close(last.system.positions, expected.positions, 1e-10)
        assert_close(last.momenta, p, 1e-10)
        assert last.step == 25

    def test_a_list_is_as_wide_as_the_longest_way_asks(self) -> None:
        slow, fast = random_propagator(push=0.0), random_propagator(push=0.0, longest=0.5)
        system, momenta = moving(molecule(), kT=0.0)
        momenta[0, 0] = 0.6 * system.masses[0] / (STRIDE_FS * fs)  # goes 0.6 Å in a stride
        for propagator, crashes in ((slow, True), (fast, False)):
            dynamics = dynamics_of(propagator, system, kT=100.0)
            first = start(dynamics, system, momenta)
            run = partial(simulate, dynamics, first, steps=1, every=1, observe=lambda _: True)
            if crashes:
                with pytest.raises(CrashError, match=r"atom 0 \(C\) moved 0\.60 Å in one step"):
                    run()
            else:
                run()

    def test_heat_is_guarded_and_energy_is_not(self) -> None:
        """The kinetic energy is that of the start but for pushes, and the limit is on it alone."""
        propagator, (system, momenta) = random_propagator(push=0.0), moving(molecule())
        hot = momenta * 10.0
        for p, crashes in ((momenta, False), (hot, True)):
            dynamics = dynamics_of(random_propagator(push=0.0, longest=9.0), system)
            snapshot = start(dynamics, system, p)
            assert float(kinetic_energy(snapshot.state)) > 0.01
            watched = watch(snapshot.neighbors, system, dynamics.limits, math.inf)
            used = shares(snapshot.state, watched, snapshot.conserved + 9e9, dynamics.limits)
            assert used[3] == 0.0, "nobody knows the energy"
            run = partial(simulate, dynamics, snapshot, steps=2, every=1, observe=lambda _: True)
            if crashes:
                with pytest.raises(CrashError, match="the temperature is"):
                    run()
            else:
                run()
        assert propagator.skin == SKIN


class TestFile:
    def write(self, path: Path) -> Propagator:
        propagator = random_propagator()
        save_propagator(path, propagator, {"data": "random"}, [moving(molecule())])
        return propagator

    def test_gives_back_what_was_saved(self, tmp_path: Path) -> None:
        propagator = self.write(tmp_path / "p.safetensors")
        found = load_propagator(tmp_path / "p.safetensors", torch.float64)
        assert found.network.settings == propagator.settings
        assert found.network.species == propagator.species
        assert found.provenance == {"data": "random"}
        system, momenta = moving(molecule())
        for one, other in zip(
            stride(propagator, system, momenta), stride(found.network, system, momenta), strict=True
        ):
            assert torch.equal(one, other)

    def test_is_tested_on_loading(self, tmp_path: Path) -> None:
        path = tmp_path / "p.safetensors"
        self.write(path)
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["mdlearn"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header["golden"][0]["impulse"][3][1] += 1e-6
        save_file(weights, path, {"mdlearn": json.dumps(header)})
        with pytest.raises(ModelError, match="golden structure 0: impulse differs by 1e-06"):
            load_propagator(path)

    def test_kinds_are_told_apart(self, tmp_path: Path, model_path: Path) -> None:
        self.write(tmp_path / "p.safetensors")
        with pytest.raises(ModelError, match="a propagator, which moves atoms and knows neither"):
            load_model(tmp_path / "p.safetensors")
        with pytest.raises(ModelError, match="a potential, and a propagator was expected"):
            load_propagator(model_path)


def oscillator(n_frames: int = 120, amplitude: float = 0.06) -> Recording:
    """CO on an exact harmonic spring with a period of 40 fs."""
    system = to_system(ase.Atoms("CO", positions=[[0.0, 0.0, 0.0], [1.2, 0.0, 0.0]]))
    masses = system.masses.numpy()
    times = np.arange(n_frames) * 1.0
    omega = 2.0 * np.pi / (40.0 * fs)
    stretch = amplitude * np.cos(omega * times * fs)
    speed = -amplitude * omega * np.sin(omega * times * fs)
    direction = np.outer([-masses[1], masses[0]], [1.0, 0.0, 0.0]) / masses.sum()
    positions = system.positions.numpy() + direction * stretch[:, None, None]
    velocities = direction * speed[:, None, None]
    return Recording("spring", system, positions, velocities, np.zeros((n_frames, 3, 3)), times)


def config(folder: Path, *, epochs: int = 12, seed: int = 0, stride_fs: float = 8.0) -> TrainConfig:
    return TrainConfig(
        propagator=folder / "spring.h5",
        stride_fs=stride_fs,
        size="small",
        epochs=epochs,
        seed=seed,
        batch_size=20,
        output=folder / f"run-{len(list(folder.iterdir()))}",
    )


def trained(config: TrainConfig, recordings: Sequence[Recording]) -> tuple[Path, list[float]]:
    """The file, and the validation losses."""
    assert config.propagator is not None
    config.propagator.touch()  # only its hash is asked for
    result = train_propagator(
        config, recordings, lambda start: None, lambda step, steps: False, lambda epoch: None
    )
    return result.model, [each.valid.loss for each in result.history]


class TestTraining:
    def test_learns_a_spring(self, tmp_path: Path) -> None:
        springs = [oscillator(120, amplitude) for amplitude in (0.02, 0.05, 0.08)]
        path, losses = trained(config(tmp_path, epochs=30), springs)
        assert losses[-1] < 2e-3, "4 % of what free flight misses"
        propagator = load_propagator(path, torch.float64).network
        system = oscillator().system
        stretched = system._replace(positions=system.positions * (1.26 / 1.2))
        omega, t = 2.0 * np.pi / 40.0, 8.0
        displacement, impulse = stride(propagator, stretched, torch.zeros(2, 3).double())
        expected = 0.06 * (np.cos(omega * t) - 1.0)
        assert abs(float(displacement[1, 0] - displacement[0, 0]) - expected) < 0.05 * 0.06
        speed = float(impulse[1, 0] / system.masses[1] - impulse[0, 0] / system.masses[0])
        assert abs(speed + 0.06 * omega / fs * np.sin(omega * t)) < 0.05 * 0.06 * omega / fs

    def test_gives_the_same_bits_again(self, tmp_path: Path) -> None:
        one, losses = trained(config(tmp_path, epochs=2), [oscillator()])
        other, again = trained(config(tmp_path, epochs=2), [oscillator()])
        third, _ = trained(config(tmp_path, epochs=2, seed=1), [oscillator()])
        states = [load_propagator(each).network.state_dict() for each in (one, other, third)]
        assert losses == again
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])

    def test_file_is_of_the_best_epoch(self, tmp_path: Path) -> None:
        path, losses = trained(config(tmp_path, epochs=4), [oscillator()])
        provenance = load_propagator(path).provenance
        assert provenance["epoch"] == 1 + int(np.argmin(losses))
        assert provenance["valid"]["loss"] == min(losses)
        assert len((path.parent / "metrics.csv").read_text().splitlines()) == 1 + 4

    def test_what_it_is_judged_by_has_not_been_seen(self) -> None:
        recording = oscillator(100)
        train, valid = split_strides([recording, recording], 8, 0.2)
        for index in (0, 1):
            seen = {first + step for which, first in train if which == index for step in (0, 8)}
            judged = {first + step for which, first in valid if which == index for step in (0, 8)}
            assert max(seen) == 79
            assert min(judged) == 80
            assert max(judged) == 99

    @pytest.mark.parametrize(
        ("change", "stride_fs", "text"),
        [
            ({}, 2.5, r"frames are 1 fs apart, so a stride is 1, 2, 3, \.\.\. fs"),
            ({}, 0.5, r"frames are 1 fs apart"),
            ({"velocities": np.zeros((60, 2, 3))}, 8.0, "atom 0 has no velocity in any frame"),
            ({"cells": np.arange(540.0).reshape(60, 3, 3)}, 8.0, "the cell changes"),
            ({"times_fs": np.arange(60.0) ** 1.5}, 8.0, "not evenly spaced in time"),
        ],
        ids=["no multiple", "too short", "at rest", "cell", "uneven"],
    )
    def test_refuses(
        self, tmp_path: Path, change: dict[str, np.ndarray], stride_fs: float, text: str
    ) -> None:
        recording = oscillator(60)._replace(**change)
        with pytest.raises(DataError, match=text):
            trained(config(tmp_path, stride_fs=stride_fs), [recording])

    def test_refuses_what_is_too_short(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="12 frames are too few for a stride of 8 frames"):
            trained(config(tmp_path), [oscillator(12)])


@pytest.fixture(scope="module")
def work(lennard_jones_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a potential, a trajectory of it, and a propagator hastily trained on that."""
    folder = tmp_path_factory.mktemp("propagator")
    (folder / "lj.safetensors").symlink_to(lennard_jones_path)
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    ase.io.write(folder / "start.xyz", ase.Atoms("C2O2", positions=0.44 * corners))
    code = "\n".join(
        [
            "import sys; from mdlearn.cli import group",
            "def run(text): group.main(text.split(), standalone_mode=False)",
            "run('simulate lj.safetensors start.xyz --relax --ensemble nve --temperature 60"
            " --every 1 --timestep 1 --steps 150 --output traj.h5')",
            "run('train --propagator traj.h5 --stride 4fs --size small --epochs 40 --batch-size 8"
            " --output run')",
        ]
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return folder


@pytest.fixture
def here(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("lj.safetensors", "start.xyz", "traj.h5", "run"):
        (tmp_path / name).symlink_to(work / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


LEARNED = ("simulate", "run", "traj.h5", "--integrator", "learned")


class TestVerbs:
    def test_run_goes_on_from_the_trajectory(self, here: Path, run: Run) -> None:
        code, out, err = run(*LEARNED, "--time", "80fs", "--every", 5, "--output", "out.h5")
        assert code == 0, err
        assert "velocities  of traj.h5" in err
        assert "energy       unknown to a propagator" in out
        with Trajectory("out.h5") as found, Trajectory("traj.h5") as before:
            assert found.times_fs.tolist() == [20.0 * each for each in range(5)]
            assert set(found.observable_names) == {"kinetic_energy", "temperature"}
            last = before.atoms(len(before) - 1)
            assert np.allclose(found.positions(0), last.positions, atol=1e-6)
            assert np.allclose(found.velocities(0), last.get_velocities(), atol=1e-6)
            assert np.isnan(found.forces(0)).all()
            momenta = found.masses[:, None] * found.velocities(slice(len(found)))
            assert np.abs(momenta.sum(1) - momenta[0].sum(0)).max() < 1e-5  # stored in float32
            assert found.observable("temperature").min() > 0.0
            provenance = json.loads(str(found.provenance["configuration"]))
            assert (provenance["timestep"], provenance["ensemble"]) == (4.0, "nve")
        code, out, err = run("info", "out.h5")
        assert code == 0, err
        assert "drift" not in out

    def test_resumes_to_the_same_bits(self, here: Path, run: Run) -> None:
        options = ["--frame", "0", "--replicas", 2, "--temperature", 50, "--every", 4]
        run(*LEARNED, *options, "--steps", 24, "--output", "whole.h5")
        run(*LEARNED, *options, "--steps", 10, "--output", "part.h5")
        code, _, err = run("simulate", "--resume", "part.h5", "--steps", 24)
        assert code == 0, err
        for replica in (0, 1):
            with Trajectory("whole.h5", replica) as whole, Trajectory("part.h5", replica) as part:
                assert part.steps.tolist() == whole.steps.tolist() == list(range(0, 25, 4))
                assert np.array_equal(part.positions(-1), whole.positions(-1))
        with Trajectory("whole.h5") as whole, Trajectory("part.h5") as part:
            one, other = whole.restart(), part.restart()
            assert all(np.array_equal(one[name], other[name]) for name in one)
            assert np.abs(whole.positions(-1) - whole.positions(0)).max() > 0.02

    def test_info_and_dry_run(self, here: Path, run: Run) -> None:
        code, out, err = run("info", "run")
        assert code == 0, err
        assert "propagator over 4 fs" in out
        code, out, err = run(*LEARNED, "--dry-run")
        assert code == 0, err
        assert "nothing was written" in out
        assert "memory" not in out

    def test_a_guard_says_what_to_do(self, here: Path, run: Run) -> None:
        code, _, err = run(
            *LEARNED, "--replicas", 2, "--temperature", 20000, "--time", "4ps", "--output", "hot.h5"
        )
        assert code == 5
        assert "a propagator is good near what it was trained on" in err
        crash = ase.io.read("hot-replica_000-crash.extxyz")
        assert crash.calc is None, "energy and forces are unknown"

    @pytest.mark.parametrize(
        ("arguments", "code", "text"),
        [
            ("--timestep 1", 2, "--timestep: means nothing with --integrator learned"),
            ("--ensemble langevin", 2, "--ensemble: means nothing with --integrator learned"),
            ("--friction 1", 2, "--friction: means nothing"),
            ("--thermostat-time 1ps", 2, "--thermostat-time: means nothing"),
            ("--fix 0", 2, "--fix: means nothing"),
            ("--relax", 2, "--relax: means nothing"),
            ("--temperature 100:300", 2, "there is no thermostat"),
        ],
    )
    def test_refuses_options_of_newton(
        self, here: Path, run: Run, arguments: str, code: int, text: str
    ) -> None:
        found, _, err = run(*LEARNED, *arguments.split())
        assert found == code
        assert text in " ".join(err.split())
        assert not (here / "traj-traj.h5").exists()

    def test_refuses_the_other_kind_of_model(self, here: Path, run: Run) -> None:
        code, _, err = run("simulate", "run", "traj.h5")
        assert code == 4
        assert "`mdlearn simulate --integrator learned` takes it" in err
        code, _, err = run("simulate", "lj.safetensors", "traj.h5", "--integrator", "learned")
        assert code == 4
        assert "a propagator was expected" in err

    def test_refuses_structures_that_it_cannot_move(self, here: Path, run: Run) -> None:
        ase.io.write("h2.xyz", ase.Atoms("H2", positions=[[0, 0, 0], [0.8, 0, 0]]))
        code, _, err = run("simulate", "run", "h2.xyz", "--integrator", "learned")
        assert code == 4
        assert "H" in err
        atoms = ase.io.read("start.xyz")
        atoms.set_constraint(FixAtoms([1]))
        ase.io.write("held.extxyz", atoms, write_results=False)
        code, _, err = run("simulate", "run", "held.extxyz", "--integrator", "learned")
        assert code == 2
        assert "holds atoms where they are" in err

    @pytest.mark.parametrize(
        ("arguments", "code", "text"),
        [
            ("--propagator traj.h5", 2, "--propagator: expected --stride as well"),
            ("start.xyz --stride 4fs", 2, "--stride: only with --propagator TRAJECTORY"),
            ("start.xyz --propagator traj.h5 --stride 4fs", 2, "FRAMES: means nothing"),
            ("--propagator traj.h5 --stride 4fs --model schnet", 2, "--model: means nothing"),
            ("--propagator traj.h5 --stride 4", 2, "expected a number and one of the units fs"),
            ("--propagator traj.h5 --stride 25fs", 2, "--stride"),
            ("--propagator traj.h5 --stride 1.5fs", 3, "a stride is 1, 2, 3, ... fs"),
            ("--propagator start.xyz --stride 4fs", 3, "expected a trajectory made by mdlearn"),
            ("--propagator traj.h5 --stride 4fs --output run", 6, "already exists"),
            ("--resume run", 2, "the training of a propagator cannot be resumed"),
        ],
    )
    def test_training_refuses(
        self, here: Path, run: Run, arguments: str, code: int, text: str
    ) -> None:
        found, _, err = run("train", *arguments.split())
        assert found == code, err
        assert text in " ".join(err.split())

    def test_recordings_are_the_replicas(self, here: Path, run: Run) -> None:
        options = ["--ensemble", "nve", "--replicas", 2, "--steps", 4, "--every", 2]
        run("simulate", "lj.safetensors", "start.xyz", *options, "--output", "two.h5")
        recordings = read_recordings(Path("two.h5"))
        assert [each.name for each in recordings] == ["two.h5, replica 0", "two.h5, replica 1"]
        with Trajectory("two.h5", 1) as trajectory:
            assert np.array_equal(recordings[1].velocities, trajectory.velocities(slice(3)))
            assert recordings[1].times_fs.tolist() == [0.0, 1.0, 2.0]
