"""SchNet in a few loops over atoms: energies and forces, nothing written per pair.

What `mdlearn.potentials.schnet` computes, and its derivative by hand. Every pair stands in the rows
of both its atoms at the same distance. So adjoints go back as features came, by the same sum over
neighbors through the same filters; and one of both atoms finds the slope of the energy along the
pair, for what they say to each other.
"""

from __future__ import annotations

from typing import NamedTuple

from mdlearn.jit import at, compiled
from mdlearn.lanes import WIDTH, alike, load, store, total
from mdlearn.matrices import add_product, multiply_into
from mdlearn.potentials.kernels.activation import shifted_softplus
from mdlearn.potentials.kernels.atoms import look, push, read
from mdlearn.potentials.kernels.rows import Array, add, clear, copy, scale
from mdlearn.potentials.kernels.spline import ROWS, approach, filtered


class Weights(NamedTuple):
    """The network as the loops have it, in one precision; axes as in `layout`, F by `WIDTH`."""

    cutoff: float
    hidden: Array
    """(F, H), of the head, as are"""
    hidden_back: Array
    """(H, F)"""
    hidden_bias: Array
    """(Z, H)"""
    out: Array
    """(H,) and"""
    linear: Array
    """(F,)."""
    wall: Array
    """(Z, Z) float64 Å, where walls begin."""
    stiffness: float
    """Of the wall, eV."""
    reference: Array
    """(Z,) float64 eV, energies of isolated atoms."""
    crowding: float
    """Of knots at short distances, see `spline.approach`."""
    tables: Array
    """(I, F/32, (intervals + 5) 32), see `spline`."""
    start: Array
    """(I, Z, F), what the elements say before anything has changed."""
    speak: Array
    """(I, F, F), from what has changed to what else is said."""
    speak_back: Array
    inner: Array
    """(I, F, F), from what is heard to the hidden layer,"""
    inner_back: Array
    inner_bias: Array
    """(I, F),"""
    outer: Array
    """(I, F, F), and from there to the change."""
    outer_back: Array


class Scratch(NamedTuple):
    """What a thread writes and reads within a stage of a block. Every thread has its own."""

    heard: Array
    """(W, F); backward, the adjoint of what was said,"""
    hidden: Array
    """(W, F), and the hidden layer."""
    head: Array
    """(W, H), that of the head."""


class Workspace(NamedTuple):
    """What stands between the loops; made once for a number of atoms and neighbors.

    Rows of atoms are filled up to full blocks, B W.
    """

    within: Array
    """(N,) int64, neighbors within the cutoff,"""
    slots: Array
    """(N, K) int64, and where they are listed."""
    pairs: Array
    """(N, K, 4) float64, directions and distances of these,"""
    own: Array
    """(N,) int64, how many of them, the first, are pairs that the atom looks after,"""
    near: Array
    """(N, K) int64, which atoms they are,"""
    places: Array
    """(N, K) int64, where their filters stand in a table,"""
    blends: Array
    """(N, K, 10), how these are blended,"""
    along: Array
    """(N, K) float64 eV/Å, and the derivative of the energy by distances of the atom's own."""
    said: Array
    """(I, B W, F)"""
    heard: Array
    """(2, B W, F), adjoints of what is heard in a layer, and in the one before it."""
    rises: Array
    """(I, B, W, F), derivatives of the hidden layer."""
    invariants: Array
    """(B, W, F), what has changed in the features; then its adjoint."""
    slope: Array
    """(N, K, 3) float64 eV/Å, derivatives of the energy by pair vectors; zero beyond the cutoff."""
    energies: Array
    """(N,) float64 eV."""
    forces: Array
    """(N, 3) float64 eV/Å."""
    virials: Array
    """(N, 3, 3) float64 eV."""
    scratch: Scratch


