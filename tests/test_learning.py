"""Training in loops: the gradient is that of two derivatives by autograd."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ase
import numba
import pytest
import torch
from checks import REFERENCE_ENERGIES, SPECIES, crystal, molecule, random_network, slab
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mdlearn.atoms import to_system
from mdlearn.labels import Labels
from mdlearn.neighbors import build
from mdlearn.potentials import beforehand, learning
from mdlearn.potentials.architectures import make_potential
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.frozen import disagreement
from mdlearn.potentials.learning import Loops, loops_of
from mdlearn.potentials.network import Settings
from mdlearn.potentials.schnet import SchNet
from mdlearn.potentials.threads import Team
from mdlearn.training import loop
from mdlearn.training.dataset import Example, concatenate
from mdlearn.training.loop import Training
from mdlearn.training.loss import Weights, loss_of
from mdlearn.training.schedule import Schedule
from mdlearn.training.step import gradient
from mdlearn.training.team import ALONE
from mdlearn.words import forms_of

SCHEDULE = Schedule(1, 60.0, None, None, 1e-3, 0.9, 0)
LOSS = Weights(1.0, 1.0, 1.0, 0.0, "mse")


def network(features: int = 16, layers: int = 2, radial: int = 5, seed: int = 0) -> Equivariant:
    """A random network in float64, with parameters that are all of some size."""
    torch.manual_seed(seed)
    of = Settings("equivariant", 3.5, features, layers, radial, 8.0, 0.7)
    made = make_potential(SPECIES, REFERENCE_ENERGIES, of).double()
    assert isinstance(made, Equivariant)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def example(atoms: ase.Atoms, seed: int = 0) -> Example:
    """A structure with labels that no network gives."""
    system, generator = to_system(atoms), torch.Generator().manual_seed(seed)

    def label(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    stress = label(1, 3, 3)
    labels = Labels(
        -100.0 + label(1),
        label(len(atoms), 3),
        0.1 * (stress + stress.mT),
        torch.full((1, 3), torch.nan, dtype=torch.float64),
    )
    return Example(system, build(system, 3.5), labels, "some frame")


def by_autograd(potential: Equivariant, batch: Example, weights: Weights) -> list[Tensor]:
    found = evaluate(potential, batch.system, batch.neighbors, create_graph=True)
    loss = loss_of(found, None, batch, weights, potential.settings.scale)
    return list(torch.autograd.grad(loss, list(potential.parameters())))


def by_loops(
    potential: Equivariant, batch: Example, weights: Weights, steps: Sequence[int] = (0, 1)
) -> list[Tensor]:
    """The mean over steps of what a training leaves in the parameters."""
    training = Training(potential, weights, SCHEDULE)
    training.loops = Loops(potential)
    sums = [torch.zeros_like(each) for each in potential.parameters()]
    for training.steps in steps:
        gradient(training, [batch], [()], weights, ALONE, most_parts=1)
        for total, parameter in zip(sums, potential.parameters(), strict=True):
            assert parameter.grad is not None
            total += parameter.grad / len(steps)
    return sums


def off(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error of the gradient by a parameter."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in pairs)


BATCHES: dict[str, Callable[[], Example]] = {
    "molecule": lambda: example(molecule()),
    "crystal": lambda: example(crystal()),
    "slab": lambda: example(slab()),
    "several": lambda: concatenate(
        [example(molecule(seed=seed), seed) for seed in range(5)] + [example(crystal())]
    ),
    "an atom alone": lambda: concatenate([example(ase.Atoms("O")), example(molecule())]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_energies_and_forces_are_those_of_the_network(name: str) -> None:
    potential, batch = network(), BATCHES[name]()
    ours = Loops(potential).evaluate(batch.system, batch.neighbors)
    theirs = evaluate(potential, batch.system, batch.neighbors)
    for one, other in zip(ours, theirs, strict=True):
        if one.shape[1:] != (3, 3) or len(one) == len(ours.energy):  # but for shares of virials
            assert (one - other).nan_to_num().abs().max() < 1e-11


@pytest.mark.parametrize("name", BATCHES)
def test_gradient_is_that_of_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "DISPLACEMENT", 1e-4)
    potential, batch = network(), BATCHES[name]()
    expected = by_autograd(potential, batch, LOSS)
    # Looks to both sides differ from the derivative by the square of the displacement.
    assert off(by_loops(potential, batch, LOSS), expected) < 1e-5


def test_error_of_the_gradient_is_of_the_size_of_the_displacement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    potential, batch = network(), BATCHES["several"]()
    expected = by_autograd(potential, batch, LOSS)
    errors = []
    for displacement in (4e-3, 2e-3, 1e-3):
        monkeypatch.setattr(learning, "DISPLACEMENT", displacement)
        errors.append(off(by_loops(potential, batch, LOSS, [0]), expected))
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(2.0, abs=0.1)
    assert errors[2] < 0.02


@pytest.mark.parametrize(
    "weights",
    [
        LOSS._replace(forces=0.0, stress=0.0),
        LOSS._replace(energy=0.0, stress=0.0),
        LOSS._replace(energy=0.0, forces=0.0),
        LOSS._replace(penalty="huber"),
        LOSS._replace(penalty="mae"),
    ],
)
def test_gradient_of_every_part_of_the_loss(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "DISPLACEMENT", 1e-4)
    potential, batch = network(), BATCHES["several"]()
    expected = by_autograd(potential, batch, weights)
    assert off(by_loops(potential, batch, weights), expected) < 1e-5


@given(
    features=st.sampled_from([16, 32, 48]),
    layers=st.integers(2, 3),
    radial=st.integers(1, 16),
    seed=st.integers(0, 100),
)
@settings(max_examples=8, deadline=None)
def test_gradient_of_networks_of_all_sizes(
    features: int, layers: int, radial: int, seed: int
) -> None:
    potential = network(features, layers, radial, seed)
    batch = concatenate([example(molecule(seed=seed), seed), example(slab(), seed)])
    expected = by_autograd(potential, batch, LOSS)
    assert off(by_loops(potential, batch, LOSS), expected) < 1e-2


def test_labels_that_are_missing_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "DISPLACEMENT", 1e-4)
    potential, batch = network(), BATCHES["several"]()
    labels = batch.labels
    labels.energy[1], labels.forces[3:20], labels.stress[-1] = torch.nan, torch.nan, torch.nan
    expected = by_autograd(potential, batch, LOSS)
    assert off(by_loops(potential, batch, LOSS), expected) < 1e-5


def test_in_float32_the_gradient_is_right_to_a_percent() -> None:
    exact, batch = network(32, 2, 12), BATCHES["several"]()
    expected = by_autograd(exact, batch, LOSS)
    single = network(32, 2, 12).float()
    found = torch.cat([each.flatten() for each in by_loops(single, batch, LOSS, [0])]).double()
    flat = torch.cat([each.flatten() for each in expected])
    assert (found - flat).norm() / flat.norm() < 0.02


def test_parameters_that_are_held_get_no_gradient() -> None:
    potential, batch = network(), BATCHES["molecule"]()
    held = potential.products[0].mix.weight.requires_grad_(False)
    training = Training(potential, LOSS, SCHEDULE)
    training.loops = Loops(potential)
    gradient(training, [batch], [()], LOSS, ALONE, most_parts=1)
    assert held.grad is None
    assert all(each.grad is not None for each in training.parameters)


def test_number_of_threads_does_not_change_the_bits() -> None:
    potential, batch = network().float(), BATCHES["several"]()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            loops = Loops(potential)
            point = loops.begin(batch.system, batch.neighbors)
            one = torch.ones(len(batch.system.cell), dtype=torch.float64)
            point.add_gradient(one, point.evaluation.forces, point.evaluation.stress, 1.0)
            gradients = [each.grad for each in potential.parameters() if each.grad is not None]
            assert loops.work is not None
            work = loops.work.told, loops.work.raw
            results.append([*point.evaluation, *work, *gradients])
            potential.zero_grad()
    finally:
        torch.set_num_threads(before)
    assert len(results[0]) == 7 + len(list(potential.parameters()))
    for one, other in zip(*results, strict=True):
        assert torch.equal(torch.as_tensor(one).nan_to_num(), torch.as_tensor(other).nan_to_num())


def test_team_grows_while_that_is_worth_it() -> None:
    team, seconds = Team(), {1: 0.02, 2: 0.012, 4: 0.0118, 8: 0.001}
    team.measure(8, lambda: time.sleep(seconds[len(team)]))
    assert len(team) == 2
    alone = Team()
    alone.measure(1, lambda: None)
    assert len(alone) == 1


def test_torch_has_one_thread_beside_those_of_the_loops() -> None:
    before = torch.get_num_threads()
    training = Training(network().float(), LOSS, SCHEDULE)
    try:
        torch.set_num_threads(2)
        training.try_loops(example(molecule()), 3)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert training.loops is not None
    assert training.averaged_loops is not None
    assert len(training.loops.team) in {1, 2}
    assert training.averaged_loops.team is training.loops.team


def test_threads_are_chosen_again_among_those_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    training = Training(network().float(), LOSS, SCHEDULE)
    tried: list[int] = []
    monkeypatch.setattr(Team, "measure", lambda team, most, work: tried.append(most))
    try:
        torch.set_num_threads(2)
        training.try_loops(example(molecule()), 3)
        training.choose_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert tried == [2, 2]


def test_loops_are_for_what_they_know() -> None:
    assert loops_of(network().float()) is not None
    assert loops_of(network()) is None
    assert loops_of(random_network(SchNet).float()) is None
    assert loops_of(random_network(Equivariant, parity="so3").float()) is None
    assert loops_of(random_network(Equivariant, dipole=True).float()) is None
    assert loops_of(network(24).float()) is None
    assert loops_of(network(layers=1).float()) is None


def test_loops_that_do_not_agree_are_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    potential, frame = network().float(), example(molecule())
    training = Training(potential, LOSS, SCHEDULE)
    training.try_loops(frame)
    assert training.loops
    assert not disagreement(training.loops, potential, frame.system)

    def disagree(*_: Any) -> str:
        return "frozen forces are off"

    monkeypatch.setattr(loop, "misgiving", disagree)
    training.try_loops(frame)
    assert training.loops is None
    assert training.averaged_loops is None
    assert training.without_loops == "frozen forces are off"
    gradient(training, [frame], [()], LOSS, ALONE, most_parts=1)
    assert training.parameters[0].grad is not None


def test_sums_are_given_what_their_layouts_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    """So another process can compile them that knows nothing but the layouts."""
    needed: list[Any] = []
    compiled = learning.add_gradient

    def add_gradient(*arguments: Any) -> None:
        needed[:] = arguments
        compiled(*arguments)

    monkeypatch.setattr(learning, "add_gradient", add_gradient)
    monkeypatch.setattr(Loops, "_compile", lambda *_: None)
    by_loops(network(32, 3, 12).float(), BATCHES["several"](), LOSS, [0])
    given = [numba.typeof(each) for each in needed]
    assert given == forms_of(beforehand.FUNCTIONS[beforehand.SUMS], "float32")
