"""Harmonics, couplings and the grid, against scipy, sympy and rotations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from checks import random_rotation
from numpy.typing import NDArray
from scipy.special import sph_harm_y
from sympy import S
from sympy.physics.quantum.cg import CG

from mdlearn.potentials.spherical import (
    GRID_DEGREE,
    LARGEST_DEGREE,
    SphericalHarmonics,
    _racah,
    clebsch_gordan,
    degrees,
    sphere_grid,
)

DEGREES = range(LARGEST_DEGREE + 1)
every_degree = pytest.mark.parametrize("degree", DEGREES)
every_triple = pytest.mark.parametrize(
    "triple", [(a, b, c) for a in DEGREES for b in DEGREES for c in range(abs(a - b), a + b + 1)]
)


def harmonics(directions: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """Those of one degree, (n, 2 l + 1)."""
    values = SphericalHarmonics(max(degree, 1))(torch.from_numpy(directions))[0].numpy()
    return np.asarray(values[:, degree**2 : (degree + 1) ** 2])


def directions(count: int = 50) -> NDArray[np.float64]:
    x = np.random.default_rng(5).normal(size=(count, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def rotation_of(degree: int, rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """D with Y(R u) = D Y(u), from many directions."""
    u = directions()
    solution = np.linalg.lstsq(harmonics(u, degree), harmonics(u @ rotation.T, degree), rcond=None)
    return np.asarray(solution[0].T)


@every_degree
def test_harmonics_are_those_of_scipy(degree: int) -> None:
    u = directions()
    polar, azimuth = np.arccos(u[:, 2]), np.arctan2(u[:, 1], u[:, 0])
    for m in range(-degree, degree + 1):
        complex_ones = sph_harm_y(degree, abs(m), polar, azimuth) * (-1) ** m
        part = complex_ones.imag if m < 0 else complex_ones.real
        expected = part * math.sqrt(4 * math.pi) * (math.sqrt(2) if m else 1.0)
        assert np.abs(harmonics(u, degree)[:, degree + m] - expected).max() < 1e-13


@every_degree
def test_harmonics_rotate_among_themselves(degree: int) -> None:
    for q in (random_rotation().numpy(), -random_rotation(3).numpy()):
        d, u = rotation_of(degree, q), directions(80)[50:]
        assert np.abs(d @ d.T - np.eye(2 * degree + 1)).max() < 1e-12
        assert np.abs(harmonics(u @ q.T, degree) - harmonics(u, degree) @ d.T).max() < 1e-12


def test_no_direction_has_no_harmonics_but_the_constant() -> None:
    values, _ = SphericalHarmonics(LARGEST_DEGREE)(torch.zeros(1, 3, dtype=torch.float64))
    assert values.tolist() == [[1.0] + [0.0] * 15]
    assert len(degrees(LARGEST_DEGREE)) == values.shape[1]


@every_degree
def test_slopes_are_differences_along_the_sphere(degree: int) -> None:
    u, h = directions(), 1e-5
    block = slice(degree**2, (degree + 1) ** 2)
    slopes = SphericalHarmonics(LARGEST_DEGREE)(torch.from_numpy(u))[1][..., block].numpy()
    norm = math.sqrt(max(1, degree * (degree + 1)))
    for axis in np.eye(3):
        tangent = axis - u * (u @ axis)[:, None]
        ahead, behind = ((u + sign * h * tangent) for sign in (1.0, -1.0))
        ahead, behind = (each / np.linalg.norm(each, axis=1)[:, None] for each in (ahead, behind))
        expected = (harmonics(ahead, degree) - harmonics(behind, degree)) / (2 * h * norm)
        assert np.abs(slopes.transpose(0, 2, 1) @ axis - expected).max() < 1e-8
    points, weights = (torch.from_numpy(each) for each in sphere_grid())
    _, slopes_there = SphericalHarmonics(LARGEST_DEGREE)(points)
    mean = (weights[:, None] * slopes_there[..., block].square().sum(1)).sum(0)
    assert (mean - float(degree > 0)).abs().max() < 1e-14


def test_there_is_no_degree_four() -> None:
    with pytest.raises(ValueError, match="degree 4"):
        SphericalHarmonics(4)


def test_grid_integrates_polynomials_exactly() -> None:
    """Monomials xᵃyᵇzᶜ have a closed form (Folland, Am. Math. Mon. 108, 446, 2001)."""
    points, weights = sphere_grid()
    assert np.abs(np.linalg.norm(points, axis=1) - 1.0).max() < 1e-15

    def worst(total: int) -> float:
        errors = [0.0]
        for a in range(total + 1):
            for b in range(total - a + 1):
                powers = (a, b, total - a - b)
                expected = 0.0
                if not any(p % 2 for p in powers):
                    gammas = math.prod(math.gamma((p + 1) / 2) for p in powers)
                    expected = 2 * gammas / math.gamma((total + 3) / 2) / (4 * math.pi)
                found = weights @ np.prod(points ** np.array(powers), axis=1)
                errors.append(abs(found - expected))
        return max(errors)

    assert max(worst(total) for total in range(GRID_DEGREE + 1)) < 1e-15
    assert worst(GRID_DEGREE + 1) > 1e-4


@every_triple
def test_complex_coefficients_are_those_of_sympy(triple: tuple[int, int, int]) -> None:
    l1, l2, l3 = triple
    for m1 in range(-l1, l1 + 1):
        for m2 in range(-l2, l2 + 1):
            if abs(m1 + m2) <= l3:
                expected = CG(S(l1), S(m1), S(l2), S(m2), S(l3), S(m1 + m2)).doit()
                assert _racah(l1, m1, l2, m2, l3) == pytest.approx(float(expected), abs=1e-14)


@every_triple
def test_coupling_turns_with_what_it_couples(triple: tuple[int, int, int]) -> None:
    coupling = clebsch_gordan(*triple)
    size = coupling.shape[2]
    assert np.abs(np.einsum("abi,abj->ij", coupling, coupling) - np.eye(size)).max() < 1e-13
    if max(triple) > LARGEST_DEGREE:
        return
    for sign in (1.0, -1.0):
        turns = [rotation_of(degree, sign * random_rotation().numpy()) for degree in triple]
        turned = np.einsum("abc,ax,by,cz->xyz", coupling, *turns)
        # A coupling with an odd sum is a pseudotensor: a reflection changes its sign.
        assert np.abs(turned - sign ** sum(triple) * coupling).max() < 1e-12


@every_triple
def test_product_on_the_grid_is_the_even_coupling(triple: tuple[int, int, int]) -> None:
    if max(triple) > LARGEST_DEGREE:
        return
    points, weights = sphere_grid()
    gaunt = np.einsum("p,pa,pb,pc->abc", weights, *(harmonics(points, degree) for degree in triple))
    coupling = clebsch_gordan(*triple)
    ratio = float((gaunt * coupling).sum()) / coupling.shape[2]
    assert np.abs(gaunt - ratio * coupling).max() < 1e-14
    assert (abs(ratio) > 1e-2) == (sum(triple) % 2 == 0)
