"""PaiNN in a few loops over atoms: energies and forces, nothing written per pair.

What `mdlearn.potentials.painn` computes, and its derivative by hand. What atoms do by themselves
stands here, and what pairs do in `painn_pairs`; stages of one and of the other take turns.
"""

from __future__ import annotations

from mdlearn.jit import compiled
from mdlearn.lanes import WIDTH, alike, load, root, store
from mdlearn.matrices import add_product, multiply_into
from mdlearn.potentials.kernels.activation import silu
from mdlearn.potentials.kernels.atoms import Inputs, look, push, read
from mdlearn.potentials.kernels.painn_layout import Weights, Workspace
from mdlearn.potentials.kernels.painn_pairs import hear, hear_back, keep_seen, see, see_back
from mdlearn.potentials.kernels.rows import Array, add, clear, copy, scale
from mdlearn.potentials.kernels.spline import add_shares, approach, tasks_of


@compiled(inner=True)
def _activate(values: Array, start: Array, index: Array, rises: Array, alone: float) -> None:
    """Rows (A, F) -> silu(v + start) - alone silu(start), and derivatives, for each of some atoms.

    Args:
        values: (A, F), replaced by the result.
        start: (Z, F), of the elements.
        index: (A,) ranks of the elements.
        rises: (A, F), filled with derivatives.
        alone: one or zero.
    """
    n = values.shape[1]
    rows, starts, slopes = values.reshape(-1), start.reshape(-1), rises.reshape(-1)
    for atom in range(len(index)):
        for lane in range(0, n, WIDTH):
            here = atom * n + lane
            first = load(starts, index[atom] * n + lane)
            value, rise = silu(load(rows, here) + first)
            rest, _ = silu(first)
            store(rows, here, value - alone * rest)
            store(slopes, here, rise)


@compiled(inner=True)
def _forward(
    layer: int,
    block: int,
    atoms: tuple[int, int],
    index: Array,
    weights: Weights,
    work: Workspace,
) -> None:
    """From what the atoms of a block see or hear to their scalars and vectors; what they say."""
    change, vectors = work.invariants[block], work.vectors[layer, block]
    width, n = change.shape
    mixed, scratch = work.mixed[layer, block], work.scratch
    lengths, products, response = scratch.lengths, scratch.products, scratch.hidden
    if layer == 0:
        scalars, directions = scratch.seen[:width], scratch.seen[width:]
        multiply_into(scalars, weights.seen_scalars, change)
        multiply_into(scalars, weights.seen_own, response)
        multiply_into(directions, weights.seen_vectors, vectors)
        multiply_into(directions, weights.seen_mix, mixed)
    else:
        _listen(layer, block, work)
        multiply_into(change, weights.own[layer], response)
        multiply_into(vectors, weights.mix[layer], mixed)
    _measure(mixed.reshape(-1), weights.softness, n, lengths, products)
    add_product(lengths, weights.lengths[layer], response)
    members, rises = index[atoms[0] : atoms[1]], work.rises[layer, block]
    _activate(response, weights.own_start[layer], members, rises, 1.0)
    gates, last = work.gates[layer, block], layer + 1 == len(weights.own)
    used = n if last else 2 * n  # nobody asks for the last vectors
    multiply_into(response, weights.gates[layer], gates[:, :used])
    add_product(response, weights.scalars[layer], change)
    for place in range(width):
        gate = gates[place]
        add(weights.gates_bias[layer, :used], gate[:used])
        for c in range(n):
            change[place, c] += gate[c] * products[place, c]
        for axis in range(0 if last else 3):
            vector, one = vectors[axis * width + place], mixed[axis * width + place]
            for c in range(n):
                vector[c] += gate[n + c] * one[c]
    if not last:
        _speak(layer + 1, block, members, atoms[0], weights, work)


@compiled(inner=True)
def _listen(layer: int, block: int, work: Workspace) -> None:
    """Adds what the atoms of a block hear to their scalars and vectors."""
    change, vectors = work.invariants[block], work.vectors[layer, block]
    width, n = change.shape
    copy(work.vectors[layer - 1, block], vectors)
    heard = work.scratch.said
    add_shares(work, block * width, heard)
    for place in range(width):
        add(heard[place, :n], change[place])
        for axis in range(3):
            add(heard[place, (1 + axis) * n : (2 + axis) * n], vectors[axis * width + place])


