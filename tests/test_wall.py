"""The wall is not there for what was trained on, and stops what never was."""

from __future__ import annotations

from importlib.resources import files

import ase
import numpy as np
import pytest
import torch

from mdlearn.atoms import read_frames, to_system
from mdlearn.neighbors import build, pair_vectors
from mdlearn.potentials.pairs import distances
from mdlearn.potentials.wall import STIFFNESS, WALL_MARGIN, Wall
from mdlearn.training.dataset import make_example
from mdlearn.training.statistics import closest_distances

SPECIES = (1, 8)
CUTOFF = 3.0


def energy_of_pair(wall: Wall, symbols: str, distance: float) -> float:
    """Of two atoms, eV."""
    system = to_system(ase.Atoms(symbols, [[0.0, 0.0, 0.0], [0.0, 0.0, distance]]))
    neighbors = build(system, CUTOFF)
    index = torch.tensor([SPECIES.index(int(z)) for z in system.numbers])
    return float(wall(index, distances(pair_vectors(system, neighbors)), neighbors).sum())


@pytest.fixture
def wall() -> Wall:
    return Wall(SPECIES, [(1, 8, 0.9), (8, 8, 2.0)]).double()


@pytest.mark.parametrize(("symbols", "start"), [("OH", 0.9), ("HO", 0.9), ("O2", 2.0)])
def test_energy_of_a_pair(wall: Wall, symbols: str, start: float) -> None:
    for share in (0.2, 0.5, 0.9, 0.99):
        expected = STIFFNESS * (1.0 - share) ** 3
        assert energy_of_pair(wall, symbols, share * start) == pytest.approx(expected, rel=1e-5)
    for share in (1.0 + 1e-6, 1.1, 1.4):
        assert energy_of_pair(wall, symbols, share * start) == 0.0


def test_pairs_that_were_not_named_have_none(wall: Wall) -> None:
    assert energy_of_pair(wall, "H2", 0.05) == 0.0


def test_second_derivative_is_continuous_where_it_begins(wall: Wall) -> None:
    start, step = 2.0, 1e-3
    inside = [energy_of_pair(wall, "O2", start - step * n) for n in range(3)]
    curvature = np.diff(inside, 2)[0] / step**2
    assert 0.0 < curvature < 6.0 * STIFFNESS / start**3 * 2 * step * 2


def test_begins_below_every_training_frame() -> None:
    frames = read_frames(str(files("mdlearn.data") / "water.xyz"))[0][:6]
    examples = [make_example(frame, CUTOFF) for frame in frames]
    closest = closest_distances(examples)
    assert [each[:2] for each in closest] == [(1, 1), (1, 8), (8, 8)]
    # Against all distances in the minimum-image convention, which these cells allow.
    for one, other, begins in closest:
        shortest = np.inf
        for frame in frames:
            cell = frame.system.cell[0].numpy()
            atoms = ase.Atoms(
                frame.system.numbers.numpy(), frame.system.positions.numpy(), cell=cell, pbc=True
            )
            table = atoms.get_all_distances(mic=True) + 9.0 * np.eye(len(atoms))
            rows, columns = atoms.numbers == one, atoms.numbers == other
            shortest = min(shortest, table[rows][:, columns].min())
        assert begins == pytest.approx(WALL_MARGIN * shortest, rel=1e-12)
    wall = Wall(SPECIES, closest)
    for each in examples:
        index = torch.tensor([SPECIES.index(int(z)) for z in each.system.numbers])
        distance = distances(pair_vectors(each.system, each.neighbors)).float()
        assert float(wall(index, distance, each.neighbors).abs().max()) == 0.0
