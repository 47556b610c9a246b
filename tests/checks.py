"""The verbs of the suite: what every potential must do, asserted in float64 and tightly.

`PotentialChecks` is a class of tests without an architecture. A test file derives from it, says how
to make its network, and inherits them all. Also here: the systems that everything is tried on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import ase
import ase.build
import numpy as np
import pytest
import torch
from oracles import binding_energy, derivative
from torch import Tensor, nn

from mdlearn.atoms import to_system
from mdlearn.neighbors import Neighbors, build, pair_vectors
from mdlearn.potentials.architectures import ARCHITECTURES, make_potential
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import EUCLIDEAN, Network, ParametricPotential, Settings
from mdlearn.potentials.pairs import transpose_sum
from mdlearn.potentials.schnet import SchNet
from mdlearn.system import Evaluation, System, concatenate, sum_by_system

Run = Callable[..., tuple[int, str, str]]
"""What the fixture `run` is: arguments of a verb -> exit code, stdout, stderr."""

SPECIES = (1, 6, 8)
REFERENCE_ENERGIES = {1: -13.587, 6: -1029.012, 8: -2041.839}
"""eV; as large as an all-electron calculation has them, so that lost digits show."""
CUTOFF = 3.5
Kind = TypeVar("Kind", bound=ParametricPotential)


def random_network(
    kind: type[Kind],
    cutoff: float = CUTOFF,
    scale: float = 1.0,
    seed: int = 0,
    closest: tuple[tuple[int, int, float], ...] = (),
    parity: str = "o3",
    dipole: bool = False,
) -> Kind:
    """A small network in float64 whose every parameter is random, biases included."""
    name = next(name for name, each in ARCHITECTURES.items() if each is kind)
    network = random_potential(name, cutoff, scale, seed, closest, parity, dipole)
    assert isinstance(network, kind)
    return network


def random_potential(
    architecture: str,
    cutoff: float = CUTOFF,
    scale: float = 1.0,
    seed: int = 0,
    closest: tuple[tuple[int, int, float], ...] = (),
    parity: str = "o3",
    dipole: bool = False,
) -> ParametricPotential:
    """The same by name, for sums as well."""
    torch.manual_seed(seed)
    settings = Settings(
        architecture=architecture,
        cutoff=cutoff,
        features=16,
        interactions=2,
        radial=8,
        average_neighbors=8.0,
        scale=scale,
        closest=closest,
        parity=parity,
        dipole=dipole,
    )
    potential = make_potential(SPECIES, REFERENCE_ENERGIES, settings).double()
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return potential


def random_schnet(
    cutoff: float = CUTOFF,
    scale: float = 1.0,
    seed: int = 0,
    closest: tuple[tuple[int, int, float], ...] = (),
) -> Network:
    """The network that is used where any will do."""
    return random_network(SchNet, cutoff, scale, seed, closest)


def molecule(name: str = "CH3CH2OH", seed: int = 0) -> ase.Atoms:
    """A molecule of ASE's collection, shaken so that no symmetry hides a mistake."""
    atoms = ase.build.molecule(name)
    atoms.rattle(0.05, seed=seed)
    return atoms


def crystal(pbc: tuple[bool, bool, bool] = (True, True, True), seed: int = 0) -> ase.Atoms:
    """Eight shaken atoms in a triclinic cell that is narrower than twice the cutoff."""
    cell = np.array([[4.6, 0.0, 0.0], [1.3, 4.9, 0.0], [-0.7, 0.9, 5.2]])
    grid = np.array([[x, y, z] for x in (0.1, 0.6) for y in (0.2, 0.7) for z in (0.1, 0.6)])
    atoms = ase.Atoms("H3C3O2", positions=grid @ cell, cell=cell, pbc=pbc)
    atoms.rattle(0.15, seed=seed)
    return atoms


def slab() -> ase.Atoms:
    """Periodic in two directions, with no cell vector in the third."""
    atoms = crystal((True, True, False))
    atoms.cell[2] = 0.0
    return atoms


