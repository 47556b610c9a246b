"""The loss and the errors that people read, by hand and by finite differences."""

from __future__ import annotations

import math

import ase
import numpy as np
import pytest
import torch
from checks import CUTOFF, crystal, molecule, random_schnet
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlearn.atoms import Frame, to_system
from mdlearn.labels import Labels
from mdlearn.potentials.evaluate import evaluate
from mdlearn.system import Evaluation, volume
from mdlearn.training.dataset import Example, concatenate, make_example
from mdlearn.training.loss import (
    HUBER_DELTA,
    Penalty,
    Weights,
    count_labels,
    loss_of,
    measure,
    slopes_of,
)

ALL = Weights(energy=1.0, forces=1.0, stress=1.0)


def labels_of(evaluation: Evaluation, noise: float = 0.0, seed: int = 0) -> Labels:
    """What the potential says itself, with an error of a known size."""
    generator = torch.Generator().manual_seed(seed)

    def off(values: torch.Tensor) -> torch.Tensor:
        return values + noise * torch.randn(values.shape, generator=generator, dtype=values.dtype)

    return Labels(
        off(evaluation.energy),
        off(evaluation.forces),
        off(evaluation.stress),
        torch.full((len(evaluation.energy), 3), torch.nan),
    )


def example(atoms: ase.Atoms, noise: float = 0.0) -> Example:
    system = to_system(atoms)
    plain = make_example(Frame("x", system, labels_of(nothing(len(atoms)))), CUTOFF)
    found = evaluate(random_schnet(), system, plain.neighbors)
    return plain._replace(labels=labels_of(found, noise))


def nothing(n: int) -> Evaluation:
    zeros = torch.zeros
    double = torch.float64
    return Evaluation(
        zeros(1, dtype=double),
        zeros(n, 3, dtype=double),
        zeros(1, 3, 3, dtype=double),
        zeros(n, dtype=double),
        zeros(n, 3, 3, dtype=double),
    )


def by_hand(errors: list[float], scale: float, penalty: Penalty = "huber") -> float:
    """Mean loss; Huber's is |error|/scale far out."""
    total = 0.0
    for error in errors:
        x = abs(error) / scale
        if penalty == "mse":
            total += x * x
        elif penalty == "mae" or x >= HUBER_DELTA:
            total += x - (HUBER_DELTA / 2 if penalty == "huber" else 0.0)
        else:
            total += x * x / (2 * HUBER_DELTA)
    return total / max(1, len(errors))


def test_a_perfect_model_has_no_loss() -> None:
    network = random_schnet()
    for atoms in (molecule(), crystal()):
        each = example(atoms)
        evaluation = evaluate(network, each.system, each.neighbors)
        assert float(loss_of(evaluation, None, each, ALL, 1.3)) < 1e-20
        errors = measure(network, [each], ALL, 1.3)
        assert errors.energy_mae_meV == errors.forces_mae_meV_per_A == 0.0


@pytest.mark.parametrize("penalty", ["huber", "mse", "mae"])
@pytest.mark.parametrize("noise", [1e-3, 1.0], ids=["small", "large"])
def test_loss_is_the_formula(noise: float, penalty: Penalty) -> None:
    network, scale = random_schnet(), 0.7
    weights = Weights(energy=0.3, forces=1.1, stress=0.6, penalty=penalty)
    parts = [example(crystal(seed=1), noise), example(molecule(), noise), example(crystal(), noise)]
    batch = concatenate(parts)
    evaluation = evaluate(network, batch.system, batch.neighbors)
    sizes = [8, 9, 8]
    space = volume(batch.system)
    energies, forces, virials = [], [], []
    for index, n in enumerate(sizes):
        error = evaluation.energy[index] - batch.labels.energy[index]
        energies.append(float(error) / n)
        if index != 1:  # a molecule has no stress
            strain = (evaluation.stress[index] - batch.labels.stress[index]) * space[index] / n
            virials += strain.flatten().tolist()
    forces = (evaluation.forces - batch.labels.forces).flatten().tolist()
    expected = (
        0.3 * by_hand(energies, scale, penalty)
        + 1.1 * by_hand(forces, scale, penalty)
        + 0.6 * by_hand(virials, scale, penalty)
    )
    assert float(loss_of(evaluation, None, batch, weights, scale)) == pytest.approx(
        expected, rel=1e-11
    )


def test_missing_labels_do_not_count() -> None:
    network = random_schnet()
    full = example(crystal(), noise=0.1)
    evaluation = evaluate(network, full.system, full.neighbors)
    nan = torch.nan
    half = full.labels.forces.clone()
    half[:4] = nan
    for label, weights in (
        (full.labels._replace(stress=full.labels.stress * nan), Weights(1.0, 1.0, 0.0)),
        (full.labels._replace(forces=full.labels.forces * nan), Weights(1.0, 0.0, 1.0)),
        (full.labels._replace(energy=full.labels.energy * nan), Weights(0.0, 1.0, 1.0)),
    ):
        found = loss_of(evaluation, None, full._replace(labels=label), ALL, 1.0)
        assert float(found) == pytest.approx(float(loss_of(evaluation, None, full, weights, 1.0)))
    found = loss_of(
        evaluation,
        None,
        full._replace(labels=full.labels._replace(forces=half)),
        Weights(0, 1, 0),
        1.0,
    )
    errors = (evaluation.forces - full.labels.forces)[4:].flatten().tolist()
    assert float(found) == pytest.approx(by_hand(errors, 1.0), rel=1e-12)


