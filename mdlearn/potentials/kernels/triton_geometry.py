"""From positions to pairs, and from derivatives by pairs to forces, on a GPU.

A program has one atom, and a thread one slot of its row of the neighbor list. Axes are those of
`triton_pairs`.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from mdlearn.potentials.kernels.triton_layout import RADIAL

LANES = tl.constexpr(RADIAL)
PI = tl.constexpr(math.pi)


@triton.jit(do_not_specialize=["capacity"])
def look(
    positions: tl.tensor,
    cell: tl.tensor,
    system: tl.tensor,
    index: tl.tensor,
    j: tl.tensor,
    shift: tl.tensor,
    valid: tl.tensor,
    wall: tl.tensor,
    frequency_weight: tl.tensor,
    reference: tl.tensor,
    pairs: tl.tensor,
    basis: tl.tensor,
    slots: tl.tensor,
    bounds: tl.tensor,
    slope: tl.tensor,
    energies: tl.tensor,
    capacity: tl.int64,
    cutoff: tl.constexpr,
    stretch: tl.constexpr,
    near: tl.constexpr,
    stiffness: tl.constexpr,
    radial: tl.constexpr,
    elements: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """Who is near an atom, sorted by element; radial functions, walls, and an isolated atom.

    Args:
        positions: (N, 3) float64 Å.
        cell: (n_systems, 3, 3) float64 Å.
        system: (N,) which one each atom belongs to.
        index: (N,) ranks of the elements.
        j: (N, K) as in `Neighbors`.
        shift: (N, K, 3) float64.
        valid: (N, K)
        wall: (Z, Z) float64 Å, where walls begin.
        frequency_weight: (16,) float64, of radial functions.
        reference: (Z,) float64 eV, energies of isolated atoms.
        pairs: (N, K, 4) float64 is filled with directions and distances.
        basis: (N, K, 32) with radial functions and their derivatives.
        slots: (N, K) with where in its row of the list a pair stands.
        bounds: (N, Z + 1) with where the neighbors of an element begin and end.
        slope: (N, K, 3) float64 eV/Å with derivatives of walls, in the order of the list.
        energies: (N,) float64 eV.
        cutoff: Å.
        stretch: of the distance, see `ChebyshevBasis`.
        near: share of the cutoff at which a neighbor counts one.
        stiffness: of the wall, eV.
        capacity: K.
        radial: B.
        elements: Z.
        row: a power of two that is no less than K.
    """
    n = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, row)
    first = n * capacity
    listed = tl.load(valid + first + k, k < capacity, 0) != 0
    other = tl.load(j + first + k, listed, 0)
    here, there = positions + n * 3, positions + other * 3
    box, by = cell + tl.load(system + n) * 9, shift + (first + k) * 3
    a, b, c = (
        tl.load(by, listed, 0.0),
        tl.load(by + 1, listed, 0.0),
        tl.load(by + 2, listed, 0.0),
    )
    x = tl.load(there, listed, 0.0) - tl.load(here)
    y = tl.load(there + 1, listed, 0.0) - tl.load(here + 1)
    z = tl.load(there + 2, listed, 0.0) - tl.load(here + 2)
    x += a * tl.load(box) + b * tl.load(box + 3) + c * tl.load(box + 6)
    y += a * tl.load(box + 1) + b * tl.load(box + 4) + c * tl.load(box + 7)
    z += a * tl.load(box + 2) + b * tl.load(box + 5) + c * tl.load(box + 8)
    square = x * x + y * y + z * z
    inside = listed & (square < cutoff * cutoff)
    inside = inside | (listed & (square != square))  # what is no number must not be lost
    d = tl.sqrt(tl.maximum(square, 2.0**-40, propagate_nan=tl.PropagateNan.ALL))
    x, y, z = x / d, y / d, z / d

    element = tl.load(index + other, listed, 0)
    place = tl.zeros_like(k)
    count = 0
    for species in tl.static_range(elements):
        tl.store(bounds + n * (elements + 1) + species, count)
        member = (inside & (element == species)).to(tl.int32)
        place = tl.where(member != 0, count + tl.cumsum(member, 0) - 1, place)
        count += tl.sum(member, 0)
    tl.store(bounds + n * (elements + 1) + elements, count)
    tl.store(slots + first + place, k, inside)
    pair = pairs + (first + place) * 4
    tl.store(pair, x, inside)
    tl.store(pair + 1, y, inside)
    tl.store(pair + 2, z, inside)
    tl.store(pair + 3, d, inside)

    start = tl.load(wall + tl.load(index + n) * elements + element, listed, 1.0)
    depth = tl.where(inside, tl.maximum(1.0 - d / start, 0.0), 0.0)
    push = depth * depth / start * (-1.5 * stiffness)
    given = slope + (first + k) * 3
    tl.store(given, push * x, k < capacity)
    tl.store(given + 1, push * y, k < capacity)
    tl.store(given + 2, push * z, k < capacity)
    energy = tl.sum(depth * depth * depth, 0) * (0.5 * stiffness)
    tl.store(energies + n, energy + tl.load(reference + tl.load(index + n)))

    # See `pair.radial_functions`.
    u = d * (1.0 / cutoff)
    angle = u / (u + stretch) * (PI * (1.0 + stretch))
    d_angle = 1.0 / ((u + stretch) * (u + stretch)) * (PI * (1.0 + stretch) * stretch / cutoff)
    u5 = u * u * u * u * u
    cut = 1.0 + u5 * u * (-28.0 + u * (48.0 - 21.0 * u))
    d_cut = u5 * (-168.0 + u * (336.0 - 168.0 * u)) * (1.0 / cutoff)
    root = 1.0 / tl.sqrt(u * u + 0.01)
    nearness = root * near
    d_near = -nearness * root * root * u * (1.0 / cutoff)
    factor, d_factor = nearness * cut, d_near * cut + nearness * d_cut
    turn, up = tl.cos(angle), tl.sin(angle)
    cosine, sine = tl.zeros_like(d) + 1.0, tl.zeros_like(d)
    made = basis + (first + place) * (2 * LANES)
    for frequency in tl.static_range(LANES):
        if frequency < radial:
            w = tl.load(frequency_weight + frequency)
            rise = cosine * d_factor - frequency * sine * d_angle * factor
            tl.store(made + frequency, w * cosine * factor, inside)
            tl.store(made + LANES + frequency, w * rise, inside)
            cosine, sine = cosine * turn - sine * up, sine * turn + cosine * up


@triton.jit(do_not_specialize=["capacity"])
def push(
    pairs: tl.tensor,
    slots: tl.tensor,
    bounds: tl.tensor,
    reverse: tl.tensor,
    slope: tl.tensor,
    forces: tl.tensor,
    virials: tl.tensor,
    capacity: tl.int64,
    elements: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """Force on an atom and its virial: F = sum_k g[n,k] - g.flat[reverse[n,k]], W = sum r ⊗ g."""
    n = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, row)
    live = k < tl.load(bounds + n * (elements + 1) + elements)
    at = n * capacity + k
    slot = n * capacity + tl.load(slots + at, live, 0)
    back = slope + tl.load(reverse + slot, live, 0) * 3
    g, r = slope + slot * 3, pairs + at * 4
    d = tl.load(r + 3, live, 0.0)
    for axis in tl.static_range(3):
        pull = tl.load(g + axis, live, 0.0)
        tl.store(forces + n * 3 + axis, tl.sum(pull - tl.load(back + axis, live, 0.0), 0))
        for other in tl.static_range(3):
            virial = tl.sum(tl.load(r + other, live, 0.0) * d * pull, 0)
            tl.store(virials + n * 9 + other * 3 + axis, virial)
