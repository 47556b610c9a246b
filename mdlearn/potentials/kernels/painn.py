"""PaiNN in a few loops over atoms: energies and forces, nothing written per pair.

What `mdlearn.potentials.painn` computes, and its derivative by hand. What an atom says to all its
neighbors are 5F numbers: what is heard by scalars, by vectors along the line, and its own vectors.
The way back is a gather, too, of the adjoints of 4F numbers that are heard; and one of the atoms of
a pair finds the derivative by it, as in `kernels.schnet`.
"""

from __future__ import annotations

from mdlearn.jit import at, compiled
from mdlearn.lanes import WIDTH, alike, load, root, store, total
from mdlearn.matrices import add_product, multiply_into
from mdlearn.potentials.kernels.activation import silu
from mdlearn.potentials.kernels.atoms import look, push, read
from mdlearn.potentials.kernels.painn_layout import Weights, Workspace
from mdlearn.potentials.kernels.pair import push_pair
from mdlearn.potentials.kernels.rows import Array, add, clear, copy, scale
from mdlearn.potentials.kernels.spline import ROWS, approach, filtered


@compiled(merge=True)
def _hear(
    layer: int,
    atoms: tuple[int, int],
    weights: Weights,
    work: Workspace,
    scalars: Array,
    vectors: Array,
) -> None:
    """Adds what some atoms hear to scalars (W F,) and vectors (3 W F,)."""
    n = weights.own.shape[2]
    span = len(scalars)
    said = work.said[layer].reshape(-1)
    for bundle in range(n // WIDTH):
        tables, lane = weights.tables[layer, bundle], bundle * WIDTH
        plain, along, across = tables[0], tables[1], tables[2]
        for atom in range(atoms[0], atoms[1]):
            near, places, blends = work.near[atom], work.places[atom], work.blends[atom]
            pairs = work.pairs[atom]
            here = (atom - atoms[0]) * n + lane
            s, x = load(scalars, here), load(vectors, here)
            y, z = load(vectors, span + here), load(vectors, 2 * span + here)
            for k in range(work.within[atom]):
                place, blend, there = places[k], blends[k], near[k] * 5 * n + lane
                s = s + filtered(plain, place, blend, 0) * load(said, there)
                straight = filtered(along, place, blend, 0) * load(said, there + n)
                x = x + pairs[k, 0] * straight
                y = y + pairs[k, 1] * straight
                z = z + pairs[k, 2] * straight
                if layer > 0:
                    turned = filtered(across, place, blend, 0)
                    x = x + turned * load(said, there + 2 * n)
                    y = y + turned * load(said, there + 3 * n)
                    z = z + turned * load(said, there + 4 * n)
            store(scalars, here, s)
            store(vectors, here, x)
            store(vectors, span + here, y)
            store(vectors, 2 * span + here, z)


@compiled(merge=True)
def _gather_back(
    layer: int, atoms: tuple[int, int], weights: Weights, work: Workspace, adjoint: Array
) -> None:
    """From what others heard of some atoms: the adjoint of what these said, in rows (W 5F,).

    Directions are opposite to those that the listener sees.
    """
    n = weights.own.shape[2]
    heard = work.heard[layer % 2].reshape(-1)
    for bundle in range(n // WIDTH):
        tables, lane = weights.tables[layer, bundle], bundle * WIDTH
        plain, along, across = tables[0], tables[1], tables[2]
        for atom in range(atoms[0], atoms[1]):
            near, places, blends = work.near[atom], work.places[atom], work.blends[atom]
            pairs = work.pairs[atom]
            to_a = alike(0.0, load(heard, lane))
            to_b, to_x, to_y, to_z = to_a, to_a, to_a, to_a
            for k in range(work.within[atom]):
                place, blend, there = places[k], blends[k], near[k] * 4 * n + lane
                x, y = load(heard, there + n), load(heard, there + 2 * n)
                z = load(heard, there + 3 * n)
                to_a = to_a + filtered(plain, place, blend, 0) * load(heard, there)
                line = pairs[k, 0] * x + pairs[k, 1] * y + pairs[k, 2] * z
                to_b = to_b - filtered(along, place, blend, 0) * line
                turned = filtered(across, place, blend, 0)
                to_x, to_y, to_z = to_x + turned * x, to_y + turned * y, to_z + turned * z
            here = (atom - atoms[0]) * 5 * n + lane
            store(adjoint, here, to_a)
            store(adjoint, here + n, to_b)
            store(adjoint, here + 2 * n, to_x)
            store(adjoint, here + 3 * n, to_y)
            store(adjoint, here + 4 * n, to_z)


@compiled(merge=True)
def _bend(layer: int, atoms: tuple[int, int], weights: Weights, work: Workspace) -> None:
    """Adds the derivative of the energy by pairs along which both of their atoms were heard.

    With the listener's direction u to the speaker, E = W s·a + W' (u·x) b + W" x·v for what is said
    a, b and v, and the adjoints s and x of what is heard. The other atom sees -u.
    """
    n = weights.own.shape[2]
    said, heard = work.said[layer].reshape(-1), work.heard[layer % 2].reshape(-1)
    for bundle in range(n // WIDTH):
        tables, lane = weights.tables[layer, bundle], bundle * WIDTH
        plain, along, across = tables[0], tables[1], tables[2]
        for atom in range(atoms[0], atoms[1]):
            near, places, blends = work.near[atom], work.places[atom], work.blends[atom]
            pairs, bent = work.pairs[atom], work.bent[atom]
            own, ear = atom * 5 * n + lane, atom * 4 * n + lane
            for k in range(work.own[atom]):
                place, blend = places[k], blends[k]
                other, far = near[k] * 5 * n + lane, near[k] * 4 * n + lane
                scalar = load(heard, ear) * load(said, other)
                scalar = scalar + load(heard, far) * load(said, own)
                rise = filtered(plain, place, blend, ROWS) * scalar
                b, back = load(said, other + n), load(said, own + n)
                x = b * load(heard, ear + n) - back * load(heard, far + n)
                y = b * load(heard, ear + 2 * n) - back * load(heard, far + 2 * n)
                z = b * load(heard, ear + 3 * n) - back * load(heard, far + 3 * n)
                line = pairs[k, 0] * x + pairs[k, 1] * y + pairs[k, 2] * z
                rise = rise + filtered(along, place, blend, ROWS) * line
                value = filtered(along, place, blend, 0)
                bent[k, 1] += total(value * x)
                bent[k, 2] += total(value * y)
                bent[k, 3] += total(value * z)
                if layer > 0:
                    turned = alike(0.0, rise)
                    for axis in range(1, 4):
                        speaks, hears = (1 + axis) * n, axis * n
                        turned = turned + load(heard, ear + hears) * load(said, other + speaks)
                        turned = turned + load(heard, far + hears) * load(said, own + speaks)
                    rise = rise + filtered(across, place, blend, ROWS) * turned
                bent[k, 0] += total(rise)


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


@compiled(merge=True)
def _forward(
    layer: int,
    block: int,
    atoms: tuple[int, int],
    index: Array,
    weights: Weights,
    work: Workspace,
) -> None:
    """From what the atoms of a block hear to their scalars and vectors, and what they say next."""
    change, vectors = work.invariants[block], work.vectors[layer, block]
    width, n = change.shape
    if layer == 0:
        clear(change)
        clear(vectors)
    else:
        copy(work.vectors[layer - 1, block], vectors)
    _hear(layer, atoms, weights, work, change.reshape(-1), vectors.reshape(-1))
    mixed = work.mixed[layer, block]
    multiply_into(vectors, weights.mix[layer], mixed)
    scratch = work.scratch
    lengths, products, response = scratch.lengths, scratch.products, scratch.hidden
    _measure(mixed.reshape(-1), weights.softness, n, lengths, products)
    multiply_into(change, weights.own[layer], response)
    add_product(lengths, weights.lengths[layer], response)
    members, rises = index[atoms[0] : atoms[1]], work.rises[layer, block]
    _activate(response, weights.own_start[layer], members, rises, 1.0)
    gates = work.gates[layer, block]
    multiply_into(response, weights.gates[layer], gates)
    add_product(response, weights.scalars[layer], change)
    for place in range(width):
        gate = gates[place]
        add(weights.gates_bias[layer], gate)
        for c in range(n):
            change[place, c] += gate[c] * products[place, c]
        for axis in range(3):
            vector, one = vectors[axis * width + place], mixed[axis * width + place]
            for c in range(n):
                vector[c] += gate[n + c] * one[c]
    if layer + 1 < len(weights.own):
        _speak(layer + 1, block, members, atoms[0], weights, work)


@compiled(merge=True)
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


@compiled(merge=True)
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
        said = work.said[layer, first + place]
        copy(spoken[place, : 2 * n], said[: 2 * n])
        for axis in range(3):
            vector = vectors[axis * width + place]
            for c in range(n):
                said[(2 + axis) * n + c] = spoken[place, 2 * n + c] * vector[c]


@compiled(merge=True)
def _update_back(
    layer: int, block: int, atoms: tuple[int, int], weights: Weights, work: Workspace
) -> None:
    """From adjoints of scalars and vectors after a layer to those of what was heard in it."""
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
    add_product(to_gates, weights.gates_back[layer], inner)
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
    add_product(inner, weights.own_back[layer], change)
    add_product(to_mixed, weights.mix_back[layer], turning)
    for atom in range(atoms[0], atoms[1]):
        place, heard = atom - atoms[0], work.heard[layer % 2, atom]
        copy(change[place], heard[:n])
        for axis in range(3):
            copy(turning[axis * width + place], heard[(1 + axis) * n : (2 + axis) * n])


@compiled(merge=True)
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


@compiled(merge=True)
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
def forward(stage: int, block: int, places: int, known: int, room: int) -> None:
    """A stage on the way to energies, of I + 1; see `sweep`."""
    inputs, weights, work = at(places), at(known), at(room)
    index, n, width = inputs.species, weights.own.shape[2], work.invariants.shape[1]
    atoms = (block * width, min((block + 1) * width, len(index)))
    if stage == 0:
        for atom in range(atoms[0], atoms[1]):
            look(atom, inputs, weights, work)
            copy(weights.first[index[atom]], work.said[0, atom, : 2 * n])
            clear(work.bent[atom])
        approach(atoms, inputs, weights, work)
    else:
        _forward(stage - 1, block, atoms, index, weights, work)


@compiled(placed=True)
def backward(stage: int, block: int, places: int, known: int, room: int) -> None:
    """A stage from there to forces: what is left of the last layer, and I + 1 more."""
    inputs, weights, work = at(places), at(known), at(room)
    n_layers, width = len(weights.own), work.invariants.shape[1]
    atoms = (block * width, min((block + 1) * width, len(inputs.species)))
    layer = 2 * n_layers - stage
    if layer == n_layers:
        read(block, inputs.species, weights, work)
        clear(work.turning[block])
    elif layer >= 0:
        _bend(layer, atoms, weights, work)
        if layer > 0:
            adjoint = work.scratch.said
            clear(adjoint)
            _gather_back(layer, atoms, weights, work, adjoint.reshape(-1))
            _speak_back(layer, block, adjoint, weights, work)
        else:
            _point(atoms, work)
    else:
        for atom in range(atoms[0], atoms[1]):
            push(atom, inputs.reverse, work)
    if layer > 0:
        _update_back(layer - 1, block, atoms, weights, work)


@compiled(merge=True)
def _point(atoms: tuple[int, int], work: Workspace) -> None:
    """From derivatives by distances and directions to those by pair vectors."""
    for atom in range(atoms[0], atoms[1]):
        for k in range(work.own[atom]):
            bent, slope = work.bent[atom, k], work.slope[atom, work.slots[atom, k]]
            push_pair(work.pairs[atom, k], bent[0], (bent[1], bent[2], bent[3]), slope)
