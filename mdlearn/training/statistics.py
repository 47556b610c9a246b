"""What the frames of a training say of the elements, and so of the network that is to learn them.

Each is a sum, or a smallest value, over frames: processes share them out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mdlearn.atoms import Frame
from mdlearn.neighbors import Neighbors, pair_vectors
from mdlearn.potentials.elements import HEAVIEST
from mdlearn.potentials.wall import WALL_MARGIN
from mdlearn.system import System
from mdlearn.training.dataset import Example
from mdlearn.training.team import ALONE, Team

SAMPLE = 5000
"""Frames that are enough for an average."""
USUAL_CUTOFF = 5.0
"""Å. Holds a molecule of ten atoms, 50 neighbors in water, and 26 to 54 in most metals."""
MOST_NEIGHBORS = 70
"""More cost more than they teach; the densest organic crystals have 68 within 5 Å."""


class Placed(Protocol):
    """What has neighbors: an example, or a stride of a propagator."""

    @property
    def system(self) -> System:
        """One system, or a batch."""

    @property
    def neighbors(self) -> Neighbors:
        """Its pairs."""


class Cutoff(NamedTuple):
    """How far atoms see, and why."""

    radius: float
    """Å."""
    reason: str
    """For people."""


class ReferenceEnergies(NamedTuple):
    """Energies of the isolated atoms, and how they were found."""

    energies: dict[int, float]
    """By atomic number, eV."""
    source: str
    """For people: `isolated atoms`, or `least squares` with what is worth knowing about it."""


def find_species(structures: Sequence[Frame | Example], team: Team = ALONE) -> tuple[int, ...]:
    """The atomic numbers that occur, ascending."""
    found = torch.zeros(HEAVIEST + 1, dtype=torch.int64)
    for each in team.share(structures):
        found[each.system.numbers.cpu()] = 1
    return tuple(torch.nonzero(team.add(found)).flatten().tolist())


def fit_reference_energies(
    frames: Sequence[Frame], isolated: Sequence[Frame], team: Team = ALONE
) -> ReferenceEnergies:
    """Energies of the isolated atoms (E0): given, or from the compositions by least squares.

    Args:
        frames: what to fit to, where elements are missing among the isolated atoms.
        isolated: frames of a single atom.
        team: the processes among which the frames are shared out.

    Returns:
        One energy for each element that occurs.
    """
    species = tuple(sorted({*find_species(frames, team), *find_species(isolated)}))
    given = {int(f.system.numbers[0]): float(f.labels.energy) for f in isolated}
    if set(given) >= set(species):
        return ReferenceEnergies(given, "isolated atoms")
    rows = (
        (count_atoms(frame.system, species), float(frame.labels.energy))
        for frame in team.share(frames)
    )
    solution, rank = least_squares(rows, len(species), team)
    source = "least squares"
    if rank < len(species):
        # The minimum-norm answer would give hydrogen a share of oxygen's electrons; any answer is
        # as good for dynamics, because only the sum is ever seen.
        source += (
            f" (compositions determine {rank} of {len(species)} energies; give --isolated-atoms if"
            " molecules will break or compositions will change)"
        )
    return ReferenceEnergies(dict(zip(species, solution, strict=True)), source)


def count_atoms(system: System, species: Sequence[int]) -> Tensor:
    """How many atoms of each element a system has, (n_species,) float64."""
    return torch.stack([(system.numbers == z).sum() for z in species]).double().cpu()


def least_squares(
    rows: Iterable[tuple[Tensor, float]], unknowns: int, team: Team = ALONE
) -> tuple[list[float], int]:
    """The shortest x with the least |A x - b|², by the normal equations AᵀA x = Aᵀb.

    These are sums over rows, so that processes share the rows out. Of counts of atoms AᵀA is exact,
    in whatever order it is summed.

    Args:
        rows: of A, (unknowns,), and of b; the share of this process.
        unknowns: their number.
        team: the processes whose rows count.

    Returns:
        x, and the rank of A.
    """
    normal = torch.zeros(unknowns, unknowns + 1, dtype=torch.float64)
    for row, value in rows:
        normal += torch.outer(row, torch.cat([row, row.new_tensor([value])]))
    team.add(normal)
    left, right = normal[:, :-1].numpy(), normal[:, -1].numpy()
    # Singular values of A are the roots of those of AᵀA, whose smallest are rounding at 1e-16.
    solution, _, rank, _ = np.linalg.lstsq(left, right, rcond=1e-12)
    return solution.tolist(), int(rank)


Item = TypeVar("Item")


def sample(items: Sequence[Item], team: Team = ALONE, most: int = SAMPLE) -> Sequence[Item]:
    """As many items as a statistic needs, evenly spread over all; the share of this process."""
    stride = -(-len(items) // most)
    return team.share(items[::stride] if stride > 1 else items)


def force_scale(frames: Sequence[Frame], team: Team = ALONE) -> float:
    """Root mean square of the force components, eV/Å; one where there are none to speak of."""
    sums = torch.zeros(2, dtype=torch.float64)  # of squares, and their number
    for frame in sample(frames, team):
        forces = frame.labels.forces
        sums[0] += forces.square().nansum()
        sums[1] += (~forces.isnan()).sum()
    total, count = team.add(sums).tolist()
    scale: float = (total / max(1.0, count)) ** 0.5
    return scale if scale > 1e-3 else 1.0


def largest_forces(frames: Sequence[Frame], team: Team = ALONE) -> list[tuple[int, float]]:
    """The largest force on an atom of each element, eV/Å; elements without labels are left out."""
    lowest = torch.zeros(HEAVIEST + 1, dtype=torch.float64)  # minus the largest
    for frame in sample(frames, team):
        size = frame.labels.forces.norm(dim=1).nan_to_num(0.0)
        lowest.scatter_reduce_(0, frame.system.numbers, -size, "amin")
    found = (-team.lowest(lowest)).tolist()
    return [(element, force) for element, force in enumerate(found) if force > 0.0]


def average_neighbors(examples: Sequence[Placed], team: Team = ALONE) -> float:
    """Neighbors per atom within the cutoff, averaged over all atoms; at least one."""
    sums = torch.zeros(2, dtype=torch.float64)  # of pairs, of atoms
    for each in sample(examples, team):
        sums[0] += each.neighbors.valid.sum().cpu()
        sums[1] += len(each.system.numbers)
    mean = team.add(sums)[0] / sums[1]
    return max(1.0, float(mean))


def neighbor_counts(examples: Sequence[Placed], team: Team = ALONE) -> list[tuple[int, int, int]]:
    """The fewest and the most neighbors of an atom of each element, within the cutoff."""
    lowest = torch.full((2, HEAVIEST + 1), torch.inf, dtype=torch.float64)  # of counts, of minus
    for each in sample(examples, team):
        numbers, count = each.system.numbers.cpu(), each.neighbors.valid.sum(1).cpu().double()
        for row, values in zip(lowest, (count, -count), strict=True):
            row.scatter_reduce_(0, numbers, values, "amin")
    team.lowest(lowest)
    found = torch.nonzero(lowest[0].isfinite()).flatten().tolist()
    return [(z, int(lowest[0, z]), -int(lowest[1, z])) for z in found]


def choose_cutoff(examples: Sequence[Placed], team: Team = ALONE) -> Cutoff:
    """How far atoms should see: `USUAL_CUTOFF`, and in loose or dense solids what suits these.

    In a loose one it is twice the mean distance d of nearest neighbors. That holds two shells and
    26 to 58 neighbors in simple cubic, body-centered, face-centered, hexagonal and diamond lattices
    alike, and it does not depend on the vacuum around a slab or a molecule, as a density would. In
    a dense one it is the radius that holds `MOST_NEIGHBORS`.

    Args:
        examples: the frames, with neighbors within `USUAL_CUTOFF`.
        team: the processes among which they are shared out.

    Returns:
        A multiple of 0.1 Å.
    """
    sums = torch.zeros(3, dtype=torch.float64)  # of nearest distances, of pairs, of atoms
    for each in sample(examples, team):
        distance = pair_vectors(each.system, each.neighbors).norm(dim=2)
        nearest = distance.amin(1).clamp_max(USUAL_CUTOFF)  # padding is farther away
        sums[0] += nearest.sum().cpu()
        sums[1] += each.neighbors.valid.sum().cpu()
        sums[2] += len(nearest)
    nearest, pairs, atoms = team.add(sums).tolist()
    d, n = nearest / atoms, pairs / atoms
    dense = USUAL_CUTOFF * min(1.0, MOST_NEIGHBORS / max(n, 1.0)) ** (1 / 3)
    radius = max(math.ceil(20.0 * d - 1e-6), math.floor(10.0 * dense)) / 10.0
    if radius > USUAL_CUTOFF:
        return Cutoff(radius, f"twice the {d:.2f} Å between nearest neighbors")
    if radius < USUAL_CUTOFF:
        return Cutoff(radius, f"{USUAL_CUTOFF} Å would hold {n:.0f}")
    return Cutoff(radius, "the usual radius")


def closest_distances(
    examples: Sequence[Placed], team: Team = ALONE
) -> list[tuple[int, int, float]]:
    """The shortest distance of each pair of elements, less a margin for the next trajectory.

    Args:
        examples: the frames.
        team: the processes among which they are shared out.

    Returns:
        Atomic numbers, ascending, and Å; only pairs that come within the cutoff.
    """
    n = HEAVIEST + 1
    shortest = torch.full((n * n,), torch.inf, dtype=torch.float64)
    for each in team.share(examples):
        numbers, neighbors = each.system.numbers.cpu(), each.neighbors
        distance = pair_vectors(each.system, neighbors).norm(dim=2).cpu()
        other = numbers[neighbors.j.cpu()]
        low, high = torch.minimum(numbers[:, None], other), torch.maximum(numbers[:, None], other)
        valid = neighbors.valid.cpu()
        pair, found = (low * n + high)[valid], distance[valid].double()
        shortest.scatter_reduce_(0, pair, found, "amin")
    team.lowest(shortest)
    pairs = torch.nonzero(shortest.isfinite()).flatten().tolist()
    return [(each // n, each % n, WALL_MARGIN * float(shortest[each])) for each in pairs]
