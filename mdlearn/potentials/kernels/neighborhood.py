"""Loops over the neighbors of atoms: densities, what atoms hear, and both backward.

A message along a pair is E_pair = sum_c R_c(d) p_c q_c + R'_c(d) sum_a P_ac Q_ac, where p = Y·Ā is
what the listener's adjoint is along the pair, q = Y·s what the speaker says, and P and Q are the
same for slopes. It is bilinear, so the loop that hands adjoints back to the speaker has everything
that the force on the pair takes.
"""

from __future__ import annotations

from typing import Any

from mdlearn.jit import compiled, on_stack
from mdlearn.potentials.kernels.layout import BUNDLE, LANES, Weights, Workspace
from mdlearn.potentials.kernels.pair import (
    evaluate_along,
    expand_pair,
    filter_pair,
    four_dots,
    push_pair,
    radial_functions,
    spread,
    spread_apart,
    to_harmonics,
    weigh,
    weigh_both,
)
from mdlearn.potentials.kernels.rows import Array, clear
from mdlearn.potentials.kernels.sphere import (
    HARMONICS,
    harmonics,
    polynomials,
    pull_back,
    tangents,
)


@compiled(inner=True)
def see(
    n: int, j: Array, index: Array, weights: Any, work: Any, p: Array, y: Array, density: Array
) -> None:
    """Fills the density (Z, 256) of the neighbors of atom n; p and y (64,) are overwritten."""
    within, slots, pairs, basis = work.within, work.slots, work.pairs, work.basis
    table = weights.table
    clear(density)
    for k in range(within[n]):
        radial_functions(pairs[n, k, 3], weights, basis[n, k])
        polynomials(pairs[n, k, 0], pairs[n, k, 1], pairs[n, k, 2], p)
        for m in range(HARMONICS):
            y[m] = table[m] * p[m]
        expand_pair(y, basis[n, k], density[index[j[n, slots[n, k]]]])


@compiled(inner=True)
def see_back(
    n: int,
    j: Array,
    index: Array,
    weights: Any,
    work: Any,
    p: Array,
    y: Array,
    q: Array,
    density: Array,
) -> None:
    """Adds the derivative by the pairs of atom n, from that by its density (Z, 256).

    p, y and q (64,) are overwritten.
    """
    within, slots, pairs = work.within, work.slots, work.pairs
    basis, slope, table = work.basis, work.slope, weights.table
    for k in range(within[n]):
        pair, slot = pairs[n, k], slots[n, k]
        polynomials(pair[0], pair[1], pair[2], p)
        for m in range(HARMONICS):
            w = table[m]
            y[m], y[16 + m] = w * p[m], w * p[16 + m]
            y[32 + m], y[48 + m] = w * p[32 + m], w * p[48 + m]
        adjoint = density[index[j[n, slot]]]
        evaluate_along(y, adjoint, adjoint, q)
        along, gx, gy, gz = four_dots(q, basis[n, k])
        push_pair(pair, along, (gx, gy, gz), slope[n, slot])


@compiled(inner=True)
def lay_apart(adjoint: Array, place: int, said: Array) -> None:
    """The adjoint of what an atom said, (F/16, 512), in its rows of (M, W, 2F)."""
    parts = len(adjoint)
    half = parts * LANES
    for part in range(parts):
        for m in range(HARMONICS):
            for c in range(LANES):
                column = part * LANES + c
                said[m, place, column] = adjoint[part, m * LANES + c]
                said[m, place, half + column] = adjoint[part, BUNDLE + m * LANES + c]


@compiled(inner=True)
def expand(
    atoms: tuple[int, int], j: Array, index: Array, weights: Weights, work: Workspace, seen: Array
) -> None:
    """The density of the neighbors of each of some atoms, in the rows of their block (M, W, C)."""
    p, y = on_stack(64, seen), on_stack(64, seen)
    radial, density = weights.radial, work.scratch.seen
    clear(seen)
    for n in range(atoms[0], atoms[1]):
        see(n, j, index, weights, work, p, y, density)
        for z in range(len(density)):
            for m in range(HARMONICS):
                for b in range(radial):
                    seen[m, n - atoms[0], z * radial + b] = density[z, m * LANES + b]


