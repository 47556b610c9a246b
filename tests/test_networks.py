"""Every network goes through the checks of `PotentialChecks`, and is compared with an oracle."""

from __future__ import annotations

from importlib.resources import files

import ase
import numpy as np
import pytest
import torch
from checks import (
    REFERENCE_ENERGIES,
    SYSTEMS,
    PotentialChecks,
    assert_close,
    assert_same,
    evaluate_atoms,
    every_crystal,
    every_system,
    molecule,
    random_network,
    random_rotation,
)
from network_oracles import egnn_energy, painn_energy
from torch import Tensor, nn

from mdlearn.atoms import Frame, read_frames, to_system
from mdlearn.neighbors import Neighbors, build, pair_vectors
from mdlearn.potentials.architectures import ARCHITECTURES
from mdlearn.potentials.composition import Composition
from mdlearn.potentials.egnn import EGNN, Layer
from mdlearn.potentials.evaluate import evaluate_multipoles
from mdlearn.potentials.network import EUCLIDEAN, Settings
from mdlearn.potentials.painn import PaiNN, soft_length
from mdlearn.potentials.pairs import envelope
from mdlearn.potentials.unconstrained import RotationAverage, Unconstrained, even_rotations
from mdlearn.training.dataset import concatenate, make_example
from mdlearn.training.loop import Epoch, Training, fit
from mdlearn.training.loss import Weights
from mdlearn.training.schedule import Schedule
from mdlearn.training.statistics import find_species, fit_reference_energies, force_scale


class TestPaiNN(PotentialChecks):
    def make(self) -> nn.Module:
        return random_network(PaiNN)

    @every_system
    def test_is_the_formula(self, name: str) -> None:
        atoms, network = SYSTEMS[name](), random_network(PaiNN, scale=0.7)
        found = evaluate_atoms(network, atoms).energy
        assert abs(float(found) - painn_energy(network, to_system(atoms))) < 1e-10

    def test_lengths_are_smooth_at_zero(self) -> None:
        axis = torch.tensor([0.0, 1e-9, 0.5, 30.0], dtype=torch.float64)
        v = torch.stack([axis, 0.0 * axis, 2.0 * axis])[None].requires_grad_()
        length = soft_length(v)
        assert length[0, 0] == 0.0
        assert float(length[0, 3].detach()) == pytest.approx(30.0 * 5**0.5, rel=2e-3)
        (first,) = torch.autograd.grad(length.sum(), v, create_graph=True)
        assert first[0, :, 0].tolist() == [0.0, 0.0, 0.0]
        (second,) = torch.autograd.grad(first.sum(), v)
        assert torch.isfinite(second).all()
        assert second[0, 0, 0] == pytest.approx(10.0)  # one over the softness


class TestEGNN(PotentialChecks):
    def make(self) -> nn.Module:
        return random_network(EGNN)

    @every_system
    def test_is_the_formula(self, name: str) -> None:
        atoms, network = SYSTEMS[name](), random_network(EGNN, scale=0.7)
        found = evaluate_atoms(network, atoms).energy
        assert abs(float(found) - egnn_energy(network, to_system(atoms))) < 1e-10


