"""Frames made ready for training: neighbors, batches, and what they say of the elements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn import neighbors as neighbor_lists
from mdlearn import system as systems
from mdlearn.atoms import Frame, Labels
from mdlearn.neighbors import Neighbors, pair_vectors
from mdlearn.system import System

WALL_MARGIN = 0.97
"""Where the wall begins, as a share of the shortest distance among the training frames."""


class Example(NamedTuple):
    """What a training step needs of one frame, or of a batch of them."""

    system: System
    neighbors: Neighbors
    labels: Labels


class ReferenceEnergies(NamedTuple):
    """Energies of the isolated atoms, and how they were found."""

    energies: dict[int, float]
    """By atomic number, eV."""
    source: str
    """For people: `isolated atoms`, or `least squares` with what is worth knowing about it."""


def make_example(frame: Frame, cutoff: float) -> Example:
    """Finds the neighbors of a frame once and for all."""
    return Example(frame.system, neighbor_lists.build(frame.system, cutoff), frame.labels)


def concatenate(examples: Sequence[Example]) -> Example:
    """Makes one batch of several examples."""
    capacity = max(each.neighbors.j.shape[1] for each in examples)
    return Example(
        systems.concatenate([each.system for each in examples]),
        neighbor_lists.concatenate([each.neighbors for each in examples], capacity),
        Labels(*(torch.cat(each) for each in zip(*(x.labels for x in examples), strict=True))),
    )


def batches(
    examples: Sequence[Example], size: int, order: NDArray[np.int64]
) -> Iterator[tuple[Example, NDArray[np.int64]]]:
    """Yields batches of `size` examples in the given order, each with their indices."""
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        yield concatenate([examples[index] for index in chosen]), chosen


def fit_reference_energies(frames: Sequence[Frame], isolated: Sequence[Frame]) -> ReferenceEnergies:
    """Energies of the isolated atoms (E0): given, or from the compositions by least squares.

    Args:
        frames: what to fit to, where elements are missing among the isolated atoms.
        isolated: frames of a single atom.

    Returns:
        One energy for each element that occurs.
    """
    species = find_species([*frames, *isolated])
    given = {int(f.system.numbers[0]): float(f.labels.energy) for f in isolated}
    if set(given) >= set(species):
        return ReferenceEnergies(given, "isolated atoms")
    numbers = [frame.system.numbers.numpy() for frame in frames]
    counts = np.array([[np.count_nonzero(n == z) for z in species] for n in numbers], np.float64)
    energies = np.array([float(frame.labels.energy) for frame in frames])
    solution, _, rank, _ = np.linalg.lstsq(counts, energies, rcond=None)
    source = "least squares"
    if rank < len(species):
        # The minimum-norm answer would give hydrogen a share of oxygen's electrons; any answer is
        # as good for dynamics, because only the sum is ever seen.
        source += (
            f" (compositions determine {rank} of {len(species)} energies; give --isolated-atoms if"
            " molecules will break or compositions will change)"
        )
    return ReferenceEnergies(dict(zip(species, solution.tolist(), strict=True)), source)


def find_species(frames: Sequence[Frame]) -> tuple[int, ...]:
    """The atomic numbers that occur, ascending."""
    return tuple(sorted({int(z) for frame in frames for z in frame.system.numbers.tolist()}))


def force_scale(frames: Sequence[Frame]) -> float:
    """Root mean square of the force components, eV/Å; one where there are none to speak of."""
    forces = torch.cat([frame.labels.forces.flatten() for frame in frames])
    scale = float(forces[~forces.isnan()].square().mean().sqrt())
    return scale if scale > 1e-3 else 1.0


def average_neighbors(examples: Sequence[Example]) -> float:
    """Neighbors per atom within the cutoff, averaged over all atoms; at least one."""
    pairs = sum(int(each.neighbors.valid.sum()) for each in examples)
    return max(1.0, pairs / sum(len(each.system.numbers) for each in examples))


def closest_distances(examples: Sequence[Example]) -> list[tuple[int, int, float]]:
    """The shortest distance of each pair of elements, less a margin for the next trajectory.

    Returns:
        Atomic numbers, ascending, and Å; only pairs that come within the cutoff.
    """
    shortest: dict[tuple[int, int], float] = {}
    for each in examples:
        numbers, neighbors = each.system.numbers, each.neighbors
        distance = pair_vectors(each.system, neighbors).norm(dim=2)
        for one in numbers.unique().tolist():
            for other in numbers.unique().tolist():
                pairs = (numbers[:, None] == one) & (numbers[neighbors.j] == other)
                found = distance[pairs & neighbors.valid]
                if one <= other and len(found):
                    least = min(float(found.min()), shortest.get((one, other), torch.inf))
                    shortest[one, other] = least
    return [(*pair, WALL_MARGIN * distance) for pair, distance in sorted(shortest.items())]


def split_frames(
    frames: Sequence[Frame], fraction: float, generator: np.random.Generator
) -> tuple[list[Frame], list[Frame]]:
    """Deals frames at random into training and validation, at least one to each."""
    count = min(len(frames) - 1, max(1, round(fraction * len(frames))))
    held_out = set(generator.permutation(len(frames))[:count].tolist())
    train = [frame for index, frame in enumerate(frames) if index not in held_out]
    return train, [frame for index, frame in enumerate(frames) if index in held_out]


def to(example: Example, device: torch.device) -> Example:
    """Moves an example to a device."""

    def move(part: tuple[Tensor, ...]) -> Iterator[Tensor]:
        return (each.to(device) for each in part)

    return Example(
        System(*move(example.system)),
        Neighbors(*move(example.neighbors)),
        Labels(*move(example.labels)),
    )
