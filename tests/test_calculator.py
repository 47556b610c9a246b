"""A model inside ASE is the model, whatever was computed before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase
import ase.build
import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.verlet import VelocityVerlet
from checks import SYSTEMS, crystal, evaluate_atoms, every_crystal, every_system, molecule, slab
from hypothesis import given
from hypothesis import strategies as st

from mdlearn import MDLearnCalculator, load_model
from mdlearn import calculator as module
from mdlearn.atoms import to_system
from mdlearn.errors import DataError, ModelError, UnstableError
from mdlearn.integrators import velocity_verlet
from mdlearn.momenta import maxwell_boltzmann
from mdlearn.neighbors import SKIN
from mdlearn.potentials.frozen import AGREEMENT, freeze
from mdlearn.simulate import Snapshot, isolated, simulate, start
from mdlearn.units import fs, kB


@pytest.fixture
def calculator(model_path: Path) -> MDLearnCalculator:
    return MDLearnCalculator(model_path, device="cpu", precision="float64")


@every_system
def test_forces_are_those_of_ase(calculator: MDLearnCalculator, name: str) -> None:
    atoms = SYSTEMS[name]()
    atoms.calc = calculator
    expected = calculate_numerical_forces(atoms, eps=1e-4)
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 1e-2
    np.testing.assert_allclose(forces, expected, rtol=0.0, atol=1e-6)


@every_crystal
def test_stress_is_that_of_ase(calculator: MDLearnCalculator, name: str) -> None:
    atoms = SYSTEMS[name]()
    atoms.calc = calculator
    expected = calculate_numerical_stress(atoms, eps=1e-5, voigt=True)
    stress = atoms.get_stress()
    assert np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(stress, expected, rtol=0.0, atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(voigt=False)[0, 2], stress[4], rtol=1e-14)


@every_system
def test_results_are_those_of_the_network(
    calculator: MDLearnCalculator, model_path: Path, name: str
) -> None:
    """To rounding those of its frozen form, which agrees with it."""
    atoms = SYSTEMS[name]()
    network = load_model(model_path, torch.float64).network
    expected = evaluate_atoms(freeze(network), atoms)
    atoms.calc = calculator
    agreement, exact = AGREEMENT[torch.float64], evaluate_atoms(network, atoms)
    np.testing.assert_allclose(atoms.get_forces(), exact.forces, rtol=0.0, atol=agreement)
    assert atoms.get_potential_energy() == pytest.approx(float(exact.energy), abs=agreement)
    assert atoms.get_potential_energy() == pytest.approx(float(expected.energy), rel=1e-14)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    assert calculator.results["free_energy"] == calculator.results["energy"]
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, rtol=0.0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_potential_energies(), expected.energies, rtol=1e-13)


def test_dynamics_of_ase_is_our_dynamics(calculator: MDLearnCalculator, model_path: Path) -> None:
    atoms = crystal()
    system = to_system(atoms)
    momenta = maxwell_boltzmann(system, 500.0 * kB, [1])
    network = load_model(model_path, torch.float64).network
    integrator = velocity_verlet(0.5 * fs)
    ours: list[np.ndarray] = []

    def observe(snapshot: Snapshot) -> bool:
        ours.append(snapshot.state.system.positions.numpy())
        return True

    dynamics = isolated(network, integrator, system)
    first = start(dynamics, system, momenta)
    simulate(dynamics, first, steps=100, every=10, observe=observe)

    atoms.calc = calculator
    atoms.set_momenta(momenta.numpy())
    dynamics = VelocityVerlet(atoms, timestep=0.5 * ase.units.fs)
    theirs: list[np.ndarray] = []
    dynamics.attach(lambda: theirs.append(atoms.get_positions()), interval=10)
    dynamics.run(100)
    np.testing.assert_allclose(np.array(ours), np.array(theirs[1:]), rtol=0.0, atol=1e-8)
    assert np.abs(ours[-1] - system.positions.numpy()).max() > SKIN / 2


def test_list_is_kept_while_it_is_good(
    calculator: MDLearnCalculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[int] = []
    original = module.build
    monkeypatch.setattr(module, "build", lambda *a: builds.append(1) or original(*a))
    atoms = crystal()
    atoms.calc = calculator
    for move, expected in ((0.0, 1), (0.4, 1), (0.2, 2), (0.4, 2), (9.0, 3)):
        atoms.positions[0, 0] += move * SKIN
        atoms.get_potential_energy()
        assert len(builds) == expected
    atoms.get_forces()
    atoms.get_stress()
    assert len(builds) == 3


@given(st.lists(st.integers(0, 7), min_size=2, max_size=8), st.integers(0, 1000))
def test_what_came_before_is_not_seen(model_path: Path, changes: list[int], seed: int) -> None:
    """Any sequence of moves, elements, cells and boundary conditions against a fresh calculator."""
    rng = np.random.default_rng(seed)
    atoms = crystal()
    used = MDLearnCalculator(model_path, device="cpu", precision="float64")
    for change in changes:
        if change < 3:
            atoms.positions += rng.uniform(-1, 1, (len(atoms), 3)) * (0.05, 0.2, 1.0)[change]
        elif change == 3:
            atoms.numbers[rng.integers(len(atoms))] = rng.choice([1, 6, 8])
        elif change == 4:
            atoms.set_cell(atoms.cell.array * rng.uniform(0.95, 1.1), scale_atoms=False)
        elif change == 5:
            atoms.pbc = rng.integers(0, 2, 3).astype(bool)
        elif change == 6:
            atoms = atoms[:-1] if len(atoms) > 3 else crystal(seed=seed)
        else:
            atoms = atoms[rng.permutation(len(atoms))]
        atoms.calc = used
        found = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = MDLearnCalculator(model_path, device="cpu", precision="float64")
        assert found[0] == pytest.approx(atoms.get_potential_energy(), rel=1e-13)
        np.testing.assert_allclose(found[1], atoms.get_forces(), rtol=0.0, atol=1e-11)


def test_unknown_element_is_an_error(calculator: MDLearnCalculator) -> None:
    atoms = ase.Atoms("HNO", positions=np.eye(3))
    atoms.calc = calculator
    with pytest.raises(ModelError, match=r"atom 1 is N.*H, C, O"):
        atoms.get_potential_energy()
    atoms.numbers[1] = 6
    assert np.isfinite(atoms.get_potential_energy())


@pytest.mark.parametrize("make", [molecule, slab])
@pytest.mark.parametrize("before", [False, True])
def test_stress_without_a_volume_is_an_error(
    calculator: MDLearnCalculator, make: Callable[[], ase.Atoms], before: bool
) -> None:
    atoms = make()
    atoms.calc = calculator
    if before:
        atoms.get_forces()
    with pytest.raises(PropertyNotImplementedError, match="volume"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_forces()).all()


def test_bad_geometry_is_an_error(calculator: MDLearnCalculator) -> None:
    atoms = crystal()
    atoms.calc = calculator
    atoms.get_forces()
    atoms.positions[2, 0] = np.nan
    with pytest.raises(UnstableError, match="atom 2"):
        atoms.get_forces()
    flat = crystal()
    flat.cell[2] = 0.0
    flat.calc = calculator
    with pytest.raises(DataError, match="volume"):
        flat.get_forces()


def test_single_precision_is_the_default(model_path: Path, calculator: MDLearnCalculator) -> None:
    fast = MDLearnCalculator(model_path, device="cpu")
    assert {each.dtype for each in fast.network.parameters()} == {torch.float32}
    atoms = crystal()
    atoms.calc = calculator
    expected = atoms.get_forces()
    atoms.calc = fast
    error = np.abs(atoms.get_forces() - expected).max()
    assert 0.0 < error < 1e-4


def test_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        MDLearnCalculator(tmp_path / "nowhere")
