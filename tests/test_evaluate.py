"""What `evaluate` makes of atomic energies, apart from any network."""

from __future__ import annotations

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
    random_schnet,
    slab,
)
from oracles import LennardJones
from torch import Tensor, nn

from mdlearn.atoms import to_system
from mdlearn.neighbors import Neighbors, build, pair_vectors
from mdlearn.potentials.evaluate import evaluate
from mdlearn.system import concatenate


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
