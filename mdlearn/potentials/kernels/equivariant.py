"""The default network in four loops over atoms: energies and forces, nothing written per pair.

What `mdlearn.potentials.equivariant` computes, and its derivative by hand. Three things make it
fast. Harmonics and what multiplies them are formed where they are used, a pair at a time, in sums
over features that fit vector registers; between the loops stands what an atom is, never what a pair
is (but for distances and radial functions). Linear maps act on a block of atoms at once. And the
derivative of a message needs no pass of its own: with p = Y·Ā what the listener's adjoint is along
the pair and q = Y·s what the speaker says,

    E_pair = sum_c R_c(d) p_c q_c + R'_c(d) sum_a P_ac Q_ac           (P, Q: the same for slopes)

is bilinear, so the loop that hands adjoints back to the speaker has everything that the force on
the pair takes. Every atom writes its own rows and nothing else: the same bits every time, whatever
the number of threads.

Axes of arrays: N atoms, in blocks of W; M harmonics; F features, in bundles of 16 lanes that fill a
vector register; C channels of the first density, one for each element and radial function, rounded
up; V = 3F I invariants of I layers. The loops over pairs have sizes that the compiler knows, and
bodies so large that it makes vectors of them instead of copies; that is why they look as they do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from mdlearn.potentials.kernels.sphere import (
    FASTMATH,
    HARMONICS,
    Array,
    Scalar,
    harmonics,
    polynomials,
    pull_back,
    tangents,
)

LANES = 16
"""Features and radial functions come in bundles of this, filled up with zeros."""
BUNDLE = HARMONICS * LANES


class Weights(NamedTuple):
    """The network as the loops have it, all in one precision but for what is said to be float64."""

    cutoff: float
    stretch: float
    near: float
    radial: int
    """Radial functions, at most 16."""
    frequency_weight: Array
    """(16,) float64, of radial functions."""
    table: Array
    """(64,) of harmonics, see `harmonics`."""
    coupling: Array
    """(G,) Gaunt coefficients, and the harmonics that they couple:"""
    couples: Array
    """(G, 3) int64, product, first factor, second factor."""
    mix: Array
    """(I, M, C + F, 3F), from the density of neighbors and what they say to f, g and h."""
    mix_back: Array
    """(I, M, 3F, C + F)"""
    element: Array
    """(I, Z, 3F)"""
    speak: Array
    """(I, 2, M, 2F, F), from f and fg to values and slopes."""
    speak_back: Array
    """(I, M, 2F, 2F)"""
    gate: Array
    """(I, 3F, 2F)"""
    gate_back: Array
    """(I, 2F, 3F)"""
    gate_bias: Array
    """(I, 2F)"""
    said: Array
    """(I, Z, 2F), of the elements."""
    filters: Array
    """(I, F/16, 2, 256): values and slopes, radial functions by lanes."""
    hidden: Array
    """(V, H)"""
    hidden_back: Array
    """(H, V)"""
    hidden_bias: Array
    """(Z, H)"""
    out: Array
    """(H,)"""
    linear: Array
    """(V,)"""
    wall: Array
    """(Z, Z) float64 Å, where walls begin."""
    stiffness: float
    """Of the wall, eV."""
    reference: Array
    """(Z,) float64 eV, energies of isolated atoms."""


class Workspace(NamedTuple):
    """What stands between the loops; made once for a number of atoms and neighbors."""

    within: Array
    """(N,) int64, neighbors within the cutoff,"""
    slots: Array
    """(N, K) int64, and where they are listed."""
    pairs: Array
    """(N, K, 4) float64, directions and distances of these,"""
    basis: Array
    """(N, K, 32), and their radial functions and derivatives."""
    seen: Array
    """(blocks, M, W, C), the first density; then its adjoint."""
    mixed: Array
    """(I, blocks, 3, M, W, F), functions f, g and h."""
    product: Array
    """(I, blocks, M, W, F), fg."""
    plain: Array
    """(I, blocks, 2, M, W, F), what atoms say, before the gate."""
    gates: Array
    """(I, N, 2, 2F), factors and their derivatives by what the gate is given."""
    spoken: Array
    """(I, N, F/16, 512): values and slopes, harmonics by lanes."""
    heard: Array
    """(I, N, F/16, 256): the adjoint of what each atom hears, harmonics by lanes."""
    invariants: Array
    """(blocks, W, V); then their adjoint."""
    slope: Array
    """(N, K, 3) float64 eV/Å, derivatives of the energy by pair vectors; zero beyond the cutoff."""
    energies: Array
    """(N,) float64 eV."""
    forces: Array
    """(N, 3) float64 eV/Å."""
    virials: Array
    """(N, 3, 3) float64 eV."""


@njit(cache=True)
def _radial(d: float, weights: Weights, basis: Array) -> None:
    """Fills basis (32,): radial functions of a distance (16,), and their derivatives (16,)."""
    u = d / weights.cutoff
    a = weights.stretch
    angle = math.pi * (1.0 + a) * u / (u + a)
    d_angle = math.pi * (1.0 + a) * a / (u + a) ** 2 / weights.cutoff
    u5 = u * u * u * u * u
    cut = 1.0 + u5 * u * (-28.0 + u * (48.0 - 21.0 * u))
    d_cut = u5 * (-168.0 + u * (336.0 - 168.0 * u)) / weights.cutoff
    root = 1.0 / math.sqrt(u * u + 0.01)
    near = weights.near * root
    d_near = -near * root * root * u / weights.cutoff
    factor, d_factor = near * cut, d_near * cut + near * d_cut
    turn, up = math.cos(angle), math.sin(angle)
    cosine, sine = 1.0, 0.0
    basis[:] = 0.0
    for b in range(weights.radial):
        w = weights.frequency_weight[b]
        basis[b] = w * cosine * factor
        basis[16 + b] = w * (cosine * d_factor - b * sine * d_angle * factor)
        cosine, sine = cosine * turn - sine * up, sine * turn + cosine * up


@njit(cache=True, fastmath=FASTMATH)
def _expand_pair(y: Array, basis: Array, density: Array) -> None:
    """Adds y_m b_c, for y (64,) and b (16,), to a density (256,)."""
    for m in range(0, HARMONICS, 4):
        rows = density[m * LANES : (m + 4) * LANES]
        y0, y1, y2, y3 = y[m], y[m + 1], y[m + 2], y[m + 3]
        for c in range(LANES):
            b = basis[c]
            rows[c] += y0 * b
            rows[16 + c] += y1 * b
            rows[32 + c] += y2 * b
            rows[48 + c] += y3 * b


@njit(cache=True, fastmath=FASTMATH)
def _filter(basis: Array, filters: Array, out: Array) -> None:
    """Out (32,) = basis (16,) @ filters, for values and for slopes (2, 256)."""
    values, slopes = filters[0], filters[1]
    for c in range(LANES):
        v, s = basis[0] * values[c], basis[0] * slopes[c]
        for b in range(1, 16):
            v += basis[b] * values[b * LANES + c]
            s += basis[b] * slopes[b * LANES + c]
        out[c], out[LANES + c] = v, s


@njit(cache=True, fastmath=FASTMATH)
def _along(y: Array, f: Array, g: Array, out: Array) -> None:
    """Functions f (256,) where harmonics are y (64,), and the slopes of g (256,) there.

    Out (64,) is filled with values, and slopes by axis.
    """
    for c in range(LANES):
        v = y[0] * f[c]
        for m in range(1, HARMONICS):
            v += y[m] * f[m * LANES + c]
        out[c] = v
    for c in range(LANES):
        s = g[LANES + c]
        tx, ty, tz = y[17] * s, y[33] * s, y[49] * s
        for m in range(2, HARMONICS):
            s = g[m * LANES + c]
            tx += y[16 + m] * s
            ty += y[32 + m] * s
            tz += y[48 + m] * s
        out[16 + c], out[32 + c], out[48 + c] = tx, ty, tz


@njit(cache=True, fastmath=FASTMATH)
def _weigh(q: Array, filters: Array) -> None:
    """Values and slopes (64,) times filters (32,)."""
    for c in range(LANES):
        q[c] *= filters[c]
        q[16 + c] *= filters[16 + c]
        q[32 + c] *= filters[16 + c]
        q[48 + c] *= filters[16 + c]


@njit(cache=True, fastmath=FASTMATH)
def _weigh_both(p: Array, q: Array, filters: Array, rises: Array) -> Scalar:
    """The same for two; and sum_c R'_c p_c q_c with the derivatives of the filters (32,)."""
    total = p[0] - p[0]
    for c in range(LANES):
        r, s = filters[c], filters[16 + c]
        p0, p1, p2, p3 = p[c], p[16 + c], p[32 + c], p[48 + c]
        q0, q1, q2, q3 = q[c], q[16 + c], q[32 + c], q[48 + c]
        total += rises[c] * p0 * q0 + rises[16 + c] * (p1 * q1 + p2 * q2 + p3 * q3)
        p[c], p[16 + c], p[32 + c], p[48 + c] = p0 * r, p1 * s, p2 * s, p3 * s
        q[c], q[16 + c], q[32 + c], q[48 + c] = q0 * r, q1 * s, q2 * s, q3 * s
    return total


