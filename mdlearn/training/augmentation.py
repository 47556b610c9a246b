"""Frames turned at random, for networks that do not know that it changes nothing."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import torch
from torch import Tensor

from mdlearn.potentials.unconstrained import rotation_matrices
from mdlearn.training.dataset import Example


def augment(batch: Example, symmetries: Set[str], seeds: Sequence[tuple[int, ...]]) -> Example:
    """Turns every frame of a batch by a rotation of its own, unless the network needs none.

    Positions, cells and forces turn, stress on both sides, dipoles about the origin; energies stay.
    The neighbors stay as well: who is near whom, and by which lattice translation, does not change.

    Args:
        batch: any number of frames.
        symmetries: of the network. Without `rotation` among them, frames are rotated, and half of
            them reflected, too, if `reflection` is missing with it. Without `reflection` alone
            nothing is done: such a network is made to tell mirror images apart.
        seeds: one for each frame, which settles its rotation, whatever stands beside it.
    """
    if "rotation" in symmetries:
        return batch
    system, labels = batch.system, batch.labels
    reflect = "reflection" not in symmetries
    turns = [random_rotations(1, np.random.default_rng(each), reflect) for each in seeds]
    q = torch.cat(turns).to(system.positions)  # (n_systems, 3, 3)
    own = q[system.system]  # (n_atoms, 3, 3)

    def turn(vectors: Tensor, q: Tensor) -> Tensor:
        return (vectors[:, None] @ q).squeeze(1)

    return batch._replace(
        system=system._replace(positions=turn(system.positions, own), cell=system.cell @ q),
        labels=labels._replace(
            forces=turn(labels.forces, own),
            stress=q.transpose(1, 2) @ labels.stress @ q,
            dipole=turn(labels.dipole, q),
        ),
    )


def random_rotations(count: int, generator: np.random.Generator, reflect: bool) -> Tensor:
    """Rotations of which none is likelier than another: the Haar measure.

    Quaternions of four normal deviates have no preferred direction in their space.

    Args:
        count: how many.
        generator: draws them.
        reflect: whether to invert each with a probability of one half.

    Returns:
        (count, 3, 3) float64, to be multiplied from the right.
    """
    quaternions = torch.from_numpy(generator.standard_normal((count, 4)))
    signs = torch.from_numpy(generator.choice([1.0, -1.0], count)) if reflect else torch.ones(1)
    rotations = rotation_matrices(quaternions / quaternions.norm(dim=1, keepdim=True))
    return rotations * signs[:, None, None]
