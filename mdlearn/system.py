"""A batch of atomic systems, flat: one row per atom, whichever system it belongs to.

With it stands what a potential says of such a batch, since potentials give it and integrators take
it, and neither knows the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class System(NamedTuple):
    """One or many systems of atoms. Never changed in place; `_replace` makes a new one.

    Cell vectors are rows, so that `fractional @ cell` is a position (the convention of ASE). A
    system that is open in a direction may carry any cell vector there; nothing reads it but the
    volume.
    """

    positions: Tensor
    """(n_atoms, 3) Å, not wrapped into the cell."""
    numbers: Tensor
    """(n_atoms,) int64, atomic numbers."""
    masses: Tensor
    """(n_atoms,) u."""
    cell: Tensor
    """(n_systems, 3, 3) Å, rows are cell vectors; zeros where there is none."""
    pbc: Tensor
    """(n_systems, 3) bool, along which cell vectors the system repeats."""
    system: Tensor
    """(n_atoms,) int64, ascending: the system that each atom belongs to."""
    charge: Tensor
    """(n_systems,) e, in all."""


class Evaluation(NamedTuple):
    """What a potential says of a batch of systems."""

    energy: Tensor
    """(n_systems,) eV."""
    forces: Tensor
    """(n_atoms, 3) eV/Å."""
    stress: Tensor
    """(n_systems, 3, 3) eV/Å³, ASE's sign; NaN for a system without a volume."""
    energies: Tensor
    """(n_atoms,) eV, share of each atom."""
    virials: Tensor
    """(n_atoms, 3, 3) eV, change of the energy as the pair vectors of one atom are strained."""


def concatenate(systems: Sequence[System]) -> System:
    """Puts systems (or batches) one behind another into one batch."""
    first = 0
    index = []
    for each in systems:
        index.append(each.system + first)
        first += each.cell.shape[0]
    return System(
        torch.cat([each.positions for each in systems]),
        torch.cat([each.numbers for each in systems]),
        torch.cat([each.masses for each in systems]),
        torch.cat([each.cell for each in systems]),
        torch.cat([each.pbc for each in systems]),
        torch.cat(index),
        torch.cat([each.charge for each in systems]),
    )


def split(system: System) -> list[System]:
    """Takes a batch apart into its systems; the inverse of `concatenate`. Looks at values."""
    sizes = torch.bincount(system.system, minlength=system.cell.shape[0]).tolist()
    positions = torch.split(system.positions, sizes)
    numbers = torch.split(system.numbers, sizes)
    masses = torch.split(system.masses, sizes)
    return [
        System(
            positions[i],
            numbers[i],
            masses[i],
            system.cell[i : i + 1],
            system.pbc[i : i + 1],
            torch.zeros_like(numbers[i]),
            system.charge[i : i + 1],
        )
        for i in range(len(sizes))
    ]


def select(system: System, chosen: Tensor) -> System:
    """Some of the systems of a batch, in their order. Looks at values.

    Args:
        system: the batch.
        chosen: (n_systems,) bool.
    """
    atoms = chosen[system.system]
    rank = chosen.cumsum(0) - 1
    return System(
        system.positions[atoms],
        system.numbers[atoms],
        system.masses[atoms],
        system.cell[chosen],
        system.pbc[chosen],
        rank[system.system[atoms]],
        system.charge[chosen],
    )


def sum_by_system(values: Tensor, system: System) -> Tensor:
    """Sums a quantity of atoms over each system.

    A product with the membership matrix, not a scatter: the same bits every time on every device,
    and differentiable as often as anyone likes. Where there is no number, or an infinite one, in a
    system, its sum is NaN, and those of others are what they are.

    Args:
        values: (n_atoms, ...).
        system: the batch that the atoms belong to.

    Returns:
        (n_systems, ...).
    """
    if system.cell.shape[0] == 1:
        return values.sum(0, keepdim=True)
    members, flat = _members(system).to(values.dtype), values.reshape(values.shape[0], -1)
    finite = flat.isfinite()  # zero times NaN is NaN
    sums, lost = members @ torch.where(finite, flat, 0.0), members @ (~finite).to(values.dtype)
    return torch.where(lost > 0.0, torch.nan, sums).reshape(-1, *values.shape[1:])


def largest_by_system(values: Tensor, system: System) -> Tensor:
    """The largest of a quantity that is nowhere negative, (n_atoms,) -> (n_systems,); or NaN.

    A scatter, but of all orders that it may come in the result is the same.
    """
    if system.cell.shape[0] == 1:
        return values.amax(0, keepdim=True)
    least = values.new_zeros(system.cell.shape[0])
    return least.scatter_reduce(0, system.system, values, "amax")


def share_out(values: Tensor, system: System) -> Tensor:
    """Gives every atom the quantity of its system; the transpose of `sum_by_system`, NaN as there.

    Args:
        values: (n_systems,).
        system: the batch that the atoms belong to.

    Returns:
        (n_atoms,).
    """
    members, finite = _members(system).to(values.dtype), values.isfinite()
    shared, lost = torch.where(finite, values, 0.0) @ members, (~finite).to(values.dtype) @ members
    return torch.where(lost > 0.0, torch.nan, shared)


def _members(system: System) -> Tensor:
    """Which atoms belong to which system, (n_systems, n_atoms) bool."""
    systems = torch.arange(system.cell.shape[0], device=system.system.device)
    return systems[:, None] == system.system


def volume(system: System) -> Tensor:
    """Volume of each cell in Å³, (n_systems,); zero for a system without a cell."""
    a, b, c = system.cell.unbind(1)
    determinant: Tensor = (a * torch.linalg.cross(b, c)).sum(1)
    return determinant.abs()