def test_gradient_is_finite_where_labels_are_missing_and_is_the_derivative() -> None:
    """A molecule in the batch has no stress: its NaN may not reach any parameter."""
    network = random_schnet()
    batch = concatenate([example(crystal(), 0.1), example(molecule(), 0.1)])

    def loss(create_graph: bool) -> torch.Tensor:
        evaluation = evaluate(network, batch.system, batch.neighbors, create_graph=create_graph)
        return loss_of(evaluation, None, batch, ALL, 0.8)

    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(loss(True), list(parameters.values()), allow_unused=True)
    compared = 0
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is None:
            assert name == "readout.1.bias"
            continue
        assert torch.isfinite(gradient).all()
        index = (0,) * parameter.dim()
        slope = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[index] += h
                slope.append(float(loss(False)))
                parameter[index] -= h
        expected = (slope[0] - slope[1]) / 2e-5
        assert float(gradient[index]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        compared += abs(expected) > 1e-3
    assert compared > 8


@given(
    penalty=st.sampled_from(["huber", "mse", "mae"]),
    noise=st.sampled_from([1e-3, 0.1, 1.0]),
    missing=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_slopes_are_those_of_autograd(
    penalty: Penalty, noise: float, missing: float, seed: int
) -> None:
    weights, scale = Weights(0.3, 1.1, 0.6, penalty=penalty), 0.7
    batch = concatenate([example(crystal(), noise), example(molecule(), noise)])
    found = evaluate(random_schnet(), batch.system, batch.neighbors)
    generator = torch.Generator().manual_seed(seed)
    labels = Labels(
        *(
            torch.where(torch.rand(each.shape, generator=generator) < missing, torch.nan, each)
            for each in batch.labels
        )
    )
    batch, counts = batch._replace(labels=labels), 1.5 * count_labels(batch)
    ours = slopes_of(found, batch, weights, scale, counts)
    for each in (found.energy, found.forces, found.virials):
        each.requires_grad_()
    loss = loss_of(found, None, batch, weights, scale, counts)
    loss.backward()
    assert ours.loss == pytest.approx(float(loss.detach()), rel=1e-12, abs=1e-12)
    assert found.virials.grad is not None
    # All atoms of a system have the derivative by its sum of virials.
    torch.testing.assert_close(
        ours.by_virials[batch.system.system], found.virials.grad, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(ours.by_energy, found.energy.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.by_forces, found.forces.grad, rtol=1e-12, atol=1e-12)


def test_errors_are_what_people_mean_by_them() -> None:
    network = random_schnet()
    frames = [example(crystal(), 0.1), example(molecule(), 0.1), example(crystal(seed=3), 0.1)]
    energy, forces, stress, sizes = [], [], [], [8, 9, 8]
    for each in frames:
        found = evaluate(network, each.system, each.neighbors)
        energy.append(abs(float(found.energy - each.labels.energy)))
        forces += (found.forces - each.labels.forces).flatten().tolist()
        stress += (found.stress - each.labels.stress).flatten().tolist()
    stress = [each for each in stress if not math.isnan(each)]
    assert len(stress) == 18
    # However the frames are dealt into batches.
    for batches in ([concatenate(frames)], frames, [concatenate(frames[:2]), frames[2]]):
        errors = measure(network, batches, ALL, 1.0)
        assert errors.energy_mae_meV == pytest.approx(1e3 * np.mean(energy), rel=1e-9)
        per_atom = np.mean(np.array(energy) / sizes)
        assert errors.energy_mae_meV_per_atom == pytest.approx(1e3 * per_atom, rel=1e-9)
        assert errors.forces_mae_meV_per_A == pytest.approx(1e3 * np.mean(np.abs(forces)), rel=1e-9)
        rmse = np.sqrt(np.mean(np.square(forces)))
        assert errors.forces_rmse_meV_per_A == pytest.approx(1e3 * rmse, rel=1e-9)
        assert errors.stress_mae_meV_per_A3 == pytest.approx(
            1e3 * np.mean(np.abs(stress)), rel=1e-9
        )


def test_errors_without_labels_are_no_numbers() -> None:
    each = example(molecule(), 0.1)
    errors = measure(random_schnet(), [each], ALL, 1.0)
    assert math.isnan(errors.stress_mae_meV_per_A3)
    assert math.isfinite(errors.forces_mae_meV_per_A)
    assert math.isfinite(errors.loss)
