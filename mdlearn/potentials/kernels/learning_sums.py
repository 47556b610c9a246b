"""The gradient by the weights: sums over atoms, of what `kernels.learning` leaves behind.

And where its second point is.
"""

from __future__ import annotations

import math

import numpy as np

from mdlearn.jit import borrowed, compiled
from mdlearn.lanes import WIDTH, load, store
from mdlearn.matrices import add_product_turned
from mdlearn.potentials.kernels.activation import silu
from mdlearn.potentials.kernels.atoms import Inputs
from mdlearn.potentials.kernels.learning_layout import Gradient, Pass, Weights
from mdlearn.potentials.kernels.rows import Array
from mdlearn.words import Array1, Index1

FEW = 64
"""Atoms that are summed up at once: libraries are faster with products that need no packing."""


@compiled()
def displace(
    inputs: Inputs,
    most: float,
    cutoff: float,
    like: Array,
    by_energy: Array,
    by_forces: Array,
    by_virials: Array,
) -> tuple[Array, Array, Array, Array]:
    """The second point of a difference along a line, and what the energies count at both.

    Args:
        inputs: the first point.
        most: Å, how far a pair vector moves at most; of either sign.
        cutoff: Å.
        like: of the type that the energies are to count in.
        by_energy: (n_systems,) derivative of the loss by energies.
        by_forces: (N, 3) by forces.
        by_virials: (n_systems, 3, 3) by sums of virials.

    Returns:
        Positions and cells there, and (N,) factors of the energies of atoms here and there.
    """
    own, n_atoms = inputs.system, len(inputs.system)
    size, small = np.zeros(len(by_energy)), np.zeros(len(by_energy))
    for n in range(n_atoms):  # what a pair moves by, if its atoms go different ways
        x, y, z = by_forces[n, 0], by_forces[n, 1], by_forces[n, 2]
        size[own[n]] = max(size[own[n]], 2.0 * math.sqrt(x * x + y * y + z * z))
    positions, cell = inputs.positions.copy(), inputs.cell.copy()
    for s in range(len(size)):
        square = 0.0
        for axis in range(3):
            for other in range(3):
                square += by_virials[s, axis, other] ** 2
        size[s] += cutoff * math.sqrt(square)
        small[s] = most / size[s] if size[s] > 0.0 else 0.0
        for axis in range(3):
            for row in range(3):
                along = 0.0
                for other in range(3):
                    along += inputs.cell[s, row, other] * by_virials[s, other, axis]
                cell[s, row, axis] += small[s] * along
    here, there = np.empty(n_atoms, like.dtype), np.empty(n_atoms, like.dtype)
    for n in range(n_atoms):
        s = own[n]
        for axis in range(3):
            along = -by_forces[n, axis]
            for other in range(3):
                along += inputs.positions[n, other] * by_virials[s, other, axis]
            positions[n, axis] += small[s] * along
        here[n], there[n] = by_energy[s] - size[s] / most, size[s] / most
    return positions, cell, here, there


@compiled(inner=True)
def _add_by_element(
    given: Array, atoms: tuple[int, int], factors: Array, index: Array, out: Array
) -> None:
    """Adds rows (N, C), each times its factor, to those of their elements: out (Z, C)."""
    for n in range(atoms[0], atoms[1]):
        row, source, factor = out[index[n]], given[n], factors[n]
        for c in range(len(row)):
            row[c] += factor * source[c]


@compiled(inner=True)
def _add_by_degree(
    given: Array,
    adjoint: Array,
    atoms: tuple[int, int],
    factors: Array,
    degree: int,
    out: Array,
) -> None:
    """Adds to out (C, D), over the harmonics of a degree and atoms, given[c] factor adjoint[d].

    Args:
        given: (M, N, C), what a linear map was given.
        adjoint: (M, N, D), by what it made of it.
        atoms: the first one, and the one after the last.
        factors: (N,)
        degree: of the harmonics.
        out: is added to.
    """
    weighted = np.empty((FEW, given.shape[2]), given.dtype)
    for m in range(degree**2, (degree + 1) ** 2):
        for first in range(atoms[0], atoms[1], FEW):
            after = min(first + FEW, atoms[1])
            for n in range(first, after):
                row, source, factor = weighted[n - first], given[m, n], factors[n]
                for c in range(len(row)):
                    row[c] = factor * source[c]
            add_product_turned(weighted[: after - first], adjoint[m, first:after], out)


