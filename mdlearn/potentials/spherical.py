"""Functions on the sphere: real spherical harmonics, their couplings, and a grid for products.

Harmonics are ordered by degree, l = 0, 1, ..., and within a degree m = -l, ..., l, so that l = 1 is
(y, z, x). They have a mean square of one over the sphere (√4π times the orthonormal ones) and carry
no Condon-Shortley phase.

Two sets of coefficients can be multiplied in two ways. By Clebsch-Gordan coefficients, degree by
degree. Or as what they are, functions on the sphere: evaluate both on a grid, multiply point by
point, project back. That gives all couplings with even l1 + l2 + l3 at once, in Gaunt's ratios; on
a grid that integrates polynomials of degree l1 + l2 + l3 exactly it is exact, and so exactly
equivariant (S. Luo, T. Chen, A. S. Krishnapriyan, ICLR 2024, arXiv:2401.10216).
"""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LARGEST_DEGREE = 3
GRID_DEGREE = 9
"""Polynomials on the sphere up to this degree are integrated exactly by `sphere_grid`."""

Array = NDArray[np.float64]


def degrees(largest: int) -> list[int]:
    """The degree of every harmonic up to the largest one: 0, 1, 1, 1, 2, ..."""
    return [degree for degree in range(largest + 1) for _ in range(2 * degree + 1)]


def _tensor(rank: int, terms: dict[str, float]) -> Array:
    """The coefficients of a polynomial like {"xxz": 1.0}, as a symmetric tensor."""
    tensor = np.zeros((3,) * rank)
    for axes, coefficient in terms.items():
        orders = list(permutations("xyz".index(axis) for axis in axes))
        for order in orders:
            tensor[order] += coefficient / len(orders)
    return tensor


_R3, _R5, _R7, _R15, _R105 = (math.sqrt(n) for n in (3, 5, 7, 15, 105))
_A, _B = math.sqrt(35 / 8), math.sqrt(21 / 8)
_POLYNOMIALS: list[list[dict[str, float]]] = [
    [{"y": _R3}, {"z": _R3}, {"x": _R3}],
    [
        {"xy": _R15},
        {"yz": _R15},
        {"zz": _R5, "xx": -_R5 / 2, "yy": -_R5 / 2},
        {"xz": _R15},
        {"xx": _R15 / 2, "yy": -_R15 / 2},
    ],
    [
        {"xxy": 3 * _A, "yyy": -_A},
        {"xyz": _R105},
        {"zzy": 4 * _B, "xxy": -_B, "yyy": -_B},
        {"zzz": _R7, "xxz": -1.5 * _R7, "yyz": -1.5 * _R7},
        {"zzx": 4 * _B, "xxx": -_B, "yyx": -_B},
        {"xxz": _R105 / 2, "yyz": -_R105 / 2},
        {"xxx": _A, "yyx": -3 * _A},
    ],
]
"""The harmonics of degree 1, 2 and 3 in closed form (Wikipedia, "Table of spherical harmonics",
real ones, times √4π)."""


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of directions, up to a degree.

    They are homogeneous polynomials P(u), kept as symmetric tensors. Euler's theorem, u · ∇P = l P,
    gives the values once there are the gradients, and these the slopes ∇P - l P u on the sphere.
    The zero vector has zeros (and one for l = 0) for values.
    """

    def __init__(self, largest: int) -> None:
        super().__init__()
        if not 0 <= largest <= LARGEST_DEGREE:
            raise ValueError(f"degree {largest}; there are harmonics up to {LARGEST_DEGREE}")
        for degree in range(1, largest + 1):
            tensors = [_tensor(degree, terms) for terms in _POLYNOMIALS[degree - 1]]
            gradient = degree * np.stack(tensors, -1).reshape(3 ** (degree - 1), -1)
            self.register_buffer(f"gradient_{degree}", torch.from_numpy(gradient), persistent=False)
        self.largest = largest

    def forward(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes: how they change along the sphere.

        Args:
            direction: (n_atoms, K, 3), unit vectors.

        Returns:
            (n_atoms, K, M) and (n_atoms, K, 3, M) with M = (largest + 1)²; slopes are divided by
            √(l(l + 1)), so that the mean of their squares over the sphere is one, too.
        """
        u = direction[..., None]  # (n_atoms, K, 3, 1)
        powers = torch.ones_like(direction[..., :1])
        values, slopes = [powers], [torch.zeros_like(u)]
        for degree in range(1, self.largest + 1):
            matrix: Tensor = getattr(self, f"gradient_{degree}")
            gradient = (powers @ matrix).unflatten(-1, (3, -1))  # (n_atoms, K, 3, 2l + 1)
            outward = (gradient * u).sum(-2)
            values.append(outward / degree)
            slopes.append((gradient - u * outward[..., None, :]) * (degree * (degree + 1)) ** -0.5)
            powers = (powers[..., None] * direction[..., None, :]).flatten(-2)
        return torch.cat(values, -1), torch.cat(slopes, -1)


