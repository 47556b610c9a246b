"""Pair potentials with known formulas, alone and added to networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase import units as ase_units
from ase.data import chemical_symbols, covalent_radii
from checks import (
    CUTOFF,
    REFERENCE_ENERGIES,
    SPECIES,
    SYSTEMS,
    PotentialChecks,
    Run,
    assert_close,
    evaluate_atoms,
    molecule,
    random_potential,
)
from torch import Tensor, nn

from mdlearn import units
from mdlearn.atoms import Frame, to_system
from mdlearn.config import resolve
from mdlearn.errors import ModelError, UsageError
from mdlearn.labels import Labels
from mdlearn.neighbors import Neighbors, build, pair_vectors
from mdlearn.potentials.architectures import (
    ARCHITECTURES,
    default_size,
    learning_rate,
    make_potential,
)
from mdlearn.potentials.checkpoint import load_model, save_model
from mdlearn.potentials.classical import (
    ATTRACTION,
    COVALENT_RADII,
    LENNARD_JONES_CORE,
    ZBL,
    ZBL_CORE,
    LennardJones,
    Morse,
    soften,
)
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import EUCLIDEAN, ParametricPotential, Settings, Size
from mdlearn.training.config import MODELS, WITHOUT_PARAMETERS, TrainConfig
from mdlearn.training.dataset import concatenate, make_example
from mdlearn.training.guess import SIZES, suit
from mdlearn.training.loop import Training, fit
from mdlearn.training.loss import Weights
from mdlearn.training.schedule import Schedule
from mdlearn.training.statistics import closest_distances, force_scale

FAR = 1000.0
"""Å, a cutoff whose envelope is one, to the last digit, where atoms see each other."""
CLASSICAL = ("lennard-jones", "morse", "zbl")
PAIRS = tuple(itertools.combinations_with_replacement(SPECIES, 2))
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=str)


class TestLennardJones(PotentialChecks):
    def make(self) -> nn.Module:
        return random_potential("lennard-jones")


class TestMorse(PotentialChecks):
    def make(self) -> nn.Module:
        return random_potential("morse")


class TestZBL(PotentialChecks):
    """With the reach of every pair at the cutoff; none of them is further apart in any system."""

    def make(self) -> nn.Module:
        potential = random_potential("zbl")
        assert isinstance(potential, ZBL)
        potential.reach.fill_(CUTOFF)
        return potential


class TestSchNetPlusZBL(PotentialChecks):
    def make(self) -> nn.Module:
        return random_potential("schnet+zbl")


class TestMorsePlusZBL(PotentialChecks):
    def make(self) -> nn.Module:
        return random_potential("morse+zbl")


# The formulas


def lennard_jones(potential: LennardJones, z: int, other: int, d: float) -> float:
    epsilon, sigma = entry(potential.epsilon(), z, other), entry(potential.sigma(), z, other)
    return 4.0 * epsilon * ((sigma / d) ** 12 - (sigma / d) ** 6) * smooth(d, potential.cutoff)


def morse(potential: Morse, z: int, other: int, d: float) -> float:
    depth, a = entry(potential.depth(), z, other), entry(potential.steepness(), z, other)
    stretch = d - entry(potential.minimum(), z, other)
    energy = depth * (1.0 - math.exp(-a * stretch)) ** 2 - depth
    return energy * smooth(d, potential.cutoff)


def zbl(potential: ZBL, z: int, other: int, d: float) -> float:
    x = d * (z**0.23 + other**0.23) / (0.8854 * ase_units.Bohr)
    phi = 0.1818 * math.exp(-3.2 * x) + 0.5099 * math.exp(-0.9423 * x)
    phi += 0.2802 * math.exp(-0.4029 * x) + 0.02817 * math.exp(-0.2016 * x)
    reach = min(covalent_radii[z] + covalent_radii[other], potential.cutoff)
    return ase_units.Hartree * ase_units.Bohr * z * other / d * phi * smooth(d, reach)


def entry(table: Tensor, z: int, other: int) -> float:
    """What a table (S, S) has of two elements."""
    return float(table.detach()[SPECIES.index(z), SPECIES.index(other)])


def smooth(d: float, cutoff: float) -> float:
    u = min(d / cutoff, 1.0)
    return 1.0 - 28.0 * u**6 + 48.0 * u**7 - 21.0 * u**8


FORMULAS: dict[str, Callable[..., float]] = {
    "lennard-jones": lennard_jones,
    "morse": morse,
    "zbl": zbl,
}


def box() -> ase.Atoms:
    """A periodic cube, wider than twice the cutoff, with atoms that nearly touch in it."""
    grid = np.array(list(itertools.product((0.0, 2.6, 5.2), (0.0, 2.6, 5.2), (0.0, 3.9))))
    atoms = ase.Atoms("H6C6O6", positions=grid, cell=[7.8] * 3, pbc=True)
    atoms.rattle(0.3, seed=4)
    for symbol, neighbor, distance in (("H", 1, 0.5), ("C", 7, 1.1), ("O", 13, 0.9), ("O", 9, 1.2)):
        place = atoms.positions[neighbor] + distance * np.array([0.6, 0.0, -0.8])
        atoms += ase.Atoms(symbol, positions=[place])
    return atoms


@pytest.mark.parametrize("name", CLASSICAL)
def test_energy_is_the_sum_over_pairs(name: str) -> None:
    atoms, potential = box(), random_potential(name)
    expected = np.array([REFERENCE_ENERGIES[z] for z in atoms.numbers])
    parts = 0.0
    for i, j in itertools.combinations(range(len(atoms)), 2):
        step = atoms.positions[j] - atoms.positions[i]
        d = math.sqrt(sum((x - 7.8 * round(x / 7.8)) ** 2 for x in step))
        if d < CUTOFF:
            pair = FORMULAS[name](potential, atoms.numbers[i], atoms.numbers[j], d)
            expected[i] += 0.5 * pair
            expected[j] += 0.5 * pair
            parts += abs(pair)
    assert parts > 1.0
    found = evaluate_atoms(potential, atoms)
    assert_close(found.energies, torch.from_numpy(expected), 1e-13)
    assert float(found.energy) == pytest.approx(expected.sum(), abs=1e-12 * parts, rel=1e-14)


def two_atoms(potential: ParametricPotential, pair: tuple[int, int], d: float) -> tuple[float, ...]:
    """Energy of two atoms by their distance alone, its slope and its curvature."""
    other = torch.tensor([[1], [0]])
    nothing = torch.zeros(2, 1, 3, dtype=torch.float64)
    cell = torch.zeros(1, 3, 3, dtype=torch.float64)
    neighbors = Neighbors(
        other,
        nothing,
        other,
        other >= 0,
        nothing[:, 0],
        cell,
        cell,
        cell[:, 0, 0],
        nothing[0, 0, 0],
    )
    x = torch.tensor(d, dtype=torch.float64, requires_grad=True)
    index = potential.elements.index(torch.tensor(pair))
    energy = potential.interaction(index, nothing, x.repeat(2, 1), neighbors).sum()
    (slope,) = torch.autograd.grad(energy, x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, x)
    return energy.item(), slope.item(), curvature.item()


@every_pair
def test_lennard_jones_is_lowest_where_it_should_be(pair: tuple[int, int]) -> None:
    potential = random_potential("lennard-jones", cutoff=FAR)
    assert isinstance(potential, LennardJones)
    epsilon, sigma = entry(potential.epsilon(), *pair), entry(potential.sigma(), *pair)
    assert two_atoms(potential, pair, sigma)[0] == pytest.approx(0.0, abs=1e-13)
    energy, slope, curvature = two_atoms(potential, pair, 2.0 ** (1 / 6) * sigma)
    assert energy == pytest.approx(-epsilon, rel=1e-12)
    assert slope == pytest.approx(0.0, abs=1e-12)
    assert curvature == pytest.approx(72.0 * epsilon / (2.0 ** (1 / 3) * sigma**2), rel=1e-12)


@every_pair
def test_morse_is_lowest_where_it_should_be(pair: tuple[int, int]) -> None:
    potential = random_potential("morse", cutoff=FAR)
    assert isinstance(potential, Morse)
    depth, a = entry(potential.depth(), *pair), entry(potential.steepness(), *pair)
    energy, slope, curvature = two_atoms(potential, pair, entry(potential.minimum(), *pair))
    assert energy == pytest.approx(-depth, rel=1e-12)
    assert slope == pytest.approx(0.0, abs=1e-12)
    assert curvature == pytest.approx(2.0 * depth * a**2, rel=1e-12)


@pytest.mark.parametrize("name", ["lennard-jones", "morse"])
def test_every_pair_of_elements_has_its_own_parameters(name: str) -> None:
    potential = random_potential(name)
    energies = [two_atoms(potential, pair, 1.3)[0] for pair in PAIRS]
    assert np.diff(sorted(energies)).min() > 1e-4
    for (one, other), energy in zip(PAIRS, energies, strict=True):
        assert two_atoms(potential, (other, one), 1.3)[0] == energy


@pytest.mark.parametrize("name", ["lennard-jones", "morse"])
def test_starts_from_what_the_training_frames_show(name: str) -> None:
    """The strongest attraction is a share of the typical force; the minimum is where atoms are."""
    scale, closest = 0.7, ((1, 8, 1.5), (6, 6, 2.9))
    settings = Settings(name, FAR, 0, 0, 0, 8.0, scale, closest)
    potential = make_potential(SPECIES, REFERENCE_ENERGIES, settings).double()
    minima = {(one, other): covalent_radii[[one, other]].sum() for one, other in PAIRS}
    minima |= {(one, other): 2.0 ** (1 / 6) * shortest for one, other, shortest in closest}
    for pair, minimum in minima.items():
        assert two_atoms(potential, pair, minimum)[1] == pytest.approx(0.0, abs=1e-6)
        strongest = max(
            two_atoms(potential, pair, d)[1] for d in np.linspace(minimum, 1.4 * minimum, 60)
        )
        assert strongest == pytest.approx(ATTRACTION * scale, rel=3e-3)


def rattled(truth: ParametricPotential, count: int, by: float) -> list[Frame]:
    """Clusters of four atoms of argon and four of krypton, with what a potential says of them."""
    frames = []
    for seed in range(count):
        grid = 3.9 * np.array(list(itertools.product((0, 1), (0, 1), (0, 1))))
        atoms = ase.Atoms("Ar4Kr4", positions=np.random.default_rng(seed).permutation(grid))
        atoms.rattle(by, seed=seed)
        system = to_system(atoms)
        found = evaluate(truth, system, build(system, 8.0))
        nothing = torch.full((1, 3), torch.nan, dtype=torch.float64)
        frames.append(Frame("", system, Labels(found.energy, found.forces, found.stress, nothing)))
    return frames


@pytest.mark.parametrize("kind", [LennardJones, Morse])
def test_begins_with_the_size_of_atoms_and_not_of_their_closest_approach(
    kind: type[LennardJones] | type[Morse],
) -> None:
    """Rattled frames, where the shortest distance is far below any of a minimum."""
    name = {LennardJones: "lennard-jones", Morse: "morse"}[kind]

    def make() -> LennardJones | Morse:
        closest = ((18, 18, 2.5), (18, 36, 2.5), (36, 36, 2.5))
        settings = Settings(name, 8.0, 0, 0, 0, 8.0, 0.1, closest)
        potential = make_potential((18, 36), {18: 0.0, 36: 0.0}, settings).double()
        assert isinstance(potential, kind)
        return potential

    truth, started = make(), make()
    with torch.no_grad():
        truth.stretch(SIZES[6])
        truth.log_depths().copy_(torch.tensor([[0.010, 0.012], [0.012, 0.014]]).log())
    frames = [make_example(frame, 8.0) for frame in rattled(truth, 4, 0.3)]
    unknown = [
        each._replace(
            labels=each.labels._replace(forces=torch.full_like(each.labels.forces, torch.nan))
        )
        for each in frames
    ]
    first = {name: each.clone() for name, each in started.state_dict().items()}
    suit(started, unknown)
    assert all(torch.equal(each, first[name]) for name, each in started.state_dict().items())
    suit(started, frames)
    lengths = [
        each.sigma() if isinstance(each, LennardJones) else each.minimum()
        for each in (started, truth)
    ]
    assert_close((lengths[0] / lengths[1]).detach(), torch.ones(2, 2), 1e-9)
    depths = started.log_depths().exp(), truth.log_depths().exp()
    assert_close((depths[0] / depths[1]).detach(), torch.ones(2, 2), 1e-6)
    for system, neighbors, labels, _ in frames:
        missing = evaluate(started, system, neighbors).forces - labels.forces
        assert missing.abs().max() < 1e-6 * labels.forces.abs().max()


# The repulsion of nuclei


def test_covalent_radii_are_those_of_ase() -> None:
    assert pytest.approx(covalent_radii[1 : len(COVALENT_RADII) + 1]) == COVALENT_RADII
    assert chemical_symbols[len(COVALENT_RADII)] == "Cm"


def test_constants_are_those_of_ase() -> None:
    assert units.bohr == pytest.approx(ase_units.Bohr, rel=1e-14)
    assert units.coulomb == pytest.approx(ase_units.Hartree * ase_units.Bohr, rel=1e-14)
    assert units.bohr == pytest.approx(0.529177, rel=1e-6)
    assert units.coulomb == pytest.approx(14.39964, rel=1e-6)


@every_pair
def test_repulsion_leaves_bonds_alone(pair: tuple[int, int]) -> None:
    potential = random_potential("zbl")
    bond = float(covalent_radii[list(pair)].sum())
    for d in (1.000001 * bond, 1.05 * bond, 2.0 * bond):
        assert two_atoms(potential, pair, d) == (0.0, 0.0, 0.0)
    # With two continuous derivatives it begins as the third power of the depth.
    ratios = [two_atoms(potential, pair, bond - depth)[0] for depth in (4e-4, 2e-4, 1e-4)]
    assert ratios[0] / ratios[1] == pytest.approx(8.0, rel=0.01)
    assert ratios[1] / ratios[2] == pytest.approx(8.0, rel=0.01)


def test_repulsion_ends_at_the_cutoff_at_the_latest() -> None:
    potential = random_potential("zbl", cutoff=1.1)
    assert two_atoms(potential, (6, 6), 1.09)[0] > 0.0
    system = to_system(ase.Atoms("C2", positions=[[0.0] * 3, [0.0, 0.0, 1.11]]))
    found = evaluate(potential, system, build(system, 1.1, skin=0.3))
    assert found.energies.tolist() == [REFERENCE_ENERGIES[6]] * 2
    assert found.forces.abs().max() == 0.0


def test_repulsion_is_the_same_whatever_the_scale() -> None:
    energies = [
        float(evaluate_atoms(random_potential("zbl", scale=scale), box()).energy)
        for scale in (1.0, 9.0)
    ]
    assert energies[0] == energies[1]


def test_repulsion_knows_every_element() -> None:
    species = tuple(range(1, 119))
    settings = Settings("zbl", 6.0, 0, 0, 0, 8.0, 1.0)
    potential = make_potential(species, dict.fromkeys(species, 0.0), settings).double()
    near = [two_atoms(potential, (z, 118), 0.3)[0] for z in species]
    assert np.diff(near).min() > 0.0


# Where no atoms are


@pytest.mark.parametrize("core", [LENNARD_JONES_CORE, ZBL_CORE])
def test_softened_distance(core: float) -> None:
    x = torch.linspace(0.0, 2.0 * core, 2001, dtype=torch.float64, requires_grad=True)
    soft = soften(x, core)
    (slope,) = torch.autograd.grad(soft.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    x, soft, slope = x.detach(), soft.detach(), slope.detach()
    assert float(soft[0]) == pytest.approx(core / 3.0, rel=1e-12)
    assert float(slope[0]) == pytest.approx(0.0, abs=1e-12)
    assert torch.equal(soft[1000:], x[1000:])
    assert (slope[1:] > 0.0).all()
    # Neighbors on the grid differ by as little as the next derivative allows.
    assert float(slope.diff().abs().max()) < 2.1e-3
    assert float(curvature.diff().abs().max()) < 2.1e-3 / core


@pytest.mark.parametrize("name", ["lennard-jones", "zbl"])
@every_pair
def test_repulsion_grows_until_atoms_coincide(name: str, pair: tuple[int, int]) -> None:
    potential = random_potential(name)
    energies = [two_atoms(potential, pair, d)[0] for d in np.geomspace(1e-3, 0.5, 60)]
    assert max(np.diff(energies)) < 0.0
    assert energies[-1] > 0.1


@pytest.mark.parametrize("name", [*CLASSICAL, "morse+zbl"])
@pytest.mark.parametrize("d", [0.0, 1e-9, 1e-6, 2e-6, 1e-5, 1e-3, 1e-2, 0.03, 0.1, 0.3])
def test_atoms_that_coincide_give_numbers_in_single_precision(name: str, d: float) -> None:
    """Second derivatives, too, and what training makes of them."""
    potential = random_potential(name).float()
    x = [[0.0, 0.0, 0.0], [d, 0.0, 0.0], [d, d, 0.0], [5.0, 5.0, 5.0]]
    for formula in ("H2OC", "OCCH"):
        system = to_system(ase.Atoms(formula, positions=x))
        neighbors = build(system, potential.cutoff)
        r = pair_vectors(system, neighbors).float().requires_grad_()
        energies = potential(system.numbers, r, neighbors)
        (g,) = torch.autograd.grad(energies.sum(), r, create_graph=True)
        inputs = [r, *potential.parameters()]
        parts = torch.autograd.grad(g.square().sum(), inputs)
        for each in (energies, g, *parts):
            assert torch.isfinite(each).all()


# Sums


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_sum_is_the_sum_of_its_parts(name: str) -> None:
    closest = ((1, 6, 1.2), (6, 6, 2.9), (6, 8, 1.6))
    whole = random_potential("schnet+lennard-jones+zbl", closest=closest)
    system = to_system(SYSTEMS[name]())
    neighbors = build(system, CUTOFF)
    index, r, distance = whole.geometry(system.numbers, pair_vectors(system, neighbors))
    wall = whole.wall(index, distance, neighbors)
    assert wall.max() > 0.1
    with torch.no_grad():
        terms = [part.interaction(index, r, distance, neighbors) for part in whole.parts]
    energies = whole.elements.reference_energies(index) + wall + sum(terms)
    assert_close(evaluate(whole, system, neighbors).energies, energies, 1e-14)


def test_order_of_the_parts_does_not_matter() -> None:
    assert default_size("zbl+schnet", "small") == default_size("schnet+zbl", "small")
    assert default_size("zbl+schnet", "small") == ARCHITECTURES["schnet"].sizes["small"]
    assert default_size("morse+zbl", "large") == Size(0, 0, 0)
    atoms, energies = molecule(), []
    for name in ("zbl+schnet", "schnet+zbl"):
        energies.append(evaluate_atoms(random_potential(name), atoms).energies)
    assert_close(*energies, 1e-15)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("schnet", 5e-3),
        ("equivariant", 1e-2),
        ("lennard-jones", 3e-2),
        ("equivariant+zbl", 1e-2),
        ("zbl+equivariant", 1e-2),
        ("lennard-jones+schnet", 5e-3),
        ("schnet+lennard-jones", 5e-3),
        ("zbl+morse", 3e-2),
    ],
)
def test_a_sum_learns_as_fast_as_all_of_its_parts_can(name: str, rate: float) -> None:
    assert learning_rate(name) == rate


def test_a_sum_has_the_symmetries_that_all_parts_have() -> None:
    assert random_potential("morse+zbl").symmetries == EUCLIDEAN
    chiral = random_potential("zbl+equivariant", parity="so3")
    assert chiral.symmetries == EUCLIDEAN - {"reflection"}


def test_charges_of_a_sum_are_those_of_its_networks() -> None:
    system = to_system(molecule())
    neighbors = build(system, CUTOFF)
    r = pair_vectors(system, neighbors)

    def multipoles(potential: nn.Module) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            found: tuple[Tensor, Tensor] = potential.multipoles(system.numbers, r, neighbors)
        return found

    for name in ("zbl+equivariant", "equivariant+zbl", "schnet+morse+equivariant"):
        potential = random_potential(name, dipole=True)
        assert potential.settings.dipole
        parts = [multipoles(part) for part in potential.parts if part.settings.dipole]
        assert len(parts) == sum(each in ("schnet", "equivariant") for each in name.split("+"))
        for found, *expected in zip(multipoles(potential), *parts, strict=True):
            assert found.abs().max() > 1e-3
            assert_close(found, sum(expected, torch.zeros_like(found)), 1e-15)


@pytest.mark.parametrize("name", [*CLASSICAL, "morse+zbl"])
def test_without_a_network_there_are_no_charges(name: str) -> None:
    potential, system = random_potential(name, dipole=True), to_system(molecule())
    assert not potential.settings.dipole
    neighbors = build(system, CUTOFF)
    with pytest.raises(ModelError, match=rf"\({name.replace('+', '.')}\) has no charges"):
        potential.multipoles(system.numbers, pair_vectors(system, neighbors), neighbors)


# Files, training and the command line


@pytest.mark.parametrize("name", [*CLASSICAL, "schnet+zbl", "lennard-jones+zbl"])
def test_comes_back_from_its_file(tmp_path: Path, name: str) -> None:
    potential = random_potential(name, scale=0.3, closest=((1, 8, 1.5), (6, 6, 2.9)))
    path = tmp_path / "model.safetensors"
    save_model(path, potential, {}, [to_system(make()) for make in SYSTEMS.values()])
    loaded = load_model(path, torch.float64).network
    assert type(loaded) is type(potential)
    assert loaded.settings == potential.settings
    weights = loaded.state_dict()
    assert weights.keys() == potential.state_dict().keys()
    assert all(torch.equal(weights[key], each) for key, each in potential.state_dict().items())
    for make in (molecule, box):
        found, expected = (evaluate_atoms(each, make()) for each in (loaded, potential))
        assert torch.equal(found.forces, expected.forces)
        assert torch.equal(found.energies, expected.energies)


def test_parameters_are_recovered_from_energies_and_forces() -> None:
    """Argon and krypton, from what the frames suggest at first."""
    species, energies = (18, 36), {18: -3.0, 36: -5.0}
    epsilon = torch.tensor([[0.0104, 0.0119], [0.0119, 0.0140]], dtype=torch.float64)
    sigma = torch.tensor([[3.40, 3.52], [3.52, 3.65]], dtype=torch.float64)

    def make(scale: float, closest: tuple[tuple[int, int, float], ...]) -> LennardJones:
        settings = Settings("lennard-jones", 8.0, 0, 0, 0, 8.0, scale, closest)
        potential = make_potential(species, energies, settings).double()
        assert isinstance(potential, LennardJones)
        return potential

    truth = make(1.0, ())
    with torch.no_grad():
        truth.log_epsilon.copy_(epsilon.log())
        truth.log_sigma.copy_(sigma.log())
    frames = rattled(truth, 16, 0.15)
    examples = [make_example(frame, 8.0) for frame in frames]
    learned = make(force_scale(frames), tuple(closest_distances(examples)))
    assert (learned.epsilon() / epsilon - 1.0).abs().max() > 0.15
    assert (learned.sigma() / sigma - 1.0).abs().max() > 0.05
    schedule = Schedule(200, 0.0, 200, 8, learned.learning_rate, 0.9, 0)
    valid = [concatenate(examples[:4])]
    weights = Weights(1.0, 1.0, 1.0)
    training = Training(learned, weights, schedule)
    list(fit(training, examples, valid))
    averaged = training.averaged
    assert isinstance(averaged, type(learned))
    assert_close(averaged.epsilon() / epsilon, torch.ones_like(epsilon), 1e-3)
    assert_close(averaged.sigma() / sigma, torch.ones_like(sigma), 1e-4)


def test_names_on_the_command_line_are_those_of_architectures() -> None:
    assert list(ARCHITECTURES) == list(MODELS)
    for name in MODELS:
        parameters = list(random_potential(name).parameters())
        assert (name in WITHOUT_PARAMETERS) == (not parameters)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("zbll", "did you mean 'zbl'?"),
        ("schnet+zbll", "did you mean 'zbl'?"),
        ("lenard-jones", "did you mean 'lennard-jones'?"),
        ("morse+", "expected one of"),
        ("zbl", "nothing to train"),
        ("zbl+zbl", "nothing to train"),
    ],
)
def test_a_name_that_cannot_be_trained_is_turned_away(model: str, said: str) -> None:
    with pytest.raises(UsageError, match="--model") as error:
        resolve(TrainConfig, None, {"frames": "frames.xyz", "model": model})
    assert said in str(error.value)
    assert model in str(error.value)


@pytest.mark.parametrize("model", ["lennard-jones", "morse+zbl", "zbl+schnet"])
def test_trains_and_simulates_like_any_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    frames = ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), ":24")
    ase.io.write("frames.xyz", frames)
    train = f"train frames.xyz --model {model} --size small --features 16 --epochs 40 --output run"
    code, _, err = run(*train.split())
    assert code == 0
    assert f"network     {model}, " in err
    losses = np.genfromtxt("run/metrics.csv", delimiter=",", names=True)["valid_loss"]
    assert losses.min() < losses[0]
    assert run("simulate", "run", "frames.xyz", "--frame", 0, "--steps", 5)[0] == 0


def test_nothing_is_written_for_a_model_that_cannot_be_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    ase.io.write("frames.xyz", ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), ":4"))
    code, out, err = run("train", "frames.xyz", "--model", "zbl")
    assert (code, out) == (2, "")
    assert "--model: there is nothing to train in it; add a network, as in equivariant+zbl" in err
    assert [path.name for path in tmp_path.iterdir()] == ["frames.xyz"]
