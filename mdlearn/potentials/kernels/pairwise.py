"""Sums of functions of pair distances in one loop over atoms: energies, forces and virials.

The energy of a pair is the same seen from either atom, so an atom that goes through all of its own
neighbors has the whole force on it, F_n = sum_k V'(d) r/d, and writes to nobody else: the same bits
every time, whatever the number of threads. Rows of neighbors are sorted by element, so that
parameters are numbers and not arrays. Of a row those within the cutoff are put together first,
filled up to whole vectors with one that is too far away to matter; nothing else of a pair is
written.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mdlearn.jit import compiled
from mdlearn.lanes import REGISTER
from mdlearn.potentials.kernels.atoms import envelope
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.sphere import FASTMATH, Scalar

LANES = REGISTER // 4
"""Neighbors come in bundles of this: two registers of float64."""
FAR = 1e8
"""Å, how far away what fills up a bundle is."""
LENNARD_JONES, MORSE, ZBL = range(3)
PARAMETERS = 14


class Terms(NamedTuple):
    """The functions that are added up."""

    kinds: Array
    """(T,) int64, one of the constants above each."""
    parameters: Array
    """(T, Z, Z, 14) float64: 1/d₀ and the stiffness of a wall (see `Wall`), where the function
    ends, and what else it says of two elements."""
    reference: Array
    """(Z,) float64 eV, energies of isolated atoms."""
    cutoff: float
    """Å, beyond which there is nothing, nor a wall."""


class Rows(NamedTuple):
    """A neighbor list without gaps, in which images of atoms are points of their own.

    Points are the atoms, then the images.
    """

    first: Array
    """(N Z + 1,) int64, where the neighbors of one element of each atom begin."""
    near: Array
    """(pairs,) uint32, which points they are."""
    atom: Array
    """(images,) int64, of which atoms the images are,"""
    shift: Array
    """(images, 3) float64, and their lattice translations."""


@compiled()
def pack(index: Array, n_species: int, j: Array, shift: Array, valid: Array) -> Rows:
    """Makes rows of a neighbor list.

    Args:
        index: (N,) int64, ranks of the elements.
        n_species: Z.
        j: (N, K) as in `Neighbors`.
        shift: (N, K, 3)
        valid: (N, K)
    """
    n_atoms, capacity = j.shape
    first = np.zeros(n_atoms * n_species + 1, np.int64)
    outside = 0
    for n in range(n_atoms):
        for k in range(capacity):
            if valid[n, k]:
                first[n * n_species + index[j[n, k]] + 1] += 1
                s = shift[n, k]
                outside += s[0] != 0 or s[1] != 0 or s[2] != 0
    for row in range(1, len(first)):
        first[row] += first[row - 1]
    atom, translation = np.empty(outside, np.int64), np.empty((outside, 3))
    # The images of an atom form a chain.
    latest, earlier = np.full(n_atoms, -1), np.empty(outside, np.int64)
    images = 0
    near = np.empty(first[-1], np.uint32)
    filled = first[:-1].copy()
    for n in range(n_atoms):
        for k in range(capacity):
            if not valid[n, k]:
                continue
            other, s = j[n, k], shift[n, k]
            point = other
            if s[0] != 0 or s[1] != 0 or s[2] != 0:
                image = latest[other]
                while image >= 0:
                    t = translation[image]
                    if t[0] == s[0] and t[1] == s[1] and t[2] == s[2]:
                        break
                    image = earlier[image]
                if image < 0:
                    image = images
                    atom[image], earlier[image], latest[other] = other, latest[other], image
                    for axis in range(3):
                        translation[image, axis] = s[axis]
                    images += 1
                point = n_atoms + image
            row = n * n_species + index[other]
            near[filled[row]] = point
            filled[row] += 1
    return Rows(first, near, atom[:images].copy(), translation[:images].copy())


@compiled()
def place(positions: Array, cell: Array, system: Array, rows: Rows) -> Array:
    """Where all points are, (N + images, 3)."""
    n_atoms, images = len(positions), len(rows.atom)
    points = np.empty((n_atoms + images, 3))
    points[:n_atoms] = positions
    for image in range(images):
        n, s = rows.atom[image], rows.shift[image]
        box = cell[system[n]]
        for axis in range(3):
            points[n_atoms + image, axis] = positions[n, axis] + (
                s[0] * box[0, axis] + s[1] * box[1, axis] + s[2] * box[2, axis]
            )
    return points


@compiled(inner=True)
def _soften(x: float, core: float) -> tuple[float, float]:
    """As in `mdlearn.potentials.classical`, and its derivative."""
    depth = 1.0 - x * (1.0 / core)
    depth = depth if depth > 0.0 else 0.0
    return x + core / 3.0 * depth * depth * depth, 1.0 - depth * depth


@compiled(error_model="numpy")
def lennard_jones(d: float, parameters: Array) -> tuple[float, float, float]:
    """V = 4ε (s⁻¹² - s⁻⁶), s = d/σ, softened; V' and 1/d. Parameters: 1/σ, 4ε, the core."""
    scale, strength = parameters[3], parameters[4]
    s, rise = _soften(d * scale, parameters[5])
    both = 1.0 / (s * d)  # one division for 1/s and 1/d
    inverse = both * d
    a = inverse * inverse * inverse
    a *= a
    v = strength * (a * a - a)
    return v, strength * (6.0 * a - 12.0 * a * a) * inverse * rise * scale, both * s


