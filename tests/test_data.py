"""The data sets that come with the package are what their README says."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files

import numpy as np
import pytest

from mdlearn.atoms import Frame, read_frames

FOLDER = files("mdlearn.data")
README = (FOLDER / "README.md").read_text("utf-8")


@cache
def read(name: str) -> list[Frame]:
    return read_frames(str(FOLDER / name))[0]


@pytest.mark.parametrize(
    "name",
    ["ethanol.xyz", "water.xyz", "ethanol_isolated_atoms.xyz", "water_isolated_atoms.xyz"],
)
def test_readme_names_the_hash(name: str) -> None:
    digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
    assert re.search(rf"{re.escape(name)}.*{digest}", README) or f"{digest}  {name}" in README


def test_ethanol() -> None:
    frames = read("ethanol.xyz")
    assert len(frames) >= 500
    for frame in frames:
        assert sorted(frame.system.numbers.tolist()) == [1, 1, 1, 1, 1, 1, 6, 6, 8]
        assert not frame.system.pbc.any()
        assert frame.labels.forces.sum(0).abs().max() < 1e-6


def test_water() -> None:
    frames = read("water.xyz")
    assert len(frames) >= 120
    for frame in frames:
        counts = np.bincount(frame.system.numbers.numpy())
        assert counts[1] == 2 * counts[8]
        assert counts[8] in (32, 64)
        assert frame.system.pbc.all()
        assert frame.labels.stress.isfinite().all()
        assert frame.labels.forces.sum(0).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["ethanol", "water"])
def test_isolated_atoms_cover_the_elements_and_atoms_bind(name: str) -> None:
    atoms = read(f"{name}_isolated_atoms.xyz")
    energies = {int(each.system.numbers[0]): float(each.labels.energy) for each in atoms}
    for frame in read(f"{name}.xyz")[:20]:
        apart = sum(energies[z] for z in frame.system.numbers.tolist())
        per_atom = (float(frame.labels.energy) - apart) / len(frame.system.numbers)
        assert -7.0 < per_atom < -2.0  # eV: a bond or two for each atom