@njit(cache=True, fastmath=FASTMATH)
def _spread(y: Array, q: Array, density: Array) -> None:
    """Adds y_m q_c + ∇y_m · ∇q_c, for y (64,) and q (64,), to a density (256,)."""
    for m in range(0, HARMONICS, 2):
        rows = density[m * LANES : (m + 2) * LANES]
        v0, x0, y0, z0 = y[m], y[16 + m], y[32 + m], y[48 + m]
        v1, x1, y1, z1 = y[m + 1], y[17 + m], y[33 + m], y[49 + m]
        for c in range(LANES):
            qv, qx, qy, qz = q[c], q[16 + c], q[32 + c], q[48 + c]
            rows[c] += v0 * qv + x0 * qx + y0 * qy + z0 * qz
            rows[16 + c] += v1 * qv + x1 * qx + y1 * qy + z1 * qz


@njit(cache=True, fastmath=FASTMATH)
def _spread_apart(y: Array, q: Array, density: Array) -> None:
    """Adds y_m q_c to the first half of a density (512,), ∇y_m · ∇q_c to the second."""
    for m in range(0, HARMONICS, 2):
        rows = density[m * LANES : m * LANES + 288]
        v0, x0, y0, z0 = y[m], y[16 + m], y[32 + m], y[48 + m]
        v1, x1, y1, z1 = y[m + 1], y[17 + m], y[33 + m], y[49 + m]
        for c in range(LANES):
            qv, qx, qy, qz = q[c], q[16 + c], q[32 + c], q[48 + c]
            rows[c] += v0 * qv
            rows[16 + c] += v1 * qv
            rows[256 + c] += x0 * qx + y0 * qy + z0 * qz
            rows[272 + c] += x1 * qx + y1 * qy + z1 * qz


