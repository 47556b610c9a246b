"""The doctor finds what was done to good frames, and has nothing against the frames themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from itertools import permutations
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import mdlearn
from mdlearn.atoms import Frame, read_frames, to_system
from mdlearn.conversion import Extra, Units, to_atoms
from mdlearn.doctor import FINDINGS, Finding, examine, refused
from mdlearn.doctor.fingerprints import close_pairs, fingerprints, same_coordinates, separations
from mdlearn.doctor.yardsticks import (
    HARTREE,
    KCAL,
    Order,
    PairFit,
    Slope,
    all_electron_energy,
)
from mdlearn.labels import SIX, Keys, Labels, find_labels

ROOT = Path(mdlearn.__file__).parent
KEYS = Keys("energy", "forces", "stress", None)
KJ = KCAL / 4.184


@pytest.fixture(scope="module")
def ethanol() -> list[Frame]:
    return list(read_frames(str(files("mdlearn.data") / "ethanol.xyz"))[0][:120])


@pytest.fixture(scope="module")
def water() -> list[Frame]:
    return list(read_frames(str(files("mdlearn.data") / "water.xyz"))[0][:40])


@pytest.fixture(scope="module")
def copper() -> list[Frame]:
    """Strained and shaken cells of a metal, with EMT's forces and stress."""
    rng = np.random.default_rng(0)
    return [emt_frame(n, 1 + rng.uniform(-0.03, 0.03), 0.1) for n in range(30)]


def emt_frame(number: int, scale: float, shake: float) -> Frame:
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.set_cell(atoms.cell * scale, scale_atoms=True)
    atoms.rattle(shake, seed=number)
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    calculator = SinglePointCalculator(atoms, **results, stress=atoms.get_stress())
    atoms.calc = calculator
    return Frame(f"cu:{number}", to_system(atoms), find_labels(atoms, KEYS, ""))


def relabelled(frames: Sequence[Frame], change: Callable[[Labels], Labels]) -> list[Frame]:
    return [each._replace(labels=change(each.labels)) for each in frames]


def times(frames: Sequence[Frame], **factors: float) -> list[Frame]:
    """Frames with some of the labels multiplied."""
    return relabelled(
        frames,
        lambda labels: labels._replace(**{n: getattr(labels, n) * x for n, x in factors.items()}),
    )


def diagnose(frames: Sequence[Frame], **others: Sequence[Frame]) -> dict[str, Finding]:
    return {each.name: each for each in examine({"train": frames, **others}, KEYS)}


def rotation(seed: int = 0) -> torch.Tensor:
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return torch.tensor(q)


def test_every_finding_is_known_by_name_and_explained() -> None:
    named = set()
    for path in (ROOT / "doctor").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "about":
                name = ast.unparse(node.args[0]).strip("'")
                labels = ("energy", "forces") if "{label}" in name else ("",)
                named |= {name.removeprefix("f'").replace("{label}", each) for each in labels}
    page = (ROOT.parent / "docs" / "data.md").read_text("utf-8").split("## Convert")[0]
    table = page.split("| refuse | when |")[1].split("How units and signs")[0]
    explained = set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", table))
    assert named == set(FINDINGS) == explained


class TestGoodFrames:
    @pytest.mark.parametrize("name", ["ethanol", "water", "copper"])
    def test_are_not_refused_nor_warned_of(self, name: str, request: pytest.FixtureRequest) -> None:
        found = diagnose(request.getfixturevalue(name))
        assert {each.severity for each in found.values()} <= {"note"}

    def test_perfect_crystals_may_have_no_forces(self, copper: list[Frame]) -> None:
        perfect = [emt_frame(n, 0.97 + 0.005 * n, 0.0) for n in range(10)]
        exact = relabelled(perfect, lambda x: x._replace(forces=torch.zeros_like(x.forces)))
        assert not refused(list(diagnose([*copper, *exact]).values()))

    def test_nothing_is_said_of_nothing(self) -> None:
        assert examine({"train": []}, KEYS) == []


