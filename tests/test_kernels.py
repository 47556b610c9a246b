"""What the loops of frozen networks are made of, against numpy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mdlearn import lanes
from mdlearn.jit import compiled
from mdlearn.lanes import (
    FOUR,
    HALF,
    WIDTH,
    below,
    chosen,
    fetch,
    load,
    load_four,
    load_half,
    ones,
    store,
    total,
    totals,
    transposed,
)
from mdlearn.matrices import add_product, add_product_turned, multiply_into, packed
from mdlearn.potentials import schnet
from mdlearn.potentials.frozen_tables import TOLERANCE, tabulate
from mdlearn.potentials.kernels import sphere
from mdlearn.potentials.kernels.activation import shifted_softplus, silu
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.spline import ROWS, blend_once, filtered
from mdlearn.potentials.spherical import SphericalHarmonics, degrees


@compiled(keep=False)
def sums(x: Array, y: Array, out: Array) -> float:
    a, b = load(x, 1), load(y, 0)
    store(out, 2, 2.0 * a - b / a + 1.0)
    return total(a * b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lanes_are_arrays(dtype: type) -> None:
    x = np.random.default_rng(0).uniform(1.0, 2.0, WIDTH + 2).astype(dtype)
    y, out = x[::-1].copy(), np.zeros(WIDTH + 4, dtype)
    found = sums(x, y, out)
    a, b = x[1 : WIDTH + 1], y[:WIDTH]
    epsilon = 4.0 * np.finfo(dtype).eps
    assert abs(found - (a.astype(float) * b).sum()) < 4 * WIDTH * epsilon
    assert np.abs(out[2:-2] - (2.0 * a - b / a + 1.0)).max() < 4.0 * epsilon
    assert not out[:2].any()
    assert not out[-2:].any()


@compiled(keep=False)
def four_sums(x: Array, out: Array) -> None:
    a, b, c, d = load(x, 0), load(x, WIDTH), load(x, 2 * WIDTH), load(x, 3 * WIDTH)
    store(out, 0, totals(a, b, c, d))
    a, b, c, d = load_half(x, 0), load_half(x, WIDTH), load_half(x, 2 * WIDTH), load_half(x, HALF)
    store(out, FOUR, totals(a, b, c, d))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_four_sums_at_once(dtype: type) -> None:
    x = np.random.default_rng(0).uniform(1.0, 2.0, (4, WIDTH)).astype(dtype)
    out = np.zeros(2 * FOUR, dtype)
    four_sums(x.ravel(), out)
    halves = [*x[:3, :HALF].astype(float).sum(1), x[0, HALF:].astype(float).sum()]
    expected = np.array([*x.astype(float).sum(1), *halves])
    assert np.abs(out - expected).max() < 8 * WIDTH * np.finfo(dtype).eps


def turn_and_choose(x: Array, limit: float, turned: Array, near: Array) -> int:
    a, b, c, d = load_four(x, 0), load_four(x, 4), load_four(x, 8), load_four(x, 12)
    for row, column in enumerate(transposed(a, b, c, d)):
        store(turned, FOUR * row, column)
    bits = below(a, limit)
    store(near, 0, chosen(a, bits))
    return ones(bits)


@pytest.mark.parametrize("any_processor", [False, True])
def test_four_numbers_are_turned_and_chosen(
    any_processor: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any_processor:
        monkeypatch.setattr(lanes, "FEATURES", {})
    function = compiled(keep=False)(turn_and_choose)
    for bits in range(16):
        x = np.random.default_rng(bits).uniform(2.0, 3.0, (4, 4))
        x[0] = [1.0 + lane / 8 if bits >> lane & 1 else 2.0 + lane for lane in range(4)]
        expected = [each for each in x[0] if each < 2.0]
        if bits == 5:  # what is no number is not lost
            x[0, 2] = expected[1] = np.nan
        turned, near = np.zeros((4, 4)), np.zeros(4)
        assert function(x.ravel(), 2.0, turned.reshape(-1), near) == len(expected)
        assert np.array_equal(turned, x.T, equal_nan=True)
        assert np.array_equal(near[: len(expected)], expected, equal_nan=True)


@compiled(keep=False)
def products(a: Array, more: Array, b: Array, turned: Array, other: Array, out: Array) -> None:
    fetch(a.reshape(-1), 0)
    here = out[1:-1]
    multiply_into(a, b[:, : a.shape[1]], here[:, 2:-1])
    add_product(more[:, 1:], b[:, a.shape[1] :], here[:, 2:-1])
    add_product_turned(turned[:, 3:], other[:, 2:-1], here[:, 2:-1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "first", "second", "columns"),
    [(1, 1, 1, 1), (5, 3, 4, 6), (7, 16, 9, 33), (4, 24, 32, 96), (18, 96, 1, 80), (32, 5, 7, 64)],
)
def test_products_of_parts_of_arrays_are_written_to_parts_of_arrays(
    rows: int, first: int, second: int, columns: int, dtype: type
) -> None:
    random = np.random.default_rng(0)
    shapes = ((rows, first), (rows, second + 1), (first + second, columns), (4, rows + 3))
    a, more, b, turned = (random.normal(size=shape).astype(dtype) for shape in shapes)
    other = random.normal(size=(4, columns + 3)).astype(dtype)
    out = random.normal(size=(rows + 2, columns + 3)).astype(dtype)
    expected = out.astype(np.float64)
    long = (each.astype(np.float64) for each in (a, more, b, turned, other))
    x, y, z, u, v = long
    expected[1:-1, 2:-1] = x @ z[:first] + y[:, 1:] @ z[first:] + u[:, 3:].T @ v[:, 2:-1]
    products(a, more, packed(b), turned, other, out)
    assert np.abs(out - expected).max() < 100.0 * np.finfo(dtype).eps
    around = np.ones(out.shape, bool)
    around[1:-1, 2:-1] = False
    assert np.array_equal(out[around], expected[around].astype(dtype))


def test_a_row_of_a_product_is_the_same_bits_in_any_company() -> None:
    random = np.random.default_rng(0)
    a = random.normal(size=(7, 40)).astype(np.float32)
    b = packed(random.normal(size=(40, 32)).astype(np.float32))
    nothing = np.zeros((4, 3), np.float32), np.zeros((4, 35), np.float32)
    more = np.zeros((7, 1), np.float32)
    together = np.zeros((9, 35), np.float32)
    products(a, more, b, np.zeros((4, 10), np.float32), nothing[1], together)
    for row in range(len(a)):
        alone = np.zeros((3, 35), np.float32)
        few = np.ascontiguousarray(a[row : row + 1])
        products(few, more[:1], b, np.zeros((4, 4), np.float32), nothing[1], alone)
        assert np.array_equal(alone[1], together[1 + row])


@compiled(keep=False)
def activate(x: Array, soft: bool, out: Array, slope: Array) -> None:
    for place in range(0, len(x), WIDTH):
        value = load(x, place)
        one, other = shifted_softplus(value) if soft else silu(value)
        store(out, place, one)
        store(slope, place, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("soft", [True, False])
def test_activations_are_those_of_torch(soft: bool, dtype: torch.dtype) -> None:
    wide, narrow = (torch.linspace(-end, end, 50 * WIDTH, dtype=dtype) for end in (900.0, 20.0))
    given = torch.cat([wide, narrow])
    out, slope = np.empty_like(given.numpy()), np.empty_like(given.numpy())
    activate(given.numpy(), soft, out, slope)
    x = given.double().requires_grad_()
    value = schnet.shifted_softplus(x) if soft else torch.nn.functional.silu(x)
    (rise,) = torch.autograd.grad(value.sum(), x)
    size = 1.0 + x.detach().abs()
    tolerance = 4.0 * torch.finfo(dtype).eps
    # The softplus of torch is linear from 20 on, which is off by 2e-9 at most.
    tolerance += 3e-9 * soft
    assert ((torch.from_numpy(out) - value.detach()).abs() / size).max() < tolerance
    assert ((torch.from_numpy(slope) - rise).abs() / size).max() < tolerance


def test_what_is_no_number_stays_none() -> None:
    x, out, slope = (np.full(WIDTH, np.nan) for _ in range(3))
    out[:] = slope[:] = 0.0
    for soft in (True, False):
        activate(x, soft, out, slope)
        assert np.isnan(out).all()
        assert np.isnan(slope).all()


@compiled(keep=False)
def look_up(table: Array, place: int, weights: Array, out: Array) -> None:
    store(out, 0, filtered(table, place, weights, 0))
    store(out, WIDTH, filtered(table, place, weights, ROWS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_table_is_its_function(dtype: torch.dtype) -> None:
    frequencies = torch.arange(WIDTH, dtype=torch.float64) / 2.0

    def waves(y: Tensor) -> Tensor:
        return torch.sin(frequencies * y[:, None] + 0.3)

    rows = tabulate(waves, dtype)
    intervals = len(rows) - ROWS
    weights, out = np.empty(2 * ROWS), np.empty((2, WIDTH))
    steepest = float(frequencies.max())
    for y in (0.0, 1e-9, 0.1234, 0.5, 0.87, 1.0):
        # Times an envelope of 0.8 that rises by 0.6, at a distance of 3 y.
        place = blend_once(y, 1.0 / 3.0, 0.8, 0.6, intervals, np.empty(ROWS), weights)
        look_up(rows.reshape(-1), place, weights, out.reshape(-1))
        value = torch.sin(frequencies * y + 0.3).numpy()
        slope = (frequencies * torch.cos(frequencies * y + 0.3)).numpy()
        assert np.abs(out[0] - 0.8 * value).max() < TOLERANCE[dtype] / 20.0
        assert np.abs(out[1] - 0.6 * value - 0.8 / 3.0 * slope).max() < steepest * TOLERANCE[dtype]


@compiled(keep=False)
def harmonics(x: float, y: float, z: float, p: Array, table: Array, out: Array) -> None:
    sphere.harmonics(x, y, z, p, table, out)


@compiled(keep=False)
def tangents(p: Array, table: Array, out: Array) -> None:
    sphere.tangents(p, table, out)


@compiled(keep=False)
def pull_back(
    x: float, y: float, z: float, t: Array, s: Array, table: Array
) -> tuple[float, float, float]:
    return sphere.pull_back(x, y, z, t, s, table)


class TestSphere:
    """Against the harmonics of the networks, and autograd."""

    @pytest.fixture
    def table(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        degree = np.array(degrees(3), np.float64)
        root = np.maximum(degree * (degree + 1.0), 1.0) ** -0.5
        return np.concatenate([1.0 / (1.0 + degree), root, degree, (-1.0) ** degree])

    def expected(self, u: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = SphericalHarmonics(3).double()(u[None, None])
        return table[:16] * values[0, 0], slopes[0, 0]

    @pytest.mark.parametrize("seed", range(3))
    def test_harmonics(
        self, table: np.ndarray[tuple[int], np.dtype[np.float64]], seed: int
    ) -> None:
        u = torch.from_numpy(np.random.default_rng(seed).normal(size=3))
        u /= u.norm()
        out, p = np.empty(128), np.empty(64)
        harmonics(*u.tolist(), p, table, out)
        for direction, found in ((u, out[:64]), (-u, out[64:])):
            values, slopes = self.expected(direction, torch.from_numpy(table))
            assert np.abs(found[:16] - values.numpy()).max() < 1e-14
            assert np.abs(found[16:].reshape(3, 16) - slopes.numpy()).max() < 1e-14

    @pytest.mark.parametrize("seed", range(3))
    def test_pull_back(
        self, table: np.ndarray[tuple[int], np.dtype[np.float64]], seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        u = torch.from_numpy(rng.normal(size=3))
        u = (u / u.norm()).requires_grad_()
        s = rng.normal(size=(16, 4, 16))
        values, slopes = self.expected(u / u.norm(), torch.from_numpy(table))
        total = torch.from_numpy(s.sum(-1))
        (values @ total[:, 0] + (slopes.T * total[:, 1:]).sum()).backward()
        assert u.grad is not None
        p, t, x = np.empty(64), np.empty(112), u.detach().numpy()
        harmonics(*x, p, table, np.empty(128))
        tangents(p, table, t)
        found = np.array(pull_back(*x, t, s.ravel(), table))
        found -= x * (found @ x)
        assert np.abs(found - u.grad.numpy()).max() < 1e-12
