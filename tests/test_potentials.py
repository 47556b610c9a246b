"""Every potential goes through the same checks; its own formula is compared with an oracle."""

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
    PotentialChecks,
    evaluate_atoms,
    every_system,
    random_network,
    random_schnet,
)
from oracles import (
    LennardJones,
    lennard_jones_energy,
    plain_gather,
    plain_transpose_sum,
    schnet_energy,
)
from torch import nn

from mdlearn.atoms import to_system
from mdlearn.neighbors import build
from mdlearn.potentials.elements import Elements
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.network import EUCLIDEAN
from mdlearn.potentials.pairs import GaussianBasis, distances, envelope, gather, transpose_sum


class TestSchNet(PotentialChecks):
    def make(self) -> nn.Module:
        return random_schnet()

    @every_system
    def test_is_the_formula(self, name: str) -> None:
        atoms = SYSTEMS[name]()
        network = random_schnet(scale=0.7)
        found = evaluate_atoms(network, atoms).energy
        assert abs(float(found) - schnet_energy(network, to_system(atoms))) < 1e-10

    def test_sees_elements_and_more_than_the_nearest(self) -> None:
        network = random_schnet()
        x = [[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [3.3, 1.0, 0.0]]
        energies = [
            float(evaluate_atoms(network, ase.Atoms(formula, positions=x)).energies[0])
            for formula in ("CHH", "COH", "CHO")
        ]
        assert min(abs(np.diff(energies))) > 1e-6

    def test_scale_is_in_ev(self) -> None:
        atoms = SYSTEMS["molecule"]()
        forces = [evaluate_atoms(random_schnet(scale=scale), atoms).forces for scale in (1.0, 3.0)]
        assert torch.allclose(3.0 * forces[0], forces[1], rtol=1e-12, atol=1e-14)


class TestSchNetWithWalls(PotentialChecks):
    """Walls that some pairs of every system are inside of."""

    def make(self) -> nn.Module:
        return random_schnet(closest=((1, 1, 1.9), (1, 6, 1.2), (6, 8, 1.6)))


class TestEquivariant(PotentialChecks):
    def make(self) -> nn.Module:
        return random_network(Equivariant)


class TestChiralEquivariant(PotentialChecks):
    symmetries = EUCLIDEAN - {"reflection"}

    def make(self) -> nn.Module:
        return random_network(Equivariant, parity="so3")


class TestLennardJones(PotentialChecks):
    """A toy that is right by inspection, so that a check that fails here is itself wrong."""

    def make(self) -> nn.Module:
        return LennardJones(SPECIES, REFERENCE_ENERGIES, cutoff=CUTOFF).double()

    @every_system
    def test_is_the_formula(self, name: str) -> None:
        potential = self.make()
        system = to_system(SYSTEMS[name]())
        found = evaluate_atoms(potential, SYSTEMS[name]()).energy
        assert abs(float(found) - lennard_jones_energy(potential, system)) < 1e-10


@every_system
def test_gather_and_its_transpose_are_plain_indexing(name: str) -> None:
    system = to_system(SYSTEMS[name]())
    neighbors = build(system, CUTOFF, capacity=50)
    h = torch.randn(len(system.numbers), 5, dtype=torch.float64)
    g = torch.randn(*neighbors.j.shape, 5, dtype=torch.float64)
    assert torch.equal(gather(h, neighbors), plain_gather(h, neighbors))
    expected = plain_transpose_sum(g, neighbors)
    torch.testing.assert_close(transpose_sum(g, neighbors), expected, rtol=0.0, atol=1e-12)
    # <g, gather h> = <transpose g, h> is what makes one the derivative of the other.
    left, right = (g * gather(h, neighbors)).sum(), (transpose_sum(g, neighbors) * h).sum()
    assert abs(left - right) < 1e-11


def test_gather_is_differentiable_twice() -> None:
    system = to_system(SYSTEMS["triclinic"]())
    neighbors = build(system, 2.0)
    h = torch.randn(len(system.numbers), 2, dtype=torch.float64, requires_grad=True)
    g = torch.randn(*neighbors.j.shape, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gather(x, neighbors), h)
    assert torch.autograd.gradgradcheck(lambda x: gather(x, neighbors).square(), h)
    assert torch.autograd.gradcheck(lambda x: transpose_sum(x, neighbors), g)
    assert torch.autograd.gradgradcheck(lambda x: transpose_sum(x, neighbors).square(), g)


def test_gather_is_a_sound_operator() -> None:
    system = to_system(SYSTEMS["triclinic"]())
    neighbors = build(system, 2.0)
    h = torch.randn(len(system.numbers), 3, dtype=torch.float64, requires_grad=True)
    g = torch.randn(*neighbors.j.shape, 3, dtype=torch.float64, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for operator, values in (
        (torch.ops.mdlearn.gather.default, h),
        (torch.ops.mdlearn.gather_transpose.default, g),
    ):
        arguments = (values, neighbors.j, neighbors.reverse)
        torch.library.opcheck(operator, arguments, test_utils=checks)


def test_envelope_has_two_continuous_derivatives() -> None:
    d = torch.tensor([0.0, 1.7, 3.5 - 1e-12, 3.5, 9.0], dtype=torch.float64, requires_grad=True)
    value = envelope(d, 3.5)
    (first,) = torch.autograd.grad(value.sum(), d, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), d)
    value = value.detach()
    assert value[0] == 1.0
    assert value[3] == value[4] == 0.0
    for each in (value, first.detach(), second):
        assert each[2:].abs().max() < 1e-9
    u = 1.7 / 3.5
    assert float(value[1]) == pytest.approx(1 - 28 * u**6 + 48 * u**7 - 21 * u**8, rel=1e-14)


def test_distances_have_a_finite_gradient_at_zero() -> None:
    r = torch.tensor([[[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(distances(r).sum(), r)
    assert gradient[0, 0].tolist() == [0.0, 0.0, 0.0]
    assert gradient[0, 1].tolist() == pytest.approx([0.6, 0.8, 0.0], rel=1e-15)
    assert distances(r).tolist()[0] == pytest.approx([0.0, 5.0], abs=1.1e-6)


def test_gaussians_are_one_at_their_centers() -> None:
    basis = GaussianBasis(8, 3.5).double()
    values = basis(torch.linspace(0.0, 3.5, 8, dtype=torch.float64)[None])[0]
    torch.testing.assert_close(values.diagonal(), torch.ones(8, dtype=torch.float64))
    assert float(values[2, 3]) == pytest.approx(np.exp(-0.5), rel=1e-6)


def test_reference_energies_survive_single_precision() -> None:
    elements = Elements((8, 1), {1: -13.587123456789, 8: -2041.839123456789}).float().double()
    index = elements.index(torch.tensor([1, 8, 1, 6]))
    assert index.tolist() == [1, 0, 1, -1]
    assert elements.reference_energies(index[:2]).tolist() == [-13.587123456789, -2041.839123456789]
    assert elements.energies() == {8: -2041.839123456789, 1: -13.587123456789}
