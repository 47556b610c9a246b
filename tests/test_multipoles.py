"""Charges and dipoles: they turn, shift and add up as physics has it, and can be learned."""

from __future__ import annotations

import copy
from importlib.resources import files
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from checks import SYSTEMS, Run, assert_close, molecule, random_network, random_rotation

import mdlearn
from mdlearn.atoms import read_frames, to_system
from mdlearn.errors import ModelError
from mdlearn.neighbors import build
from mdlearn.potentials.architectures import ARCHITECTURES
from mdlearn.potentials.evaluate import Multipoles, evaluate_multipoles
from mdlearn.potentials.network import Network
from mdlearn.system import concatenate, sum_by_system
from mdlearn.trajectory import Trajectory

NETWORKS = [
    name
    for name, kind in ARCHITECTURES.items()
    if issubclass(kind, Network) and name != "unconstrained"
]
every_network = pytest.mark.parametrize("name", NETWORKS)


def multipoles(name: str, atoms: ase.Atoms) -> Multipoles:
    network = random_network(ARCHITECTURES[name], dipole=True)
    assert isinstance(network, Network)
    system = to_system(atoms)
    with torch.no_grad():
        return evaluate_multipoles(network, system, build(system, network.cutoff))


@every_network
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["rotation", "reflection"])
def test_dipole_turns_with_the_molecule(name: str, sign: float) -> None:
    atoms, q = molecule(), sign * random_rotation()
    expected = multipoles(name, atoms)
    assert expected.dipole.abs().max() > 1e-2
    atoms.positions = atoms.positions @ q.numpy()
    found = multipoles(name, atoms)
    assert_close(found.dipole, expected.dipole @ q, 1e-12)
    assert_close(found.charges, expected.charges, 1e-12)


@every_network
@pytest.mark.parametrize("charge", [0.0, 1.0, -2.0])
def test_charges_add_up_and_a_shift_moves_the_charge(name: str, charge: float) -> None:
    atoms, shift = molecule(), torch.tensor([[3.0, -5.0, 11.0]], dtype=torch.float64)
    atoms.info["charge"] = charge
    before = multipoles(name, atoms)
    assert float(before.charges.sum()) == pytest.approx(charge, abs=1e-13)
    assert before.charges.std() > 1e-3
    atoms.positions += shift.numpy()
    after = multipoles(name, atoms)
    assert_close(after.dipole - before.dipole, charge * shift, 1e-12)


@every_network
def test_order_and_company_do_not_matter(name: str) -> None:
    atoms = molecule()
    expected = multipoles(name, atoms)
    order = np.random.default_rng(0).permutation(len(atoms))
    found = multipoles(name, atoms[order])
    assert_close(found.dipole, expected.dipole, 1e-12)
    assert_close(found.charges, expected.charges[order], 1e-12)
    ion = molecule("H2O")
    ion.info["charge"] = 1.0
    network = random_network(ARCHITECTURES[name], dipole=True)
    assert isinstance(network, Network)
    batch = concatenate([to_system(each) for each in (ion, atoms, SYSTEMS["triclinic"]())])
    with torch.no_grad():
        both = evaluate_multipoles(network, batch, build(batch, network.cutoff))
    assert_close(both.dipole[1:2], expected.dipole, 1e-12)
    assert_close(sum_by_system(both.charges, batch), batch.charge, 1e-13)


def test_an_isolated_ion_has_its_charge() -> None:
    atoms = ase.Atoms("O", positions=[[1.0, 2.0, 3.0]], info={"charge": -1.0})
    found = multipoles("equivariant", atoms)
    assert found.charges.tolist() == [-1.0]
    assert found.dipole.tolist() == [[-1.0, -2.0, -3.0]]


def test_a_network_without_the_heads_says_so() -> None:
    network, system = random_network(ARCHITECTURES["schnet"]), to_system(molecule())
    with pytest.raises(ModelError, match="no charges and dipoles"):
        evaluate_multipoles(network, system, build(system, network.cutoff))


def label(atoms: ase.Atoms) -> ase.Atoms:
    """Gives ethanol a dipole that is known: charges of elements and a vector along each O-H."""
    charge = {1: 0.1, 6: -0.16, 8: -0.28}
    charges = np.array([charge[z] for z in atoms.numbers])
    x = atoms.positions
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    bond = x[np.flatnonzero(atoms.numbers == 1)] - x[oxygen]
    bond = bond[np.linalg.norm(bond, axis=1).argmin()]
    dipole = (charges - charges.mean()) @ x + 0.3 * bond
    labelled = atoms.copy()
    results = {name: atoms.calc.results[name] for name in ("energy", "forces")}
    labelled.calc = SinglePointCalculator(labelled, **results, dipole=dipole)
    return labelled


@pytest.mark.parametrize("pbc", [False, True], ids=["molecule", "periodic"])
def test_a_dipole_of_periodic_frames_must_be_asked_for(tmp_path: Path, pbc: bool) -> None:
    atoms = ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), 0)
    labelled = label(atoms)
    labelled.set_cell([20.0, 20.0, 20.0])
    labelled.pbc = pbc
    ase.io.write(tmp_path / "frames.xyz", labelled)
    for key in (None, "dipole"):
        (frame,), keys = read_frames(tmp_path / "frames.xyz", dipole_key=key)
        taken = key is not None or not pbc
        assert keys.dipole == ("dipole" if taken else None)
        assert bool(frame.labels.dipole.isnan().all()) is not taken


def test_dipoles_are_learned_and_come_out_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    frames = ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), ":60")
    labelled = [label(atoms) for atoms in frames]
    spread = np.mean([np.abs(atoms.get_dipole_moment()).mean() for atoms in labelled])
    ase.io.write("frames.xyz", labelled)
    train = "train frames.xyz --size small --epochs 20 --forces-weight 0.1 --output run"
    code, _, err = run(*train.split())
    assert code == 0
    assert "dipole from 'dipole'" in err
    errors = np.genfromtxt("run/metrics.csv", delimiter=",", names=True)
    assert errors["valid_dipole_mae_meA"].min() < 0.1 * 1e3 * spread

    atoms = copy.deepcopy(labelled[0])
    expected = atoms.get_dipole_moment()
    atoms.calc = mdlearn.MDLearnCalculator("run")
    assert np.abs(atoms.get_dipole_moment() - expected).mean() < 0.2 * spread
    assert atoms.get_charges().sum() == pytest.approx(0.0, abs=1e-10)
    start = "simulate run frames.xyz --frame 0 --steps 20 --output t.h5"
    assert run(*start.split())[0] == 0
    assert run(*["simulate", "--resume", "t.h5", "--steps", "30"])[0] == 0
    with Trajectory("t.h5") as trajectory:
        found = [float(trajectory.observable(f"dipole_{axis}")[0]) for axis in "xyz"]
        assert len(trajectory.observable("dipole_x")) == 4
    assert np.abs(found - atoms.get_dipole_moment()).max() < 1e-6

    plain = "train frames.xyz --size small --epochs 1 --dipole-weight 0 --output plain"
    assert run(*plain.split())[0] == 0
    assert "dipole" not in mdlearn.MDLearnCalculator("plain").implemented_properties