@compiled(inner=True)
def expand_back(
    atoms: tuple[int, int], j: Array, index: Array, weights: Weights, work: Workspace, seen: Array
) -> None:
    """Adds the derivative of the energy by pairs, from that by the density (M, W, C)."""
    p, y, q = on_stack(64, seen), on_stack(64, seen), on_stack(64, seen)
    radial, density = weights.radial, work.scratch.seen
    clear(density)
    for n in range(atoms[0], atoms[1]):
        for z in range(len(density)):
            for m in range(HARMONICS):
                for b in range(radial):
                    density[z, m * LANES + b] = seen[m, n - atoms[0], z * radial + b]
        see_back(n, j, index, weights, work, p, y, q, density)


@compiled(inner=True)
def hear(
    layer: int,
    atoms: tuple[int, int],
    j: Array,
    weights: Any,
    work: Any,
    density: Array,
    told: Array,
) -> None:
    """The density of what each of some atoms hears, in the rows of their block (M, W, F).

    Also for `learning`, whose weights and workspace have by the same names what it takes. The
    density of one atom (F/16, 256) is overwritten.
    """
    filters = weights.filters[layer]
    parts = len(filters)
    p, y, q = on_stack(64, told), on_stack(128, told), on_stack(64, told)
    here, there, r = y[:64], y[64:], on_stack(32, told)
    within, slots, pairs = work.within, work.slots, work.pairs
    basis, said, table = work.basis, work.spoken[layer], weights.table
    for n in range(atoms[0], atoms[1]):
        clear(density)
        for k in range(within[n]):
            harmonics(pairs[n, k, 0], pairs[n, k, 1], pairs[n, k, 2], p, table, y)
            spoken = said[j[n, slots[n, k]]]
            for part in range(parts):
                filter_pair(basis[n, k], filters[part], r)
                evaluate_along(there, spoken[part], spoken[part, BUNDLE:], q)
                weigh(q, r)
                spread(here, q, density[part])
        for part in range(parts):
            for m in range(HARMONICS):
                for c in range(LANES):
                    told[m, n - atoms[0], part * LANES + c] = density[part, m * LANES + c]


@compiled(inner=True)
def hear_back(
    layer: int, atoms: tuple[int, int], j: Array, weights: Weights, work: Workspace, said: Array
) -> None:
    """From what others heard of some atoms: the adjoint of what these said, (M, W, 2F).

    The derivative of the energy by the pairs along which it was said is added.
    """
    filters, adjoint = weights.filters[layer], work.scratch.adjoint
    parts = len(filters)
    p, y, t = on_stack(64, said), on_stack(128, said), on_stack(112, said)
    here, there = y[:64], y[64:]
    r, rises, sums = on_stack(32, said), on_stack(32, said), on_stack(1024, said)
    heard, told = work.scratch.ends[0], work.scratch.ends[1]
    within, slots, pairs, basis = work.within, work.slots, work.pairs, work.basis
    heards, spokens, slope = work.heard[layer], work.spoken[layer], work.slope
    table, parity = weights.table, weights.table[48:]
    for n in range(atoms[0], atoms[1]):
        clear(adjoint)
        spoken = spokens[n]
        for k in range(within[n]):
            pair, slot = pairs[n, k], slots[n, k]
            harmonics(pair[0], pair[1], pair[2], p, table, y)
            tangents(p, table, t)
            listener = heards[j[n, slot]]
            along = 0.0
            for part in range(parts):
                filter_pair(basis[n, k], filters[part], r)
                filter_pair(basis[n, k, 16:], filters[part], rises)
                evaluate_along(there, listener[part], listener[part], heard[part])
                evaluate_along(here, spoken[part], spoken[part, BUNDLE:], told[part])
                along += weigh_both(heard[part], told[part], r, rises)
                spread_apart(here, heard[part], adjoint[part])
            to_harmonics(listener, spoken, heard, told, parity, sums)
            across = pull_back(pair[0], pair[1], pair[2], t, sums, table)
            push_pair(pair, along, across, slope[n, slot])
        lay_apart(adjoint, n - atoms[0], said)