def tiny() -> ase.Atoms:
    """Two atoms in a cell that is smaller than the cutoff: atoms see several images of all."""
    cell = [[2.1, 0.0, 0.0], [0.4, 2.3, 0.0], [0.3, -0.5, 2.6]]
    return ase.Atoms("CO", positions=[[0.1, 0.2, 0.3], [1.2, 1.1, 1.5]], cell=cell, pbc=True)


SYSTEMS: dict[str, Callable[[], ase.Atoms]] = {
    "molecule": molecule,
    "triclinic": crystal,
    "slab": slab,
    "wire": lambda: crystal((False, True, False)),
    "smaller than the cutoff": tiny,
}
PERIODIC = ("triclinic", "smaller than the cutoff")
every_system = pytest.mark.parametrize("name", SYSTEMS)
every_crystal = pytest.mark.parametrize("name", PERIODIC)


def evaluate_atoms(
    potential: nn.Module, atoms: ase.Atoms, skin: float = 0.0, capacity: int = 0
) -> Evaluation:
    system = to_system(atoms)
    return evaluate(potential, system, build(system, potential.cutoff, skin, capacity))


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Largest error relative to the largest number, or to one where all numbers are smaller."""
    assert torch.isfinite(expected).all()
    error = float((found.double() - expected.double()).abs().max())
    assert error <= tolerance * max(1.0, float(expected.abs().max()))


def assert_relative(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Largest error relative to the largest number, which must be large enough to mean much."""
    largest = float(expected.abs().max())
    assert largest > 1e-4, "nothing there to compare"
    assert float((found - expected).abs().max()) < tolerance * largest


def assert_same(found: Evaluation, expected: Evaluation, tolerance: float) -> None:
    for label in ("energy", "forces", "energies", "virials"):
        assert_close(getattr(found, label), getattr(expected, label), tolerance)
    assert torch.equal(found.stress.isnan(), expected.stress.isnan())
    assert_close(found.stress.nan_to_num(), expected.stress.nan_to_num(), tolerance)


def random_rotation(seed: int = 1) -> Tensor:
    """A proper rotation of three dimensions."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q * torch.linalg.det(q)


@contextmanager
def compiler() -> Iterator[Callable[[Callable[..., object]], Callable[..., object]]]:
    """torch.compile as the package uses it: no graph breaks, derivatives inside the graph."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()


