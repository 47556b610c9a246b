"""Our constants are those of ASE, to the last digit."""

from __future__ import annotations

import ase.units
import pytest

from mdlearn import units


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fs", ase.units.fs),
        ("ps", 1000.0 * ase.units.fs),
        ("second", ase.units.second),
        ("kB", ase.units.kB),
        ("kJ_per_mol", ase.units.kJ / ase.units.mol),
        ("GPa", ase.units.GPa),
        ("meV", 1e-3),
    ],
)
def test_constant_is_that_of_ase(name: str, expected: float) -> None:
    assert getattr(units, name) == pytest.approx(expected, rel=1e-14)


def test_constants_are_physics() -> None:
    """By values that anyone can look up, so that a mistake shared with ASE would show."""
    assert 1.0 / units.fs == pytest.approx(10.1805, rel=1e-5)
    assert units.kB * 300.0 == pytest.approx(0.025852, rel=1e-4)
    assert 1.0 / units.kJ_per_mol == pytest.approx(96.485, rel=1e-5)
    assert 1.0 / units.GPa == pytest.approx(160.2177, rel=1e-6)