@njit(cache=True, fastmath=FASTMATH)
def _to_harmonics(
    listener: Array, spoken: Array, p: Array, q: Array, parity: Array, sums: Array
) -> None:
    """Adds to sums the derivative of E_pair by the harmonics that the speaker sees.

    Args:
        listener: (256,) the adjoint of the density that it hears.
        spoken: (512,) by the other atom.
        p: (64,) what the adjoint is along the pair, filtered.
        q: (64,) what is spoken along the pair, filtered.
        parity: (M,) of the harmonics.
        sums: (1024,) for each harmonic by values and slopes, 16 lanes each; see `pull_back`.
    """
    for m in range(0, HARMONICS, 4):
        first = m * LANES
        f, g, h = listener[first:], spoken[first:], spoken[BUNDLE + first :]
        rows = sums[m * 64 :]
        for c in range(LANES):
            for i in range(4):
                v, w, s = parity[m + i] * f[i * LANES + c], g[i * LANES + c], h[i * LANES + c]
                rows[i * 64 + c] += v * q[c] + w * p[c]
                rows[i * 64 + 16 + c] += s * p[16 + c] - v * q[16 + c]
                rows[i * 64 + 32 + c] += s * p[32 + c] - v * q[32 + c]
                rows[i * 64 + 48 + c] += s * p[48 + c] - v * q[48 + c]


@njit(cache=True)
def _push_pair(pair: Array, along: float, across: tuple[float, float, float], slope: Array) -> None:
    """Adds dE/dr to the slope of a pair, from dE/dd and dE/du, of which only what is across u."""
    x, y, z, d = pair[0], pair[1], pair[2], pair[3]
    along -= (across[0] * x + across[1] * y + across[2] * z) / d
    slope[0] += across[0] / d + along * x
    slope[1] += across[1] / d + along * y
    slope[2] += across[2] / d + along * z


