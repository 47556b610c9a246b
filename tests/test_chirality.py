"""Mirror images: one energy for a network with the symmetry of E(3), two for one of SO(3)."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from checks import evaluate_atoms, random_network

from mdlearn.atoms import Frame, to_system
from mdlearn.labels import Labels
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.network import Network, Settings
from mdlearn.training.dataset import concatenate, make_example
from mdlearn.training.loop import Training, fit
from mdlearn.training.loss import Weights, measure
from mdlearn.training.schedule import Schedule
from mdlearn.training.statistics import average_neighbors

SPECIES = (1, 6, 9, 17, 35)
ENERGIES = dict.fromkeys(SPECIES, 0.0)
DIFFERENCE = 0.2
"""eV, of the order of the energy of each frame."""


def chiral_molecule(seed: int) -> ase.Atoms:
    """CHFClBr, shaken; its mirror image is another molecule."""
    corners = np.array([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, -1.0]])
    lengths = np.array([1.1, 1.4, 1.8, 1.9])[:, None]
    atoms = ase.Atoms("CHFClBr", positions=[[0.0] * 3, *(corners / 3**0.5 * lengths)])
    atoms.rattle(0.1, seed=seed)
    return atoms


def mirrored(atoms: ase.Atoms) -> ase.Atoms:
    image = atoms.copy()
    image.positions[:, 0] *= -1.0
    return image


def handedness(atoms: ase.Atoms) -> float:
    """A pseudoscalar: the triple product of the bonds to the halogens."""
    f, cl, br = atoms.positions[2:] - atoms.positions[0]
    return float(np.cross(f, cl) @ br / np.prod([np.linalg.norm(each) for each in (f, cl, br)]))


def labelled(atoms: ase.Atoms) -> Frame:
    nan = torch.full((len(atoms), 3), torch.nan, dtype=torch.float64)
    labels = Labels(
        torch.tensor([DIFFERENCE * handedness(atoms)], dtype=torch.float64),
        nan,
        nan[None, :3],
        nan[:1],
    )
    return Frame("chiral", to_system(atoms), labels)


def trained(parity: str) -> tuple[Network, float]:
    """A network trained on the left and right molecules, and its error on others, in eV."""
    molecules = [chiral_molecule(seed) for seed in range(60)]
    frames = [labelled(each) for atoms in molecules for each in (atoms, mirrored(atoms))]
    examples = [make_example(frame, 4.0) for frame in frames]
    settings = Settings(
        "equivariant", 4.0, 8, 1, 6, average_neighbors(examples), DIFFERENCE, parity=parity
    )
    torch.manual_seed(0)
    network = Equivariant(SPECIES, ENERGIES, settings).double()
    schedule = Schedule(50, 0.0, 50, 12, 2e-2, 0.98, 0)
    weights = Weights(1.0, 0.0, 0.0)
    valid = [concatenate(examples[-8:])]
    training = Training(network, weights, schedule)
    for _ in fit(training, examples[:-8], valid):
        pass
    averaged = training.averaged
    assert isinstance(averaged, Network)
    return averaged, measure(averaged, valid, weights, DIFFERENCE).energy_mae_meV / 1e3


@pytest.mark.parametrize("seed", range(3))
def test_mirror_images_have_one_energy_or_two(seed: int) -> None:
    atoms = ase.Atoms("CHOHC", positions=chiral_molecule(seed).positions)
    for parity, low, high in (("o3", 0.0, 1e-10), ("so3", 1e-3, np.inf)):
        network = random_network(Equivariant, parity=parity)
        left, right = (evaluate_atoms(network, each).energy for each in (atoms, mirrored(atoms)))
        assert low <= float((left - right).abs()) < high


def test_only_the_network_without_reflections_learns_handedness() -> None:
    network, error = trained("so3")
    assert "reflection" not in network.symmetries
    assert error < 0.05 * DIFFERENCE
    left = chiral_molecule(100)
    energies = [float(evaluate_atoms(network, each).energy) for each in (left, mirrored(left))]
    assert energies[0] - energies[1] == pytest.approx(2 * DIFFERENCE * handedness(left), rel=0.1)

    network, error = trained("o3")
    assert "reflection" in network.symmetries
    typical = DIFFERENCE * abs(handedness(left))
    assert error > 0.9 * typical
    energies = [float(evaluate_atoms(network, each).energy) for each in (left, mirrored(left))]
    assert abs(energies[0] - energies[1]) < 1e-10
