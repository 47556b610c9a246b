"""Who is near whom: a dense neighbor list, in which every pair knows its other half.

`build` is eager and may look at values; everything else is fixed in shape and never synchronizes.
The search itself is vesin's. What is ours is the layout: row n holds the neighbors of atom n, and
`reverse` leads from each slot to the slot of the same pair seen from the other atom. So a sum over
neighbors is `.sum(1)`, and what is usually a scatter (handing a quantity of a pair to its second
atom) is a gather through `reverse`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
import vesin
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from mdlearn.errors import DataError, UnstableError
from mdlearn.jit import compiled
from mdlearn.system import System, largest_by_system, select, split

SKIN = 0.5
"""Å, for dynamics. Wider lists live longer and cost more at every step; at this width rebuilding
costs little."""
WIDE_SKIN = 1.5
"""Å, for molecules of up to `FEW_ATOMS`, and on a GPU: rebuilding costs more than pairs do."""
FEW_ATOMS = 24
PAIRWISE_SKIN = 1.0
"""Å, at the least, for frozen functions of distances: a pair costs them nanoseconds."""
MANY_ATOMS = 500
"""Of a system that a GPU searches itself; fewer cost it more launches than they take a CPU."""
LARGEST_EXTENT = 1e5
"""Å. The cell list ends the whole process for open systems that span ten times this."""


class Neighbors(NamedTuple):
    """The neighbors of every atom within `reach`, padded to K slots per atom.

    A padding slot points at its own atom, is its own reverse, and its pair vector is made longer
    than `reach` (see `pair_vectors`): to a potential it is a pair that is too far away to matter.
    """

    j: Tensor
    """(n_atoms, K) int64, index of the neighbor."""
    shift: Tensor
    """(n_atoms, K, 3) lattice translations of the neighbor, in cell vectors."""
    reverse: Tensor
    """(n_atoms, K) int64, flat slot of the same pair seen from the neighbor; an involution."""
    valid: Tensor
    """(n_atoms, K) bool, False for padding."""
    reference: Tensor
    """(n_atoms, 3) Å, positions that the list was built from."""
    reference_cell: Tensor
    """(n_systems, 3, 3) Å, cells that the list was built from."""
    inverse_cell: Tensor
    """(n_systems, 3, 3) 1/Å, of the reference cell; the pseudoinverse where there is no volume."""
    reach: Tensor
    """() Å, cutoff + skin."""


def build(system: System, cutoff: float, skin: float = 0.0, capacity: int = 0) -> Neighbors:
    """Finds all pairs closer than cutoff + skin, periodic images and images of oneself included.

    Args:
        system: positions and cells; a cell may be smaller than the cutoff, atoms may lie outside
            it.
        cutoff: Å, distance beyond which the potential is zero.
        skin: Å, how much further to look, so that the list stays good while atoms move by skin/2.
        capacity: K of the list that this one replaces; the new one is no narrower, and if it must
            be wider it grows by at least a tenth, so that shapes settle.

    Raises:
        UnstableError: a position is not finite, or an open system has flown apart.
        DataError: a periodic system has a cell without volume.
    """
    return _build(system, range(len(system.charge)), cutoff + skin, capacity)


def choose_skin(system: System) -> float:
    """The skin that dynamics of a batch is fastest with, Å."""
    if system.positions.device.type == "cuda":
        return WIDE_SKIN
    largest = int(torch.bincount(system.system).max())
    return SKIN if bool(system.pbc.any()) or largest > FEW_ATOMS else WIDE_SKIN


def rebuild(
    neighbors: Neighbors, system: System, chosen: Tensor, cutoff: float, skin: float
) -> Neighbors:
    """New lists for some of the systems; those of the others stay as they are.

    Args:
        neighbors: the lists so far; the new ones are no narrower, see `build`.
        system: the batch as it is now.
        chosen: (n_systems,) bool, the systems that are to have new lists.
        cutoff: Å, as for `build`.
        skin: Å, as for `build`.

    Raises:
        UnstableError, DataError: see `build`.
    """
    capacity = neighbors.j.shape[1]
    if bool(chosen.all()):
        return build(system, cutoff, skin, capacity)
    systems, atoms = torch.nonzero(chosen)[:, 0], torch.nonzero(chosen[system.system])[:, 0]
    part = _build(select(system, chosen), systems.tolist(), cutoff + skin, capacity)
    width = part.j.shape[1]
    if width > capacity:
        neighbors = concatenate([neighbors], width)
    reverse = atoms[part.reverse // width] * width + part.reverse % width
    cells = ("reference_cell", "inverse_cell")
    rows = part._replace(j=atoms[part.j], reverse=reverse)._asdict()
    old = neighbors._asdict()
    return neighbors._replace(
        **{
            name: old[name].index_copy(0, systems if name in cells else atoms, new)
            for name, new in rows.items()
            if name != "reach"
        }
    )


def _build(system: System, indices: Sequence[int], reach: float, capacity: int) -> Neighbors:
    """The lists of a batch of systems, which messages call by their indices."""
    device = system.positions.device
    if device.type == "cuda" and len(indices) == 1 and len(system.numbers) > MANY_ATOMS:
        return _build_on_device(system, indices[0], reach, capacity)
    # One after another, where it costs nothing to ask; they go to a device together.
    systems = split(System(*(each.detach().cpu() for each in system)))
    parts = [
        _build_one(each, index, reach, capacity)
        for each, index in zip(systems, indices, strict=True)
    ]
    width = max(each.j.shape[1] for each in parts)
    whole = parts[0] if len(parts) == 1 else concatenate(parts, width)
    return Neighbors(*(each.to(device) for each in whole))


def concatenate(parts: Sequence[Neighbors], capacity: int) -> Neighbors:
    """Puts the lists of systems one behind another, each padded to `capacity` slots per atom."""
    parts = [each if each.j.shape[1] == capacity else _widen(each, capacity) for each in parts]
    device, counts = parts[0].j.device, [len(each.j) for each in parts]
    first = torch.tensor([0, *accumulate(counts[:-1])], device=device)
    start = first.repeat_interleave(torch.tensor(counts, device=device), output_size=sum(counts))
    return Neighbors(
        torch.cat([each.j for each in parts]) + start[:, None],
        torch.cat([each.shift for each in parts]),
        torch.cat([each.reverse for each in parts]) + capacity * start[:, None],
        torch.cat([each.valid for each in parts]),
        torch.cat([each.reference for each in parts]),
        torch.cat([each.reference_cell for each in parts]),
        torch.cat([each.inverse_cell for each in parts]),
        parts[0].reach,
    )


def _widen(neighbors: Neighbors, capacity: int) -> Neighbors:
    """The same list with more slots per atom."""
    n_atoms, width = neighbors.j.shape
    own = torch.arange(n_atoms, device=neighbors.j.device)[:, None]
    slots = capacity * own + torch.arange(capacity, device=neighbors.j.device)
    more = (0, capacity - width)
    valid = pad(neighbors.valid, more)
    # Behind a width of zero there is nothing to divide.
    reverse = neighbors.reverse // max(1, width) * capacity + neighbors.reverse % max(1, width)
    return neighbors._replace(
        j=torch.where(valid, pad(neighbors.j, more), own),
        shift=pad(neighbors.shift, (0, 0, *more)),
        reverse=torch.where(valid, pad(reverse, more), slots),
        valid=valid,
    )


def _build_one(system: System, index: int, reach: float, capacity: int) -> Neighbors:
    """The list of a single system, as wide as the one before or as its busiest atom needs."""
    positions, cell = system.positions.double().numpy(), system.cell[0].double().numpy()
    pbc = system.pbc[0].numpy()
    _check_geometry(positions, cell, pbc, index)
    search = vesin.NeighborList(cutoff=reach, full_list=False)
    i, j, shift = search.compute(positions, _complete(cell, pbc), pbc, "ijS")

    rows = _lay_out(i.astype(np.int64), j.astype(np.int64), shift, len(positions), capacity)
    target, translation, partner, valid = map(torch.from_numpy, rows)
    dtype = system.positions.dtype
    return Neighbors(
        target,
        translation.to(dtype),
        partner,
        valid,
        system.positions,
        system.cell,
        torch.linalg.pinv(system.cell) if cell.any() else system.cell,
        torch.tensor(reach, dtype=dtype),
    )


def _build_on_device(system: System, index: int, reach: float, capacity: int) -> Neighbors:
    """The same for a large system on a GPU, which both searches and lays out."""
    positions, cells = system.positions.detach(), system.cell.detach()
    cell, pbc = cells[0].cpu().double().numpy(), system.pbc[0].cpu().numpy()
    corners = torch.stack([positions.amin(0), positions.amax(0)])
    seen = corners if bool(corners.isfinite().all()) else positions  # to say which atom it is
    _check_geometry(seen.cpu().double().numpy(), cell, pbc, index)
    search = vesin.NeighborList(cutoff=reach, full_list=True)
    box = torch.from_numpy(_complete(cell, pbc)).to(positions.device)
    i, j, shift = search.compute(positions.double(), box, system.pbc[0], "ijS")
    i, j = (each.view(torch.int64) for each in (i, j))  # of torch's young unsigned type
    rows = lay_out_full(i, j, shift.long(), len(positions), capacity)
    target, translation, partner, valid = rows
    return Neighbors(
        target,
        translation.to(positions.dtype),
        partner,
        valid,
        positions,
        cells,
        torch.linalg.pinv(cells.cpu()).to(cells) if cell.any() else cells,
        torch.tensor(reach, dtype=positions.dtype, device=positions.device),
    )


def lay_out_full(
    i: Tensor, j: Tensor, shift: Tensor, n_atoms: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of neighbors from a full list, in any order: `_lay_out` by operations, for a GPU.

    Args:
        i: (pairs,) int64, one atom,
        j: (pairs,) int64, the other,
        shift: (pairs, 3) int64, and the lattice translation of that.
        n_atoms: how many rows.
        capacity: of the list before.
    """
    # Numbers that sort by atom, neighbor and translation, and are found again from the other end.
    base = 2 * int(shift.abs().max()) + 1 if len(i) else 1

    def number(i: Tensor, j: Tensor, shift: Tensor) -> Tensor:
        key = i * n_atoms + j
        for s in reversed(shift.unbind(1)):
            key = key * base + s + base // 2
        return key

    keys, order = number(i, j, shift).sort()
    i, j, shift = i[order], j[order], shift[order]
    counts = torch.bincount(i, minlength=n_atoms)
    widest = max(1, int(counts.max()))
    width = capacity
    if widest > capacity:
        width = -(-max(widest, int(1.1 * capacity)) // 4) * 4
    place = torch.arange(len(i), device=i.device)
    slot = i * width + place - (counts.cumsum(0) - counts)[i]
    twin = torch.searchsorted(keys, number(j, i, -shift))
    slots = torch.arange(n_atoms * width, device=i.device)
    target = (slots // width).index_copy(0, slot, j).view(n_atoms, width)
    reverse = slots.index_copy(0, slot, slot[twin]).view(n_atoms, width)
    translation = shift.new_zeros(n_atoms * width, 3).index_copy(0, slot, shift)
    valid = slots.new_zeros(len(slots), dtype=torch.bool).index_fill(0, slot, True)
    return target, translation.view(n_atoms, width, 3), reverse, valid.view(n_atoms, width)


@compiled()
def _lay_out(
    i: NDArray[np.int64],
    j: NDArray[np.int64],
    shift: NDArray[np.int32],
    n_atoms: int,
    capacity: int,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows of neighbors from a half list: `j`, `shift`, `reverse` and `valid` of `Neighbors`.

    A pair p fills two slots that know each other, with entries 2p of atom i and 2p + 1 of atom j. A
    fixed order within each row, by neighbor and translation, makes sums independent of how the
    search walked its cells. Atoms that hand over their entries in turn bring it about, but for
    images of the same atom.
    """
    # 32 bits do: a list of 2³¹ slots would be larger than any memory.
    first, counts = np.zeros(n_atoms + 1, np.int64), np.zeros(n_atoms, np.int64)
    for p in range(len(i)):
        counts[i[p]] += 1
        counts[j[p]] += 1
    widest = 1
    for n in range(n_atoms):
        first[n + 1] = first[n] + counts[n]
        widest = max(widest, counts[n])
    width = capacity
    if widest > capacity:
        width = -(-max(widest, int(1.1 * capacity)) // 4) * 4
    entries = np.empty(2 * len(i), np.int32)
    filled = first[:-1].copy()
    for p in range(len(i)):
        entries[filled[i[p]]] = 2 * p
        filled[i[p]] += 1
        entries[filled[j[p]]] = 2 * p + 1
        filled[j[p]] += 1
    row, target = np.empty((n_atoms, width), np.int32), np.empty((n_atoms, width), np.int64)
    slots = np.empty(2 * len(i), np.int32)
    counts[:] = 0
    for n in range(n_atoms):
        for entry in entries[first[n] : first[n + 1]]:
            p, twin = entry // 2, entry ^ 1  # the twin belongs to the other atom and points here
            other = i[p] if twin % 2 == 0 else j[p]
            k = counts[other]
            while k > 0 and target[other, k - 1] == n:
                before = row[other, k - 1]
                q = before // 2
                order = 0
                for axis in (2, 1, 0):
                    one = shift[p, axis] if twin % 2 == 0 else -shift[p, axis]
                    two = shift[q, axis] if before % 2 == 0 else -shift[q, axis]
                    if one != two:
                        order = 1 if one > two else -1
                        break
                if order > 0:
                    break
                row[other, k] = before
                slots[before] += 1
                k -= 1
            row[other, k], slots[twin] = twin, other * width + k
            target[other, counts[other]] = n
            counts[other] += 1
    reverse = np.empty((n_atoms, width), np.int64)
    translation = np.zeros((n_atoms, width, 3))
    valid = np.zeros((n_atoms, width), np.bool_)
    for n in range(n_atoms):
        for k in range(counts[n]):
            entry = row[n, k]
            reverse[n, k] = slots[entry ^ 1]
            valid[n, k] = True
            for axis in range(3):
                s = shift[entry // 2, axis]
                translation[n, k, axis] = s if entry % 2 == 0 else -s
        for k in range(counts[n], width):
            target[n, k], reverse[n, k] = n, n * width + k
    return target, translation, reverse, valid


def _check_geometry(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_], index: int
) -> None:
    """Turns away what a search would answer with silence or a crash."""
    bad = np.flatnonzero(~np.isfinite(positions).all(1))
    if len(bad) or not np.isfinite(cell).all():
        where = f"atom {bad[0]}" if len(bad) else "the cell"
        why = (
            f"{where}: the position is not a finite number; the forces before this step were too"
            " large or the input was broken: use a shorter time step or relax first"
        )
        raise UnstableError(f"system {index}, {why}", {index: why})
    if not pbc.all() and np.ptp(positions, axis=0).max(initial=0.0) > LARGEST_EXTENT:
        why = (
            f"its atoms spread over more than {LARGEST_EXTENT:g} Å; the system has blown apart:"
            " use a shorter time step or relax first"
        )
        raise UnstableError(f"system {index}: {why}", {index: why})
    if pbc.any() and abs(np.linalg.det(_complete(cell, pbc))) < 1e-6:
        raise DataError(
            f"system {index}: periodic, but its cell {cell.tolist()} has no volume; give a cell"
            " with three independent vectors, or set pbc to F F F"
        )


def _complete(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Gives open directions a unit vector normal to the others; a periodic one stays what it is."""
    if not cell.any() and not pbc.any():
        return np.eye(3)
    full: NDArray[np.float64] = cell.copy()
    for axis in np.flatnonzero(~pbc & (np.abs(cell).max(1) == 0.0)):
        # The right singular vector of the smallest singular value is normal to all other rows.
        full[axis] = np.linalg.svd(full)[2][-1]
    return full


def pair_vectors(system: System, neighbors: Neighbors) -> Tensor:
    """Vectors from each atom to its neighbors: r[n,k] = x[j[n,k]] - x[n] + shift[n,k] @ cell.

    Returns:
        (n_atoms, K, 3) Å. Padding is longer than reach, so that a potential sees nothing there.
    """
    x = system.positions
    translation = (neighbors.shift[..., None] * system.cell[system.system][:, None]).sum(2)
    r = x[neighbors.j] - x[:, None] + translation
    return torch.where(neighbors.valid[..., None], r, 2.0 * neighbors.reach)


def moved_since_build(system: System, neighbors: Neighbors) -> Tensor:
    """How far the atom that moved most has moved since the list was built, (n_systems,) Å.

    The list of a system holds every pair within the cutoff while this is at most skin/2 (Verlet,
    Phys. Rev. 159, 98, 1967). Where a cell has been strained, atoms have moved from where the
    strain D alone would have taken them; it brings a pair from beyond `reach` no closer than
    (1 - |D|) reach, and half of that counts for each of its atoms. NaN where a position is NaN.
    """
    if system.positions.device.type != "cpu":
        return _moved_by_operations(system, neighbors)
    cells = (system.cell, neighbors.reference_cell, neighbors.inverse_cell, neighbors.reach)
    arrays = (system.positions, neighbors.reference, system.system, *cells)
    return torch.from_numpy(_moved(*(each.numpy() for each in arrays)))


def _moved_by_operations(system: System, neighbors: Neighbors) -> Tensor:
    strain = torch.bmm(neighbors.inverse_cell, system.cell - neighbors.reference_cell)
    taken = torch.bmm(neighbors.reference[:, None], strain[system.system])[:, 0]
    distance = (system.positions - neighbors.reference - taken).square().sum(1)
    furthest = largest_by_system(distance, system).sqrt()
    return furthest + 0.5 * neighbors.reach * strain.square().sum((1, 2)).sqrt()


@compiled()
def _moved(
    positions: NDArray[Any],
    reference: NDArray[Any],
    system: NDArray[np.int64],
    cell: NDArray[Any],
    reference_cell: NDArray[Any],
    inverse_cell: NDArray[Any],
    reach: NDArray[Any],
) -> NDArray[Any]:
    """`moved_since_build` in one loop: operations would be half of a step of a small system."""
    largest, strains = np.zeros(len(cell), positions.dtype), np.zeros_like(cell)
    for s in range(len(cell)):
        for row in range(3):
            for axis in range(3):
                for k in range(3):
                    change = cell[s, k, axis] - reference_cell[s, k, axis]
                    strains[s, row, axis] += inverse_cell[s, row, k] * change
    for n in range(len(positions)):
        x, strain = reference[n], strains[system[n]]
        square = 0.0
        for axis in range(3):
            taken = x[0] * strain[0, axis] + x[1] * strain[1, axis] + x[2] * strain[2, axis]
            square += (positions[n, axis] - x[axis] - taken) ** 2
        if square > largest[system[n]] or math.isnan(square):
            largest[system[n]] = square
    for s in range(len(cell)):
        closer = 0.5 * reach[()] * math.sqrt((strains[s] ** 2).sum())
        largest[s] = math.sqrt(largest[s]) + closer
    return largest
