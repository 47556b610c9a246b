"""Structures to try a potential on: random ones, awkward ones, and others changed.

All take and give single systems in float64. What is drawn has a fixed seed, so that the same
potential is always tried on the same structures.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from mdlearn.system import System, concatenate

MOLECULE = (3, 2, 2)
CRYSTAL = (2, 2, 1)
"""Shapes of the grids that random structures are made from."""
SPACING = 1.8
"""Å, between neighbors of a random molecule; about twelve atoms in 70 Å³."""
PAIRS = 36
"""At most so many pairs of elements are tried at the cutoff."""


def make_system(numbers: Tensor, positions: Tensor, cell: Tensor | None = None) -> System:
    """A system with masses of one, periodic if it has a cell.

    Args:
        numbers: (n_atoms,) atomic numbers.
        positions: (n_atoms, 3) Å.
        cell: (3, 3) Å, rows are cell vectors.
    """
    return System(
        positions,
        numbers,
        torch.ones(len(numbers), dtype=torch.float64),
        torch.zeros(1, 3, 3, dtype=torch.float64) if cell is None else cell[None],
        torch.full((1, 3), cell is not None),
        torch.zeros(len(numbers), dtype=torch.int64),
        torch.zeros(1, dtype=torch.float64),
    )


def random_molecule(species: Sequence[int], cutoff: float) -> System:
    """Twelve atoms of random elements, nowhere much closer than atoms of molecules are."""
    spacing = min(SPACING, 0.5 * cutoff)
    return make_system(_random_elements(species, 12), spacing * _random_points(MOLECULE))


def random_crystal(species: Sequence[int], cutoff: float) -> System:
    """Four atoms in a triclinic cell that is smaller than the cutoff: all see images of all."""
    shape = [[1.0, 0.0, 0.0], [0.2, 1.0, 0.0], [-0.1, 0.15, 1.05]]
    cell = 0.7 * cutoff * torch.tensor(shape, dtype=torch.float64)
    fractions = _random_points(CRYSTAL) / torch.tensor(CRYSTAL)
    return make_system(_random_elements(species, 4), fractions @ cell, cell)


def pairs_at_cutoff(species: Sequence[int], cutoff: float, distance: float) -> System:
    """A batch of pairs of elements, each with a third atom near the first one.

    Args:
        species: atomic numbers.
        cutoff: Å; the third atom is beyond it for the second one.
        distance: Å, between the first and the second atom.
    """
    pairs = list(itertools.product(species, repeat=2))
    chosen = torch.randperm(len(pairs), generator=_generator())[:PAIRS].tolist()
    third = itertools.cycle(species)
    # Along no axis, so that no component is zero by symmetry.
    direction = torch.tensor([0.48, -0.64, 0.6], dtype=torch.float64)
    behind = torch.tensor([-0.9, 0.1, 0.2], dtype=torch.float64)
    near = min(1.1, cutoff / 3.0)
    positions = torch.stack([0.0 * direction, distance * direction, near * behind])
    triples = [torch.tensor([*pairs[index], next(third)]) for index in chosen]
    return concatenate([make_system(numbers, positions) for numbers in triples])


def isolated_atoms(species: Sequence[int], cutoff: float) -> list[System]:
    """One atom of each element: out of each other's reach in one system, and each in its own."""
    numbers = torch.tensor(species)
    apart = _along_x(4.0 * cutoff * torch.arange(len(numbers), dtype=torch.float64))
    origin = torch.zeros(1, 3, dtype=torch.float64)
    alone = [make_system(z[None], origin) for z in numbers]
    return [make_system(numbers, apart), concatenate(alone)]


def degenerate(species: Sequence[int]) -> list[System]:
    """Four atoms in a line, two of them in the same place or almost."""
    numbers = _random_elements(species, 4)
    return [
        make_system(numbers, _along_x(torch.tensor([0.0, offset, 1.0, 2.0], dtype=torch.float64)))
        for offset in (0.0, 1e-9)
    ]


def moved(system: System) -> System:
    """The whole system elsewhere, and each atom in another cell."""
    cells = torch.randint(-3, 4, system.positions.shape, generator=_generator())
    jumps = (cells * system.pbc).double() @ system.cell[0]
    shift = torch.tensor([11.3, -7.9, 23.1], dtype=torch.float64)
    return system._replace(positions=system.positions + shift + jumps)


def shuffled(system: System) -> tuple[System, Tensor]:
    """The atoms in another order, and that order (n_atoms,)."""
    order = torch.randperm(len(system.numbers), generator=_generator()).flip(0)
    return (
        system._replace(
            positions=system.positions[order],
            numbers=system.numbers[order],
            masses=system.masses[order],
        ),
        order,
    )


def turned(system: System, q: Tensor) -> System:
    """The system and its cell under an orthogonal matrix (3, 3): x' = x q."""
    return system._replace(positions=system.positions @ q, cell=system.cell @ q)


def rotation() -> Tensor:
    """A proper rotation about no particular axis, (3, 3)."""
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=_generator(), dtype=torch.float64))
    proper: Tensor = q * torch.linalg.det(q)
    return proper


def reflection() -> Tensor:
    """The reflection at a plane of no particular direction, (3, 3): 1 - 2 n ⊗ n."""
    normal = torch.tensor([0.36, 0.48, 0.8], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) - 2.0 * torch.outer(normal, normal)


def doubled(system: System, cutoff: float) -> System:
    """A supercell of two cells; of a molecule two copies that do not see each other."""
    x = system.positions
    cell = system.cell.clone()
    shift = torch.zeros(3, dtype=torch.float64)
    shift[0] = x[:, 0].max() - x[:, 0].min() + 3.0 * cutoff
    periodic = system.pbc[0].nonzero().flatten().tolist()
    if periodic:
        shift = cell[0, periodic[0]].clone()
        cell[0, periodic[0]] *= 2.0
    return system._replace(
        positions=torch.cat([x, x + shift]),
        numbers=system.numbers.repeat(2),
        masses=system.masses.repeat(2),
        cell=cell,
        system=system.system.repeat(2),
    )


def displaced(system: System, atom: int, axis: int, h: float) -> System:
    """One atom further along an axis by h, in Å."""
    positions = system.positions.clone()
    positions[atom, axis] += h
    return system._replace(positions=positions)


def strained(system: System, a: int, b: int, h: float) -> System:
    """Positions and cell under the strain that has h in row a and column b: x' = x (1 + ε)."""
    strain = torch.eye(3, dtype=torch.float64)
    strain[a, b] += h
    return system._replace(positions=system.positions @ strain, cell=system.cell @ strain)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _random_points(shape: tuple[int, int, int]) -> Tensor:
    """Points near those of a grid of unit spacing, (n, 3), nowhere closer than half of it."""
    grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in shape))
    jitter = torch.rand(*grid.shape, generator=_generator(), dtype=torch.float64) - 0.5
    return grid + 0.4 * jitter


def _random_elements(species: Sequence[int], count: int) -> Tensor:
    """Elements in random order, (count,); all of them if there is room."""
    order = torch.randperm(max(count, len(species)), generator=_generator())
    return torch.tensor(species)[order[:count] % len(species)]


def _along_x(x: Tensor) -> Tensor:
    """Points on the first axis, (n,) -> (n, 3)."""
    return torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], 1)
