"""Rows of a neighbor list that has every pair once, and the points that they lead to.

Rows are sorted by element, and begin at multiples of four, as four neighbors are looked at
together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mdlearn.jit import compiled
from mdlearn.lanes import FOUR
from mdlearn.potentials.kernels.atoms import looks_after
from mdlearn.potentials.kernels.rows import Array


class Rows(NamedTuple):
    """A neighbor list without gaps that has every pair once; images of atoms are points.

    Points are the atoms, then the images.
    """

    first: Array
    """(N Z + 1,) int64, where the neighbors of one element of each atom begin, by fours,"""
    last: Array
    """(N Z,) int64, and where they end."""
    near: Array
    """(slots,) uint32, which points they are."""
    atom: Array
    """(images,) int64, of which atoms the images are,"""
    shift: Array
    """(images, 3) float64, and their lattice translations."""


@compiled()
def pack(
    index: Array, n_species: int, j: Array, shift: Array, reverse: Array, valid: Array
) -> Rows:
    """Makes rows of a neighbor list.

    Args:
        index: (N,) int64, ranks of the elements.
        n_species: Z.
        j: (N, K) as in `Neighbors`.
        shift: (N, K, 3)
        reverse: (N, K)
        valid: (N, K)
    """
    n_atoms, capacity = j.shape
    first = np.zeros(n_atoms * n_species + 1, np.int64)
    pairs = 0
    for n in range(n_atoms):
        for k in range(capacity):
            if valid[n, k] and looks_after(n, n * capacity + k, j[n, k], reverse[n, k]):
                first[n * n_species + index[j[n, k]] + 1] += 1
                pairs += 1
    for row in range(1, len(first)):
        first[row] = first[row - 1] + -(-first[row] // FOUR) * FOUR
    # Room for an image in every pair: what is not used takes no memory.
    atom, translation = np.empty(pairs, np.int64), np.empty((pairs, 3))
    # The images of an atom form a chain.
    latest, earlier = np.full(n_atoms, -1), np.empty(pairs, np.int64)
    images = 0
    near, last = np.zeros(first[-1], np.uint32), first[:-1].copy()
    for n in range(n_atoms):
        for k in range(capacity):
            if not (valid[n, k] and looks_after(n, n * capacity + k, j[n, k], reverse[n, k])):
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
            near[last[row]] = point
            last[row] += 1
    return Rows(first, last, near, atom[:images].copy(), translation[:images].copy())


@compiled()
def place(positions: Array, cell: Array, system: Array, rows: Rows) -> Array:
    """Where all points are, Å, and which atoms they are or are images of, (N + images, 4)."""
    n_atoms, images = len(positions), len(rows.atom)
    points = np.empty((n_atoms + images, FOUR))
    for n in range(n_atoms):
        for axis in range(3):
            points[n, axis] = positions[n, axis]
        points[n, 3] = n
    for image in range(images):
        n, s = rows.atom[image], rows.shift[image]
        box, point = cell[system[n]], points[n_atoms + image]
        for axis in range(3):
            point[axis] = positions[n, axis] + (
                s[0] * box[0, axis] + s[1] * box[1, axis] + s[2] * box[2, axis]
            )
        point[3] = n
    return points
