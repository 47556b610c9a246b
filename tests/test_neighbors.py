"""The neighbor list: complete, its own mirror image, and honest about what it cannot do."""

from __future__ import annotations

import math
from collections.abc import Callable

import ase
import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list
from checks import SYSTEMS, crystal, every_system, molecule, random_rotation, tiny
from hypothesis import given
from hypothesis import strategies as st
from oracles import brute_force_pairs, listed_pairs

from mdlearn import neighbors as neighbor_lists
from mdlearn.atoms import to_system
from mdlearn.errors import DataError, UnstableError
from mdlearn.neighbors import (
    PAIRED,
    SKIN,
    WIDE_SKIN,
    Neighbors,
    _build_on_device,
    _moved_by_operations,
    build,
    choose_skin,
    moved_since_build,
    pair_vectors,
    rebuild,
)
from mdlearn.system import System, concatenate

CUTOFFS = (1.7, 3.5, 6.1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def as_is(atoms: ase.Atoms) -> None:
    del atoms


def rotate(atoms: ase.Atoms) -> None:
    q = random_rotation().numpy()
    atoms.set_cell(atoms.cell.array @ q)
    atoms.positions = atoms.positions @ q


def leave_the_cell(atoms: ase.Atoms) -> None:
    jumps = np.random.default_rng(0).integers(-3, 4, (len(atoms), 3)) * atoms.pbc
    atoms.positions += jumps @ atoms.cell.array + [17.3, -41.7, 5.9]


def assert_consistent(neighbors: Neighbors, r: torch.Tensor) -> None:
    """The layout that everything else relies on."""
    slots = torch.arange(neighbors.reverse.numel())
    reverse = neighbors.reverse.flatten()
    own = torch.arange(len(neighbors.j))[:, None].expand_as(neighbors.j)
    valid = neighbors.valid.flatten()
    assert torch.equal(reverse[reverse], slots)
    assert torch.equal(neighbors.j.flatten(), own.flatten()[reverse])
    assert torch.equal(valid, valid[reverse])
    vectors, shifts = r.flatten(0, 1), neighbors.shift.flatten(0, 1)
    assert torch.equal(shifts[reverse][valid], -shifts[valid])
    torch.testing.assert_close(vectors[reverse][valid], -vectors[valid], rtol=0.0, atol=1e-13)
    assert not (reverse == slots)[valid].any()  # an image of oneself is another slot of the row
    assert torch.equal(neighbors.j[~neighbors.valid], own[~neighbors.valid])
    assert torch.equal(reverse[~valid], slots[~valid])
    assert (vectors[~valid].norm(dim=1) > neighbors.reach).all()


@every_system
@pytest.mark.parametrize("change", [as_is, rotate, leave_the_cell])
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_finds_the_pairs_of_ase(
    name: str, change: Callable[[ase.Atoms], None], cutoff: float
) -> None:
    atoms = SYSTEMS[name]()
    change(atoms)
    neighbors = build(to_system(atoms), cutoff)
    i, j, shift, vectors = neighbor_list("ijSD", atoms, cutoff)
    expected = sorted(zip(i, j, *shift.T, strict=True))
    assert sorted(listed_pairs(neighbors)) == expected
    r = pair_vectors(to_system(atoms), neighbors)
    found = r[neighbors.valid].numpy()
    # Rows are sorted by neighbor and translation, so the same order suits both.
    order = np.lexsort((*shift.T, j, i))
    np.testing.assert_allclose(found, vectors[order], rtol=0.0, atol=1e-12)
    assert_consistent(neighbors, r)


@every_system
@pytest.mark.parametrize("cutoff", [1.7, 3.5])
def test_finds_the_pairs_of_a_loop_over_images(name: str, cutoff: float) -> None:
    system = to_system(SYSTEMS[name]())
    found = listed_pairs(build(system, cutoff))
    assert len(found) == len(set(found))
    assert set(found) == brute_force_pairs(system, cutoff)


@given(
    st.integers(1, 5),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.floats(0.5, 4.0),
    st.integers(0, 10**6),
)
def test_finds_the_pairs_of_any_system(
    n: int, pbc: tuple[bool, bool, bool], cutoff: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cell = 2.0 * np.eye(3) + rng.uniform(-0.7, 0.7, (3, 3))
    atoms = ase.Atoms("H" * n, positions=rng.uniform(-3, 3, (n, 3)), cell=cell, pbc=pbc)
    system = to_system(atoms)
    neighbors = build(system, cutoff)
    assert sorted(listed_pairs(neighbors)) == sorted(brute_force_pairs(system, cutoff))
    assert_consistent(neighbors, pair_vectors(system, neighbors))


@every_system
@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("capacity", [0, 3, 40])
def test_what_a_gpu_lays_out_is_the_same_list(name: str, cutoff: float, capacity: int) -> None:
    system = to_system(SYSTEMS[name]())
    system = System(*(each.to(DEVICE) for each in system))
    found = _build_on_device(system, 0, cutoff, capacity)
    expected = build(System(*(each.cpu() for each in system)), cutoff, 0.0, capacity)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.cpu(), other, rtol=0.0, atol=0.0)


def test_what_a_gpu_lays_out_may_have_gone_far() -> None:
    system = to_system(crystal())
    jumps = torch.zeros_like(system.positions)
    jumps[3] = 5e5 * system.cell[0].sum(0)
    system = system._replace(positions=system.positions + jumps)
    found = _build_on_device(System(*(each.to(DEVICE) for each in system)), 0, 3.5, 0)
    for one, other in zip(found, build(system, 3.5), strict=True):
        assert torch.equal(one.cpu(), other)


def test_what_a_gpu_cannot_search_it_says() -> None:
    system = System(*(each.to(DEVICE) for each in to_system(crystal())))
    positions = system.positions.clone()
    positions[5, 1] = torch.nan
    with pytest.raises(UnstableError, match="system 2, atom 5"):
        _build_on_device(system._replace(positions=positions), 2, 3.0, 0)
    with pytest.raises(DataError, match="has no volume"):
        _build_on_device(system._replace(cell=0.0 * system.cell), 0, 3.0, 0)


def test_skin_reaches_further() -> None:
    system = to_system(crystal())
    assert listed_pairs(build(system, 3.0, 0.8)) == listed_pairs(build(system, 3.8))
    assert float(build(system, 3.0, 0.8).reach) == pytest.approx(3.8)


def test_small_molecules_have_a_wide_skin() -> None:
    small, solid, large = to_system(molecule()), to_system(crystal()), to_system(molecule("C60"))
    assert choose_skin(concatenate([small, small])) == WIDE_SKIN
    assert choose_skin(solid) == choose_skin(large) == SKIN
    assert (
        choose_skin(concatenate([small, solid])) == choose_skin(concatenate([small, large])) == SKIN
    )


def test_batch_is_its_parts() -> None:
    parts = [to_system(make()) for make in SYSTEMS.values()]
    batch = concatenate(parts)
    neighbors = build(batch, 3.5)
    expected, first = [], 0
    for each in parts:
        pairs = brute_force_pairs(each, 3.5)
        expected += [(i + first, j + first, *shift) for i, j, *shift in pairs]
        first += len(each.numbers)
    assert sorted(listed_pairs(neighbors)) == sorted(expected)
    assert_consistent(neighbors, pair_vectors(batch, neighbors))
    joined = neighbor_lists.concatenate([build(each, 3.5) for each in parts], neighbors.j.shape[1])
    for one, other in zip(neighbors, joined, strict=True):
        assert torch.equal(one, other)


def test_atoms_without_neighbors() -> None:
    for atoms in (ase.Atoms("H"), ase.Atoms("HH", positions=[[0, 0, 0], [0, 0, 50]])):
        system = to_system(atoms)
        neighbors = build(system, 3.0)
        assert neighbors.j.shape[1] >= 1
        assert not neighbors.valid.any()
        assert_consistent(neighbors, pair_vectors(system, neighbors))


def test_capacity_never_shrinks_and_grows_by_a_tenth() -> None:
    system = to_system(tiny())
    needed = int(build(system, 6.1).valid.sum(1).max())
    assert needed > 30
    exact = build(system, 6.1).j.shape[1]
    assert needed <= exact < needed + 4
    assert build(system, 6.1, capacity=needed).j.shape[1] == needed
    assert build(system, 6.1, capacity=needed + 7).j.shape[1] == needed + 7
    grown = build(system, 6.1, capacity=needed - 1).j.shape[1]
    assert grown >= max(needed, int(1.1 * (needed - 1)))
    assert grown <= max(needed, math.ceil(1.1 * needed)) + 4
    assert_consistent(
        build(system, 6.1, capacity=91), pair_vectors(system, build(system, 6.1, capacity=91))
    )


def test_dtype_follows_the_system() -> None:
    system = to_system(crystal())
    single = system._replace(positions=system.positions.float(), cell=system.cell.float())
    neighbors = build(single, 3.5)
    assert neighbors.shift.dtype == neighbors.reach.dtype == torch.float32
    assert pair_vectors(single, neighbors).dtype == torch.float32
    assert sorted(listed_pairs(neighbors)) == sorted(brute_force_pairs(system, 3.5))


def test_moved_since_build() -> None:
    system = to_system(molecule())
    neighbors = build(system, 3.0, 0.7)
    assert float(moved_since_build(system, neighbors)) == 0.0
    positions = system.positions.clone()
    positions[2] += torch.tensor([0.3, 0.4, 0.0], dtype=torch.float64)
    positions[5, 1] -= 0.2
    moved = moved_since_build(system._replace(positions=positions), neighbors)
    assert float(moved) == pytest.approx(0.5, rel=1e-14)
    assert moved.shape == (1,)
    positions[4, 0] = torch.nan
    assert moved_since_build(system._replace(positions=positions), neighbors).isnan()


def test_one_loop_says_what_operations_say() -> None:
    """How far atoms have moved, in the form of processors and in that of other devices."""
    system = concatenate([to_system(crystal()), to_system(molecule())])
    neighbors = build(system, 3.0, 0.7)
    generator = torch.Generator().manual_seed(3)
    strain = 0.02 * torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    shift = 0.05 * torch.randn(system.positions.shape, generator=generator, dtype=torch.float64)
    for atom, value in ((0, 0.3), (-1, torch.nan), (1, torch.nan)):
        shift[atom, 1] = value
        moved = system._replace(
            positions=system.positions + shift, cell=system.cell + torch.bmm(system.cell, strain)
        )
        one, two = moved_since_build(moved, neighbors), _moved_by_operations(moved, neighbors)
        torch.testing.assert_close(one, two, rtol=1e-12, atol=0.0, equal_nan=True)
        assert one.dtype == two.dtype


def test_list_of_a_strained_cell_is_complete_until_half_the_skin() -> None:
    """Atoms that go with the cell have not moved by themselves; what they come closer counts."""
    system, skin = to_system(crystal()), 0.7
    neighbors = build(system, 3.0, skin)
    generator = torch.Generator().manual_seed(3)
    complete = []
    for strain in (0.003, -0.01, 0.02, -0.03, 0.2):
        tensor = strain * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        stretch = torch.eye(3, dtype=torch.float64) + tensor
        step = 0.05 * torch.randn(system.positions.shape, generator=generator, dtype=torch.float64)
        moved = system._replace(
            positions=system.positions @ stretch + step, cell=system.cell @ stretch
        )
        distance = float(moved_since_build(moved, neighbors))
        alone = float(step.norm(dim=1).max())
        expected = alone + 0.5 * 3.7 * float(tensor.norm())
        assert distance == pytest.approx(expected, rel=1e-9)
        complete.append(distance <= skin / 2)
        if complete[-1]:
            vectors = pair_vectors(moved, neighbors).norm(dim=-1)
            assert int((vectors <= 3.0).sum()) == len(brute_force_pairs(moved, 3.0))
    assert complete[0]
    assert not complete[-1]


def test_list_with_a_skin_is_complete_until_half_the_skin() -> None:
    """The worst case: two atoms walk towards each other, each by half the skin."""
    atoms = ase.Atoms("HH", positions=[[0.0, 0.0, 0.0], [3.69, 0.0, 0.0]])
    neighbors = build(to_system(atoms), 3.0, 0.7)
    atoms.positions[:, 0] += [0.349, -0.349]
    assert float(moved_since_build(to_system(atoms), neighbors)) <= 0.35
    assert set(listed_pairs(neighbors)) == brute_force_pairs(to_system(atoms), 3.0)
    assert neighbors.valid.sum() == 2


def test_list_of_all_pairs_hardly_wears() -> None:
    """Whatever atoms of a small molecule do, the list that it would have anew is the old one."""
    system, generator = to_system(molecule()), torch.Generator().manual_seed(5)
    skin = 20.0
    paired, some = build(system, 3.0, skin), build(system, 2.0)
    assert int(paired.valid.sum()) == len(system.numbers) * (len(system.numbers) - 1)
    assert int(some.valid.sum()) < int(paired.valid.sum())
    assert paired.wear.tolist() == [PAIRED]
    assert some.wear.tolist() == [1.0]
    step = 2.0 * torch.randn(system.positions.shape, generator=generator, dtype=torch.float64)
    moved = system._replace(positions=system.positions + step)
    distance = float(step.norm(dim=1).max())
    assert distance > 3.0
    assert float(moved_since_build(moved, paired)) == pytest.approx(PAIRED * distance, rel=1e-12)
    assert float(moved_since_build(moved, some)) == pytest.approx(distance, rel=1e-12)
    anew = build(moved, 3.0, skin)
    for name in ("j", "shift", "reverse", "valid"):
        assert torch.equal(getattr(anew, name), getattr(paired, name))
    both = build(concatenate([system, to_system(crystal())]), 3.0, skin)
    assert both.wear.tolist() == [PAIRED, 1.0]
    lone = system._replace(pbc=torch.tensor([[True, False, False]]), cell=9.0 * torch.eye(3)[None])
    assert build(lone, 3.0, 1.0).wear.tolist() == [1.0]


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), np.diag([4.0, 4.0, 0.0]), np.ones((3, 3))])
def test_periodic_cell_without_volume_is_an_error(cell: np.ndarray) -> None:
    system = to_system(ase.Atoms("HH", positions=np.eye(3)[:2], cell=cell, pbc=True))
    with pytest.raises(DataError, match="no volume") as error:
        build(system, 3.0)
    assert "system 0" in str(error.value)
    assert error.value.exit_code == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pbc", [False, True])
