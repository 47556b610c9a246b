"""The default network in loops for training: energies and forces, and what the weights did to them.

What `kernels.equivariant` computes for dynamics, with two differences. Weights change with every
step, and are packed anew. And what each linear map was given,
and the adjoint of what it made of that, stay behind for all atoms: their products are the gradient
by the weights. Nothing of a pair is kept but its distance and radial functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mdlearn.jit import borrowed, compiled, on_stack
from mdlearn.lanes import WIDTH, fetch, load, load_half, store, total
from mdlearn.matrices import add_product, multiply_into
from mdlearn.meeting import Meeting, meet
from mdlearn.potentials.kernels.activation import silu
from mdlearn.potentials.kernels.atoms import Inputs, look, push
from mdlearn.potentials.kernels.equivariant import multiply
from mdlearn.potentials.kernels.layout import BUNDLE, LANES
from mdlearn.potentials.kernels.learning_layout import Pass, Weights
from mdlearn.potentials.kernels.neighborhood import hear, lay_apart, see, see_back
from mdlearn.potentials.kernels.pair import (
    evaluate_along,
    expand_pair,
    filter_pair,
    push_pair,
    spread_apart,
    to_harmonics,
    weigh,
    weigh_both,
)
from mdlearn.potentials.kernels.rows import Array, clear, copy
from mdlearn.potentials.kernels.sphere import (
    HARMONICS,
    harmonics,
    pull_back,
    tangents,
)


@compiled(inner=True)
def _see(atoms: tuple[int, int], j: Array, index: Array, weights: Weights, work: Pass) -> None:
    """The density of the neighbors of each of some atoms."""
    seen, species = work.seen, len(weights.wall)
    p, y = on_stack(64, seen), on_stack(64, seen)
    density = np.empty((species, BUNDLE), seen.dtype)
    for n in range(atoms[0], atoms[1]):
        see(n, j, index, weights, work, p, y, density)
        for m in range(HARMONICS):
            for b in range(weights.radial):
                for z in range(species):
                    seen[m, n, b * species + z] = weights.norm * density[z, m * LANES + b]


@compiled(inner=True)
def _see_back(atoms: tuple[int, int], j: Array, index: Array, weights: Weights, work: Pass) -> None:
    """Adds the derivative of the energy by pairs, from that by the density."""
    to_seen, species = work.to_seen, len(weights.wall)
    p, y, q = on_stack(64, to_seen), on_stack(64, to_seen), on_stack(64, to_seen)
    density = np.zeros((species, BUNDLE), to_seen.dtype)
    for n in range(atoms[0], atoms[1]):
        for m in range(HARMONICS):
            for b in range(weights.radial):
                for z in range(species):
                    density[z, m * LANES + b] = weights.norm * to_seen[m, n, b * species + z]
        see_back(n, j, index, weights, work, p, y, q, density)


@compiled(inner=True)
def _multiply_pair(p: Array, q: Array, out: Array) -> None:
    """Products of values and of slopes (64,) at both ends of a pair: out (32,)."""
    store(out, 0, load_half(p, 0) * load_half(q, 0))
    slopes = load_half(p, 16) * load_half(q, 16) + load_half(p, 32) * load_half(q, 32)
    store(out, 16, slopes + load_half(p, 48) * load_half(q, 48))


@compiled(inner=True)
def _hear_back(
    layer: int,
    atoms: tuple[int, int],
    forces: bool,
    j: Array,
    weights: Weights,
    work: Pass,
    said: Array,
) -> None:
    """From what others heard of some atoms: the adjoint of what these said, (M, W, 2F).

    That of the filters takes the place of what was said, and the derivative by the pairs is added
    if forces are asked for.
    """
    dtype = said.dtype
    filters = weights.filters[layer]
    parts = len(filters)
    p, y, t = on_stack(64, said), on_stack(128, said), on_stack(112, said)
    here, there = y[:64], y[64:]
    r, rises, sums = on_stack(32, said), on_stack(32, said), on_stack(1024, said)
    product = on_stack(32, said)
    heard, told = np.empty((parts, 64), dtype), np.empty((parts, 64), dtype)
    adjoint = np.empty((parts, 2 * BUNDLE), dtype)
    to_filters = np.empty((parts, 2 * BUNDLE), dtype)
    table, parity = weights.table, weights.table[48:]
    for n in range(atoms[0], atoms[1]):
        clear(adjoint)
        spoken = work.spoken[layer, n]
        clear(to_filters)
        for k in range(work.within[n]):
            pair, slot, basis = work.pairs[n, k], work.slots[n, k], work.basis[n, k]
            harmonics(pair[0], pair[1], pair[2], p, table, y)
            listener = work.heard[layer, j[n, slot]]
            along = 0.0
            if forces:
                tangents(p, table, t)
            for part in range(parts):
                filter_pair(basis, filters[part], r)
                evaluate_along(there, listener[part], listener[part], heard[part])
                evaluate_along(here, spoken[part], spoken[part, BUNDLE:], told[part])
                _multiply_pair(heard[part], told[part], product)
                expand_pair(basis, product, to_filters[part])
                expand_pair(basis, product[16:], to_filters[part, BUNDLE:])
                if forces:
                    filter_pair(basis[16:], filters[part], rises)
                    along += weigh_both(heard[part], told[part], r, rises)
                else:
                    weigh(heard[part], r)
                spread_apart(here, heard[part], adjoint[part])
            if forces:
                to_harmonics(listener, spoken, heard, told, parity, sums)
                across = pull_back(pair[0], pair[1], pair[2], t, sums, table)
                push_pair(pair, along, across, work.slope[n, slot])
        lay_apart(adjoint, n - atoms[0], said)
        copy(to_filters, spoken)


@compiled(inner=True)
def _columns(n: int, dtype: np.dtype[Any]) -> Array:
    """Functions of one atom, filled up with zeros to whole lanes."""
    return np.zeros((HARMONICS, n + -n % WIDTH), dtype)


@compiled(inner=True)
def _forward(
    layer: int, atoms: tuple[int, int], index: Array, j: Array, weights: Weights, work: Pass
) -> None:
    """From densities to invariants, and to what some atoms say."""
    first, after = atoms
    n_layers, n = work.functions.shape[0], work.functions.shape[3] // 2
    seen, channels, dtype = work.seen, work.seen.shape[2], work.seen.dtype
    if layer > 0:
        density = np.empty((len(weights.filters[layer - 1]), BUNDLE), dtype)
        hear(layer - 1, atoms, j, weights, work, density, work.told[layer - 1, :, first:after])
    for m in range(HARMONICS):
        degree, raws = weights.degree[m], work.raw[layer, m, first:after]
        if layer == 0:
            multiply_into(seen[m, first:after], weights.first[degree], raws)
        else:
            mix = weights.mix[layer - 1, degree]
            multiply_into(seen[m, first:after], mix[:, :channels], raws)
            add_product(work.told[layer - 1, m, first:after], mix[:, channels:], raws)
    f, g, fg = _columns(n, dtype), _columns(n, dtype), _columns(n, dtype)
    triple = np.empty(n, dtype)
    for atom in range(first, after):
        factors = weights.element[layer, index[atom]]
        for m in range(HARMONICS):
            raw = work.raw[layer, m, atom]
            for c in range(n):
                f[m, c], g[m, c] = raw[c] * factors[c], raw[n + c] * factors[n + c]
        clear(fg)
        multiply(f, g, weights.coupling, weights.couples, fg)
        clear(triple)
        for m in range(HARMONICS):
            row, raw = work.functions[layer, m, atom], work.raw[layer, m, atom]
            for c in range(n):
                row[c], row[n + c] = f[m, c], fg[m, c]
                triple[c] += fg[m, c] * raw[2 * n + c]
        for c in range(n):
            triple[c] *= factors[2 * n + c]
        given = work.invariants[atom, 3 * n * layer : 3 * n * (layer + 1)]
        for c in range(n):
            given[c], given[n + c], given[2 * n + c] = f[0, c], fg[0, c], triple[c]
    if layer < n_layers - 1:
        _speak(layer, atoms, index, weights, work)


@compiled(inner=True)
def _speak(layer: int, atoms: tuple[int, int], index: Array, weights: Weights, work: Pass) -> None:
    """What some atoms say, from their functions and their invariants."""
    first, after = atoms
    n = work.functions.shape[3] // 2
    for m in range(HARMONICS):
        speak = weights.speak[layer, weights.degree[m]]
        functions, plain = work.functions[layer, m, first:after], work.plain[layer, m, first:after]
        multiply_into(functions, speak, plain)
    given = work.invariants[first:after, 3 * n * layer : 3 * n * (layer + 1)]
    gates = np.empty((after - first, 2 * n), given.dtype)
    multiply_into(given, weights.gate[layer], gates)
    bias = weights.gate_bias[layer]
    for atom in range(first, after):
        said = weights.said[layer, index[atom]]
        factors, rises = work.gates[layer, atom, 0], work.gates[layer, atom, 1]
        gate = gates[atom - first]
        for c in range(0, 2 * n, WIDTH):
            value, rise = silu(load(gate, c) + load(bias, c))
            store(factors, c, value + load(said, c))
            store(rises, c, rise)
        for part in range(n // LANES):
            for half in range(2):
                spoken = work.spoken[layer, atom, part, half * BUNDLE : (half + 1) * BUNDLE]
                start = half * n + part * LANES
                for m in range(HARMONICS):
                    plain = work.plain[layer, m, atom]
                    for c in range(LANES):
                        spoken[m * LANES + c] = plain[start + c] * factors[start + c]
                for c in range(LANES):
                    spoken[c] += said[start + c]


@compiled(inner=True)
def _read(atoms: tuple[int, int], index: Array, weights: Weights, work: Pass) -> None:
    """The energies of some atoms, and the adjoints of their invariants."""
    first, after = atoms
    multiply_into(work.invariants[first:after], weights.hidden, work.hidden[first:after])
    rises = np.empty(work.hidden[first:after].shape, work.hidden.dtype)
    out, linear = weights.out[0], weights.linear[0]
    for atom in range(first, after):
        bias, hidden = weights.hidden_bias[index[atom]], work.hidden[atom]
        energy = 0.0
        for c in range(0, len(out), WIDTH):
            least = load(bias, c)
            v, weight = load(hidden, c) + least, load(out, c)
            value, rise = silu(v)
            alone, _ = silu(least)
            energy += total(weight * (value - alone))
            store(hidden, c, v)
            store(rises[atom - first], c, weights.scale * weight * rise)
        for c in range(len(linear)):
            energy += linear[c] * work.invariants[atom, c]
        work.energies[atom] += weights.scale * energy
    multiply_into(rises, weights.hidden_back, work.to_invariants[first:after])
    for atom in range(first, after):
        for c in range(len(linear)):
            work.to_invariants[atom, c] += weights.scale * linear[c]


@compiled(inner=True)
def _turn_back(adjoint: Array, factors: Array, given: Array, to_factors: Array) -> None:
    """Back through given × factors: the adjoint of what was given takes its place.

    That of the factors is added to theirs.
    """
    for c in range(len(adjoint)):
        to_factors[c] += adjoint[c] * given[c]
        given[c] = adjoint[c] * factors[c]


@compiled(inner=True)
def _backward(
    layer: int,
    atoms: tuple[int, int],
    forces: bool,
    index: Array,
    j: Array,
    weights: Weights,
    work: Pass,
) -> None:
    """From adjoints of invariants, and of what some atoms said, to those of densities."""
    first, after = atoms
    n_layers, n = work.functions.shape[0], work.functions.shape[3] // 2
    dtype = work.raw.dtype
    to_functions = np.zeros((HARMONICS, after - first, 2 * n), dtype)
    if layer < n_layers - 1:
        _hear_back(layer, atoms, forces, j, weights, work, to_functions)
        _speak_back(layer, atoms, to_functions, weights, work)
    f, g, back = _columns(n, dtype), _columns(n, dtype), _columns(n, dtype)
    to_f, to_g, to_h = _columns(n, dtype), _columns(n, dtype), np.empty(n, dtype)
    for atom in range(first, after):
        factors = weights.element[layer, index[atom]]
        to_element = work.to_element[layer, atom]
        clear(to_element)
        given = work.to_invariants[atom, 3 * n * layer : 3 * n * (layer + 1)]
        for m in range(HARMONICS):
            raw, source = work.raw[layer, m, atom], to_functions[m, atom - first]
            for c in range(n):
                f[m, c], g[m, c] = raw[c] * factors[c], raw[n + c] * factors[n + c]
                to_f[m, c], to_g[m, c] = source[c], 0.0
                by_product = given[2 * n + c] * factors[2 * n + c] * raw[2 * n + c]
                back[m, c] = source[n + c] + by_product
            fg = work.functions[layer, m, atom, n:]
            for c in range(0, n, LANES):
                fetch(fg, c)  # for later, when nobody has to wait for it any more
        for c in range(n):
            to_f[0, c] += given[c]
            back[0, c] += given[n + c]
        multiply(back, g, weights.coupling, weights.couples, to_f)
        multiply(back, f, weights.coupling, weights.couples, to_g)
        for m in range(HARMONICS):
            raw = work.raw[layer, m, atom]
            fg = work.functions[layer, m, atom, n:]
            for c in range(n):
                to_h[c] = given[2 * n + c] * fg[c]
            _turn_back(to_f[m, :n], factors, raw, to_element)
            _turn_back(to_g[m, :n], factors[n:], raw[n:], to_element[n:])
            _turn_back(to_h, factors[2 * n :], raw[2 * n :], to_element[2 * n :])
    told = np.empty((after - first, n), dtype)
    for m in range(HARMONICS):
        given_back = work.raw[layer, m, first:after]
        degree, to_seen = weights.degree[m], work.to_seen[m, first:after]
        if forces:
            back_to_seen = weights.seen_back[layer - 1] if layer > 0 else weights.first_back
            if layer == n_layers - 1:
                multiply_into(given_back, back_to_seen[degree], to_seen)
            else:
                add_product(given_back, back_to_seen[degree], to_seen)
        if layer > 0:
            multiply_into(given_back, weights.told_back[layer - 1, degree], told)
            for atom in range(first, after):
                for part in range(n // LANES):
                    heard = work.heard[layer - 1, atom, part, m * LANES : (m + 1) * LANES]
                    for c in range(LANES):
                        heard[c] = told[atom - first, part * LANES + c]


@compiled(inner=True)
def _speak_back(
    layer: int, atoms: tuple[int, int], said: Array, weights: Weights, work: Pass
) -> None:
    """From the adjoint of what was said (M, W, 2F) to that of functions, in its place."""
    first, after = atoms
    n = work.functions.shape[3] // 2
    for atom in range(first, after):
        place = atom - first
        factors, rises = work.gates[layer, atom, 0], work.gates[layer, atom, 1]
        to_gate, to_said = work.to_gate[layer, atom], work.to_said[layer, atom]
        clear(to_said)
        for m in range(HARMONICS):
            _turn_back(said[m, place], factors, work.plain[layer, m, atom], to_said)
        for c in range(2 * n):
            to_gate[c] = to_said[c] * rises[c]
            to_said[c] += said[0, place, c]
    given = work.to_invariants[first:after, 3 * n * layer : 3 * n * (layer + 1)]
    add_product(work.to_gate[layer, first:after], weights.gate_back[layer], given)
    for m in range(HARMONICS):
        speak = weights.speak_back[layer, weights.degree[m]]
        multiply_into(work.plain[layer, m, first:after], speak, said[m])


@compiled(nogil=True)
def sweep(
    stages: tuple[int, int],
    blocks: tuple[int, int],
    width: int,
    forces: bool,
    inputs: Inputs,
    weights: Weights,
    work: Pass,
    meeting: Meeting,
) -> None:
    """Energies of atoms and, if asked for, forces and virials; with them all adjoints.

    Of 2 I + 1 stages each needs the one before of all blocks; within a stage, blocks are
    independent.

    Args:
        stages: the first one, and the one after the last.
        blocks: likewise.
        width: atoms of a block.
        forces: whether to take the derivative by the pairs, too.
        inputs: where the atoms are.
        weights: the network.
        work: is overwritten.
        meeting: of the threads that share blocks, after each stage.
    """
    inputs, weights, work = borrowed(inputs), borrowed(weights), borrowed(work)
    index, j = inputs.species, inputs.j
    n_layers = work.functions.shape[0]
    for stage in range(stages[0], stages[1]):
        for block in range(blocks[0], blocks[1]):
            atoms = (block * width, min((block + 1) * width, len(index)))
            if stage == 0:
                for n in range(atoms[0], atoms[1]):
                    look(n, inputs, weights, work)
                _see(atoms, j, index, weights, work)
            if stage < n_layers:
                _forward(stage, atoms, index, j, weights, work)
            if stage == n_layers:
                _read(atoms, index, weights, work)
            if n_layers <= stage < 2 * n_layers:
                layer = 2 * n_layers - 1 - stage
                _backward(layer, atoms, forces, index, j, weights, work)
            if forces and stage == 2 * n_layers - 1:
                _see_back(atoms, j, index, weights, work)
            if forces and stage == 2 * n_layers:
                for n in range(atoms[0], atoms[1]):
                    push(n, inputs.reverse, work)
        if stage + 1 < stages[1] and not meet(meeting):
            return
