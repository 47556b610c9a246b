"""What `evaluate` makes of atomic energies, and what `compare` makes of that beside labels."""

from __future__ import annotations

import json

import ase
import numpy as np
import pytest
import torch
from checks import (
    CUTOFF,
    REFERENCE_ENERGIES,
    SPECIES,
    SYSTEMS,
    assert_close,
    crystal,
    evaluate_atoms,
    every_system,
    molecule,
    random_network,
    random_schnet,
    slab,
)
from oracles import LennardJones
from torch import Tensor, nn

from mdlearn.atoms import Frame, to_system
from mdlearn.labels import Labels
from mdlearn.neighbors import Neighbors, build, pair_vectors
from mdlearn.potentials.evaluate import evaluate, evaluate_multipoles
from mdlearn.potentials.schnet import SchNet
from mdlearn.system import concatenate
from mdlearn.training import dataset as examples
from mdlearn.training.comparison import (
    QUANTITIES,
    Pair,
    compare,
    restrict,
    statistics,
    summarize,
    to_json,
)
from mdlearn.training.loss import Weights, measure


class Spring(nn.Module):
    """Pairs within 2 Å as springs: k (d - d0)²/2, half of it to each atom; a hand can check it."""

    cutoff = 2.0
    species = SPECIES

    def forward(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> Tensor:
        d = r.square().sum(-1).sqrt()
        return torch.where(d < 2.0, 0.25 * 3.0 * (d - 1.0).square(), 0.0).sum(1)


def test_spring_by_hand() -> None:
    atoms = ase.Atoms("HH", positions=[[0, 0, 0], [1.2, 0, 0]], cell=[10.0, 5.0, 4.0], pbc=True)
    found = evaluate_atoms(Spring(), atoms)
    assert found.energy.tolist() == pytest.approx([0.5 * 3.0 * 0.04])
    # Stretched: the atoms pull towards each other, and the cell wants to shrink (positive stress).
    assert found.forces.tolist() == [
        pytest.approx([0.6, 0.0, 0.0]),
        pytest.approx([-0.6, 0.0, 0.0]),
    ]
    assert float(found.stress[0, 0, 0]) == pytest.approx(1.2 * 0.6 / 200.0)
    assert found.stress.count_nonzero() == 1
    assert found.energies.tolist() == pytest.approx([0.03, 0.03])
    assert found.virials[:, 0, 0].tolist() == pytest.approx([0.36, 0.36])


@every_system
def test_forces_are_what_autograd_gives_on_positions(name: str) -> None:
    system = to_system(SYSTEMS[name]())
    network = random_schnet()
    neighbors = build(system, CUTOFF)
    x = system.positions.clone().requires_grad_()
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    grown = torch.eye(3, dtype=torch.float64) + strain
    strained = system._replace(positions=x @ grown, cell=system.cell @ grown)
    energy = network(system.numbers, pair_vectors(strained, neighbors), neighbors).sum()
    slope, virial = torch.autograd.grad(energy, (x, strain))
    found = evaluate(network, system, neighbors)
    assert_close(found.forces, -slope, 1e-13)
    assert_close(found.virials.sum(0), virial, 1e-13)


def test_stress_is_nan_without_a_volume_and_only_there() -> None:
    batch = concatenate([to_system(make()) for make in (molecule, crystal, slab)])
    stress = evaluate(random_schnet(), batch, build(batch, CUTOFF)).stress
    assert stress.isnan().all(2).all(1).tolist() == [True, False, True]


def test_sums_are_over_atoms() -> None:
    batch = concatenate([to_system(crystal(seed=seed)) for seed in range(3)])
    found = evaluate(random_schnet(), batch, build(batch, CUTOFF))
    n = 8
    for index in range(3):
        mine = slice(index * n, (index + 1) * n)
        space = float(torch.linalg.det(batch.cell[index]).abs())
        assert float(found.energy[index]) == pytest.approx(float(found.energies[mine].sum()))
        assert_close(found.stress[index], found.virials[mine].sum(0) / space, 1e-14)


def test_results_are_plain_numbers_unless_asked() -> None:
    system = to_system(crystal())
    network, neighbors = random_schnet(), build(system, CUTOFF)
    assert not any(each.requires_grad for each in evaluate(network, system, neighbors))
    with torch.no_grad():
        assert evaluate(network, system, neighbors).forces.abs().max() > 0.0
    graph = evaluate(network, system, neighbors, create_graph=True)
    parameters = list(network.parameters())
    for each in (graph.energy, graph.forces, graph.stress, graph.virials):
        gradients = torch.autograd.grad(
            each.square().sum(), parameters, retain_graph=True, allow_unused=True
        )
        assert max(float(g.abs().max()) for g in gradients if g is not None) > 1e-6
    for one, other in zip(evaluate(network, system, neighbors), graph, strict=True):
        # Not the same bits: torch differentiates an activation by another formula when it must be
        # differentiated again.
        assert_close(one, other.detach(), 1e-14)


def test_parameter_gradient_of_forces_is_the_derivative() -> None:
    """Mixed second derivatives, on which force training rests, by finite differences."""
    system = to_system(crystal())
    network, neighbors = random_schnet(), build(system, CUTOFF)
    weights = torch.randn(len(system.numbers), 3, dtype=torch.float64)

    def total() -> Tensor:
        evaluation = evaluate(network, system, neighbors, create_graph=True)
        return (evaluation.forces * weights).sum()

    parameters = dict(network.named_parameters())
    gradients = dict(
        zip(
            parameters,
            torch.autograd.grad(total(), list(parameters.values()), allow_unused=True),
            strict=True,
        )
    )
    rng = np.random.default_rng(0)
    compared = 0
    for name, parameter in parameters.items():
        if gradients[name] is None:
            assert name == "readout.1.bias"  # cancels in the difference to the isolated atom
            continue
        index = tuple(int(rng.integers(size)) for size in parameter.shape)
        slope = []
        for h in (1e-4, -1e-4):
            with torch.no_grad():
                parameter[index] += h
                slope.append(float(total().detach()))
                parameter[index] -= h
        expected = (slope[0] - slope[1]) / 2e-4
        assert float(gradients[name][index]) == pytest.approx(expected, rel=1e-5, abs=1e-8)
        compared += abs(expected) > 1e-4
    assert compared > 8


def test_same_bits_every_time() -> None:
    system = to_system(crystal())
    network, neighbors = random_schnet(), build(system, CUTOFF, 0.7)
    first = evaluate(network, system, neighbors)
    for _ in range(3):
        again = evaluate(network, system, build(system, CUTOFF, 0.7))
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_newtons_third_law_is_exact_for_two() -> None:
    potential = LennardJones(SPECIES, REFERENCE_ENERGIES, cutoff=CUTOFF).double()
    atoms = ase.Atoms("HO", positions=[[0.1, 0.2, 0.3], [0.9, 1.1, -0.2]])
    forces = evaluate_atoms(potential, atoms).forces
    assert forces.abs().max() > 1e-3
    assert torch.equal(forces[0], -forces[1])


def labelled(atoms: ase.Atoms, name: str, kind: str = "", *, forces: bool = True) -> Frame:
    """A frame whose labels are random."""
    rng = np.random.default_rng(len(atoms))
    n, stress = len(atoms), rng.normal(size=(1, 3, 3))
    labels = Labels(
        torch.tensor(rng.normal(size=1)),
        torch.tensor(rng.normal(size=(n, 3))) if forces else torch.full((n, 3), torch.nan).double(),
        torch.tensor(stress if atoms.pbc.all() else np.full((1, 3, 3), np.nan)),
        torch.full((1, 3), torch.nan).double(),
    )
    return Frame(name, to_system(atoms), labels, kind)


@pytest.fixture
def frames() -> list[Frame]:
    makers = [molecule, crystal, slab, crystal, lambda: molecule("H2O")]
    kinds = ("gas", "bulk", "surface", "bulk", "gas")
    return [
        labelled(make(), f"a.xyz:{index}", kind)
        for index, (make, kind) in enumerate(zip(makers, kinds, strict=True))
    ]


class TestCompare:
    def test_is_what_single_evaluations_say(
        self, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mdlearn.training.comparison.ATOMS_PER_BATCH", 12)  # several batches
        network = random_schnet()
        found = compare(network, iter(frames))
        single = [evaluate(network, f.system, build(f.system, CUTOFF)) for f in frames]
        assert found.names == tuple(frame.name for frame in frames)
        assert found.predictions.energy == pytest.approx([float(e.energy) for e in single])
        for index, (frame, one) in enumerate(zip(frames, single, strict=True)):
            mine = found.frame == index
            assert found.numbers[mine].tolist() == frame.system.numbers.tolist()
            assert np.array_equal(found.labels.forces[mine], frame.labels.forces.numpy())
            assert found.predictions.forces[mine] == pytest.approx(one.forces.numpy(), abs=1e-12)
            stress = one.stress[0].numpy()
            assert found.predictions.stress[index] == pytest.approx(stress, nan_ok=True, abs=1e-12)
            isolated = sum(REFERENCE_ENERGIES[z] for z in frame.system.numbers.tolist())
            assert found.isolated[index] == pytest.approx(isolated)

    def test_agrees_with_what_training_measures(self, frames: list[Frame]) -> None:
        network = random_schnet()
        batch = examples.concatenate([examples.make_example(f, CUTOFF) for f in frames])
        expected = measure(network, [batch], Weights(1.0, 1.0, 1.0), 1.0)
        found = summarize(compare(network, frames)).whole.errors
        assert set(found) == set(QUANTITIES) - {"dipole_meA"}
        assert found["energy_meV"].mae == pytest.approx(expected.energy_mae_meV)
        assert found["energy_meV_per_atom"].mae == pytest.approx(expected.energy_mae_meV_per_atom)
        assert found["forces_meV_per_A"].mae == pytest.approx(expected.forces_mae_meV_per_A)
        assert found["forces_meV_per_A"].rmse == pytest.approx(expected.forces_rmse_meV_per_A)
        assert found["stress_meV_per_A3"].mae == pytest.approx(expected.stress_mae_meV_per_A3)

    def test_dipoles_only_of_a_network_that_has_them(self, frames: list[Frame]) -> None:
        dipole = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
        frame = frames[0]._replace(labels=frames[0].labels._replace(dipole=dipole))
        without = compare(random_schnet(), [frame])
        assert "dipole_meA" not in summarize(without).whole.errors
        network = random_network(SchNet, dipole=True)
        found = summarize(compare(network, [frame])).whole.errors["dipole_meA"]
        moment = evaluate_multipoles(network, frame.system, build(frame.system, CUTOFF)).dipole
        error = 1e3 * (moment - dipole).abs().detach()
        assert found.mae == pytest.approx(float(error.mean()))
        assert found.max == pytest.approx(float(error.max()))


class TestSummary:
    def test_statistics_by_hand(self) -> None:
        labels = np.array([1.0, np.nan, 3.0, 5.0])
        predictions = np.array([1.0, 7.0, 2.0, 8.0])
        found = statistics(Pair(labels, predictions))
        assert found is not None
        assert found.mae == pytest.approx(4.0 / 3.0)
        assert found.rmse == pytest.approx(np.sqrt(10.0 / 3.0))
        assert found.max == 3.0
        assert found.relative_rmse == pytest.approx(np.sqrt(10.0 / 3.0) / np.sqrt(8.0 / 3.0))
        assert statistics(Pair(np.full(3, np.nan), np.ones(3))) is None
        same = statistics(Pair(np.full(3, 0.1), np.ones(3)))
        assert same is not None
        assert np.isnan(same.relative_rmse)

    def test_says_the_mean_and_no_more(self) -> None:
        labels = np.random.default_rng(0).normal(size=100)
        found = statistics(Pair(labels, np.full(100, labels.mean())))
        assert found is not None
        assert found.relative_rmse == pytest.approx(1.0)

    def test_parts_add_up_to_the_whole(self, frames: list[Frame]) -> None:
        comparison = compare(random_schnet(), frames)
        summary = summarize(comparison)
        key = "forces_meV_per_A"
        assert list(summary.elements) == ["H", "C", "O"]
        assert list(summary.config_types) == ["bulk", "gas", "surface"]
        for parts in (summary.elements, summary.config_types):
            assert sum(each.atoms for each in parts.values()) == summary.whole.atoms
            square = sum(each.atoms * each.errors[key].rmse ** 2 for each in parts.values())
            whole = summary.whole.errors[key]
            assert square / summary.whole.atoms == pytest.approx(whole.rmse**2)
            assert max(each.errors[key].max for each in parts.values()) == whole.max
        oxygen = comparison.numbers == 8
        error = 1e3 * (comparison.predictions.forces - comparison.labels.forces)[oxygen]
        assert summary.elements["O"].errors[key].mae == pytest.approx(np.abs(error).mean())
        assert "stress_meV_per_A3" not in summary.config_types["gas"].errors

    def test_some_frames_are_those_frames_alone(self, frames: list[Frame]) -> None:
        network = random_schnet()
        some = restrict(compare(network, frames), np.array([0, 1, 0, 0, 1], dtype=bool))
        alone = compare(network, [frames[1], frames[4]])
        assert some[:2] == alone[:2]
        for one, other in zip((some.labels, some.predictions), alone[5:], strict=True):
            for mine, expected in zip(one, other, strict=True):
                assert mine == pytest.approx(expected, abs=1e-12, nan_ok=True)
        for mine, expected in zip(some[2:5], alone[2:5], strict=True):
            assert np.array_equal(mine, expected)

    def test_worst_frames_come_first(self, frames: list[Frame]) -> None:
        network = random_schnet()
        frame = frames[1]
        forces = frame.labels.forces.clone()
        forces[5, 2] += 100.0
        frames[1] = frame._replace(labels=frame.labels._replace(forces=forces))
        worst = summarize(compare(network, frames)).worst
        assert len(worst) == len(frames)
        assert (worst[0].name, worst[0].config_type, worst[0].atom) == ("a.xyz:1", "bulk", 5)
        assert worst[0].symbol == frame_symbol(frames[1], 5)
        rmse = [each.errors["forces_meV_per_A"].rmse for each in worst]
        assert rmse == sorted(rmse, reverse=True)
        assert worst[0].errors["forces_meV_per_A"].max > 9e4

    def test_worst_frames_without_forces(self) -> None:
        frames = [labelled(molecule(seed=seed), f"a.xyz:{seed}", forces=False) for seed in range(7)]
        labels = frames[3].labels
        labels = labels._replace(energy=labels.energy + 1e6)
        frames[3] = frames[3]._replace(labels=labels)
        summary = summarize(compare(random_schnet(), frames))
        assert "forces_meV_per_A" not in summary.whole.errors
        assert not summary.elements
        assert not summary.config_types
        assert len(summary.worst) == 5
        assert summary.worst[0].name == "a.xyz:3"
        assert summary.worst[0].symbol == ""

    def test_a_prediction_that_is_no_number_is_the_worst(self, frames: list[Frame]) -> None:
        comparison = compare(random_schnet(), frames)
        comparison.predictions.forces[comparison.frame == 2] = np.nan
        summary = summarize(comparison)
        assert summary.worst[0].name == "a.xyz:2"
        found = to_json(summary)
        assert found["forces_meV_per_A"]["mae"] is None
        json.dumps(found, allow_nan=False)

    def test_json_is_nested_and_without_nan(self, frames: list[Frame]) -> None:
        found = to_json(summarize(compare(random_schnet(), frames)))
        text = json.dumps(found, allow_nan=False)
        assert json.loads(text) == found
        assert found["config_types"]["bulk"]["frames"] == 2
        assert set(found["elements"]["C"]) == {"frames", "atoms", "forces_meV_per_A"}
        assert set(found["energy_meV"]) == {"mae", "rmse", "max", "relative_rmse"}
        assert found["worst_frames"][0]["forces_meV_per_A"]["rmse"] > 0.0


def frame_symbol(frame: Frame, atom: int) -> str:
    return str(ase.Atom(int(frame.system.numbers[atom])).symbol)