class TestEGNNLayer:
    """A layer by itself, as a propagator of positions and velocities has it."""

    cutoff = 3.5
    features = 6

    def layer(self, velocities: bool) -> Layer:
        torch.manual_seed(1)
        layer = Layer(self.features, 5, 2, self.cutoff, 8.0, velocities).double()
        for parameter in layer.requires_grad_(False).parameters():
            parameter.mul_(2.0)  # torch starts with weights that do little
        return layer

    def pairs(self, atoms: ase.Atoms) -> tuple[Tensor, Tensor, Tensor, Neighbors]:
        """Vectors, attributes (of distances), envelopes, and the list."""
        system = to_system(atoms)
        neighbors = build(system, self.cutoff)
        r = pair_vectors(system, neighbors)
        distance = r.norm(dim=2, keepdim=True)
        attributes = torch.cat([distance, distance.sin()], -1)
        return r, attributes, envelope(distance, self.cutoff), neighbors

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    @every_system
    @pytest.mark.parametrize("velocities", [False, True], ids=["positions", "velocities"])
    @pytest.mark.parametrize("sign", [1.0, -1.0], ids=["rotation", "reflection"])
    def test_moves_turn_along(self, name: str, velocities: bool, sign: float) -> None:
        r, *rest = self.pairs(SYSTEMS[name]())
        layer, q = self.layer(velocities), sign * random_rotation()
        h, start = self.random(len(r), self.features), self.random(len(r), self.features)
        v = self.random(len(r), 3) if velocities else None
        expected_h, expected = layer(h, start, v, r, *rest)
        found_h, found = layer(h, start, v if v is None else v @ q, r @ q, *rest)
        assert expected.abs().max() > 1e-2
        assert_close(found, expected @ q, 1e-12)
        assert_close(found_h, expected_h, 1e-12)

    def test_velocities_are_kept_in_part(self) -> None:
        """Equation 7: what is added to the pushes is φ_v(h) v."""
        r, *rest = self.pairs(molecule())
        layer = self.layer(velocities=True)
        h, start = self.random(len(r), self.features), self.random(len(r), self.features)
        v = self.random(len(r), 3)
        resting_h, resting = layer(h, start, torch.zeros_like(v), r, *rest)
        moving_h, moving = layer(h, start, v, r, *rest)
        assert layer.keep is not None
        assert_close(moving - resting, layer.keep(h) * v, 1e-14)
        assert layer.keep(h).abs().min() > 1e-3
        assert torch.equal(moving_h, resting_h)

    @every_system
    def test_equal_atoms_push_each_other_equally(self, name: str) -> None:
        r, *rest = self.pairs(SYSTEMS[name]())
        h = self.random(1, self.features).repeat(len(r), 1)
        _, move = self.layer(velocities=False)(h, h, None, r, *rest)
        assert move.abs().max() > 1e-3
        assert move.sum(0).abs().max() < 1e-14

    def test_unequal_atoms_move_their_center_along_the_bond(self) -> None:
        r, *rest = self.pairs(ase.Atoms("CO", positions=[[0.0, 0.0, 0.0], [0.3, 0.9, -0.6]]))
        h = self.random(2, self.features)
        layer = self.layer(velocities=False)
        _, move = layer(h, h, None, r, *rest)
        assert move.sum(0).norm() > 1e-3
        assert torch.linalg.cross(move, r[:, 0]).abs().max() < 1e-15
        # Exchanging the features exchanges the pushes.
        _, exchanged = layer(h.flip(0), h.flip(0), None, r, *rest)
        assert_close(exchanged, -move.flip(0), 1e-15)

    def test_an_atom_without_neighbors_keeps_still(self) -> None:
        r, *rest = self.pairs(ase.Atoms("CO", positions=[[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]))
        h = self.random(2, self.features)
        after, move = self.layer(velocities=False)(h, h, None, r, *rest)
        assert move.abs().max() == 0.0
        assert torch.equal(after, h)


class TestComposition(PotentialChecks):
    """It sees no geometry: what others must show of forces, it must show the absence of."""

    def make(self) -> Composition:
        return random_network(Composition, scale=0.7)

    def expected(self, potential: nn.Module, numbers: np.ndarray) -> list[float]:
        """Atomic energies by a loop over atoms."""
        assert isinstance(potential, Composition)
        shift = dict(zip(potential.species, potential.shift.tolist(), strict=True))
        assert min(map(abs, shift.values())) > 1e-3
        return [REFERENCE_ENERGIES[z] + 0.7 * shift[z] for z in numbers.tolist()]

    def nothing_pushes(self, potential: nn.Module, atoms: ase.Atoms) -> None:
        found = evaluate_atoms(potential, atoms)
        assert found.forces.abs().max() == found.virials.abs().max() == 0.0
        assert found.energies.tolist() == pytest.approx(
            self.expected(potential, atoms.numbers), abs=1e-11
        )
        if atoms.pbc.all():
            assert found.stress.abs().max() == 0.0

    @every_system
    def test_forces_are_the_derivative(self, potential: nn.Module, name: str) -> None:
        self.nothing_pushes(potential, SYSTEMS[name]())

    @every_crystal
    def test_stress_is_the_derivative(self, potential: nn.Module, name: str) -> None:
        atoms = SYSTEMS[name]()
        self.nothing_pushes(potential, atoms)
        atoms.set_cell(1.1 * atoms.cell.array, scale_atoms=True)
        self.nothing_pushes(potential, atoms)

    @every_system
    def test_virials_are_the_derivative(self, potential: nn.Module, name: str) -> None:
        self.nothing_pushes(potential, SYSTEMS[name]())

    @every_system
    def test_momentum_is_conserved(self, potential: nn.Module, name: str) -> None:
        self.nothing_pushes(potential, SYSTEMS[name]())

    def test_goes_smoothly_to_zero_at_the_cutoff(self, potential: nn.Module) -> None:
        for distance in (0.0, 1e-9, 0.5, potential.cutoff - 1e-9, potential.cutoff + 1e-9):
            self.nothing_pushes(potential, ase.Atoms("CO", positions=[[0, 0, 0], [distance, 0, 0]]))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    @pytest.mark.parametrize("pbc", [False, True], ids=["open", "periodic"])
    def test_isolated_atom_has_its_reference_energy(
        self, potential: nn.Module, dtype: torch.dtype, pbc: bool
    ) -> None:
        """It has the energy that its element has everywhere."""
        for z in REFERENCE_ENERGIES:
            atoms = ase.Atoms([z], cell=[20.0] * 3, pbc=pbc)
            (expected,) = self.expected(potential, atoms.numbers)
            found = evaluate_atoms(potential.to(dtype), atoms)
            assert found.energies.tolist() == pytest.approx([expected], abs=1e-6)
            assert found.forces.abs().max() == found.virials.abs().max() == 0.0

    def test_has_no_wall(self) -> None:
        potential = random_network(Composition, scale=0.7, closest=((1, 1, 5.0), (6, 8, 5.0)))
        self.nothing_pushes(potential, molecule())


class TestUnconstrained(PotentialChecks):
    symmetries = EUCLIDEAN - {"rotation", "reflection"}

    def make(self) -> nn.Module:
        return random_network(Unconstrained)


class TestRotationAverage(PotentialChecks):
    symmetries = EUCLIDEAN - {"rotation", "reflection"}

    def make(self) -> nn.Module:
        return RotationAverage(random_network(Unconstrained), 2).double()

    def test_more_rotations_see_less_of_the_orientation(self) -> None:
        network = random_network(Unconstrained)
        turned = []
        for seed in range(12):
            atoms = molecule()
            atoms.positions = atoms.positions @ random_rotation(seed).numpy()
            turned.append(atoms)

        def spread(count: int) -> float:
            average = RotationAverage(network, count).double()
            energies = [evaluate_atoms(average, atoms).energy for atoms in turned]
            return float(torch.stack(energies).std())

        one, eight, many = spread(1), spread(8), spread(64)
        assert one > 0.05
        assert eight < 0.5 * one
        assert many < 0.3 * eight

    def test_one_rotation_is_none(self) -> None:
        network = random_network(Unconstrained)
        average = RotationAverage(network, 1).double()
        for found, expected in zip(
            evaluate_atoms(average, molecule()), evaluate_atoms(network, molecule()), strict=True
        ):
            assert torch.equal(found.nan_to_num(), expected.nan_to_num())

    @pytest.mark.parametrize("name", ["schnet", "painn", "equivariant"])
    def test_invariant_networks_stay_what_they_are(self, name: str) -> None:
        closest = ((1, 1, 1.9), (1, 6, 1.2))
        network = random_network(ARCHITECTURES[name], closest=closest, dipole=True)
        average = RotationAverage(network, 5).double()
        assert_same(evaluate_atoms(average, molecule()), evaluate_atoms(network, molecule()), 1e-12)
        system = to_system(molecule())
        neighbors = build(system, network.cutoff)
        with torch.no_grad():
            found = evaluate_multipoles(average, system, neighbors)
            expected = evaluate_multipoles(network, system, neighbors)
        assert expected.dipole.abs().max() > 1e-2
        assert_close(found.dipole, expected.dipole, 1e-12)
        assert_close(found.charges, expected.charges, 1e-12)

    @pytest.mark.parametrize("count", [1, 2, 8, 500])
    def test_rotations_are_rotations_and_differ(self, count: int) -> None:
        q = even_rotations(count)
        assert torch.equal(q[0], torch.eye(3, dtype=torch.float64))
        assert_close(q @ q.transpose(1, 2), torch.eye(3, dtype=torch.float64), 1e-14)
        assert_close(torch.linalg.det(q), torch.ones(count, dtype=torch.float64), 1e-14)
        assert len(q.flatten(1).round(decimals=3).unique(dim=0)) == count

    def test_rotations_are_spread_evenly(self) -> None:
        """Over all rotations the elements of the matrix have mean 0 and mean square 1/3."""
        q = even_rotations(500)
        assert q.mean(0).abs().max() < 0.01
        assert (q.square().mean(0) - 1 / 3).abs().max() < 0.01


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return read_frames(str(files("mdlearn.data") / "ethanol.xyz"))[0][:20]


def learn(
    name: str, frames: list[Frame], energies: dict[int, float], weights: Weights, epochs: int
) -> list[Epoch]:
    """A short training of a small network, judged by the frames that it learns from."""
    torch.manual_seed(0)
    kind = ARCHITECTURES[name]
    settings = Settings(name, 4.0, 16, 2, 8, average_neighbors=8.0, scale=force_scale(frames))
    network = kind(find_species(frames), energies, settings).float()
    examples = [make_example(frame, 4.0) for frame in frames]
    schedule = Schedule(epochs, 0.0, epochs, 5, kind.learning_rate, 0.9, 0)
    return list(fit(Training(network, weights, schedule), examples, [concatenate(examples)]))


@pytest.mark.parametrize("name", ["unconstrained", "egnn", "painn"])
def test_learns_forces(name: str, frames: list[Frame]) -> None:
    energies = fit_reference_energies(frames, []).energies
    history = learn(name, frames, energies, Weights(0.0, 1.0, 0.0), 30)
    assert history[-1].loss < 0.8 * history[0].loss
    errors = [epoch.valid.forces_mae_meV_per_A for epoch in (history[0], history[-1])]
    assert errors[1] < 0.8 * errors[0]


def test_composition_learns_what_the_elements_are_bound_by(frames: list[Frame]) -> None:
    energies = {1: -13.0, 6: -1020.0, 8: -2030.0}  # far from what any fit would give
    weights = Weights(1.0, 1.0, 0.0)
    history = learn("composition", frames, energies, weights, 60)
    mean = [float(frame.labels.energy) for frame in frames]
    assert history[0].valid.energy_mae_meV > 3e4
    assert history[-1].valid.energy_mae_meV < 2e3 * np.std(mean)
    assert history[-1].valid.forces_mae_meV_per_A == history[0].valid.forces_mae_meV_per_A


BENT, STRAIGHT = (
    [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0 * np.cos(angle), 2.0 * np.sin(angle), 0.0]]
    for angle in (np.pi / 2, np.pi)
)
SQUARE = [[0, 0, 0], [1.9, 0, 0], [-1.9, 0, 0], [0, 1.9, 0], [0, -1.9, 0]]
TETRAHEDRON = 1.9 / 3**0.5 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


@pytest.mark.parametrize(
    ("name", "angles", "shapes"),
    [
        ("composition", False, False),
        ("schnet", False, False),
        ("egnn", True, False),
        ("painn", True, False),
        ("equivariant", True, True),
    ],
)
def test_every_rung_sees_more(name: str, angles: bool, shapes: bool) -> None:
    """Neighbors that do not see each other: only angles at the first atom make a difference.

    Four directions that sum to zero are nothing to an atom that keeps vectors of them alone.
    """
    network = random_network(ARCHITECTURES[name], cutoff=2.5)
    for seen, formula, pair in (
        (angles, "OH2", (BENT, STRAIGHT)),
        (shapes, "CH4", (SQUARE, TETRAHEDRON)),
    ):
        one, other = (evaluate_atoms(network, ase.Atoms(formula, x)).energy for x in pair)
        assert (abs(float(one - other)) > 1e-5) == seen
        assert seen or abs(float(one - other)) < 1e-11