@compiled(inner=True)
def _measure(mixed: Array, softness: float, n: int, lengths: Array, products: Array) -> None:
    """Soft lengths of V v, and U v · V v, from rows (3 W 2F,) of U v and V v."""
    size = lengths.size
    long, product = lengths.reshape(-1), products.reshape(-1)
    for place in range(len(lengths)):
        for lane in range(0, n, WIDTH):
            here = place * 2 * n + lane
            square = alike(0.0, load(mixed, here))
            dot = square
            for axis in range(3):
                one = load(mixed, 2 * axis * size + here)
                other = load(mixed, 2 * axis * size + here + n)
                square, dot = square + other * other, dot + one * other
            store(long, place * n + lane, square / (root(square + softness**2) + softness))
            store(product, place * n + lane, dot)


@compiled(inner=True)
def _speak(
    layer: int, block: int, members: Array, first: int, weights: Weights, work: Workspace
) -> None:
    """What the atoms of a block say in a layer after the first, from their scalars and vectors."""
    change, vectors = work.invariants[block], work.vectors[layer - 1, block]
    width, n = change.shape
    hidden, spoken = work.scratch.hidden, work.scratch.spoken
    multiply_into(change, weights.speak_hidden[layer], hidden)
    _activate(hidden, weights.speak_start[layer], members, work.speak_rises[layer, block], 0.0)
    multiply_into(hidden, weights.speak_out[layer], spoken)
    loudness = work.loudness[layer, block]
    for place in range(width):
        add(weights.speak_bias[layer], spoken[place])
        copy(spoken[place, 2 * n :], loudness[place])
    for place in range(len(members)):
        for bundle in range(n // WIDTH):
            said, lane = work.said[layer - 1, bundle, first + place], bundle * WIDTH
            store(said, 0, load(spoken[place], lane))
            store(said, WIDTH, load(spoken[place], n + lane))
            loud = load(spoken[place], 2 * n + lane)
            for axis in range(3):
                vector = load(vectors[axis * width + place], lane)
                store(said, (2 + axis) * WIDTH, loud * vector)


@compiled(inner=True)
def _update_back(
    layer: int, block: int, atoms: tuple[int, int], weights: Weights, work: Workspace
) -> None:
    """From adjoints of scalars and vectors after a layer to those of what was seen or heard."""
    change, turning = work.invariants[block], work.turning[block]
    width, n = change.shape
    mixed, gates = work.mixed[layer, block], work.gates[layer, block]
    to_gates, inner = work.scratch.gates, work.scratch.hidden
    to_lengths, to_mixed = work.scratch.lengths, work.scratch.mixed
    for place in range(width):
        for lane in range(0, n, WIDTH):
            to_product = load(change[place], lane)
            product = to_vector = alike(0.0, to_product)
            for row in range(place, 3 * width, width):
                one, other = load(mixed[row], lane), load(mixed[row], n + lane)
                product = product + one * other
                to_vector = to_vector + load(turning[row], lane) * one
            store(to_gates[place], lane, to_product * product)
            store(to_gates[place], n + lane, to_vector)
    multiply_into(change, weights.scalars_back[layer], inner)
    used = n if layer + 1 == len(weights.own) else 2 * n
    add_product(to_gates[:, :used], weights.gates_back[layer][:, :used], inner)
    scale(work.rises[layer, block], inner)
    multiply_into(inner, weights.lengths_back[layer], to_lengths)
    _mix_back(
        mixed.reshape(-1),
        gates.reshape(-1),
        change.reshape(-1),
        turning.reshape(-1),
        to_lengths.reshape(-1),
        weights.softness,
        n,
        to_mixed.reshape(-1),
    )
    if layer == 0:
        scalars, directions = work.scratch.seen[:width], work.scratch.seen[width:]
        multiply_into(change, weights.seen_scalars_back, scalars)
        add_product(inner, weights.seen_own_back, scalars)
        multiply_into(turning, weights.seen_vectors_back, directions)
        add_product(to_mixed, weights.seen_mix_back, directions)
        keep_seen(atoms, weights.radial, work)
        return
    add_product(inner, weights.own_back[layer], change)
    add_product(to_mixed, weights.mix_back[layer], turning)
    for atom in range(atoms[0], atoms[1]):
        place = atom - atoms[0]
        for bundle in range(n // WIDTH):
            heard, lane = work.heard[layer % 2, bundle, atom], bundle * WIDTH
            store(heard, 0, load(change[place], lane))
            for axis in range(3):
                store(heard, (1 + axis) * WIDTH, load(turning[axis * width + place], lane))


@compiled(inner=True)
def _mix_back(
    mixed: Array,
    gates: Array,
    change: Array,
    turning: Array,
    to_lengths: Array,
    softness: float,
    n: int,
    out: Array,
) -> None:
    """The adjoint of U v and V v, in rows (3 W 2F,), from those of what was made of them."""
    size = len(change)
    for here in range(0, size, WIDTH):
        place = here // n * 2 * n + here % n  # in rows that are twice as wide
        square = alike(0.0, load(mixed, place))
        for axis in range(3):
            other = load(mixed, 2 * axis * size + place + n)
            square = square + other * other
        shrink = load(to_lengths, here) / root(square + softness**2)
        to_product = load(change, here) * load(gates, place)
        gate = load(gates, place + n)
        for axis in range(3):
            there = 2 * axis * size + place
            one, other = load(mixed, there), load(mixed, there + n)
            back = load(turning, axis * size + here)
            store(out, there, gate * back + to_product * other)
            store(out, there + n, to_product * one + shrink * other)


@compiled(inner=True)
def _speak_back(layer: int, block: int, adjoint: Array, weights: Weights, work: Workspace) -> None:
    """From the adjoint of what the atoms of a block said (W, 5F) to scalars and vectors."""
    change, turning = work.invariants[block], work.turning[block]
    width, n = change.shape
    vectors, loudness = work.vectors[layer - 1, block], work.loudness[layer, block]
    hidden, spoken = work.scratch.hidden, work.scratch.spoken
    for place in range(width):
        copy(adjoint[place, : 2 * n], spoken[place, : 2 * n])
        for lane in range(0, n, WIDTH):
            loud = load(loudness[place], lane)
            sums = alike(0.0, loud)
            for axis in range(3):
                row, back = axis * width + place, load(adjoint[place], (2 + axis) * n + lane)
                sums = sums + back * load(vectors[row], lane)
                store(turning[row], lane, load(turning[row], lane) + back * loud)
            store(spoken[place], 2 * n + lane, sums)
    multiply_into(spoken, weights.speak_out_back[layer], hidden)
    scale(work.speak_rises[layer, block], hidden)
    add_product(hidden, weights.speak_hidden_back[layer], change)


@compiled(placed=True)
def forward(stage: int, block: int, inputs: Inputs, weights: Weights, work: Workspace) -> None:
    """A stage on the way to energies, of 2 I - 1: atoms and pairs in turns; see `sweep`."""
    index, (blocks, width, _) = inputs.species, work.invariants.shape
    atoms = (block * width, min((block + 1) * width, len(index)))
    if stage == 0:
        for atom in range(atoms[0], atoms[1]):
            look(atom, inputs, weights, work)
        approach(atoms, inputs, weights, work)
        for atom in range(atoms[0], atoms[1]):
            for bundle in range(len(work.bent)):
                clear(work.bent[bundle, atom, : work.own[atom]])
        see(atoms, inputs, weights, work)
    if stage % 2 == 0:
        _forward(stage // 2, block, atoms, index, weights, work)
    else:
        begin, end = tasks_of(block, blocks, work)
        for task in range(begin, end):
            hear(stage // 2 + 1, task, weights, work)


@compiled(placed=True)
def backward(stage: int, block: int, inputs: Inputs, weights: Weights, work: Workspace) -> None:
    """A stage from there to forces: what is left of the last layer, and 2 I more."""
    n_layers, (blocks, width, _) = len(weights.own), work.invariants.shape
    atoms = (block * width, min((block + 1) * width, len(inputs.species)))
    way = stage - 2 * (n_layers - 1)
    layer = n_layers - (way + 1) // 2
    if way == 0:
        read(block, inputs.species, weights, work)
        clear(work.turning[block])
    elif way == 2 * n_layers:
        for atom in range(atoms[0], atoms[1]):
            push(atom, inputs.reverse, work)
    elif layer == 0:
        see_back(atoms, inputs.species, weights, work)
    elif way % 2 == 1:
        first, last = tasks_of(block, blocks, work)
        for task in range(first, last):
            hear_back(layer, task, weights, work)
    else:
        adjoint = work.scratch.said
        add_shares(work, block * width, adjoint)
        _speak_back(layer, block, adjoint, weights, work)
    if way % 2 == 0 and layer > 0:
        _update_back(layer - 1, block, atoms, weights, work)
