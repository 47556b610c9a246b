"""SchNet in a few loops over atoms: energies and forces, nothing written per pair.

What `mdlearn.potentials.schnet` computes, and its derivative by hand. Every pair stands in the rows
of both its atoms at the same distance, so both hear through the same filter, which one of them
blends for both. Adjoints go back as features came; and by the same rows of a table the slope of the
energy along the pair is found, for what its atoms say to each other.
"""

from __future__ import annotations

from typing import NamedTuple

from mdlearn.jit import compiled
from mdlearn.lanes import WIDTH, alike, load, store, total
from mdlearn.matrices import add_product, multiply_into
from mdlearn.potentials.kernels.activation import shifted_softplus
from mdlearn.potentials.kernels.atoms import Inputs, look, push, read
from mdlearn.potentials.kernels.rows import Array, add, clear, copy, scale
from mdlearn.potentials.kernels.spline import (
    ROWS,
    add_shares,
    approach,
    begin_sums,
    filtered,
    share_of,
    tasks_of,
)
from mdlearn.words import Array1, Array2, Array3, Array4, Exact1, Exact2, Exact3, Index1, Index2


class Weights(NamedTuple):
    """The network as the loops have it, in one precision; axes as in `layout`, F by `WIDTH`.

    Matrices that are multiplied by are `matrices.packed`; here stand the shapes of what is packed.
    """

    cutoff: float
    hidden: Array3
    """(F, H), of the head, as are"""
    hidden_back: Array3
    """(H, F)"""
    hidden_bias: Array2
    """(Z, H)"""
    out: Array1
    """(H,) and"""
    linear: Array1
    """(F,)."""
    wall: Exact2
    """(Z, Z) float64 Å, where walls begin."""
    stiffness: float
    """Of the wall, eV."""
    reference: Exact1
    """(Z,) float64 eV, energies of isolated atoms."""
    crowding: float
    """Of knots at short distances, see `spline.blend_at`."""
    tables: Array3
    """(I, F/32, (intervals + 5) 32), see `spline`."""
    start: Array3
    """(I, Z, F), what the elements say before anything has changed."""
    speak: Array4
    """(I, F, F), from what has changed to what else is said."""
    speak_back: Array4
    inner: Array4
    """(I, F, F), from what is heard to the hidden layer,"""
    inner_back: Array4
    inner_bias: Array2
    """(I, F),"""
    outer: Array4
    """(I, F, F), and from there to the change."""
    outer_back: Array4


class Scratch(NamedTuple):
    """What a thread writes and reads within a stage of a block. Every thread has its own."""

    heard: Array2
    """(W, F); backward, the adjoint of what was said,"""
    hidden: Array2
    """(W, F), and the hidden layer."""
    head: Array2
    """(W, H), that of the head."""


class Workspace(NamedTuple):
    """What stands between the loops; made once for a number of atoms and neighbors.

    Rows of atoms are filled up to full blocks, B W; S shares, see `spline.tasks_of`.
    """

    within: Index1
    """(N,) int64, neighbors within the cutoff,"""
    slots: Index2
    """(N, K) int64, and where they are listed."""
    pairs: Exact3
    """(N, K, 4) float64, directions and distances of these,"""
    own: Index1
    """(N,) int64, how many of them, the first, are pairs that the atom looks after. Of these:"""
    near: Index2
    """(N, K) int64, which atoms they are,"""
    places: Index2
    """(N, K) int64, where their filters stand in a table,"""
    blends: Array3
    """(N, K, 10), how these are blended,"""
    span: Index2
    """(N, 2) int64, the first of these atoms and of itself, and the one after the last of them,"""
    reached: Index2
    """(S, 2) int64, the same of the atoms of a share,"""
    along: Array3
    """(F/32, N, K), and the derivative of the energy by their distances."""
    said: Array4
    """(I, F/32, B W, 32). What atoms have of 32 features stands in one piece: parts of longer rows
    would share few places of a cache."""
    shares: Array4
    """(S, F/32, B W, 32), sums over the pairs of a share of the atoms: what is heard, or
    adjoints of what was said."""
    heard: Array4
    """(2, F/32, B W, 32), adjoints of what is heard in a layer, and in the one before it."""
    rises: Array4
    """(I, B, W, F), derivatives of the hidden layer."""
    invariants: Array3
    """(B, W, F), what has changed in the features; then its adjoint."""
    slope: Exact3
    """(N, K, 3) float64 eV/Å, derivatives of the energy by pair vectors; zero beyond the cutoff."""
    energies: Exact1
    """(N,) float64 eV."""
    forces: Exact2
    """(N, 3) float64 eV/Å."""
    virials: Exact3
    """(N, 3, 3) float64 eV."""
    scratch: Scratch