@compiled(merge=True)
def _gather(
    layer: int,
    atoms: tuple[int, int],
    weights: Weights,
    work: Workspace,
    given: Array,
    gathered: Array,
) -> None:
    """Sums over the neighbors of some atoms, sum_k W(r_k) given[j], in rows (W F,).

    What is said becomes what is heard; and the adjoint of what is heard that of what is said.
    """
    n_features = work.said.shape[2]
    for bundle in range(n_features // WIDTH):
        table, lane = weights.tables[layer, bundle], bundle * WIDTH
        for n in range(atoms[0], atoms[1]):
            near, places, blends = work.near[n], work.places[n], work.blends[n]
            sums = alike(0.0, load(given, lane))
            for k in range(work.within[n]):
                passed = load(given, near[k] * n_features + lane)
                sums = sums + filtered(table, places[k], blends[k], 0) * passed
            store(gathered, (n - atoms[0]) * n_features + lane, sums)


@compiled(merge=True)
def _stretch(layer: int, atoms: tuple[int, int], weights: Weights, work: Workspace) -> None:
    """Adds the derivative of the energy by distances over which both atoms of a pair were heard."""
    n_features = work.said.shape[2]
    said, heard = work.said[layer].reshape(-1), work.heard[layer % 2].reshape(-1)
    for bundle in range(n_features // WIDTH):
        table, lane = weights.tables[layer, bundle], bundle * WIDTH
        for n in range(atoms[0], atoms[1]):
            near, places, blends = work.near[n], work.places[n], work.blends[n]
            along, here = work.along[n], n * n_features + lane
            spoken, listened = load(said, here), load(heard, here)
            for k in range(work.own[n]):
                there = near[k] * n_features + lane
                both = spoken * load(heard, there) + listened * load(said, there)
                along[k] += total(filtered(table, places[k], blends[k], ROWS) * both)


@compiled(merge=True)
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
    clear(heard)
    _gather(layer, atoms, weights, work, work.said[layer].reshape(-1), heard.reshape(-1))
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
        said = work.said[layer + 1][block * width : (block + 1) * width]
        multiply_into(change, weights.speak[layer + 1], said)
        for n in range(atoms[0], atoms[1]):
            add(weights.start[layer + 1, index[n]], said[n - atoms[0]])


@compiled(merge=True)
def _listen_back(layer: int, block: int, weights: Weights, work: Workspace) -> None:
    """From the adjoint of what has changed in a block to that of what was heard."""
    change = work.invariants[block]
    width, hidden = len(change), work.scratch.hidden
    multiply_into(change, weights.outer_back[layer], hidden)
    scale(work.rises[layer, block], hidden)
    heard = work.heard[layer % 2][block * width : (block + 1) * width]
    multiply_into(hidden, weights.inner_back[layer], heard)


@compiled(placed=True)
def forward(stage: int, block: int, places: int, known: int, room: int) -> None:
    """A stage on the way to energies, of I + 1; see `sweep`."""
    inputs, weights, work = at(places), at(known), at(room)
    index, width = inputs.species, work.invariants.shape[1]
    atoms = (block * width, min((block + 1) * width, len(index)))
    if stage == 0:
        for n in range(atoms[0], atoms[1]):
            look(n, inputs, weights, work)
            copy(weights.start[0, index[n]], work.said[0, n])
            clear(work.along[n])
        approach(atoms, inputs, weights, work)
    else:
        _forward(stage - 1, block, atoms, index, weights, work)


@compiled(placed=True)
def backward(stage: int, block: int, places: int, known: int, room: int) -> None:
    """A stage from there to forces: what is left of the last layer, and I + 1 more."""
    inputs, weights, work = at(places), at(known), at(room)
    n_layers, width = len(weights.speak), work.invariants.shape[1]
    atoms = (block * width, min((block + 1) * width, len(inputs.species)))
    layer = 2 * n_layers - stage
    if layer == n_layers:
        read(block, inputs.species, weights, work)
    elif layer >= 0:
        _stretch(layer, atoms, weights, work)
        if layer > 0:
            adjoint = work.scratch.heard
            clear(adjoint)
            heard = work.heard[layer % 2].reshape(-1)
            _gather(layer, atoms, weights, work, heard, adjoint.reshape(-1))
            add_product(adjoint, weights.speak_back[layer], work.invariants[block])
        else:
            _point(atoms, work)
    else:
        for n in range(atoms[0], atoms[1]):
            push(n, inputs.reverse, work)
    if layer > 0:
        _listen_back(layer - 1, block, weights, work)


@compiled(merge=True)
def _point(atoms: tuple[int, int], work: Workspace) -> None:
    """Adds derivatives by distances to those by pair vectors."""
    for n in range(atoms[0], atoms[1]):
        for k in range(work.own[n]):
            for axis in range(3):
                along = work.along[n, k] * work.pairs[n, k, axis]
                work.slope[n, work.slots[n, k], axis] += along