@njit(cache=True, fastmath=FASTMATH)
def _multiply(f: Array, g: Array, coupling: Array, couples: Array, fg: Array) -> None:
    """The product of functions on the sphere, (M, W F): fg_i = sum G_ijk f_j g_k."""
    fg[:] = 0.0
    for e in range(len(coupling)):
        w = coupling[e]
        row, x, y = fg[couples[e, 0]], f[couples[e, 1]], g[couples[e, 2]]
        for c in range(len(row)):
            row[c] += w * x[c] * y[c]


@njit(cache=True, fastmath=FASTMATH)
def _multiply_back(
    f: Array, g: Array, back: Array, coupling: Array, couples: Array, to_f: Array, to_g: Array
) -> None:
    """From the adjoint of the product of `_multiply`, adds those of its factors."""
    for e in range(len(coupling)):
        w = coupling[e]
        i, j, k = couples[e, 0], couples[e, 1], couples[e, 2]
        v, x, y, row, other = back[i], f[j], g[k], to_f[j], to_g[k]
        for c in range(len(v)):
            t = w * v[c]
            row[c] += t * y[c]
            other[c] += t * x[c]


@njit(cache=True)
def _look(
    n: int,
    positions: Array,
    cell: Array,
    system: Array,
    index: Array,
    j: Array,
    shift: Array,
    valid: Array,
    weights: Weights,
    work: Workspace,
) -> None:
    """Who is near atom n, how near, and what walls say of it."""
    count, energy = 0, 0.0
    box = cell[system[n]]
    cutoff = weights.cutoff
    here = positions[n]
    for k in range(j.shape[1]):
        slope = work.slope[n, k]
        slope[0], slope[1], slope[2] = 0.0, 0.0, 0.0
        if not valid[n, k]:
            continue
        other = j[n, k]
        there, s = positions[other], shift[n, k]
        x = there[0] - here[0] + (s[0] * box[0, 0] + s[1] * box[1, 0] + s[2] * box[2, 0])
        y = there[1] - here[1] + (s[0] * box[0, 1] + s[1] * box[1, 1] + s[2] * box[2, 1])
        z = there[2] - here[2] + (s[0] * box[0, 2] + s[1] * box[1, 2] + s[2] * box[2, 2])
        square = x * x + y * y + z * z
        if square >= cutoff * cutoff:
            continue
        d = math.sqrt(max(square, 1e-12))
        pair = work.pairs[n, count]
        pair[0], pair[1], pair[2], pair[3] = x / d, y / d, z / d, d
        _radial(d, weights, work.basis[n, count])
        work.slots[n, count] = k
        count += 1
        start = weights.wall[index[n], index[other]]
        if d < start:
            depth = 1.0 - d / start
            energy += 0.5 * weights.stiffness * depth**3
            push = -1.5 * weights.stiffness * depth**2 / start / d
            slope[0], slope[1], slope[2] = push * x, push * y, push * z
    work.within[n] = count
    work.energies[n] = energy + weights.reference[index[n]]


@njit(cache=True)
def _expand(
    atoms: tuple[int, int], j: Array, index: Array, weights: Weights, work: Workspace, seen: Array
) -> None:
    """The density of the neighbors of each of some atoms, in the rows of their block (M, W, C)."""
    p, y = np.empty(64, seen.dtype), np.empty(64, seen.dtype)
    radial, table = weights.radial, weights.table
    density = np.empty((len(weights.wall), BUNDLE), seen.dtype)
    seen[:] = 0.0
    within, slots, pairs, basis = work.within, work.slots, work.pairs, work.basis
    for n in range(atoms[0], atoms[1]):
        density[:] = 0.0
        for k in range(within[n]):
            polynomials(pairs[n, k, 0], pairs[n, k, 1], pairs[n, k, 2], p)
            for m in range(HARMONICS):
                y[m] = table[m] * p[m]
            _expand_pair(y, basis[n, k], density[index[j[n, slots[n, k]]]])
        for z in range(len(density)):
            for m in range(HARMONICS):
                for b in range(radial):
                    seen[m, n - atoms[0], z * radial + b] = density[z, m * LANES + b]


