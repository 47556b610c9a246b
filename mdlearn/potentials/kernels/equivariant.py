"""The default network in a few loops over atoms: energies and forces, nothing written per pair.

What `mdlearn.potentials.equivariant` computes, and its derivative by hand. Harmonics and what
multiplies them are formed where they are used, a pair at a time (`neighborhood`); between the loops
stands what an atom is, never what a pair is (but for distances and radial functions). Linear maps
act on a block of atoms at once. Every atom writes its own rows and nothing else: the same bits
every time, whatever the number of threads. Letters of axes are those of `layout`.
"""

from __future__ import annotations

from mdlearn.jit import compiled
from mdlearn.lanes import WIDTH, load, store
from mdlearn.matrices import add_product, multiply_into
from mdlearn.potentials.kernels.activation import silu
from mdlearn.potentials.kernels.atoms import Inputs, look, push, read
from mdlearn.potentials.kernels.layout import BUNDLE, LANES, Weights, Workspace
from mdlearn.potentials.kernels.neighborhood import (
    expand,
    expand_back,
    hear,
    hear_back,
)
from mdlearn.potentials.kernels.rows import Array, clear
from mdlearn.potentials.kernels.sphere import DEGREES, HARMONICS


@compiled(inner=True)
def multiply(f: Array, g: Array, coupling: Array, couples: Array, fg: Array) -> None:
    """Adds the product of functions on the sphere, (M, C): fg_i += sum G_ijk f_j g_k.

    Columns are a multiple of `WIDTH`. Gaunt coefficients are symmetric; so from the adjoint v of a
    product those of its factors are vg and vf.
    """
    columns = f.shape[1]
    x, y, out = f.reshape(-1), g.reshape(-1), fg.reshape(-1)
    for c in range(0, columns, WIDTH):
        e = 0
        for i in range(HARMONICS):
            total = load(out, i * columns + c)
            while e < len(coupling) and couples[e, 0] == i:
                one, other = couples[e, 1] * columns + c, couples[e, 2] * columns + c
                total = total + coupling[e] * load(x, one) * load(y, other)
                e += 1
            store(out, i * columns + c, total)


@compiled(inner=True)
def _flat(functions: Array) -> Array:
    """(M, W, F) -> (M, W F)."""
    return functions.reshape(HARMONICS, -1)


@compiled(inner=True)
def _forward(
    layer: int, block: int, index: Array, j: Array, weights: Weights, work: Workspace
) -> None:
    """From densities to invariants, and to what the atoms of a block say."""
    n_layers, _, _, width, n = work.product.shape
    atoms = (block * width, min((block + 1) * width, len(index)))
    mixed, product = work.mixed[layer, block], work.product[layer, block]
    seen, told, out = work.seen[block], work.scratch.functions, work.scratch.out
    channels = seen.shape[2]
    if layer > 0:
        hear(layer - 1, atoms, j, weights, work, work.scratch.told, told)
    for degree in range(DEGREES):
        first, last = degree**2, (degree + 1) ** 2
        rows, mix = (last - first) * width, weights.mix[layer, degree]
        multiply_into(seen[first:last].reshape(rows, channels), mix[:, :channels], out[:rows])
        if layer > 0:
            add_product(told[first:last].reshape(rows, n), mix[:, channels:], out[:rows])
        for m in range(first, last):
            for atom in range(atoms[0], atoms[1]):
                place, factors = atom - atoms[0], weights.element[layer, index[atom]]
                product_row = out[(m - first) * width + place]
                for kind in range(3):
                    row, source = mixed[kind, m, place], product_row[kind * n : (kind + 1) * n]
                    weight = factors[kind * n : (kind + 1) * n]
                    for c in range(n):
                        row[c] = source[c] * weight[c]
    f, g, h = mixed[0], mixed[1], mixed[2]
    clear(product)
    multiply(_flat(f), _flat(g), weights.coupling, weights.couples, _flat(product))
    for place in range(width):
        row = work.invariants[block, place, 3 * n * layer : 3 * n * (layer + 1)]
        triple = row[2 * n :]
        clear(triple)
        for c in range(n):
            row[c], row[n + c] = f[0, place, c], product[0, place, c]
        for m in range(HARMONICS):
            for c in range(n):
                triple[c] += product[m, place, c] * h[m, place, c]
    if layer < n_layers - 1:
        _speak(layer, block, index, weights, work)


