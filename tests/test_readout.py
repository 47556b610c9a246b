"""The last layer solved for: against rows that autograd gives, and where the answer is known."""

from __future__ import annotations

import copy
import csv
from importlib.resources import files
from pathlib import Path

import ase.io
import pytest
import torch
from checks import CUTOFF, Run, assert_relative, crystal, molecule, random_potential
from torch import Tensor

from mdlearn.atoms import Frame, to_system
from mdlearn.labels import Labels
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import Network, ParametricPotential
from mdlearn.training import readout
from mdlearn.training import run as training_run
from mdlearn.training.dataset import Example, concatenate, make_example
from mdlearn.training.loss import Penalty, Weights, measure

READOUT = ("energy_head.out.weight", "energy_head.linear.weight")
NETWORKS = ["equivariant", "schnet", "painn", "egnn"]
WEIGHTS = Weights(10.0, 1.0, 1.0, penalty="mae")


def network_of(name: str) -> Network:
    network = random_potential(name)
    assert isinstance(network, Network)
    return network


def labelled(network: ParametricPotential, noise: float = 0.0) -> list[Example]:
    """Batches of molecules and crystals with what a network says, and an error of a known size."""
    structures = [molecule(seed=each) for each in range(4)] + [
        crystal(seed=each) for each in (0, 1)
    ]
    random = torch.Generator().manual_seed(3)

    def off(values: Tensor) -> Tensor:
        return values + noise * torch.randn(values.shape, generator=random, dtype=values.dtype)

    examples = []
    for atoms in structures:
        system = to_system(atoms)
        nothing = torch.zeros(1, dtype=torch.float64)
        blank = Labels(nothing, nothing, nothing, torch.full((1, 3), torch.nan))
        example = make_example(Frame("x", system, blank), CUTOFF)
        found = evaluate(network, system, example.neighbors)
        stress = off(found.stress)  # NaN for a molecule
        labels = Labels(off(found.energy), off(found.forces), stress, blank.dipole)
        examples.append(example._replace(labels=labels))
    return [concatenate(examples[:3]), concatenate(examples[3:])]


def losses(network: Network, batches: list[Example]) -> float:
    return measure(network, batches, WEIGHTS, network.settings.scale).loss


def shaken(network: Network) -> Network:
    """The same, with a last layer that is off."""
    other = copy.deepcopy(network)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for each in (other.energy_head.out.weight, other.energy_head.linear.weight):
            each += 0.3 * torch.randn(each.shape, generator=random, dtype=each.dtype)
    return other


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_are_what_autograd_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "DISPLACEMENT", 1e-6)
    network = network_of(name)
    batch = labelled(network)[1]  # a molecule and two crystals
    random = torch.Generator().manual_seed(1)
    moves = torch.randn(batch.system.positions.shape, generator=random, dtype=torch.float64)
    strain = torch.randn(batch.system.cell.shape, generator=random, dtype=torch.float64)
    n_atoms = torch.bincount(batch.system.system)
    found = evaluate(network, batch.system, batch.neighbors, create_graph=True)
    head = network.energy_head
    for system in range(len(n_atoms)):
        own = batch.system.system == system
        # Forces are down the slope; a strain does the work of virials.
        work = -(moves[own] * found.forces[own]).sum()
        work = work + (strain[system] * found.virials[own].sum(0)).sum() / n_atoms[system]
        weights = (head.out.weight, head.linear.weight)
        expected = torch.autograd.grad(work, weights, retain_graph=True)
        with torch.no_grad():
            point = readout._Point(network, batch.system, batch.neighbors)
            row = point.along(moves, strain)[system]
        assert_relative(row, torch.cat([each.flatten() for each in expected]), 1e-4)
    # Energies are linear in the layer, whatever it is.
    other = shaken(network)
    change = _layer(other) - _layer(network)
    energy = evaluate(other, batch.system, batch.neighbors).energy
    assert_relative(found.energy.detach() + point.features @ change, energy, 1e-10)


def _layer(network: Network) -> Tensor:
    head = network.energy_head
    return torch.cat([each.detach().flatten() for each in (head.out.weight, head.linear.weight)])


@pytest.mark.parametrize("name", NETWORKS)
def test_finds_the_layer_that_labels_are_from(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "DISPLACEMENT", 1e-6)
    teacher = network_of(name)
    batches = labelled(teacher)
    student = shaken(teacher)
    before = measure(student, batches, WEIGHTS, student.settings.scale)
    for _ in range(2):
        readout.solve_readout(student, student, batches, WEIGHTS)
    after = measure(student, batches, WEIGHTS, student.settings.scale)
    assert after.energy_mae_meV < 1e-2 * before.energy_mae_meV
    assert after.forces_mae_meV_per_A < 1e-2 * before.forces_mae_meV_per_A
    assert after.stress_mae_meV_per_A3 < 2e-2 * before.stress_mae_meV_per_A3


def test_squares_and_sizes_of_errors_are_different_minima() -> None:
    network = network_of("equivariant")
    batches = labelled(network, noise=0.3)
    by_size, squared = shaken(network), shaken(network)
    for _ in range(4):
        readout.solve_readout(by_size, by_size, batches, WEIGHTS)
        readout.solve_readout(squared, squared, batches, WEIGHTS._replace(penalty="mse"))

    def loss(student: Network, penalty: Penalty) -> float:
        return measure(student, batches, Weights(10.0, 1.0, 0.3, penalty=penalty), 1.0).loss

    assert loss(by_size, "mae") < 0.98 * loss(squared, "mae")
    assert loss(squared, "mse") < 0.98 * loss(by_size, "mse")


