"""The gradient by the weights: sums over atoms, of what `kernels.learning` leaves behind."""

from __future__ import annotations

import numpy as np

from mdlearn.jit import compiled
from mdlearn.lanes import WIDTH, load, store
from mdlearn.potentials.kernels.activation import silu
from mdlearn.potentials.kernels.learning_layout import Gradient, Pass, Weights
from mdlearn.potentials.kernels.rows import Array, add


@compiled(inner=True)
def _add_by_element(given: Array, factors: Array, index: Array, out: Array) -> None:
    """Adds rows (N, C), each times its factor, to those of their elements: out (Z, C)."""
    for n in range(len(index)):
        row, source, factor = out[index[n]], given[n], factors[n]
        for c in range(len(row)):
            row[c] += factor * source[c]


@compiled(inner=True)
def _add_by_degree(given: Array, adjoint: Array, factors: Array, degree: int, out: Array) -> None:
    """Adds to out (C, D), over the harmonics of a degree and atoms, given[c] factor adjoint[d].

    Args:
        given: (M, N, C), what a linear map was given.
        adjoint: (M, N, D), by what it made of it.
        factors: (N,)
        degree: of the harmonics.
        out: is added to.
    """
    n_atoms, columns = adjoint.shape[1:]
    first, after = degree**2, (degree + 1) ** 2
    weighted = np.empty((after - first, n_atoms, columns), adjoint.dtype)
    for m in range(first, after):
        for n in range(n_atoms):
            row, source, factor = weighted[m - first, n], adjoint[m, n], factors[n]
            for d in range(columns):
                row[d] = factor * source[d]
    flat = given[first:after].reshape(-1, given.shape[2])
    add(np.dot(flat.T, weighted.reshape(-1, columns)), out)


@compiled(merge=True)
def _add_of_head(
    factors: Array, index: Array, weights: Weights, work: Pass, gradient: Gradient
) -> None:
    """Adds the gradient by what reads invariants."""
    n_atoms, width = work.hidden.shape
    to_hidden = np.empty((n_atoms, width), work.hidden.dtype)
    out, linear = weights.out[0], gradient.linear[0]
    for n in range(n_atoms):
        least, factor = weights.hidden_bias[index[n]], weights.scale * factors[n]
        to_out, to_bias = gradient.out[0], gradient.hidden_bias[index[n]]
        for c in range(0, width, WIDTH):
            value, rise = silu(load(work.hidden[n], c))
            alone, rise_alone = silu(load(least, c))
            store(to_out, c, load(to_out, c) + factor * (value - alone))
            slope = factor * load(out, c)
            store(to_hidden[n], c, slope * rise)
            store(to_bias, c, load(to_bias, c) + slope * (rise - rise_alone))
        row = work.invariants[n]
        for c in range(len(row)):
            linear[c] += factor * row[c]
    add(np.dot(to_hidden.T, work.invariants), gradient.hidden)


@compiled(nogil=True)
def add_gradient(
    parts: tuple[int, int],
    factors: Array,
    index: Array,
    weights: Weights,
    work: Pass,
    gradient: Gradient,
) -> None:
    """Adds the derivative of a weighted sum of the energies of atoms by the parameters.

    Args:
        parts: the first one, and the one after the last, of 10 I - 4 that can be done in any order:
            one for each degree of each linear map, others for what remains of each layer.
        factors: (N,), that the energies of atoms are multiplied by.
        index: (N,) ranks of their elements.
        weights: the network.
        work: of `learning.sweep`.
        gradient: is added to.
    """
    layers, n_atoms = len(weights.element), len(index)
    for part in range(parts[0], parts[1]):
        layer, degree = part // 10, part % 10
        if degree < 4:
            given = work.seen if layer == 0 else work.density[layer - 1]
            out = gradient.first[degree] if layer == 0 else gradient.mix[layer - 1, degree]
            _add_by_degree(given, work.to_raw[layer], factors, degree, out)
        elif degree == 4:
            _add_by_element(work.to_element[layer], factors, index, gradient.element[layer])
        elif layer == layers - 1:
            _add_of_head(factors, index, weights, work, gradient)
        elif degree < 9:
            degree -= 5
            out = gradient.speak[layer, degree]
            _add_by_degree(work.functions[layer], work.to_plain[layer], factors, degree, out)
        else:
            _add_by_element(work.to_said[layer], factors, index, gradient.said[layer])
            to_gate, bias = work.to_gate[layer].copy(), gradient.gate_bias[layer]
            filters = gradient.filters[layer].reshape(-1)
            for n in range(n_atoms):
                to_filters = work.to_filters[layer, n].reshape(-1)
                for c in range(len(filters)):
                    filters[c] += factors[n] * to_filters[c]
                for c in range(len(bias)):
                    to_gate[n, c] *= factors[n]
                    bias[c] += to_gate[n, c]
            width = weights.gate.shape[2]
            given = work.invariants[:, layer * width : (layer + 1) * width].copy()
            add(np.dot(to_gate.T, given), gradient.gate[layer])