@compiled(inner=True)
def _speak(layer: int, block: int, index: Array, weights: Weights, work: Workspace) -> None:
    """What the atoms of a block say, from their functions and their invariants."""
    _, _, _, width, n = work.product.shape
    atoms = (block * width, min((block + 1) * width, len(index)))
    plain = work.plain[layer, block]
    functions, product = work.mixed[layer, block, 0], work.product[layer, block]
    for degree in range(DEGREES):
        first, last = degree**2, (degree + 1) ** 2
        rows, speak = (last - first) * width, weights.speak[layer, degree]
        out = plain[first:last].reshape(rows, 2 * n)
        multiply_into(functions[first:last].reshape(rows, n), speak[:, :n], out)
        add_product(product[first:last].reshape(rows, n), speak[:, n:], out)
    given = work.invariants[block, :, 3 * n * layer : 3 * n * (layer + 1)]
    gates = work.scratch.gates
    multiply_into(given, weights.gate[layer], gates)
    for atom in range(atoms[0], atoms[1]):
        place = atom - atoms[0]
        said = weights.said[layer, index[atom]]
        factors, rises = work.gates[layer, atom, 0], work.gates[layer, atom, 1]
        for c in range(0, 2 * n, WIDTH):
            value, rise = silu(load(gates[place], c) + load(weights.gate_bias[layer], c))
            store(factors, c, value + load(said, c))
            store(rises, c, rise)
        for part in range(n // LANES):
            for half in range(2):
                spoken = work.spoken[layer, atom, part, half * BUNDLE : (half + 1) * BUNDLE]
                first = half * n + part * LANES
                for m in range(HARMONICS):
                    for c in range(LANES):
                        spoken[m * LANES + c] = plain[m, place, first + c] * factors[first + c]
                for c in range(LANES):
                    spoken[c] += said[first + c]


@compiled(inner=True)
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
    back, to_product = work.scratch.back, work.scratch.functions
    clear(back)
    clear(to_product)
    invariants = work.invariants[block]
    if layer < n_layers - 1:
        said = work.scratch.said
        clear(said)
        hear_back(layer, atoms, j, weights, work, said)
        _speak_back(layer, block, index, said, weights, work, back[0], to_product)
    for place in range(width):
        row = invariants[place, 3 * n * layer : 3 * n * (layer + 1)]
        for c in range(n):
            back[0, 0, place, c] += row[c]
            to_product[0, place, c] += row[n + c]
        for m in range(HARMONICS):
            for c in range(n):
                to_product[m, place, c] += row[2 * n + c] * mixed[2, m, place, c]
                back[2, m, place, c] = row[2 * n + c] * product[m, place, c]
    for one, other in ((0, 1), (1, 0)):
        multiply(
            _flat(to_product),
            _flat(mixed[other]),
            weights.coupling,
            weights.couples,
            _flat(back[one]),
        )
    given, told = work.scratch.out, work.scratch.row
    clear(given)
    channels = seen.shape[2]
    for degree in range(DEGREES):
        first, last = degree**2, (degree + 1) ** 2
        rows = (last - first) * width
        for m in range(first, last):
            for atom in range(atoms[0], atoms[1]):
                place, factors = atom - atoms[0], weights.element[layer, index[atom]]
                given_row = given[(m - first) * width + place]
                for kind in range(3):
                    row, source = given_row[kind * n : (kind + 1) * n], back[kind, m, place]
                    weight = factors[kind * n : (kind + 1) * n]
                    for c in range(n):
                        row[c] = source[c] * weight[c]
        to_seen = seen[first:last].reshape(rows, channels)
        add_product(given[:rows], weights.seen_back[layer, degree], to_seen)
        if layer > 0:
            multiply_into(given[:rows], weights.told_back[layer, degree], told[:rows])
            for m in range(first, last):
                for atom in range(atoms[0], atoms[1]):
                    told_row = told[(m - first) * width + atom - atoms[0]]
                    for part in range(n // LANES):
                        heard = work.heard[layer - 1, atom, part, m * LANES : (m + 1) * LANES]
                        for c in range(LANES):
                            heard[c] = told_row[part * LANES + c]


@compiled(inner=True)
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
    gates = work.scratch.gates
    clear(gates)
    for atom in range(atoms[0], atoms[1]):
        place = atom - atoms[0]
        factors, rises = work.gates[layer, atom, 0], work.gates[layer, atom, 1]
        for m in range(HARMONICS):
            for c in range(2 * n):
                v = said[m, place, c]
                said[m, place, c] = v * factors[c]
                gates[place, c] += v * plain[m, place, c]
        for c in range(2 * n):
            gates[place, c] *= rises[c]
    invariants = work.invariants[block, :, 3 * n * layer : 3 * n * (layer + 1)]
    add_product(gates, weights.gate_back[layer], invariants)
    for degree in range(DEGREES):
        first, last = degree**2, (degree + 1) ** 2
        rows, speak = (last - first) * width, weights.speak_back[layer, degree]
        given = said[first:last].reshape(rows, 2 * n)
        multiply_into(given, speak[0], to_function[first:last].reshape(rows, n))
        multiply_into(given, speak[1], to_product[first:last].reshape(rows, n))


@compiled(placed=True)
def forward(stage: int, block: int, inputs: Inputs, weights: Weights, work: Workspace) -> None:
    """A stage on the way to energies, of I; see `sweep`."""
    index, j = inputs.species, inputs.j
    n_layers, width = work.product.shape[0], work.product.shape[3]
    if stage == 0:
        atoms = (block * width, min((block + 1) * width, len(index)))
        for n in range(atoms[0], atoms[1]):
            look(n, inputs, weights, work)
        expand(atoms, j, index, weights, work, work.seen[block])
    if stage < n_layers:
        _forward(stage, block, index, j, weights, work)


@compiled(placed=True)
def backward(stage: int, block: int, inputs: Inputs, weights: Weights, work: Workspace) -> None:
    """A stage from there to forces, of I + 1."""
    index, j, seen = inputs.species, inputs.j, work.seen[block]
    n_layers, width = work.product.shape[0], work.product.shape[3]
    atoms = (block * width, min((block + 1) * width, len(index)))
    if stage == n_layers:
        read(block, index, weights, work)
        clear(seen)
    if stage < 2 * n_layers:
        _backward(2 * n_layers - 1 - stage, block, index, j, weights, work, seen)
    if stage == 2 * n_layers - 1:
        expand_back(atoms, j, index, weights, work, seen)
    if stage == 2 * n_layers:
        for n in range(atoms[0], atoms[1]):
            push(n, inputs.reverse, work)