class PotentialChecks(ABC):
    """Everything that the contract of a potential promises."""

    symmetries = EUCLIDEAN
    """What the energy must not change under; what is missing here, it must change under."""

    @abstractmethod
    def make(self) -> nn.Module:
        """A potential for `SPECIES` with `REFERENCE_ENERGIES`, random parameters, float64."""

    @pytest.fixture
    def potential(self) -> nn.Module:
        return self.make()

    # Symmetry

    @every_system
    @pytest.mark.parametrize("sign", [1.0, -1.0], ids=["rotation", "reflection"])
    def test_rotates_along(self, potential: nn.Module, name: str, sign: float) -> None:
        atoms, q = SYSTEMS[name](), sign * random_rotation()
        expected = evaluate_atoms(potential, atoms)
        atoms.set_cell(atoms.cell.array @ q.numpy())
        atoms.positions = atoms.positions @ q.numpy()
        found = evaluate_atoms(potential, atoms)
        # An improper rotation is a reflection and a rotation.
        if not self.symmetries >= ({"rotation"} if sign > 0 else {"rotation", "reflection"}):
            assert abs(found.energy - expected.energy) > 1e-4
            return
        assert abs(found.energy - expected.energy) < 1e-10
        assert_close(found.forces, expected.forces @ q, 1e-10)
        assert_close(found.virials, q.T @ expected.virials @ q, 1e-10)

    @every_system
    def test_does_not_see_the_order_of_atoms(self, potential: nn.Module, name: str) -> None:
        atoms = SYSTEMS[name]()
        expected = evaluate_atoms(potential, atoms)
        order = np.random.default_rng(2).permutation(len(atoms))[::-1].copy()
        found = evaluate_atoms(potential, atoms[order])
        assert abs(found.energy - expected.energy) < 1e-10
        assert_close(found.forces, expected.forces[order], 1e-10)
        assert_close(found.energies, expected.energies[order], 1e-12)

    @every_system
    def test_does_not_see_where_the_system_is(self, potential: nn.Module, name: str) -> None:
        atoms = SYSTEMS[name]()
        expected = evaluate_atoms(potential, atoms)
        atoms.positions += [11.3, -7.9, 23.1]
        assert_same(evaluate_atoms(potential, atoms), expected, 1e-11)

    @every_system
    def test_atoms_may_leave_the_cell(self, potential: nn.Module, name: str) -> None:
        atoms = SYSTEMS[name]()
        expected = evaluate_atoms(potential, atoms)
        jumps = np.random.default_rng(3).integers(-3, 4, (len(atoms), 3)) * atoms.pbc
        atoms.positions += jumps @ atoms.cell.array
        assert_same(evaluate_atoms(potential, atoms), expected, 1e-11)

    @every_crystal
    def test_supercell_is_many_cells(self, potential: nn.Module, name: str) -> None:
        atoms = SYSTEMS[name]()
        one, many = evaluate_atoms(potential, atoms), evaluate_atoms(potential, atoms * (2, 1, 3))
        assert abs(many.energy - 6 * one.energy) < 1e-9
        assert_close(many.forces, one.forces.repeat(6, 1), 1e-10)
        assert_close(many.stress, one.stress, 1e-10)

    # Derivatives

    @every_system
    def test_forces_are_the_derivative(self, potential: nn.Module, name: str) -> None:
        system = to_system(SYSTEMS[name]())
        # A skin, so that no pair enters or leaves the list while atoms are displaced.
        neighbors = build(system, potential.cutoff, 0.5)
        expected = torch.zeros_like(system.positions)
        for n, axis in np.ndindex(*expected.shape):

            def energy(h: float, n: int = n, axis: int = axis) -> float:
                positions = system.positions.clone()
                positions[n, axis] += h
                r = pair_vectors(system._replace(positions=positions), neighbors)
                return binding_energy(potential, system, r, neighbors)

            expected[n, axis] = -derivative(energy)
        assert_relative(evaluate(potential, system, neighbors).forces, expected, 1e-6)

    @every_crystal
    def test_stress_is_the_derivative(self, potential: nn.Module, name: str) -> None:
        system = to_system(SYSTEMS[name]())
        neighbors = build(system, potential.cutoff, 0.5)
        expected = torch.zeros(3, 3, dtype=torch.float64)
        for a, b in np.ndindex(3, 3):

            def energy(h: float, a: int = a, b: int = b) -> float:
                strain = torch.eye(3, dtype=torch.float64)
                strain[a, b] += h
                strained = system._replace(
                    positions=system.positions @ strain, cell=system.cell @ strain
                )
                r = pair_vectors(strained, neighbors)
                return binding_energy(potential, system, r, neighbors)

            expected[a, b] = derivative(energy) / float(torch.linalg.det(system.cell[0]).abs())
        found = evaluate(potential, system, neighbors).stress[0]
        assert_relative(found, expected, 1e-6)
        if "rotation" in self.symmetries:
            assert_close(found, found.T, 1e-13)  # a rotation changes nothing

    @every_system
    def test_virials_are_the_derivative(self, potential: nn.Module, name: str) -> None:
        system = to_system(SYSTEMS[name]())
        neighbors = build(system, potential.cutoff)
        r = pair_vectors(system, neighbors)
        expected = torch.zeros(len(system.numbers), 3, 3, dtype=torch.float64)
        for n, a, b in np.ndindex(*expected.shape):

            def energy(h: float, n: int = n, a: int = a, b: int = b) -> float:
                strained = r.clone()
                strained[n, :, b] += h * r[n, :, a]
                return binding_energy(potential, system, strained, neighbors)

            expected[n, a, b] = derivative(energy)
        assert_relative(evaluate(potential, system, neighbors).virials, expected, 1e-6)

    @every_system
    def test_momentum_is_conserved(self, potential: nn.Module, name: str) -> None:
        atoms = SYSTEMS[name]()
        forces = evaluate_atoms(potential, atoms).forces
        assert forces.abs().max() > 1e-3
        assert forces.sum(0).abs().max() < 1e-13
        if "rotation" in self.symmetries and not atoms.pbc.any():
            x = torch.from_numpy(atoms.positions)
            assert torch.linalg.cross(x, forces).sum(0).abs().max() < 1e-12

    # The cutoff

    def test_goes_smoothly_to_zero_at_the_cutoff(self, potential: nn.Module) -> None:
        """With two continuous derivatives the force ends as the square of the distance left."""

        def force(left: float) -> float:
            # A third atom gives the first one features; the second atom never sees it.
            x = [[0.0, 0.0, 0.0], [potential.cutoff - left, 0.0, 0.0], [-1.1, 0.3, 0.0]]
            return float(evaluate_atoms(potential, ase.Atoms("CHO", positions=x)).forces[1, 0])

        assert abs(force(0.3)) > 1e-6, "nothing there to compare"
        assert force(0.0) == force(-1e-9) == force(-0.1) == 0.0
        ratios = [force(left) / force(left / 2) for left in (4e-3, 2e-3)]
        assert ratios == pytest.approx([4.0, 4.0], rel=0.02)

    def test_far_systems_do_not_see_each_other(self, potential: nn.Module) -> None:
        first, second = molecule(), molecule("C2H6", seed=1)
        apart = second.copy()
        apart.positions += [0.0, 50.0, 0.0]
        alone = [evaluate_atoms(potential, each) for each in (first, second)]
        both = evaluate_atoms(potential, first + apart)
        assert abs(both.energy - alone[0].energy - alone[1].energy) < 1e-10
        assert_close(both.forces, torch.cat([each.forces for each in alone]), 1e-12)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    @pytest.mark.parametrize("pbc", [False, True], ids=["open", "periodic"])
    def test_isolated_atom_has_its_reference_energy(
        self, potential: nn.Module, dtype: torch.dtype, pbc: bool
    ) -> None:
        potential = potential.to(dtype)
        for count in (1, 2, 3, 8):
            for z, energy in REFERENCE_ENERGIES.items():
                x = 20.0 * np.eye(3)[[0] * count] * np.arange(count)[:, None]
                atoms = ase.Atoms([z] * count, positions=x, cell=[400.0, 20.0, 20.0], pbc=pbc)
                found = evaluate_atoms(potential, atoms)
                assert found.energies.tolist() == [energy] * count
                assert found.forces.abs().max() == 0.0
                assert found.virials.abs().max() == 0.0

    # Layout

    def test_batch_is_its_parts(self, potential: nn.Module) -> None:
        parts = [to_system(make()) for make in SYSTEMS.values()]
        parts.insert(2, to_system(ase.Atoms("O")))
        batch = concatenate(parts)
        found = evaluate(potential, batch, build(batch, potential.cutoff))
        expected = [evaluate(potential, each, build(each, potential.cutoff)) for each in parts]
        for label in ("energy", "forces", "energies", "virials"):
            parts_of = torch.cat([getattr(each, label) for each in expected])
            assert_close(getattr(found, label), parts_of, 1e-12)
        for index, each in enumerate(expected):
            assert_close(found.stress[index].nan_to_num(), each.stress[0].nan_to_num(), 1e-12)

    @every_system
    @pytest.mark.parametrize(("skin", "capacity"), [(0.0, 150), (1.3, 0), (0.7, 301)])
    def test_padding_is_not_seen(
        self, potential: nn.Module, name: str, skin: float, capacity: int
    ) -> None:
        atoms = SYSTEMS[name]()
        expected = evaluate_atoms(potential, atoms)
        assert_same(evaluate_atoms(potential, atoms, skin, capacity), expected, 1e-12)

    @pytest.mark.parametrize("offset", [0.0, 1e-9])
    def test_coincident_and_collinear_atoms_give_numbers(
        self, potential: nn.Module, offset: float
    ) -> None:
        x = [[0.0, 0.0, 0.0], [offset, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]
        atoms = ase.Atoms("CHHO", positions=x)
        found = evaluate_atoms(potential, atoms)
        assert all(torch.isfinite(each).all() for each in found if each is not found.stress)
        _, gradients = self._loss(potential, to_system(atoms), lambda function: function)
        assert all(torch.isfinite(each).all() for each in gradients)

    @every_system
    def test_single_precision_is_close(self, potential: nn.Module, name: str) -> None:
        atoms = SYSTEMS[name]()
        expected = evaluate_atoms(potential, atoms)
        found = evaluate_atoms(potential.float(), atoms)
        assert found.energy.dtype == found.forces.dtype == torch.float64
        # The reference energies alone would lose 1e-4 eV per atom in single precision.
        assert abs(found.energy - expected.energy) < 1e-5 * len(atoms)
        assert_close(found.forces, expected.forces, 1e-4)
        assert found.forces.sum(0).abs().max() < 1e-12

    # Compilation

    def test_compiled_evaluation_is_eager(self, potential: nn.Module) -> None:
        system = concatenate([to_system(SYSTEMS[name]()) for name in ("molecule", "triclinic")])
        neighbors = build(system, potential.cutoff)
        with compiler() as compiled:
            found = compiled(lambda s, n: evaluate(potential, s, n))(system, neighbors)
        assert_same(found, evaluate(potential, system, neighbors), 1e-12)

    def test_compiled_loss_is_eager(self, potential: nn.Module) -> None:
        """Parameter gradients too: a loss can be right while they are silently wrong."""
        system = concatenate([to_system(SYSTEMS[name]()) for name in PERIODIC])
        expected, expected_gradients = self._loss(potential, system, lambda function: function)
        with compiler() as compiled:
            loss, gradients = self._loss(potential, system, compiled)
        assert_close(loss, expected, 1e-12)
        for found, each in zip(gradients, expected_gradients, strict=True):
            assert_close(found, each, 1e-10)
        of_parameters = gradients[:-1] or gradients  # there are potentials without any
        assert max(float(each.abs().max()) for each in of_parameters) > 1e-3

    def _loss(
        self,
        potential: nn.Module,
        system: System,
        compiled: Callable[[Callable[..., object]], Callable[..., object]],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A loss of energies, forces and virials, and its gradient by parameters and geometry."""
        neighbors = build(system, potential.cutoff)

        def loss(r: Tensor, system: System, neighbors: Neighbors) -> Tensor:
            energies = potential(system.numbers, r, neighbors)
            (g,) = torch.autograd.grad(energies.sum(), r, create_graph=True)
            forces = g.sum(1) - transpose_sum(g, neighbors)
            virials = (r[..., None] * g[..., None, :]).sum(1)
            binding = sum_by_system(energies, system) / 1e3
            return binding.square().sum() + forces.square().sum() + virials.square().sum()

        # The leaf is made outside of the compiled region, where it would lose its gradient.
        r = pair_vectors(system, neighbors).detach().requires_grad_()
        parameters = [each for each in potential.parameters() if each.requires_grad]
        total = compiled(loss)(r, system, neighbors)
        return total.detach(), torch.autograd.grad(total, [*parameters, r])


def is_power(steps: list[float], errors: list[float], order: float, tolerance: float) -> bool:
    """Whether errors fall as steps**order between each two neighboring steps."""
    slopes = np.diff(np.log(errors)) / np.diff(np.log(steps))
    return bool((abs(slopes - order) < tolerance).all())
