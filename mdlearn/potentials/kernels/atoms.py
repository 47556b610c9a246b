"""What the loops of all networks do alike: who is near, the head, and forces.

Weights and workspaces differ between networks; what is used here all of them have by the same name.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mdlearn.jit import compiled
from mdlearn.lanes import WIDTH, load, store
from mdlearn.lanes import total as total_of
from mdlearn.matrices import multiply_into
from mdlearn.potentials.kernels.activation import silu
from mdlearn.potentials.kernels.rows import Array
from mdlearn.words import Exact2, Exact3, Flags2, Index1, Index2


class Inputs(NamedTuple):
    """Where the atoms are, and who is near whom: `System` and `Neighbors` as arrays."""

    positions: Exact2
    """(N, 3) float64 Å."""
    cell: Exact3
    """(n_systems, 3, 3) float64 Å."""
    system: Index1
    """(N,) int64, which one each atom belongs to."""
    species: Index1
    """(N,) int64, ranks of the elements."""
    j: Index2
    """(N, K) as in `Neighbors`, as are"""
    shift: Exact3
    """(N, K, 3) float64,"""
    reverse: Index2
    """(N, K), and"""
    valid: Flags2
    """(N, K)."""


@compiled(inner=True)
def looks_after(n: int, slot: int, other: int, reverse: int) -> bool:
    """Whether atom n works on a pair for both of its atoms.

    Which one does is even or odd as the sum of their indices, so that all have about as many; of a
    pair of an atom and its own image it is one of the slots.

    Args:
        n: one atom.
        slot: flat, where it has the pair.
        other: the other one,
        reverse: and where that has it.
    """
    return (slot < reverse) != ((n + other) % 2 == 1)


@compiled(inner=True)
def look(
    n: int,
    inputs: Inputs,
    weights: Any,
    work: Any,
) -> None:
    """Who is near atom n, how near, and what walls say of it."""
    box, others, shifts = inputs.cell[inputs.system[n]], inputs.j[n], inputs.shift[n]
    slope, pairs, slots, valid = work.slope[n], work.pairs[n], work.slots[n], inputs.valid[n]
    positions, index = inputs.positions, inputs.species
    walls, square_of_cutoff = weights.wall[index[n]], weights.cutoff * weights.cutoff
    here_x, here_y, here_z = positions[n, 0], positions[n, 1], positions[n, 2]
    ax, ay, az = box[0, 0], box[0, 1], box[0, 2]
    bx, by, bz = box[1, 0], box[1, 1], box[1, 2]
    cx, cy, cz = box[2, 0], box[2, 1], box[2, 2]
    count, energy = 0, 0.0
    for k in range(len(others)):
        slope[k, 0], slope[k, 1], slope[k, 2] = 0.0, 0.0, 0.0
        other, a, b, c = others[k], shifts[k, 0], shifts[k, 1], shifts[k, 2]
        x = positions[other, 0] - here_x + (a * ax + b * bx + c * cx)
        y = positions[other, 1] - here_y + (a * ay + b * by + c * cy)
        z = positions[other, 2] - here_z + (a * az + b * bz + c * cz)
        square = x * x + y * y + z * z
        pairs[count, 0], pairs[count, 1], pairs[count, 2], pairs[count, 3] = x, y, z, square
        slots[count] = k
        # Or the next one takes its place; what is no number is kept.
        count += valid[k] & (not square >= square_of_cutoff)
    for k in range(count):
        pair, slot = pairs[k], slots[k]
        d = math.sqrt(max(pair[3], 1e-12))
        start = walls[index[others[slot]]]
        if d < start:
            depth = 1.0 - d / start
            energy += 0.5 * weights.stiffness * depth * depth * depth
            push = -1.5 * weights.stiffness * depth * depth / start / d
            for axis in range(3):
                slope[slot, axis] = push * pair[axis]
        for axis in range(3):
            pair[axis] *= 1.0 / d
        pair[3] = d
    work.within[n] = count
    work.energies[n] = energy + weights.reference[index[n]]


@compiled(inner=True)
def envelope(u: float) -> tuple[float, float]:
    """As in `mdlearn.potentials.pairs`, and its derivative."""
    u = u if u < 1.0 else 1.0
    u5 = u * u * u * u * u
    cut = 1.0 + u5 * u * (-28.0 + u * (48.0 - 21.0 * u))
    return cut, u5 * (-168.0 + u * (336.0 - 168.0 * u))


@compiled(inner=True)
def read(block: int, index: Array, weights: Any, work: Any) -> None:
    """The energies of the atoms of a block; their invariants become the adjoints of these."""
    _, width, _ = work.invariants.shape
    began = block * width
    members = min(width, len(index) - began)
    hidden = work.scratch.head
    multiply_into(work.invariants[block], weights.hidden, hidden)
    for place in range(members):
        row, bias = hidden[place], weights.hidden_bias[index[began + place]]
        energy = 0.0
        for c in range(0, len(row), WIDTH):
            least, weight = load(bias, c), load(weights.out, c)
            value, rise = silu(load(row, c) + least)
            alone, _ = silu(least)
            energy += total_of(weight * (value - alone))
            store(row, c, weight * rise)
        for c in range(len(weights.linear)):
            energy += weights.linear[c] * work.invariants[block, place, c]
        work.energies[began + place] += energy
    adjoint = work.invariants[block]
    multiply_into(hidden, weights.hidden_back, adjoint)
    for place in range(width):
        for c in range(len(weights.linear)):
            adjoint[place, c] += weights.linear[c]


@compiled(inner=True)
def push(n: int, reverse: Array, work: Any) -> None:
    """Force on atom n and its virial: F = sum_k g[n,k] - g.flat[reverse[n,k]]."""
    fx, fy, fz = 0.0, 0.0, 0.0
    xx, xy, xz, yx, yy, yz, zx, zy, zz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    slope = work.slope.reshape(-1, 3)
    for k in range(work.within[n]):
        slot = work.slots[n, k]
        g, back = work.slope[n, slot], slope[reverse[n, slot]]
        fx += g[0] - back[0]
        fy += g[1] - back[1]
        fz += g[2] - back[2]
        pair = work.pairs[n, k]
        x, y, z = pair[0] * pair[3], pair[1] * pair[3], pair[2] * pair[3]
        xx, xy, xz = xx + x * g[0], xy + x * g[1], xz + x * g[2]
        yx, yy, yz = yx + y * g[0], yy + y * g[1], yz + y * g[2]
        zx, zy, zz = zx + z * g[0], zy + z * g[1], zz + z * g[2]
    virial = work.virials[n]
    virial[0, 0], virial[0, 1], virial[0, 2] = xx, xy, xz
    virial[1, 0], virial[1, 1], virial[1, 2] = yx, yy, yz
    virial[2, 0], virial[2, 1], virial[2, 2] = zx, zy, zz
    work.forces[n, 0], work.forces[n, 1], work.forces[n, 2] = fx, fy, fz


@compiled()
def total(system: Array, cell: Array, energies: Array, virials: Array) -> tuple[Array, Array]:
    """Energies (n_systems,) eV and stress (n_systems, 3, 3) eV/Å³, NaN without a volume."""
    n_systems = len(cell)
    energy, stress = np.zeros(n_systems), np.zeros((n_systems, 3, 3))
    for n in range(len(system)):
        energy[system[n]] += energies[n]
        for axis in range(3):
            for other in range(3):
                stress[system[n], axis, other] += virials[n, axis, other]
    for s in range(n_systems):
        a, b, c = cell[s, 0], cell[s, 1], cell[s, 2]
        normal = (b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0])
        volume = abs(a[0] * normal[0] + a[1] * normal[1] + a[2] * normal[2])
        for axis in range(3):
            for other in range(3):
                stress[s, axis, other] /= volume if volume > 0.0 else np.nan
    return energy, stress