@compiled()
def morse(d: float, parameters: Array) -> tuple[float, float, float]:
    """V = D (1 - exp(-a (d - d₀)))² - D, V' and 1/d. Parameters: D, a, d₀."""
    depth, steepness = parameters[3], parameters[4]
    decay = math.exp(-steepness * (d - parameters[5]))
    slope = -2.0 * depth * steepness * decay * (decay - 1.0)
    return depth * decay * (decay - 2.0), slope, 1.0 / d


@compiled(error_model="numpy")
def zbl(d: float, parameters: Array) -> tuple[float, float, float]:
    """V = A/x sum_i w_i e^(-b_i x), x = d/a, softened; V', 1/d. Parameters: 1/a, A, core, w, b."""
    scale, strength = parameters[3], parameters[4]
    if d >= parameters[2]:
        return 0.0, 0.0, 1.0 / d
    x, rise = _soften(d * scale, parameters[5])
    screened, falls = 0.0, 0.0
    for i in range(6, 10):
        part = parameters[i] * math.exp(-parameters[4 + i] * x)
        screened += part
        falls += parameters[4 + i] * part
    v = strength / x * screened
    return v, -(v + strength * falls) / x * rise * scale, 1.0 / d


@compiled(inner=True)
def _gather(near: Array, here: int, points: Array, cutoff: float, vectors: Array) -> int:
    """Vectors (3, K) to the neighbors within the cutoff; how many, filled up to whole bundles."""
    x, y, z = points[here, 0], points[here, 1], points[here, 2]
    count, square = 0, cutoff * cutoff
    for point in near:
        dx, dy, dz = points[point, 0] - x, points[point, 1] - y, points[point, 2] - z
        vectors[0, count], vectors[1, count], vectors[2, count] = dx, dy, dz
        count += not dx * dx + dy * dy + dz * dz >= square  # or the next one takes its place
    whole = -(-count // LANES) * LANES
    vectors[:, count:whole] = FAR
    return whole


def _summing(function: Any) -> Any:
    """The loop over some neighbors of one element, for a function of distance V.

    The function returns V, V' and 1/d; the loop the sums of V f(d), of F = V' r/d (3,), and of
    F ⊗ r (xx, yy, zz, xy, xz, yz); walls included. Within it nothing is written, which would be
    taken to change what is read.
    """

    @compiled(fastmath=FASTMATH, error_model="numpy", keep=False)
    def row(vectors: Array, count: int, p: Array) -> tuple[Scalar, ...]:
        wall, stiffness, reach = p[0], p[1], 1.0 / p[2]
        energy, x, y, z, xx, yy, zz, xy, xz, yz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for k in range(count):
            dx, dy, dz = vectors[0, k], vectors[1, k], vectors[2, k]
            square = dx * dx + dy * dy + dz * dz
            d = math.sqrt(1e-12 if square < 1e-12 else square)
            v, slope, over_d = function(d, p)
            cut, d_cut = envelope(d * reach)
            depth = 1.0 - d * wall
            depth = depth if depth > 0.0 else 0.0
            push = stiffness * depth * depth
            energy += v * cut + push * depth
            s = (slope * cut + v * d_cut * reach - 3.0 * push * wall) * over_d
            fx, fy, fz = s * dx, s * dy, s * dz
            x += fx
            y += fy
            z += fz
            xx += fx * dx
            yy += fy * dy
            zz += fz * dz
            xy += fx * dy
            xz += fx * dz
            yz += fy * dz
        return energy, x, y, z, xx, yy, zz, xy, xz, yz

    return row


_lennard_jones, _morse, _zbl = _summing(lennard_jones), _summing(morse), _summing(zbl)


@compiled(nogil=True)
def sweep(
    atoms: tuple[int, int],
    points: Array,
    index: Array,
    first: Array,
    near: Array,
    terms: Terms,
    energies: Array,
    forces: Array,
    virials: Array,
) -> None:
    """Energies, forces and virials of some atoms.

    Args:
        atoms: the first one, and the one after the last.
        points: by `place`.
        index: (N,) int64, ranks of the elements.
        first: of the rows.
        near: of the rows.
        terms: the potential.
        energies: (N,) is filled where the atoms are, as are
        forces: (N, 3) and
        virials: (N, 3, 3).
    """
    kinds, parameters, reference = terms.kinds, terms.parameters, terms.reference
    n_species = len(reference)
    widest = 0
    for rank in range(atoms[0] * n_species, atoms[1] * n_species):
        widest = max(widest, first[rank + 1] - first[rank])
    vectors = np.empty((3, widest + LANES))
    for n in range(atoms[0], atoms[1]):
        force, virial = forces[n], virials[n]
        force[:] = 0.0
        virial[:] = 0.0
        energy = 0.0
        for other in range(n_species):
            row = near[first[n * n_species + other] : first[n * n_species + other + 1]]
            count = _gather(row, n, points, terms.cutoff, vectors)
            for t in range(len(kinds)):
                p = parameters[t, index[n], other]
                if kinds[t] == LENNARD_JONES:
                    sums = _lennard_jones(vectors, count, p)
                elif kinds[t] == MORSE:
                    sums = _morse(vectors, count, p)
                else:
                    sums = _zbl(vectors, count, p)
                v, x, y, z, xx, yy, zz, xy, xz, yz = sums
                energy += 0.5 * v
                force[0] += x
                force[1] += y
                force[2] += z
                virial[0, 0] += 0.5 * xx
                virial[1, 1] += 0.5 * yy
                virial[2, 2] += 0.5 * zz
                virial[0, 1] += 0.5 * xy
                virial[0, 2] += 0.5 * xz
                virial[1, 2] += 0.5 * yz
        virial[1, 0], virial[2, 0], virial[2, 1] = virial[0, 1], virial[0, 2], virial[1, 2]
        energies[n] = reference[index[n]] + energy