def test_position_that_is_no_number_is_an_error(bad: float, pbc: bool) -> None:
    atoms = crystal()
    atoms.pbc = pbc
    atoms.positions[3, 1] = bad
    batch = concatenate([to_system(crystal()), to_system(atoms)])
    with pytest.raises(UnstableError, match="system 1, atom 3"):
        build(batch, 3.0)


def test_cell_that_is_no_number_is_an_error() -> None:
    atoms = crystal()
    system = to_system(atoms)
    with pytest.raises(UnstableError, match="the cell"):
        build(system._replace(cell=system.cell * torch.nan), 3.0)


def test_open_system_that_flew_apart_is_an_error() -> None:
    """The cell list would end the process."""
    atoms = ase.Atoms("HH", positions=[[0.0, 0.0, 0.0], [0.0, 2e6, 0.0]])
    with pytest.raises(UnstableError, match="blown apart"):
        build(to_system(atoms), 3.0)
    atoms.positions[1, 1] = 9e4
    assert not build(to_system(atoms), 3.0).valid.any()


def test_rebuilding_some_is_building_all() -> None:
    """Also where the new list is wider than the old ones, and for those that are left alone."""
    parts = [to_system(each) for each in (molecule(), crystal(), molecule("C2H6", seed=1))]
    batch = concatenate(parts)
    old = build(batch, 2.0, 0.3)
    moved = batch._replace(
        positions=torch.where(batch.system[:, None] == 1, 0.6, 1.0) * batch.positions,
        cell=batch.cell * torch.tensor([1.0, 0.6, 1.0], dtype=torch.float64)[:, None, None],
    )
    new = rebuild(old, moved, torch.tensor([False, True, False]), 2.0, 0.3)
    assert new.j.shape[1] > old.j.shape[1]
    expected = build(moved, 2.0, 0.3, old.j.shape[1])
    for name, found in new._asdict().items():
        assert torch.equal(found, getattr(expected, name)), name
    spoiled = moved._replace(positions=moved.positions.clone())
    spoiled.positions[-1, 0] = torch.nan
    with pytest.raises(UnstableError, match="system 2, atom 7") as raised:
        rebuild(old, spoiled, torch.tensor([False, False, True]), 2.0, 0.3)
    assert list(raised.value.systems) == [2]
