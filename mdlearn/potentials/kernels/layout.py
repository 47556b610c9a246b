"""What the loops of the default network are given, and what they work in.

Axes of arrays: N atoms, in blocks of W; M harmonics of L degrees; F features, in bundles of 16
lanes that fill a vector register of AVX-512; C channels of the first density, one for each element
and radial function, rounded up; V = 3F I invariants of I layers. Matrices that are multiplied by
are `matrices.packed` for the loops; here stand the shapes that they are packed of.
"""

from __future__ import annotations

from typing import NamedTuple

from mdlearn.potentials.kernels.sphere import HARMONICS
from mdlearn.words import (
    Array1,
    Array2,
    Array3,
    Array4,
    Array5,
    Array6,
    Exact1,
    Exact2,
    Exact3,
    Index1,
    Index2,
)

LANES = 16
"""Features and radial functions come in bundles of this, filled up with zeros."""
BUNDLE = HARMONICS * LANES


class Weights(NamedTuple):
    """The network as the loops have it, all in one precision but for what is said to be float64."""

    cutoff: float
    stretch: float
    near: float
    radial: int
    """Radial functions, at most 16."""
    frequency_weight: Exact1
    """(16,) float64, of radial functions."""
    table: Array1
    """(64,) of harmonics, see `harmonics`."""
    coupling: Array1
    """(G,) Gaunt coefficients, and the harmonics that they couple:"""
    couples: Index2
    """(G, 3) int64, product, first factor, second factor."""
    mix: Array5
    """(I, L, C + F, 3F), from the density of neighbors and what they say to f, g and h."""
    seen_back: Array5
    """(I, L, 3F, C) and"""
    told_back: Array5
    """(I, L, 3F, F)"""
    element: Array3
    """(I, Z, 3F)"""
    speak: Array5
    """(I, L, 2F, 2F), from f and fg to values and slopes."""
    speak_back: Array6
    """(I, L, 2F, 2F); for the loops in two parts, to f and to fg."""
    gate: Array4
    """(I, 3F, 2F)"""
    gate_back: Array4
    """(I, 2F, 3F)"""
    gate_bias: Array2
    """(I, 2F)"""
    said: Array3
    """(I, Z, 2F), of the elements."""
    filters: Array4
    """(I, F/16, 2, 256): values and slopes, radial functions by lanes."""
    hidden: Array3
    """(V, H)"""
    hidden_back: Array3
    """(H, V)"""
    hidden_bias: Array2
    """(Z, H)"""
    out: Array1
    """(H,)"""
    linear: Array1
    """(V,)"""
    wall: Exact2
    """(Z, Z) float64 Å, where walls begin."""
    stiffness: float
    """Of the wall, eV."""
    reference: Exact1
    """(Z,) float64 eV, energies of isolated atoms."""


class Scratch(NamedTuple):
    """What a thread writes and reads within a stage of a block. Every thread has its own."""

    seen: Array2
    """(Z, 256), the first density of an atom,"""
    told: Array2
    """(F/16, 256), that of what it hears,"""
    adjoint: Array2
    """(F/16, 512), and that of what it said, backward,"""
    ends: Array3
    """(2, F/16, 64), values and slopes along a pair, of listener and speaker."""
    functions: Array3
    """(M, W, F), what is heard in a block; backward, the adjoint of fg."""
    back: Array4
    """(3, M, W, F), those of f, g and h,"""
    said: Array3
    """(M, W, 2F), and of what was said."""
    out: Array2
    """(7 W, 3F), harmonics of one degree of f, g and h; backward, of their adjoints."""
    row: Array2
    """(7 W, F), those of the adjoint of what is heard."""
    gates: Array2
    """(W, 2F)"""
    head: Array2
    """(W, H), the hidden layer of the head."""


class Workspace(NamedTuple):
    """What stands between the loops; made once for a number of atoms and neighbors."""

    within: Index1
    """(N,) int64, neighbors within the cutoff,"""
    slots: Index2
    """(N, K) int64, and where they are listed."""
    pairs: Exact3
    """(N, K, 4) float64, directions and distances of these,"""
    basis: Array3
    """(N, K, 32), and their radial functions and derivatives."""
    seen: Array4
    """(blocks, M, W, C), the first density; then its adjoint."""
    mixed: Array6
    """(I, blocks, 3, M, W, F), functions f, g and h."""
    product: Array5
    """(I, blocks, M, W, F), fg."""
    plain: Array5
    """(I, blocks, M, W, 2F), what atoms say, before the gate."""
    gates: Array4
    """(I, N, 2, 2F), factors and their derivatives by what the gate is given."""
    spoken: Array4
    """(I, N, F/16, 512): values and slopes, harmonics by lanes."""
    heard: Array4
    """(I, N, F/16, 256): the adjoint of what each atom hears, harmonics by lanes."""
    invariants: Array3
    """(blocks, W, V); then their adjoint."""
    slope: Exact3
    """(N, K, 3) float64 eV/Å, derivatives of the energy by pair vectors; zero beyond the cutoff."""
    energies: Exact1
    """(N,) float64 eV."""
    forces: Exact2
    """(N, 3) float64 eV/Å."""
    virials: Exact3
    """(N, 3, 3) float64 eV."""
    scratch: Scratch