class TestUnits:
    @pytest.mark.parametrize(
        ("factors", "names"),
        [
            ({"energy": 1 / HARTREE}, {"energy-units", "energy-forces-units"}),
            ({"energy": 1 / KCAL, "forces": 1 / KCAL}, {"energy-units", "forces-units"}),
            ({"energy": 1 / KJ}, {"energy-units", "energy-forces-units"}),
            ({"forces": 0.529177 / HARTREE}, {"forces-units", "energy-forces-units"}),
            ({"forces": 1 / KCAL}, {"forces-units", "energy-forces-units"}),
            ({"forces": -1.0}, {"forces-sign"}),
        ],
    )
    def test_ethanol(
        self, ethanol: list[Frame], factors: dict[str, float], names: set[str]
    ) -> None:
        found = diagnose(times(ethanol, **factors))
        assert {each.name for each in refused(list(found.values()))} == names

    def test_electronvolt_per_bohr_is_warned_of(self, ethanol: list[Frame]) -> None:
        found = diagnose(times(ethanol, forces=0.529177))
        assert found["forces-units"].severity == "warn"
        assert "eV/bohr" in found["forces-units"].message

    def test_positions_in_bohr(self, ethanol: list[Frame]) -> None:
        longer = [
            each._replace(system=each.system._replace(positions=each.system.positions / 0.529177))
            for each in ethanol
        ]
        assert diagnose(longer)["position-units"].severity == "refuse"

    @pytest.mark.parametrize("name", ["water", "copper"])
    def test_sign_of_the_stress(self, name: str, request: pytest.FixtureRequest) -> None:
        found = diagnose(times(request.getfixturevalue(name), stress=-1.0))
        assert [each.name for each in refused(list(found.values()))] == ["stress-sign"]

    @pytest.mark.parametrize("name", ["water", "copper"])
    def test_stress_in_gigapascal(self, name: str, request: pytest.FixtureRequest) -> None:
        found = diagnose(times(request.getfixturevalue(name), stress=160.2177))
        assert [each.name for each in refused(list(found.values()))] == ["stress-units"]
        assert "GPa" in found["stress-units"].message

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    @pytest.mark.parametrize("order", sorted(permutations(range(3)))[1:])
    def test_order_of_the_stress(
        self, water: list[Frame], order: tuple[int, ...], sign: float
    ) -> None:
        """Six numbers of shear in any other order; what is to be done about it does it."""
        names = [["yz", "xz", "xy"][each] for each in order]

        def exchange(labels: Labels) -> Labels:
            six = labels.stress[:, *SIX]
            six = sign * torch.cat([six[:, :3], six[:, 3:][:, list(order)]], 1)
            return labels._replace(stress=six[:, torch.tensor([[0, 5, 4], [5, 1, 3], [4, 3, 2]])])

        frames = relabelled(water, exchange)
        found = diagnose(frames)
        expected = {"stress-order"} | ({"stress-sign"} if sign < 0.0 else set())
        assert {each.name for each in refused(list(found.values()))} == expected
        assert ", ".join(names) in found["stress-order"].message
        option = found["stress-order"].fix.split()[-1]
        units = Units.parse("eV", "eV/Å", "eV/Å³", stress_order=option, flip_stress=sign < 0.0)
        repaired = [
            each._replace(
                labels=find_labels(to_atoms(each, units, Extra({}, None)), KEYS, each.name)
            )
            for each in frames
        ]
        assert not refused(list(diagnose(repaired).values()))
        for one, other in zip(water, repaired, strict=True):
            assert torch.equal(one.labels.stress, other.labels.stress)

    def test_order_of_a_stress_that_is_explained_wholly(
        self, water: list[Frame], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shear = Order(("xz", "yz", "xy"), 1.0, 0.1, 60)
        fit = PairFit(1.0, None, Slope(0.9, 1.0, 120), shear)
        monkeypatch.setattr("mdlearn.doctor.yardsticks.fit_pairs", lambda _: fit)
        found = refused(list(diagnose(water).values()))
        assert [each.name for each in found] == ["stress-order"]

    def test_metal_in_kcal_per_mol(self, copper: list[Frame]) -> None:
        assert "energy-forces-units" in diagnose(times(copper, energy=1 / KCAL))

    def test_all_electrons(self) -> None:
        """Hartree-Fock energies of C and of Ar: -37.689 and -526.817 Hartree."""
        assert all_electron_energy(np.array([6])) == pytest.approx(-37.689 * HARTREE, rel=0.01)
        assert all_electron_energy(np.array([18])) == pytest.approx(-526.817 * HARTREE, rel=0.01)


class TestLabels:
    def test_forces_that_are_zero(self, ethanol: list[Frame]) -> None:
        changed = times(ethanol[:7], forces=0.0)
        finding = diagnose([*changed, *ethanol[7:]])["zero-forces"]
        assert finding.severity == "refuse"
        assert finding.frames == tuple(each.name for each in ethanol[:5])
        assert finding.total == 7

    def test_forces_of_fixed_atoms_that_were_set_to_zero(self, copper: list[Frame]) -> None:
        mask = torch.ones(32, 1)
        mask[:4] = 0.0
        fixed = relabelled(copper, lambda labels: labels._replace(forces=labels.forces * mask))
        assert diagnose(fixed)["zero-forces"].total == len(copper)

    def test_forces_of_another_orientation(self, ethanol: list[Frame]) -> None:
        turned = [
            each._replace(labels=each.labels._replace(forces=each.labels.forces @ rotation(n)))
            for n, each in enumerate(ethanol)
        ]
        assert diagnose(turned)["net-torque"].severity == "refuse"

    def test_forces_that_do_not_balance(self, ethanol: list[Frame]) -> None:
        mask = torch.ones(9, 1)
        mask[2] = -1.0
        found = diagnose(relabelled(ethanol, lambda x: x._replace(forces=x.forces * mask)))
        assert found["net-force"].severity == "refuse"

    def test_one_wrong_energy(self, ethanol: list[Frame]) -> None:
        finding = diagnose([*times(ethanol[:1], energy=1.001), *ethanol[1:]])["energy-outliers"]
        assert finding.frames == (ethanol[0].name,)

    def test_energy_that_is_zero(self, ethanol: list[Frame]) -> None:
        assert diagnose([*times(ethanol[:1], energy=0.0), *ethanol[1:]])["zero-energy"].total == 1

    def test_one_energy_for_all(self, ethanol: list[Frame]) -> None:
        same = relabelled(ethanol, lambda x: x._replace(energy=ethanol[0].labels.energy))
        assert diagnose(same)["constant-energy"].severity == "refuse"

    def test_huge_force(self, ethanol: list[Frame]) -> None:
        found = diagnose([*times(ethanol[:1], forces=200.0), *ethanol[1:]])
        assert found["large-forces"].frames == (ethanol[0].name,)

    def test_another_level_of_theory(self, ethanol: list[Frame]) -> None:
        other = relabelled(ethanol[60:], lambda x: x._replace(energy=x.energy + 30.0))
        assert "split-offset" in diagnose(ethanol[:60], test=other)


class TestDuplicates:
    def test_moved_and_turned_copies_are_found(self, ethanol: list[Frame]) -> None:
        copies = [moved(each) for each in ethanol[:6]]
        finding = diagnose([*ethanol, *copies])["duplicate-frames"]
        assert finding.total == 6
        assert finding.severity == "warn"

    def test_numbering_does_not_hide_a_copy(self, ethanol: list[Frame]) -> None:
        order = torch.tensor([0, 1, 2, 8, 7, 6, 5, 4, 3])
        one = ethanol[0]
        system = one.system._replace(
            positions=one.system.positions[order], numbers=one.system.numbers[order]
        )
        copy = one._replace(
            system=system, labels=one.labels._replace(forces=one.labels.forces[order])
        )
        assert diagnose([*ethanol, copy])["duplicate-frames"].total == 1

    def test_translation_through_the_cell(self, water: list[Frame]) -> None:
        one = water[0]
        fractional = torch.tensor([0.37, -1.2, 0.5], dtype=torch.float64)
        positions = one.system.positions + fractional @ one.system.cell[0]
        positions[3] += one.system.cell[0, 1]
        copy = one._replace(system=one.system._replace(positions=positions))
        assert diagnose([*water, copy])["duplicate-frames"].total == 1

    def test_two_answers_to_one_question(self, ethanol: list[Frame]) -> None:
        (other,) = times([moved(ethanol[0])], energy=1.0001)
        finding = diagnose([*ethanol, other])["conflicting-duplicates"]
        assert finding.severity == "refuse"
        assert finding.frames == (f"{other.name} = {ethanol[0].name}",)

    def test_test_frames_that_are_trained_on(self, ethanol: list[Frame]) -> None:
        assert diagnose(ethanol[:60], test=ethanol[50:])["across-splits"].severity == "refuse"
        assert diagnose(ethanol[:60], test=ethanol[59:])["across-splits"].severity == "warn"
        assert "across-splits" not in diagnose(ethanol[:60], test=ethanol[60:])

    def test_near_duplicates_are_not_duplicates(self, ethanol: list[Frame]) -> None:
        positions = ethanol[0].system.positions + 0.003 * torch.randn(9, 3, dtype=torch.float64)
        near = ethanol[0]._replace(system=ethanol[0].system._replace(positions=positions))
        found = diagnose([*ethanol, near])
        assert found["near-duplicates"].total == 1
        assert "duplicate-frames" not in found

    def test_a_trajectory_is_seen_as_one(self, ethanol: list[Frame]) -> None:
        one, other = (each.system.positions for each in ethanol[:2])
        steps = [
            each._replace(system=ethanol[0].system._replace(positions=one + n / 40 * (other - one)))
            for n, each in enumerate(ethanol[:40])
        ]
        assert "correlated-frames" in diagnose(steps)
        assert "correlated-frames" not in diagnose(ethanol)


def moved(frame: Frame) -> Frame:
    """The same molecule elsewhere, turned, under another name."""
    q = rotation()
    positions = frame.system.positions @ q + torch.tensor([5.0, -3.0, 1.0], dtype=torch.float64)
    return Frame(
        f"copy of {frame.name}",
        frame.system._replace(positions=positions),
        frame.labels._replace(forces=frame.labels.forces @ q),
    )


class TestFingerprints:
    @pytest.mark.parametrize("name", ["ethanol", "water"])
    def test_distance_is_below_that_of_sorted_distances(
        self, name: str, request: pytest.FixtureRequest
    ) -> None:
        one, other = (each.system for each in request.getfixturevalue(name)[:2])
        one = one._replace(cell=other.cell)
        kind = np.minimum.outer(one.numbers, one.numbers) * 100 + np.maximum.outer(
            one.numbers, one.numbers
        )
        pairs = kind[np.triu_indices(len(one.numbers), 1)]
        a, b = (separations(each)[np.lexsort((separations(each), pairs))] for each in (one, other))
        (first, _), (second, _) = fingerprints(one), fingerprints(other)
        apart = float(np.linalg.norm(first - second))
        assert 0.0 < apart <= np.sqrt(np.mean((a - b) ** 2)) + 1e-12

    def test_short_distances_are_distances(self, water: list[Frame]) -> None:
        system = water[0].system
        d = separations(system)
        cell = system.cell[0].numpy()
        atoms = ase.Atoms(system.numbers.numpy(), system.positions.numpy(), cell=cell, pbc=True)
        exact = atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)]
        assert np.abs(d - exact)[exact < 1.2].max() < 0.02

    def test_slab_and_wire(self) -> None:
        """Moving a slab along or across its plane changes nothing; parting its layers does."""
        for pbc in ((True, True, False), (True, False, False)):
            atoms = bulk("Cu", cubic=True) * (2, 2, 1)
            atoms.rattle(0.1, seed=1)
            atoms.pbc = pbc
            one = to_system(atoms)
            atoms.positions += [1.1, 2.3, -4.5]
            assert same_coordinates(one, to_system(atoms), 1e-9)
            atoms.positions[0] += atoms.cell[0]
            assert same_coordinates(one, to_system(atoms), 1e-9)
            atoms.positions[0] += [0.0, 0.0, 5.0]
            assert not same_coordinates(one, to_system(atoms), 1e-2)

    def test_all_close_pairs_are_found(self) -> None:
        points = np.random.default_rng(0).uniform(size=(300, 3))
        apart = np.linalg.norm(points[:, None] - points, axis=2)
        expected = {(a, b) for a, b in np.argwhere(apart <= 0.1) if a < b}
        found = close_pairs(points, 0.1)
        assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
