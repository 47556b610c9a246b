"""Frames are turned whole, evenly, and only for networks that need it."""

from __future__ import annotations

import copy
from importlib.resources import files

import ase
import numpy as np
import pytest
import torch
from checks import SYSTEMS, assert_close, molecule, random_network
from scipy.stats import kstest

from mdlearn.atoms import read_frames, to_system
from mdlearn.labels import Labels
from mdlearn.neighbors import build, pair_vectors
from mdlearn.potentials.architectures import ARCHITECTURES
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.evaluate import evaluate, evaluate_multipoles
from mdlearn.potentials.network import EUCLIDEAN
from mdlearn.potentials.painn import PaiNN
from mdlearn.system import concatenate
from mdlearn.training import dataset
from mdlearn.training.augmentation import augment, random_rotations
from mdlearn.training.dataset import Example, make_example
from mdlearn.training.loop import Training, fit
from mdlearn.training.loss import Weights
from mdlearn.training.schedule import Schedule

NEITHER = EUCLIDEAN - {"rotation", "reflection"}


def labelled(network: PaiNN, structures: list[ase.Atoms]) -> Example:
    """A batch with what an invariant network says of it, in place of labels."""
    system = concatenate([to_system(each) for each in structures])
    neighbors = build(system, network.cutoff)
    found = evaluate(network, system, neighbors)
    with torch.no_grad():
        dipole = evaluate_multipoles(network, system, neighbors).dipole
    return Example(system, neighbors, Labels(found.energy, found.forces, found.stress, dipole))


def turns(batch: Example, turned: Example) -> torch.Tensor:
    """The matrix that each cell was multiplied with."""
    return torch.linalg.solve(batch.system.cell, turned.system.cell)


def seeds(batch: Example, run: int, step: int) -> list[tuple[int, ...]]:
    """A seed for each frame."""
    return [(run, step, index) for index in range(len(batch.system.cell))]


@pytest.mark.parametrize("symmetries", [NEITHER, EUCLIDEAN - {"rotation"}])
def test_all_of_a_frame_turns(symmetries: frozenset[str]) -> None:
    """A network that is invariant agrees as much with the turned frames as with the others."""
    network = random_network(PaiNN, dipole=True)
    batch = labelled(network, [SYSTEMS[name]() for name in ("molecule", "triclinic", "wire")])
    for step in range(4):
        turned = augment(batch, symmetries, seeds(batch, 3, step))
        again = evaluate(network, turned.system, turned.neighbors)
        assert (turned.labels.forces - batch.labels.forces).abs().max() > 0.1
        assert_close(again.energy, turned.labels.energy, 1e-12)
        assert_close(again.forces, turned.labels.forces, 1e-12)
        assert_close(again.stress[1], turned.labels.stress[1], 1e-12)
        dipole = evaluate_multipoles(network, turned.system, turned.neighbors).dipole.detach()
        assert_close(dipole, turned.labels.dipole, 1e-12)
        distances = [
            pair_vectors(each.system, each.neighbors).norm(dim=2) for each in (batch, turned)
        ]
        assert_close(
            distances[1][batch.neighbors.valid], distances[0][batch.neighbors.valid], 1e-12
        )


def test_frames_turn_by_themselves_and_every_time_anew() -> None:
    network = random_network(PaiNN, dipole=True)
    batch = labelled(network, [SYSTEMS["triclinic"]()] * 16)
    first, other = (turns(batch, augment(batch, NEITHER, seeds(batch, 0, step))) for step in (0, 1))
    seeded = turns(batch, augment(batch, NEITHER, seeds(batch, 1, 0)))
    assert torch.equal(first, turns(batch, augment(batch, NEITHER, seeds(batch, 0, 0))))
    everything = torch.cat([first, other, seeded])
    assert len(everything.flatten(1).round(decimals=3).unique(dim=0)) == 48
    assert torch.linalg.det(everything).min() < 0.0 < torch.linalg.det(everything).max()


def test_only_networks_without_reflection_see_mirror_images() -> None:
    network = random_network(PaiNN, dipole=True)
    batch = labelled(network, [SYSTEMS["triclinic"]()] * 16)
    q = turns(batch, augment(batch, EUCLIDEAN - {"rotation"}, seeds(batch, 0, 0)))
    assert_close(torch.linalg.det(q), torch.ones(16, dtype=torch.float64), 1e-12)


def test_labels_that_are_not_there_stay_away() -> None:
    network = random_network(PaiNN, dipole=True)
    batch = labelled(network, [molecule(), molecule("H2O")])
    forces = batch.labels.forces.clone()
    forces[:9] = torch.nan
    batch = batch._replace(labels=batch.labels._replace(forces=forces))
    turned = augment(batch, NEITHER, seeds(batch, 0, 0))
    assert torch.equal(turned.labels.forces.isnan(), forces.isnan())
    assert torch.equal(turned.labels.stress.isnan(), batch.labels.stress.isnan())


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "unconstrained"])
def test_other_networks_see_frames_as_they_are(name: str) -> None:
    batch = labelled(random_network(PaiNN, dipole=True), [molecule()])
    assert augment(batch, random_network(ARCHITECTURES[name]).symmetries, [(0,)]) is batch
    chiral = random_network(Equivariant, parity="so3")
    assert "reflection" not in chiral.symmetries
    assert augment(batch, chiral.symmetries, [(0,)]) is batch


def test_rotations_have_no_preference() -> None:
    """Of the Haar measure: any column is uniform on the sphere, angles go as 1 - cos."""
    q = random_rotations(4000, np.random.default_rng(0), reflect=False)
    assert_close(q @ q.transpose(1, 2), torch.eye(3, dtype=torch.float64), 1e-14)
    assert_close(torch.linalg.det(q), torch.ones(4000, dtype=torch.float64), 1e-14)
    for column in q.unbind(2):
        for component in column.unbind(1):  # uniform on [-1, 1] for a uniform direction
            assert kstest(component.numpy(), "uniform", args=(-1.0, 2.0)).pvalue > 1e-3
    trace = q.diagonal(dim1=1, dim2=2).sum(1)
    angle = ((trace - 1.0) / 2.0).clamp(-1.0, 1.0).acos().numpy()
    assert kstest(angle, lambda x: (x - np.sin(x)) / np.pi).pvalue > 1e-3


def test_half_of_the_frames_are_reflected() -> None:
    q = random_rotations(4000, np.random.default_rng(0), reflect=True)
    share = float((torch.linalg.det(q) < 0).double().mean())
    assert share == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)


@pytest.mark.parametrize(("name", "varies"), [("schnet", False), ("unconstrained", True)])
def test_training_turns_frames_for_whom_it_concerns(name: str, varies: bool) -> None:
    """Without learning the loss of an epoch moves only if the frames do."""
    frames = read_frames(str(files("mdlearn.data") / "ethanol.xyz"))[0][:6]
    examples = [make_example(frame, 3.5) for frame in frames]
    network = random_network(ARCHITECTURES[name])
    schedule = Schedule(4, 0.0, 9, len(examples), 0.0, 0.0, 0)

    def losses() -> list[float]:
        weights = Weights(0.0, 1.0, 0.0)
        valid = [dataset.concatenate(examples)]
        copied = copy.deepcopy(network)
        epochs = fit(Training(copied, weights, schedule), examples, valid)
        return [epoch.loss for epoch in epochs]

    first = losses()
    assert (np.ptp(first) > 1e-4) == varies
    assert varies or np.ptp(first) < 1e-10
    assert losses() == first
