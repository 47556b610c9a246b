"""What is said of trajectories."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import ase
import numpy as np
import pytest
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from checks import crystal, molecule, slab, tiny

from mdlearn import analysis
from mdlearn.analysis import BONDED, BROKEN, energy_drift, follow_bonds
from mdlearn.h5md import Particles
from mdlearn.trajectory import Trajectory
from mdlearn.writer import TrajectoryWriter


def record(path: Path, frames: list[ase.Atoms]) -> Path:
    """A trajectory of structures."""
    atoms = frames[0]
    restart = {"step": np.array(0)}
    particles = [Particles(atoms.numbers, atoms.get_masses(), atoms.pbc, {})]
    writer = TrajectoryWriter.create(path, particles=particles, provenance={}, restart=restart)
    with writer:
        for step, each in enumerate(frames):
            writer.append(
                step=step,
                time_fs=0.5 * step,
                positions=each.positions,
                velocities=np.zeros_like(each.positions),
                forces=np.zeros_like(each.positions),
                cell=each.cell.array,
                observables={},
            )
        writer.commit(restart)
    return path


@pytest.mark.parametrize("atoms", [molecule(), crystal(), slab(), tiny(), ase.Atoms("O")], ids=str)
def test_bonds_are_those_of_ase(tmp_path: Path, atoms: ase.Atoms) -> None:
    """Each counts once, also one with an image of the same atom."""
    radii = covalent_radii[atoms.numbers]
    i, j, distance = neighbor_list("ijd", atoms, 2.0 * BONDED * radii.max())
    bonded = distance < BONDED * (radii[i] + radii[j])
    with Trajectory(record(tmp_path / "run.h5", [atoms])) as trajectory:
        found = follow_bonds(trajectory)
    assert found.number == bonded.sum() / 2
    assert set(found.unbound) == set(range(len(atoms))) - set(i[bonded].tolist())
    assert found.broken is None


@pytest.mark.parametrize("at_once", [1, 60, 10**6])
def test_the_first_bond_to_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(analysis, "VECTORS_AT_ONCE", at_once)
    water = ase.Atoms("OHH", [[0.1, 0.0, 0.0], [1.06, 0.0, 0.0], [-0.14, 0.93, 0.0]], pbc=True)
    water.cell = [8.0, 8.0, 8.0]
    limit = BROKEN * (covalent_radii[8] + covalent_radii[1])
    frames = []
    for x in (0.96, 1.5, limit - 0.01, limit + 0.01, 2.5, 3.0):
        frames.append(water.copy())
        frames[-1].positions[1, 0] = 0.1 + x - 8.0  # the bond goes through the boundary
    with Trajectory(record(tmp_path / "run.h5", frames)) as trajectory:
        broken = follow_bonds(trajectory).broken
    assert broken is not None
    assert (broken.frame, broken.atoms) == (3, (0, 1))
    assert broken.distance == pytest.approx(limit + 0.01, abs=1e-9)


@pytest.mark.parametrize(("noise", "walk"), [(1.0, 0.0), (0.0, 1.0), (1.0, 0.1), (1.0, 1.0)])
def test_error_of_the_drift_covers_the_slope_that_there_is(noise: float, walk: float) -> None:
    """Of noise that lasts for several frames, of a random walk, and of both.

    Where there is but noise the error is allowed to be too large: nobody can tell that from little
    of a walk.
    """
    slopes, errors = [], []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        values = generator.normal(0.0, noise, 1200)
        for n in range(1, len(values)):
            values[n] += 0.8 * values[n - 1]
        values += np.cumsum(generator.normal(0.0, walk, 1200))
        trajectory = SimpleNamespace(
            observable_names=["conserved_energy"],
            observable=lambda _, values=values: 2.0 * (values + 1e-3 * np.arange(1200)),
            times_fs=1000.0 * np.arange(1200),
            numbers=np.ones(2),
        )
        drift = energy_drift(trajectory)
        slopes.append(drift.slope)
        errors.append(drift.error)
    spread = np.std(slopes)
    assert np.mean(slopes) == pytest.approx(1e-3, abs=4.0 * spread / 100**0.5)
    assert 0.8 * spread <= np.mean(errors) <= (1.3 if walk else 4.0) * spread
    missed = np.abs(np.array(slopes) - 1e-3) > 2.0 * np.array(errors)
    assert missed.mean() < 0.2
    assert str(drift).count("±") == 1