@njit(cache=True, fastmath=FASTMATH)
def _four_dots(q: Array, basis: Array) -> tuple[float, float, float, float]:
    """Of values (16,) with derivatives of radial functions, and of slopes with the functions."""
    v, x, y, z = q[0] * basis[16], q[16] * basis[0], q[32] * basis[0], q[48] * basis[0]
    for c in range(1, LANES):
        v += q[c] * basis[16 + c]
        x += q[16 + c] * basis[c]
        y += q[32 + c] * basis[c]
        z += q[48 + c] * basis[c]
    return v, x, y, z


@njit(cache=True)
def _expand_back(
    atoms: tuple[int, int], j: Array, index: Array, weights: Weights, work: Workspace, seen: Array
) -> None:
    """Adds the derivative of the energy by pairs, from that by the density (M, W, C)."""
    p, y, q = np.empty(64, seen.dtype), np.empty(64, seen.dtype), np.empty(64, seen.dtype)
    radial, table = weights.radial, weights.table
    within, slots, pairs = work.within, work.slots, work.pairs
    basis, slope = work.basis, work.slope
    density = np.zeros((len(weights.wall), BUNDLE), seen.dtype)
    for n in range(atoms[0], atoms[1]):
        for z in range(len(density)):
            for m in range(HARMONICS):
                for b in range(radial):
                    density[z, m * LANES + b] = seen[m, n - atoms[0], z * radial + b]
        for k in range(within[n]):
            pair, slot = pairs[n, k], slots[n, k]
            polynomials(pair[0], pair[1], pair[2], p)
            for m in range(HARMONICS):
                w = table[m]
                y[m], y[16 + m] = w * p[m], w * p[16 + m]
                y[32 + m], y[48 + m] = w * p[32 + m], w * p[48 + m]
            adjoint = density[index[j[n, slot]]]
            _along(y, adjoint, adjoint, q)
            along, gx, gy, gz = _four_dots(q, basis[n, k])
            _push_pair(pair, along, (gx, gy, gz), slope[n, slot])


@njit(cache=True)
def _hear(
    layer: int, atoms: tuple[int, int], j: Array, weights: Weights, work: Workspace, told: Array
) -> None:
    """The density of what each of some atoms hears, in the rows of their block (M, W, F)."""
    dtype = told.dtype
    filters = weights.filters[layer]
    parts = len(filters)
    p, y, q = np.empty(64, dtype), np.empty(128, dtype), np.empty(64, dtype)
    here, there = y[:64], y[64:]
    r = np.empty(32, dtype)
    density = np.empty((parts, BUNDLE), dtype)
    within, slots, pairs = work.within, work.slots, work.pairs
    basis, said, table = work.basis, work.spoken[layer], weights.table
    for n in range(atoms[0], atoms[1]):
        density[:] = 0.0
        for k in range(within[n]):
            harmonics(pairs[n, k, 0], pairs[n, k, 1], pairs[n, k, 2], p, table, y)
            spoken = said[j[n, slots[n, k]]]
            for part in range(parts):
                _filter(basis[n, k], filters[part], r)
                _along(there, spoken[part], spoken[part, BUNDLE:], q)
                _weigh(q, r)
                _spread(here, q, density[part])
        for part in range(parts):
            for m in range(HARMONICS):
                for c in range(LANES):
                    told[m, n - atoms[0], part * LANES + c] = density[part, m * LANES + c]


@njit(cache=True)
def _hear_back(
    layer: int, atoms: tuple[int, int], j: Array, weights: Weights, work: Workspace, said: Array
) -> None:
    """From what others heard of some atoms: the adjoint of what these said, (M, W, 2F).

    The derivative of the energy by the pairs along which it was said is added.
    """
    dtype = said.dtype
    filters = weights.filters[layer]
    parts = len(filters)
    p, y, t = np.empty(64, dtype), np.empty(128, dtype), np.empty(112, dtype)
    here, there = y[:64], y[64:]
    r, rises, sums = np.empty(32, dtype), np.empty(32, dtype), np.empty(1024, dtype)
    heard, q = np.empty(64, dtype), np.empty(64, dtype)
    adjoint = np.empty((parts, 2 * BUNDLE), dtype)
    within, slots, pairs, basis = work.within, work.slots, work.pairs, work.basis
    heards, spokens, slope = work.heard[layer], work.spoken[layer], work.slope
    table, parity = weights.table, weights.table[48:]
    for n in range(atoms[0], atoms[1]):
        adjoint[:] = 0.0
        spoken = spokens[n]
        for k in range(within[n]):
            pair, slot = pairs[n, k], slots[n, k]
            harmonics(pair[0], pair[1], pair[2], p, table, y)
            tangents(p, table, t)
            listener = heards[j[n, slot]]
            along = 0.0
            sums[:] = 0.0
            for part in range(parts):
                _filter(basis[n, k], filters[part], r)
                _filter(basis[n, k, 16:], filters[part], rises)
                _along(there, listener[part], listener[part], heard)
                _along(here, spoken[part], spoken[part, BUNDLE:], q)
                along += _weigh_both(heard, q, r, rises)
                _spread_apart(here, heard, adjoint[part])
                _to_harmonics(listener[part], spoken[part], heard, q, parity, sums)
            across = pull_back(pair[0], pair[1], pair[2], t, sums, table)
            _push_pair(pair, along, across, slope[n, slot])
        half = parts * LANES
        for part in range(parts):
            for m in range(HARMONICS):
                for c in range(LANES):
                    place = part * LANES + c
                    said[m, n - atoms[0], place] = adjoint[part, m * LANES + c]
                    said[m, n - atoms[0], half + place] = adjoint[part, BUNDLE + m * LANES + c]