def test_energies_alone_are_enough() -> None:
    network = network_of("equivariant")
    batches = labelled(network)
    for batch in batches:
        batch.labels.forces[:] = batch.labels.stress[:] = torch.nan
    student = shaken(network)
    start = _layer(student)
    before = measure(student, batches, WEIGHTS, student.settings.scale)
    readout.solve_readout(student, student, batches, WEIGHTS)
    after = measure(student, batches, WEIGHTS, student.settings.scale)
    assert after.energy_mae_meV < 1e-2 * before.energy_mae_meV
    # What they do not tell is hardly touched.
    assert (_layer(student) - start).norm() < 2.0 * (_layer(network) - start).norm()


def test_the_network_of_a_sum_makes_up_for_the_rest() -> None:
    potential = random_potential("equivariant+morse")
    network = readout.find_readout(potential)
    assert network is not None
    batches = labelled(potential)
    right = copy.deepcopy(network.energy_head.state_dict())
    network.energy_head.load_state_dict(shaken(network).energy_head.state_dict())
    before = measure(potential, batches, WEIGHTS, 1.0)
    readout.solve_readout(potential, network, batches, WEIGHTS)
    after = measure(potential, batches, WEIGHTS, 1.0)
    assert after.forces_mae_meV_per_A < 0.1 * before.forces_mae_meV_per_A
    assert after.energy_mae_meV < 1e-2 * before.energy_mae_meV
    assert not torch.equal(network.energy_head.out.weight, right["out.weight"])


@pytest.mark.parametrize("name", ["composition", "unconstrained", "morse", "schnet+painn"])
def test_others_have_no_such_layer(name: str) -> None:
    assert readout.find_readout(random_potential(name)) is None


def test_frames_without_some_labels_say_what_they_can() -> None:
    network = network_of("equivariant")
    batches = labelled(network)
    missing = torch.nan
    labels = batches[0].labels
    labels.energy[1], labels.forces[2:5] = missing, missing
    off = batches[1].labels
    off.energy[:] = missing
    student = shaken(network)
    before = losses(student, batches)
    readout.solve_readout(student, student, batches, WEIGHTS)
    assert losses(student, batches) < 0.2 * before


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with frames."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("frames.xyz", ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), ":30"))
    return tmp_path


TRAIN = ("train", "frames.xyz", "--features", "16", "--epochs", "8", "--output", "run")


def test_a_training_ends_with_it(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said, _ = run(*TRAIN)
    assert code == 0
    model = load_model("run")
    assert model.provenance["last_layer_solved_for"]
    assert said.index("validation, as learned") < said.index("validation  ")
    with (here / "run" / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    valid = model.provenance["valid"]
    assert valid["energy_mae_meV"] < float(last["valid_energy_mae_meV"])
    # The last layer moved, and nothing else did.
    monkeypatch.setattr(training_run, "ATOMS_TO_SOLVE", 8)
    assert run(*TRAIN, "--overwrite")[0] == 0
    plain = load_model("run")
    assert "last_layer_solved_for" not in plain.provenance
    ours, theirs = (dict(each.network.named_parameters()) for each in (model, plain))
    changed = {name for name, each in ours.items() if not torch.equal(each, theirs[name])}
    assert changed == set(READOUT)


def test_validation_frames_may_speak_against_it(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruin(potential: object, network: Network, batches: object, weights: object) -> None:
        with torch.no_grad():
            network.energy_head.out.weight += 1.0

    monkeypatch.setattr(training_run, "solve_readout", ruin)
    code, said, _ = run(*TRAIN)
    assert code == 0
    assert "as learned" not in said
    monkeypatch.setattr(training_run, "ROUNDS_OF_SOLVING", 0)
    ruined = load_model("run")
    assert run(*TRAIN, "--overwrite")[0] == 0
    pairs = zip(ruined.network.parameters(), load_model("run").network.parameters(), strict=True)
    assert all(torch.equal(*each) for each in pairs)


@pytest.mark.parametrize("part", ["solve_readout", "certify"])
def test_a_kill_before_or_after_it_leaves_no_trace(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    assert run(*TRAIN)[0] == 0
    unbroken = load_model("run")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_run, part, killed)
        assert run(*TRAIN, "--overwrite")[0] != 0
    assert ("last_layer_solved_for" in load_model("run").provenance) == (part == "certify")
    assert run("train", "--resume", "run")[0] == 0
    resumed = load_model("run")
    pairs = zip(unbroken.network.parameters(), resumed.network.parameters(), strict=True)
    assert all(torch.equal(*each) for each in pairs)
    assert resumed.certificate


def test_a_last_layer_that_is_frozen_stays(here: Path, run: Run) -> None:
    assert run(*TRAIN)[0] == 0
    command = ("train", "frames.xyz", "--from", "run", "--freeze", "energy_head", "--epochs", "3")
    assert run(*command, "--output", "tuned")[0] == 0
    tuned = load_model("tuned")
    assert "last_layer_solved_for" not in tuned.provenance
    ours, theirs = load_model("run").network, tuned.network
    for name in READOUT:
        assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name))
