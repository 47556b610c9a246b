"""Who is near whom: a dense neighbor list, in which every pair knows its other half.

`build` is eager and may look at values; everything else is fixed in shape and never synchronizes.
The search itself is vesin's. What is ours is the layout: row n holds the neighbors of atom n, and
`reverse` leads from each slot to the slot of the same pair seen from the other atom. So a sum over
neighbors is `.sum(1)`, and what is usually a scatter (handing a quantity of a pair to its second
atom) is a gather through `reverse`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mdlearn.lists import furthest
from mdlearn.search import Rows, search, search_on_device
from mdlearn.system import System, largest_by_system, select, split

SKIN = 0.5
"""Å, for dynamics. Wider lists live longer and cost more at every step; at this width rebuilding
costs little."""
WIDE_SKIN = 1.5
"""Å, for molecules of up to `FEW_ATOMS`, and on a GPU: rebuilding costs more than pairs do."""
FEW_ATOMS = 24
LOOPED_SKIN = 1.0
"""Å, at the least, for frozen networks and systems that are not large: a pair beyond the cutoff
costs them little, and a search as much as several steps of a small network."""
LOOPED_ATOMS = 512
"""That make a system large."""
PAIRWISE_SKIN = 2.0
"""Å, at the least, for frozen functions of distances: more neighbors cost them little."""
PAIRED = 0.1
"""Wear of the list of a molecule so small that all its atoms are paired: no motion makes that list
wrong. It is built anew once atoms are far from where they were, for that is when atoms that have
flown off are found."""
WORN = 0.75 / 2
"""Of the skin. A list is replaced when an atom has moved so far, while it is still good for a step:
then hardly ever is a step done in vain."""
MANY_ATOMS = 500
"""Of a system that a GPU searches itself; fewer cost it more launches than they take a CPU."""


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
    wear: Tensor
    """(n_systems,), how much a list minds that atoms move: one, or `PAIRED` if it has all pairs."""
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


def choose_skin(system: System, least: tuple[float, float] = (0.0, 0.0)) -> float:
    """The skin that dynamics of a batch is fastest with, Å.

    Args:
        system: the batch.
        least: Å, that the potential asks for, if all systems have fewer than `LOOPED_ATOMS`, and if
            not.
    """
    if system.positions.device.type == "cuda":
        return max(WIDE_SKIN, *least)
    largest = int(torch.bincount(system.system).max())
    wide = not bool(system.pbc.any()) and largest <= FEW_ATOMS
    return max(WIDE_SKIN if wide else SKIN, least[largest >= LOOPED_ATOMS])


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
    cells = ("reference_cell", "inverse_cell", "wear")
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
        _listed(search(each, index, reach, capacity), each, reach)
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
        torch.cat([each.wear for each in parts]),
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


def _build_on_device(system: System, index: int, reach: float, capacity: int) -> Neighbors:
    """The list of a large system on a GPU, which finds it."""
    return _listed(search_on_device(system, index, reach, capacity), system, reach)


def _listed(rows: Rows, system: System, reach: float) -> Neighbors:
    """A list of rows, and what they were found from."""
    positions, cell, n_atoms = system.positions.detach(), system.cell.detach(), len(rows.j)
    paired = not system.pbc.any() and int(rows.valid.sum()) == n_atoms * (n_atoms - 1)
    return Neighbors(
        rows.j,
        rows.shift.to(positions.dtype),
        rows.reverse,
        rows.valid,
        positions,
        cell,
        torch.linalg.pinv(cell.cpu()).to(cell) if bool(cell.any()) else cell,
        positions.new_full((1,), PAIRED if paired else 1.0),
        torch.tensor(reach, dtype=positions.dtype, device=positions.device),
    )


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
    (1 - |D|) reach, and half of that counts for each of its atoms. Where all pairs are listed, the
    distance counts `PAIRED` times. NaN where a position is NaN.
    """
    if system.positions.device.type != "cpu":
        return _moved_by_operations(system, neighbors)
    cells = (system.cell, neighbors.reference_cell, neighbors.inverse_cell, neighbors.wear)
    known = tuple([each.numpy() for each in cells])
    x, reference, of_system = system.positions, neighbors.reference, system.system
    arrays = (x.numpy(), reference.numpy(), of_system.numpy(), known, neighbors.reach.numpy())
    largest, strains = np.empty(len(cells[0]), arrays[0].dtype), np.empty_like(known[0])
    furthest(*arrays, strains, largest)
    return torch.from_numpy(largest)


def _moved_by_operations(system: System, neighbors: Neighbors) -> Tensor:
    strain = torch.bmm(neighbors.inverse_cell, system.cell - neighbors.reference_cell)
    taken = torch.bmm(neighbors.reference[:, None], strain[system.system])[:, 0]
    distance = (system.positions - neighbors.reference - taken).square().sum(1)
    largest = largest_by_system(distance, system).sqrt()
    closer = 0.5 * neighbors.reach * strain.square().sum((1, 2)).sqrt()
    return neighbors.wear * (largest + closer)