@njit(cache=True)
def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@njit(cache=True)
def _forward(
    layer: int, block: int, index: Array, j: Array, weights: Weights, work: Workspace
) -> None:
    """From densities to invariants, and to what the atoms of a block say."""
    n_layers, _, _, width, n = work.product.shape
    atoms = (block * width, min((block + 1) * width, len(index)))
    mixed, product = work.mixed[layer, block], work.product[layer, block]
    seen, dtype = work.seen[block], mixed.dtype
    channels = seen.shape[2]
    told = np.zeros((HARMONICS, width, n), dtype)
    if layer > 0:
        _hear(layer - 1, atoms, j, weights, work, told)
    density = np.empty((width, channels + n), dtype)
    out = np.empty((width, 3 * n), dtype)
    for m in range(HARMONICS):
        density[:, :channels] = seen[m]
        density[:, channels:] = told[m]
        np.dot(density, weights.mix[layer, m], out)
        for atom in range(atoms[0], atoms[1]):
            place, factors = atom - atoms[0], weights.element[layer, index[atom]]
            for kind in range(3):
                row, source = mixed[kind, m, place], out[place, kind * n : (kind + 1) * n]
                weight = factors[kind * n : (kind + 1) * n]
                for c in range(n):
                    row[c] = source[c] * weight[c]
    f, g, h = mixed[0], mixed[1], mixed[2]
    _multiply(
        f.reshape(HARMONICS, -1),
        g.reshape(HARMONICS, -1),
        weights.coupling,
        weights.couples,
        product.reshape(HARMONICS, -1),
    )
    triple = product[0] * h[0]
    for m in range(1, HARMONICS):
        triple += product[m] * h[m]
    given = np.empty((width, 3 * n), dtype)
    given[:, :n] = f[0]
    given[:, n : 2 * n] = product[0]
    given[:, 2 * n :] = triple
    given[atoms[1] - atoms[0] :] = 0.0
    work.invariants[block, :, 3 * n * layer : 3 * n * (layer + 1)] = given
    if layer < n_layers - 1:
        _speak(layer, block, given, index, weights, work)