@compiled(inner=True)
def _hear(layer: int, task: int, weights: Weights, work: Workspace) -> None:
    """Sums over pairs, W(r) said[j] and W(r) said[n], for what the atoms n and j of each hear."""
    bundle, share, first, last = share_of(task, work)
    table, said = weights.tables[layer, bundle], work.said[layer, bundle].reshape(-1)
    heard = work.shares[share, bundle].reshape(-1)
    begin_sums(task, layer, work)
    for n in range(first, last):
        near, places, blends = work.near[n], work.places[n], work.blends[n]
        mine = load(said, n * WIDTH)
        sums = alike(0.0, mine)
        for k in range(work.own[n]):
            there = near[k] * WIDTH
            passes = filtered(table, places[k], blends[k], 0)
            sums = sums + passes * load(said, there)
            store(heard, there, load(heard, there) + passes * mine)
        store(heard, n * WIDTH, load(heard, n * WIDTH) + sums)


@compiled(inner=True)
def _hear_back(layer: int, task: int, weights: Weights, work: Workspace) -> None:
    """The same for adjoints, and the derivative of the energy by distances of pairs."""
    bundle, share, first, last = share_of(task, work)
    table, said = weights.tables[layer, bundle], work.said[layer, bundle].reshape(-1)
    heard = work.heard[layer % 2, bundle].reshape(-1)
    to_said = work.shares[share, bundle].reshape(-1)
    begin_sums(task, layer, work)
    for n in range(first, last):
        near, places, blends = work.near[n], work.places[n], work.blends[n]
        along, here = work.along[bundle, n], n * WIDTH
        spoken, listened = load(said, here), load(heard, here)
        sums = alike(0.0, spoken)
        for k in range(work.own[n]):
            there, row, blend = near[k] * WIDTH, places[k], blends[k]
            other = load(heard, there)
            passes = filtered(table, row, blend, 0)
            sums = sums + passes * other
            store(to_said, there, load(to_said, there) + passes * listened)
            both = spoken * other + listened * load(said, there)
            along[k] += total(filtered(table, row, blend, ROWS) * both)
        store(to_said, n * WIDTH, load(to_said, n * WIDTH) + sums)


@compiled(inner=True)
def _stretch(task: int, weights: Weights, work: Workspace) -> None:
    """Nothing but that derivative, in the first layer: what was said there does not change."""
    bundle, _, first, last = share_of(task, work)
    table, said = weights.tables[0, bundle], work.said[0, bundle].reshape(-1)
    heard = work.heard[0, bundle].reshape(-1)
    for n in range(first, last):
        near, places, blends = work.near[n], work.places[n], work.blends[n]
        along, here = work.along[bundle, n], n * WIDTH
        spoken, listened = load(said, here), load(heard, here)
        for k in range(work.own[n]):
            there = near[k] * WIDTH
            both = spoken * load(heard, there) + listened * load(said, there)
            along[k] += total(filtered(table, places[k], blends[k], ROWS) * both)