@compiled(inner=True)
def _add_of_head(
    atoms: tuple[int, int],
    factors: Array,
    index: Array,
    weights: Weights,
    work: Pass,
    gradient: Gradient,
) -> None:
    """Adds the gradient by what reads invariants."""
    first, after = atoms
    width = work.hidden.shape[1]
    to_hidden = np.empty((after - first, width), work.hidden.dtype)
    out, linear = weights.out[0], gradient.linear[0]
    for n in range(first, after):
        least, factor = weights.hidden_bias[index[n]], weights.scale * factors[n]
        to_out, to_bias = gradient.out[0], gradient.hidden_bias[index[n]]
        for c in range(0, width, WIDTH):
            value, rise = silu(load(work.hidden[n], c))
            alone, rise_alone = silu(load(least, c))
            store(to_out, c, load(to_out, c) + factor * (value - alone))
            slope = factor * load(out, c)
            store(to_hidden[n - first], c, slope * rise)
            store(to_bias, c, load(to_bias, c) + slope * (rise - rise_alone))
        row = work.invariants[n]
        for c in range(len(row)):
            linear[c] += factor * row[c]
    add_product_turned(to_hidden, work.invariants[first:after], gradient.hidden)


@compiled(nogil=True)
def add_gradient(
    parts: tuple[int, int],
    atoms: tuple[int, int],
    factors: Array1,
    index: Index1,
    weights: Weights,
    work: Pass,
    gradient: Gradient,
) -> None:
    """Adds the derivative of a weighted sum of the energies of atoms by the parameters.

    Args:
        parts: the first one, and the one after the last, of 10 I - 4 that can be done in any order:
            one for each degree of each linear map, others for what remains of each layer.
        atoms: the first one, and the one after the last.
        factors: (N,), that the energies of atoms are multiplied by.
        index: (N,) ranks of their elements.
        weights: the network.
        work: of `learning.sweep`.
        gradient: is added to.
    """
    weights, work, gradient = borrowed(weights), borrowed(work), borrowed(gradient)
    layers, channels, (first, after) = len(weights.element), work.seen.shape[2], atoms
    for part in range(parts[0], parts[1]):
        layer, degree = part // 10, part % 10
        if degree < 4:
            if layer == 0:
                out = gradient.first[degree]
            else:
                given, mix = work.told[layer - 1], gradient.mix[layer - 1, degree]
                _add_by_degree(given, work.raw[layer], atoms, factors, degree, mix[channels:])
                out = mix[:channels]
            _add_by_degree(work.seen, work.raw[layer], atoms, factors, degree, out)
        elif degree == 4:
            _add_by_element(work.to_element[layer], atoms, factors, index, gradient.element[layer])
        elif layer == layers - 1:
            _add_of_head(atoms, factors, index, weights, work, gradient)
        elif degree < 9:
            degree -= 5
            out = gradient.speak[layer, degree]
            given, adjoint = work.functions[layer], work.plain[layer]
            _add_by_degree(given, adjoint, atoms, factors, degree, out)
        else:
            _add_by_element(work.to_said[layer], atoms, factors, index, gradient.said[layer])
            to_gate, bias = work.to_gate[layer, first:after].copy(), gradient.gate_bias[layer]
            filters = gradient.filters[layer].reshape(-1)
            for n in range(first, after):
                to_filters, row = work.spoken[layer, n].reshape(-1), to_gate[n - first]
                for c in range(len(filters)):
                    filters[c] += factors[n] * to_filters[c]
                for c in range(len(bias)):
                    row[c] *= factors[n]
                    bias[c] += row[c]
            width = gradient.gate.shape[2]
            given_gate = work.invariants[first:after, layer * width : (layer + 1) * width]
            add_product_turned(to_gate, given_gate, gradient.gate[layer])
