"""What happens to an atom between two loops over its neighbors, on a GPU.

Linear maps are left to torch; products and what is not linear is here, with a thread for every
feature of an atom. Axes are those of `triton_pairs`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mdlearn.potentials.kernels.triton_sphere import HARMONICS

POINTS = tl.constexpr(64)
"""Rows of the matrices that lead to a grid on the sphere and back."""


@triton.jit(do_not_specialize=["atoms"])
def multiply(
    mixed: tl.tensor,
    element: tl.tensor,
    index: tl.tensor,
    evaluate: tl.tensor,
    project: tl.tensor,
    functions: tl.tensor,
    invariants: tl.tensor,
    atoms: tl.int64,
    width: tl.constexpr,
    features: tl.constexpr,
    columns: tl.constexpr,
) -> None:
    """The product of functions on the sphere, point by point, and invariants.

    Args:
        mixed: (M, N, 3F), f, g and h, but for
        element: (Z, 3F), their factors.
        index: (N,) ranks of the elements.
        evaluate: (64, M), harmonics at the points of a grid, and zeros.
        project: (64, M), the way back.
        functions: (M, N, 2F) is filled with f and fg.
        invariants: (N, width) is filled in its first 3F columns: means of f, fg and fgh.
        atoms: N.
        width: of the invariants.
        features: F.
        columns: features of atoms in a program.
    """
    m, column = tl.arange(0, HARMONICS)[:, None], tl.program_id(0) * columns + tl.arange(0, columns)
    n, c = (column // features).to(tl.int64), column % features
    own, mean = n < atoms, m == 0
    factor = element + tl.load(index + n, own, 0) * (3 * features) + c
    source = mixed + (m * atoms + n) * (3 * features) + c
    f = tl.load(source, own, 0.0) * tl.load(factor, own, 0.0)
    g = tl.load(source + features, own, 0.0) * tl.load(factor + features, own, 0.0)
    h = tl.load(source + 2 * features, own, 0.0) * tl.load(factor + 2 * features, own, 0.0)
    product = from_grid(project, on_grid(evaluate, f) * on_grid(evaluate, g))
    target = functions + (m * atoms + n) * (2 * features) + c
    tl.store(target, f, own)
    tl.store(target + features, product, own)
    given = invariants + n * width + c
    tl.store(given, tl.sum(tl.where(mean, f, 0.0), 0), own)
    tl.store(given + features, tl.sum(tl.where(mean, product, 0.0), 0), own)
    tl.store(given + 2 * features, tl.sum(product * h, 0), own)


@triton.jit(do_not_specialize=["atoms"])
def multiply_back(
    mixed: tl.tensor,
    element: tl.tensor,
    index: tl.tensor,
    evaluate: tl.tensor,
    project: tl.tensor,
    functions: tl.tensor,
    invariants: tl.tensor,
    to_functions: tl.tensor,
    to_mixed: tl.tensor,
    atoms: tl.int64,
    width: tl.constexpr,
    features: tl.constexpr,
    columns: tl.constexpr,
) -> None:
    """From adjoints of invariants and of functions to those of what was mixed; see `multiply`.

    Args:
        mixed: as for `multiply`.
        element: likewise.
        index: likewise.
        evaluate: likewise.
        project: likewise.
        functions: likewise.
        invariants: (N, width), adjoints in the first 3F columns.
        to_functions: (M, N, 2F), adjoints of f and fg from where they are used elsewhere.
        to_mixed: (M, N, 3F) is filled.
        atoms: N.
        width: of the invariants.
        features: F.
        columns: features of atoms in a program.
    """
    m, column = tl.arange(0, HARMONICS)[:, None], tl.program_id(0) * columns + tl.arange(0, columns)
    n, c = (column // features).to(tl.int64), column % features
    own, mean = n < atoms, m == 0
    factor = element + tl.load(index + n, own, 0) * (3 * features) + c
    by_f, by_g = tl.load(factor, own, 0.0), tl.load(factor + features, own, 0.0)
    by_h = tl.load(factor + 2 * features, own, 0.0)
    source = mixed + (m * atoms + n) * (3 * features) + c
    g = tl.load(source + features, own, 0.0) * by_g
    h = tl.load(source + 2 * features, own, 0.0) * by_h
    made = (m * atoms + n) * (2 * features) + c
    f, product = tl.load(functions + made, own, 0.0), tl.load(functions + features + made, own, 0.0)
    given = invariants + n * width + c
    by_triple = tl.load(given + 2 * features, own, 0.0)
    to_f = tl.load(to_functions + made, own, 0.0)
    to_f += tl.where(mean, tl.load(given, own, 0.0), 0.0)
    to_product = tl.load(to_functions + features + made, own, 0.0) + by_triple * h
    to_product += tl.where(mean, tl.load(given + features, own, 0.0), 0.0)
    values = on_grid(project, to_product)
    to_f += from_grid(evaluate, values * on_grid(evaluate, g))
    to_g = from_grid(evaluate, values * on_grid(evaluate, f))
    target = to_mixed + (m * atoms + n) * (3 * features) + c
    tl.store(target, to_f * by_f, own)
    tl.store(target + features, to_g * by_g, own)
    tl.store(target + 2 * features, product * (by_triple * by_h), own)


@triton.jit
def on_grid(matrix: tl.tensor, values: tl.tensor) -> tl.tensor:
    """A matrix (64, M) times coefficients (M, columns)."""
    p, m = tl.arange(0, POINTS)[:, None], tl.arange(0, HARMONICS)[None]
    return tl.dot(tl.load(matrix + p * HARMONICS + m), values, input_precision="ieee")


@triton.jit
def from_grid(matrix: tl.tensor, values: tl.tensor) -> tl.tensor:
    """The transpose of a matrix (64, M) times values at points (64, columns)."""
    m, p = tl.arange(0, HARMONICS)[:, None], tl.arange(0, POINTS)[None]
    return tl.dot(tl.load(matrix + p * HARMONICS + m), values, input_precision="ieee")


@triton.jit(do_not_specialize=["atoms"])
def speak(
    plain: tl.tensor,
    gates: tl.tensor,
    said: tl.tensor,
    index: tl.tensor,
    spoken: tl.tensor,
    atoms: tl.int64,
    features: tl.constexpr,
    block: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """What atoms say: functions times gates, and their element.

    Args:
        plain: (M, N, 2F), functions.
        gates: (N, 2F), before the nonlinearity.
        said: (Z, 2F), of the elements.
        index: (N,) ranks of the elements.
        spoken: (M, N, 2F) is filled.
        atoms: N.
        features: 2F.
        block: atoms of a program.
        row: a power of two that is no less than 2F.
    """
    n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)[:, None]
    c = tl.arange(0, row)[None]
    own = (n < atoms) & (c < features)
    element = tl.load(said + tl.load(index + n, n < atoms, 0) * features + c, own, 0.0)
    column, stride = n * features + c, atoms * features
    v = tl.load(gates + column, own, 0.0)
    factor = v * sigmoid(v) + element
    for m in tl.static_range(HARMONICS):
        value = tl.load(plain + m * stride + column, own, 0.0) * factor
        if m == 0:
            value += element
        tl.store(spoken + m * stride + column, value, own)


@triton.jit(do_not_specialize=["atoms"])
def speak_back(
    plain: tl.tensor,
    gates: tl.tensor,
    said: tl.tensor,
    index: tl.tensor,
    to_spoken: tl.tensor,
    to_gates: tl.tensor,
    atoms: tl.int64,
    features: tl.constexpr,
    block: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """From adjoints of what was said to those of functions, in their place, and of gates (N, 2F).

    Args:
        plain: as for `speak`.
        gates: likewise.
        said: likewise.
        index: likewise.
        to_spoken: (M, N, 2F) is changed.
        to_gates: (N, 2F) is filled.
        atoms: N.
        features: 2F.
        block: atoms of a program.
        row: a power of two that is no less than 2F.
    """
    n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)[:, None]
    c = tl.arange(0, row)[None]
    own = (n < atoms) & (c < features)
    element = tl.load(said + tl.load(index + n, n < atoms, 0) * features + c, own, 0.0)
    column, stride = n * features + c, atoms * features
    v = tl.load(gates + column, own, 0.0)
    s = sigmoid(v)
    factor = v * s + element
    total = tl.zeros_like(v)
    for m in tl.static_range(HARMONICS):
        value = tl.load(to_spoken + m * stride + column, own, 0.0)
        total += value * tl.load(plain + m * stride + column, own, 0.0)
        tl.store(to_spoken + m * stride + column, value * factor, own)
    tl.store(to_gates + column, total * s * (1.0 + v * (1.0 - s)), own)


@triton.jit(do_not_specialize=["atoms"])
def read(
    hidden: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    index: tl.tensor,
    energies: tl.tensor,
    atoms: tl.int64,
    width: tl.constexpr,
    block: tl.constexpr,
    row: tl.constexpr,
) -> None:
    """Adds to energies what the head reads; its hidden values become their adjoints.

    Args:
        hidden: (N, H + 1); the last column is the linear form.
        bias: (Z, H + 1), zero in the last column.
        out: (H + 1,)
        index: (N,) ranks of the elements.
        energies: (N,) float64 eV.
        atoms: N.
        width: H + 1.
        block: atoms of a program.
        row: a power of two that is no less than H + 1.
    """
    n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)[:, None]
    c = tl.arange(0, row)[None]
    own = (n < atoms) & (c < width)
    b = tl.load(bias + tl.load(index + n, n < atoms, 0) * width + c, own, 0.0)
    weight = tl.load(out + c, c < width, 0.0)
    h = tl.load(hidden + n * width + c, own, 0.0)
    v = h + b
    s, linear = sigmoid(v), c == width - 1
    value = tl.where(linear, h, weight * (v * s - b * sigmoid(b)))
    tl.store(hidden + n * width + c, tl.where(linear, 1.0, weight * s * (1.0 + v * (1.0 - s))), own)
    total = tl.sum(value.to(tl.float64), 1, keep_dims=True)
    tl.store(energies + n, tl.load(energies + n, n < atoms, 0.0) + total, n < atoms)


@triton.jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """1/(1 + exp(-x)), of exponentials that do not overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (1.0 + e)