@compiled(inner=True)
def _forward(
    layer: int,
    block: int,
    atoms: tuple[int, int],
    index: Array,
    weights: Weights,
    work: Workspace,
) -> None:
    """From what the atoms of a block hear to what they say next."""
    change, rises = work.invariants[block], work.rises[layer, block].reshape(-1)
    width, n_features = change.shape
    heard, hidden = work.scratch.heard, work.scratch.hidden
    add_shares(work, block * width, heard)
    multiply_into(heard, weights.inner[layer], hidden)
    flat = hidden.reshape(-1)
    for lane in range(0, n_features, WIDTH):
        bias = load(weights.inner_bias[layer], lane)
        alone, _ = shifted_softplus(bias)
        for place in range(width):
            here = place * n_features + lane
            value, rise = shifted_softplus(load(flat, here) + bias)
            store(flat, here, value - alone)
            store(rises, here, rise)
    if layer == 0:
        multiply_into(hidden, weights.outer[layer], change)
    else:
        add_product(hidden, weights.outer[layer], change)
    if layer + 1 < len(weights.speak):
        for bundle in range(n_features // WIDTH):
            said = work.said[layer + 1, bundle, block * width : (block + 1) * width]
            multiply_into(change, weights.speak[layer + 1, bundle : bundle + 1], said)
            for place in range(atoms[1] - atoms[0]):
                start = weights.start[layer + 1, index[atoms[0] + place]]
                add(start[bundle * WIDTH : (bundle + 1) * WIDTH], said[place])


@compiled(inner=True)
def _listen_back(layer: int, block: int, weights: Weights, work: Workspace) -> None:
    """From the adjoint of what has changed in a block to that of what was heard."""
    change = work.invariants[block]
    width, hidden = len(change), work.scratch.hidden
    multiply_into(change, weights.outer_back[layer], hidden)
    scale(work.rises[layer, block], hidden)
    for bundle in range(work.heard.shape[1]):
        heard = work.heard[layer % 2, bundle, block * width : (block + 1) * width]
        multiply_into(hidden, weights.inner_back[layer, bundle : bundle + 1], heard)


@compiled(placed=True)
def forward(stage: int, block: int, inputs: Inputs, weights: Weights, work: Workspace) -> None:
    """A stage on the way to energies, of 2 I + 1: pairs and atoms in turns; see `sweep`."""
    index, (blocks, width, _) = inputs.species, work.invariants.shape
    atoms = (block * width, min((block + 1) * width, len(index)))
    if stage == 0:
        for n in range(atoms[0], atoms[1]):
            look(n, inputs, weights, work)
            start = weights.start[0, index[n]]
            for bundle in range(len(work.along)):
                copy(start[bundle * WIDTH : (bundle + 1) * WIDTH], work.said[0, bundle, n])
                clear(work.along[bundle, n])
        approach(atoms, inputs, weights, work)
    elif stage % 2 == 1:
        first, last = tasks_of(block, blocks, work)
        for task in range(first, last):
            _hear(stage // 2, task, weights, work)
    else:
        _forward(stage // 2 - 1, block, atoms, index, weights, work)


@compiled(placed=True)
def backward(stage: int, block: int, inputs: Inputs, weights: Weights, work: Workspace) -> None:
    """A stage from there to forces: what is left of the last layer, and 2 I + 1 more."""
    n_layers, (blocks, width, _) = len(weights.speak), work.invariants.shape
    atoms = (block * width, min((block + 1) * width, len(inputs.species)))
    way = stage - 2 * n_layers
    layer = n_layers - (way + 1) // 2
    if way == 0:
        read(block, inputs.species, weights, work)
    elif way == 2 * n_layers + 1:
        for n in range(atoms[0], atoms[1]):
            push(n, inputs.reverse, work)
    elif way % 2 == 1:
        first, last = tasks_of(block, blocks, work)
        for task in range(first, last):
            if layer > 0:
                _hear_back(layer, task, weights, work)
            else:
                _stretch(task, weights, work)
    elif layer > 0:
        adjoint = work.scratch.heard
        add_shares(work, block * width, adjoint)
        add_product(adjoint, weights.speak_back[layer], work.invariants[block])
    else:
        _point(atoms, work)
    if way % 2 == 0 and layer > 0:
        _listen_back(layer - 1, block, weights, work)


@compiled(inner=True)
def _point(atoms: tuple[int, int], work: Workspace) -> None:
    """Adds derivatives by distances to those by pair vectors."""
    for n in range(atoms[0], atoms[1]):
        for k in range(work.own[n]):
            sums = 0.0
            for bundle in range(len(work.along)):
                sums += work.along[bundle, n, k]
            for axis in range(3):
                work.slope[n, work.slots[n, k], axis] += sums * work.pairs[n, k, axis]
