"""Batches: put together, taken apart, summed over."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from checks import SYSTEMS, crystal, molecule, slab

from mdlearn.atoms import to_system
from mdlearn.system import concatenate, share_out, split, sum_by_system, volume


def test_split_undoes_concatenate() -> None:
    parts = [to_system(make()) for make in SYSTEMS.values()]
    batch = concatenate(parts)
    assert batch.system.tolist() == sorted(batch.system.tolist())
    assert batch.cell.shape == (len(parts), 3, 3)
    for found, expected in zip(split(batch), parts, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


def test_batches_of_batches() -> None:
    a, b, c = (to_system(molecule(seed=seed)) for seed in range(3))
    nested, flat = concatenate([concatenate([a, b]), c]), concatenate([a, b, c])
    assert all(torch.equal(one, other) for one, other in zip(nested, flat, strict=True))


def test_split_keeps_empty_systems_in_their_place() -> None:
    empty = to_system(ase.Atoms())
    parts = split(concatenate([to_system(molecule()), empty, to_system(crystal()), empty]))
    assert [len(each.numbers) for each in parts] == [9, 0, 8, 0]


@pytest.mark.parametrize("shape", [(), (3,), (3, 3)])
@pytest.mark.parametrize("count", [1, 4])
def test_sum_by_system(shape: tuple[int, ...], count: int) -> None:
    batch = concatenate([to_system(molecule()) for _ in range(count)])
    values = torch.randn(len(batch.numbers), *shape, dtype=torch.float64)
    found = sum_by_system(values, batch)
    assert found.shape == (count, *shape)
    for index in range(count):
        expected = sum(values[n] for n in range(len(values)) if batch.system[n] == index)
        torch.testing.assert_close(found[index], expected, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_in_its_system(value: float) -> None:
    batch = concatenate([to_system(molecule())] * 3)
    values = torch.ones(len(batch.numbers), 2, dtype=torch.float64, requires_grad=True)
    broken = values * torch.ones_like(values)
    broken[10, 0] = value
    found = sum_by_system(broken, batch)
    assert found[1].isnan().tolist() == [True, False]
    assert found[[0, 2]].tolist() == [[9.0, 9.0]] * 2
    (gradient,) = torch.autograd.grad(found[0].sum(), values)
    assert gradient.sum() == 18.0
    assert not gradient.isnan().any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_sharing_out_reaches_the_atoms_of_a_system_alone(value: float) -> None:
    batch = concatenate([to_system(molecule()), to_system(crystal()), to_system(slab())])
    values = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.equal(share_out(values, batch), values[batch.system])
    broken = torch.tensor([0.5, value, 3.0], dtype=torch.float64, requires_grad=True)
    found = share_out(broken, batch)
    own = batch.system == 1
    assert found[own].isnan().all()
    assert torch.equal(found[~own], broken[batch.system][~own])
    (gradient,) = torch.autograd.grad(found[~own].sum(), broken)
    assert gradient.tolist() == [9.0, 0.0, 8.0]


def test_volume() -> None:
    batch = concatenate([to_system(molecule()), to_system(crystal()), to_system(slab())])
    expected = [0.0, abs(np.linalg.det(crystal().cell.array)), 0.0]
    assert volume(batch).tolist() == pytest.approx(expected, rel=1e-14)
    left_handed = crystal()
    left_handed.cell[2] *= -1.0
    assert float(volume(to_system(left_handed))) == pytest.approx(expected[1], rel=1e-14)