def sphere_grid() -> tuple[Array, Array]:
    """Points and weights of Lebedev's rule of degree 9.

    V. I. Lebedev, USSR Comput. Math. Math. Phys. 15, 44 (1975): the corners of an octahedron, those
    of a cube, and 24 points (p, q, 0) with p² = (1 - 1/√3)/2.

    Returns:
        Unit vectors (38, 3), and weights (38,) that sum to one.
    """
    octahedron = np.concatenate([np.eye(3), -np.eye(3)])
    cube = np.array(list(product((-1.0, 1.0), repeat=3))) / _R3
    p, q = math.sqrt((1 - 1 / _R3) / 2), math.sqrt((1 + 1 / _R3) / 2)
    pairs = [(a * s, b * t) for a, b in ((p, q), (q, p)) for s, t in product((-1, 1), repeat=2)]
    edges = np.array([np.insert(pair, axis, 0.0) for axis in range(3) for pair in pairs])
    weights = [1 / 105] * 6 + [9 / 280] * 8 + [1 / 35] * 24
    return np.concatenate([octahedron, cube, edges]), np.array(weights)


def clebsch_gordan(l1: int, l2: int, l3: int) -> Array:
    """Coefficients that couple real harmonics of degrees l1 and l2 to degree l3.

    The complex ones by Racah's formula (A. R. Edmonds, "Angular Momentum in Quantum Mechanics",
    1957, section 3.6), turned into the real basis. For odd l1 + l2 + l3 they are imaginary there,
    and a factor i is dropped: the result is a pseudotensor, like a cross product.

    Returns:
        (2 l1 + 1, 2 l2 + 1, 2 l3 + 1), orthonormal: contracted over its first two axes with itself
        it is the identity.
    """
    coupling = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1, m2 in product(range(-l1, l1 + 1), range(-l2, l2 + 1)):
        if abs(m1 + m2) <= l3:
            coupling[l1 + m1, l2 + m2, l3 + m1 + m2] = _racah(l1, m1, l2, m2, l3)
    turned = np.einsum(
        "abc,ai,bj,ck->ijk", coupling, _real(l1), _real(l2), _real(l3).conj(), optimize=True
    )
    return np.ascontiguousarray(turned.imag if (l1 + l2 + l3) % 2 else turned.real)


def _racah(j1: int, m1: int, j2: int, m2: int, j: int) -> float:
    """The complex Clebsch-Gordan coefficient (j1 m1 j2 m2 | j m1+m2)."""
    m, f = m1 + m2, math.factorial
    if not abs(j1 - j2) <= j <= j1 + j2:
        return 0.0
    root = (2 * j + 1) * f(j1 + j2 - j) * f(j + j1 - j2) * f(j + j2 - j1) / f(j1 + j2 + j + 1)
    root *= f(j + m) * f(j - m) * f(j1 + m1) * f(j1 - m1) * f(j2 + m2) * f(j2 - m2)
    total = 0.0
    for k in range(j1 + j2 - j + 1):
        below = (k, j1 + j2 - j - k, j1 - m1 - k, j2 + m2 - k, j - j2 + m1 + k, j - j1 - m2 + k)
        if min(below) >= 0:
            total += (-1) ** k / math.prod(f(each) for each in below)
    return math.sqrt(root) * total


def _real(degree: int) -> NDArray[np.complex128]:
    """Complex harmonics (rows, with Condon-Shortley phase) in terms of real ones (columns)."""
    matrix = np.zeros((2 * degree + 1, 2 * degree + 1), np.complex128)
    matrix[degree, degree] = 1.0
    half = math.sqrt(0.5)
    for m in range(1, degree + 1):
        plus, minus = degree + m, degree - m
        matrix[plus, plus], matrix[plus, minus] = (-1) ** m * half, (-1) ** m * 1j * half
        matrix[minus, plus], matrix[minus, minus] = half, -1j * half
    return matrix