@njit(cache=True)
def _speak(
    layer: int, block: int, given: Array, index: Array, weights: Weights, work: Workspace
) -> None:
    """What the atoms of a block say, from their functions and their invariants (W, 3F)."""
    _, _, _, width, n = work.product.shape
    atoms = (block * width, min((block + 1) * width, len(index)))
    plain = work.plain[layer, block]
    functions = np.empty((width, 2 * n), given.dtype)
    for m in range(HARMONICS):
        functions[:, :n] = work.mixed[layer, block, 0, m]
        functions[:, n:] = work.product[layer, block, m]
        for half in range(2):
            np.dot(functions, weights.speak[layer, half, m], plain[half, m])
    gates = np.dot(given, weights.gate[layer])
    for atom in range(atoms[0], atoms[1]):
        place = atom - atoms[0]
        said = weights.said[layer, index[atom]]
        factors, rises = work.gates[layer, atom, 0], work.gates[layer, atom, 1]
        for c in range(2 * n):
            v = gates[place, c] + weights.gate_bias[layer, c]
            s = _sigmoid(v)
            factors[c] = v * s + said[c]
            rises[c] = s * (1.0 + v * (1.0 - s))
        for part in range(n // LANES):
            for half in range(2):
                spoken = work.spoken[layer, atom, part, half * BUNDLE : (half + 1) * BUNDLE]
                first = part * LANES
                for m in range(HARMONICS):
                    for c in range(LANES):
                        factor = factors[half * n + first + c]
                        spoken[m * LANES + c] = plain[half, m, place, first + c] * factor
                for c in range(LANES):
                    spoken[c] += said[half * n + first + c]


@njit(cache=True)
def _read(block: int, index: Array, weights: Weights, work: Workspace) -> None:
    """The energies of the atoms of a block; their invariants become the adjoints of these."""
    _, width, _ = work.invariants.shape
    began = block * width
    members = min(width, len(index) - began)
    hidden = np.dot(work.invariants[block], weights.hidden)  # (W, H)
    for place in range(members):
        bias = weights.hidden_bias[index[began + place]]
        energy = 0.0
        for c in range(hidden.shape[1]):
            v = hidden[place, c] + bias[c]
            s = _sigmoid(v)
            energy += weights.out[c] * (v * s - bias[c] * _sigmoid(bias[c]))
            hidden[place, c] = weights.out[c] * s * (1.0 + v * (1.0 - s))
        for c in range(len(weights.linear)):
            energy += weights.linear[c] * work.invariants[block, place, c]
        work.energies[began + place] += energy
    np.dot(hidden, weights.hidden_back, work.invariants[block])
    work.invariants[block] += weights.linear


@njit(cache=True)
def _backward(
    layer: int,
    block: int,
    index: Array,
    j: Array,
    weights: Weights,
    work: Workspace,
    seen: Array,
) -> None:
    """From adjoints of invariants, and of what the atoms of a block said, to those of densities.

    The adjoint of the first density (M, W, C) is added to `seen`.
    """
    n_layers, _, _, width, n = work.product.shape
    atoms = (block * width, min((block + 1) * width, len(index)))
    mixed, product = work.mixed[layer, block], work.product[layer, block]
    dtype = mixed.dtype
    back = np.zeros((3, HARMONICS, width, n), dtype)  # of f, g and h
    to_product = np.zeros((HARMONICS, width, n), dtype)
    invariants = work.invariants[block, :, 3 * n * layer : 3 * n * (layer + 1)]
    if layer < n_layers - 1:
        said = np.zeros((HARMONICS, width, 2 * n), dtype)
        _hear_back(layer, atoms, j, weights, work, said)
        _speak_back(layer, block, index, said, weights, work, back[0], to_product)
    back[0, 0] += invariants[:, :n]
    to_product[0] += invariants[:, n : 2 * n]
    by_triple = invariants[:, 2 * n :].copy()
    for m in range(HARMONICS):
        to_product[m] += by_triple * mixed[2, m]
        back[2, m] = by_triple * product[m]
    _multiply_back(
        mixed[0].reshape(HARMONICS, -1),
        mixed[1].reshape(HARMONICS, -1),
        to_product.reshape(HARMONICS, -1),
        weights.coupling,
        weights.couples,
        back[0].reshape(HARMONICS, -1),
        back[1].reshape(HARMONICS, -1),
    )
    channels = seen.shape[2]
    given = np.zeros((width, 3 * n), dtype)
    out = np.empty((width, channels + n), dtype)
    for m in range(HARMONICS):
        for atom in range(atoms[0], atoms[1]):
            place, factors = atom - atoms[0], weights.element[layer, index[atom]]
            for kind in range(3):
                row, source = given[place, kind * n : (kind + 1) * n], back[kind, m, place]
                weight = factors[kind * n : (kind + 1) * n]
                for c in range(n):
                    row[c] = source[c] * weight[c]
        np.dot(given, weights.mix_back[layer, m], out)
        seen[m] += out[:, :channels]
        if layer > 0:
            for atom in range(atoms[0], atoms[1]):
                told = out[atom - atoms[0], channels:]
                for part in range(n // LANES):
                    heard = work.heard[layer - 1, atom, part, m * LANES : (m + 1) * LANES]
                    for c in range(LANES):
                        heard[c] = told[part * LANES + c]


@njit(cache=True)
def _speak_back(
    layer: int,
    block: int,
    index: Array,
    said: Array,
    weights: Weights,
    work: Workspace,
    to_function: Array,
    to_product: Array,
) -> None:
    """From the adjoint of what was said (M, W, 2F), which is changed, to what it was made of."""
    _, _, _, width, n = work.product.shape
    atoms = (block * width, min((block + 1) * width, len(index)))
    plain = work.plain[layer, block]
    gates = np.zeros((width, 2 * n), said.dtype)
    for atom in range(atoms[0], atoms[1]):
        place = atom - atoms[0]
        factors, rises = work.gates[layer, atom, 0], work.gates[layer, atom, 1]
        for m in range(HARMONICS):
            for half in range(2):
                for c in range(n):
                    v = said[m, place, half * n + c]
                    said[m, place, half * n + c] = v * factors[half * n + c]
                    gates[place, half * n + c] += v * plain[half, m, place, c]
        for c in range(2 * n):
            gates[place, c] *= rises[c]
    work.invariants[block, :, 3 * n * layer : 3 * n * (layer + 1)] += np.dot(
        gates, weights.gate_back[layer]
    )
    functions = np.empty((width, 2 * n), said.dtype)
    for m in range(HARMONICS):
        np.dot(said[m], weights.speak_back[layer, m], functions)
        to_function[m] = functions[:, :n]
        to_product[m] = functions[:, n:]


@njit(cache=True)
def _push(n: int, reverse: Array, work: Workspace) -> None:
    """Force on atom n and its virial: F = sum_k g[n,k] - g.flat[reverse[n,k]]."""
    fx, fy, fz = 0.0, 0.0, 0.0
    slope = work.slope.reshape(-1, 3)
    virial = work.virials[n]
    virial[:] = 0.0
    for k in range(work.within[n]):
        slot = work.slots[n, k]
        g, back = work.slope[n, slot], slope[reverse[n, slot]]
        fx += g[0] - back[0]
        fy += g[1] - back[1]
        fz += g[2] - back[2]
        d = work.pairs[n, k, 3]
        for axis in range(3):
            for other in range(3):
                virial[axis, other] += work.pairs[n, k, axis] * d * g[other]
    work.forces[n, 0], work.forces[n, 1], work.forces[n, 2] = fx, fy, fz


@njit(cache=True, nogil=True)
def sweep(
    stages: tuple[int, int],
    blocks: tuple[int, int],
    positions: Array,
    cell: Array,
    system: Array,
    index: Array,
    j: Array,
    shift: Array,
    reverse: Array,
    valid: Array,
    weights: Weights,
    work: Workspace,
) -> None:
    """Energies, forces and virials of atoms, in a workspace.

    Of 2 I + 1 stages each needs the one before of all blocks; within a stage, blocks are
    independent.

    Args:
        stages: the first one, and the one after the last.
        blocks: likewise.
        positions: (N, 3) float64 Å.
        cell: (n_systems, 3, 3) float64 Å.
        system: (N,) int64, which one each atom belongs to.
        index: (N,) int64, ranks of the elements.
        j: (N, K) as in `Neighbors`.
        shift: (N, K, 3) float64.
        reverse: (N, K)
        valid: (N, K)
        weights: the network.
        work: is overwritten.
    """
    n_atoms = len(index)
    n_layers, width = work.product.shape[0], work.product.shape[3]
    for stage in range(stages[0], stages[1]):
        for block in range(blocks[0], blocks[1]):
            seen = work.seen[block]
            atoms = (block * width, min((block + 1) * width, n_atoms))
            if stage == 0:
                for n in range(atoms[0], atoms[1]):
                    _look(n, positions, cell, system, index, j, shift, valid, weights, work)
                _expand(atoms, j, index, weights, work, seen)
            if stage < n_layers:
                _forward(stage, block, index, j, weights, work)
            if stage == n_layers:
                _read(block, index, weights, work)
                seen[:] = 0.0
            if n_layers <= stage < 2 * n_layers:
                _backward(2 * n_layers - 1 - stage, block, index, j, weights, work, seen)
            if stage == 2 * n_layers - 1:
                _expand_back(atoms, j, index, weights, work, seen)
            if stage == 2 * n_layers:
                for n in range(atoms[0], atoms[1]):
                    _push(n, reverse, work)


@njit(cache=True)
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
        stress[s] /= volume if volume > 0.0 else np.nan
    return energy, stress
