"""What `mdlearn simulate` writes, read back and held to the physics: Lennard-Jones argon."""

from __future__ import annotations

from pathlib import Path

import ase.build
import pytest
from checks import Run
from validation import (
    LEAST_P,
    convergence_deviation,
    kinetic_p_value,
    read_samples,
    save_argon,
)

from mdlearn import Trajectory
from mdlearn.units import kB


@pytest.fixture
def argon(tmp_path: Path) -> tuple[Path, Path]:
    """A model and 16 atoms of a crystal that melts at once."""
    model, structure = tmp_path / "argon.safetensors", tmp_path / "argon.extxyz"
    save_argon(model)
    (ase.build.bulk("Ar", "fcc", 5.8, cubic=True) * (1, 2, 2)).write(structure)
    return model, structure


def test_trajectory_has_the_kinetic_energies_of_its_ensemble(
    run: Run, argon: tuple[Path, Path], tmp_path: Path
) -> None:
    output, temperature = tmp_path / "csvr.h5", 150.0
    options = ["--ensemble", "csvr", "--thermostat-time", "50fs", "--timestep", "8"]
    options += ["--temperature", str(temperature), "--replicas", "4", "--steps", "1250"]
    code, _, message = run("simulate", *argon, *options, "--every", "20", "--output", output)
    assert code == 0, message
    found = read_samples(output, temperature * kB, None, slice(3, None))
    assert found.freedom == pytest.approx(45.0)
    assert len(found.kinetic) == 4 * 60
    assert kinetic_p_value(found) > LEAST_P
    for wrong in (0.9, 1.1):
        assert kinetic_p_value(found._replace(kT=wrong * found.kT)) < LEAST_P


def test_fluctuations_at_constant_energy_go_as_the_step_squared(
    run: Run, argon: tuple[Path, Path], tmp_path: Path
) -> None:
    timesteps_fs, conserved = (16, 8, 4), []
    for dt in timesteps_fs:
        output = tmp_path / f"{dt}.h5"
        options = ["--ensemble", "nve", "--temperature", "150", "--time", "800fs"]
        options += ["--timestep", str(dt), "--every", str(16 // dt), "--precision", "float64"]
        code, _, message = run("simulate", *argon, *options, "--output", output)
        assert code == 0, message
        with Trajectory(output) as trajectory:
            assert trajectory.times_fs[-1] == 800.0
            conserved.append(trajectory.observable("conserved_energy"))
    assert convergence_deviation(timesteps_fs, conserved) < 0.1
