"""What the loops of the default network are given, and what they work in.

Axes of arrays: N atoms, in blocks of W; M harmonics of L degrees; F features, in bundles of 16
lanes that fill a vector register of AVX-512; C channels of the first density, one for each element
and radial function, rounded up; V = 3F I invariants of I layers. Matrices that are multiplied by
are `matrices.packed` for the loops; here stand the shapes that they are packed of.
"""

from __future__ import annotations

from typing import NamedTuple

from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.sphere import HARMONICS

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
    frequency_weight: Array
    """(16,) float64, of radial functions."""
    table: Array
    """(64,) of harmonics, see `harmonics`."""
    coupling: Array
    """(G,) Gaunt coefficients, and the harmonics that they couple:"""
    couples: Array
    """(G, 3) int64, product, first factor, second factor."""
    mix: Array
    """(I, L, C + F, 3F), from the density of neighbors and what they say to f, g and h."""
    seen_back: Array
    """(I, L, 3F, C) and"""
    told_back: Array
    """(I, L, 3F, F)"""
    element: Array
    """(I, Z, 3F)"""
    speak: Array
    """(I, L, 2F, 2F), from f and fg to values and slopes."""
    speak_back: Array
    """(I, L, 2F, 2F); for the loops in two parts, to f and to fg."""
    gate: Array
    """(I, 3F, 2F)"""
    gate_back: Array
    """(I, 2F, 3F)"""
    gate_bias: Array
    """(I, 2F)"""
    said: Array
    """(I, Z, 2F), of the elements."""
    filters: Array
    """(I, F/16, 2, 256): values and slopes, radial functions by lanes."""
    hidden: Array
    """(V, H)"""
    hidden_back: Array
    """(H, V)"""
    hidden_bias: Array
    """(Z, H)"""
    out: Array
    """(H,)"""
    linear: Array
    """(V,)"""
    wall: Array
    """(Z, Z) float64 Å, where walls begin."""
    stiffness: float
    """Of the wall, eV."""
    reference: Array
    """(Z,) float64 eV, energies of isolated atoms."""


class Scratch(NamedTuple):
    """What a thread writes and reads within a stage of a block. Every thread has its own."""

    seen: Array
    """(Z, 256), the first density of an atom,"""
    told: Array
    """(F/16, 256), that of what it hears,"""
    adjoint: Array
    """(F/16, 512), and that of what it said, backward,"""
    ends: Array
    """(2, F/16, 64), values and slopes along a pair, of listener and speaker."""
    functions: Array
    """(M, W, F), what is heard in a block; backward, the adjoint of fg."""
    back: Array
    """(3, M, W, F), those of f, g and h,"""
    said: Array
    """(M, W, 2F), and of what was said."""
    out: Array
    """(7 W, 3F), harmonics of one degree of f, g and h; backward, of their adjoints."""
    row: Array
    """(7 W, F), those of the adjoint of what is heard."""
    gates: Array
    """(W, 2F)"""
    head: Array
    """(W, H), the hidden layer of the head."""


class Workspace(NamedTuple):
    """What stands between the loops; made once for a number of atoms and neighbors."""

    within: Array
    """(N,) int64, neighbors within the cutoff,"""
    slots: Array
    """(N, K) int64, and where they are listed."""
    pairs: Array
    """(N, K, 4) float64, directions and distances of these,"""
    basis: Array
    """(N, K, 32), and their radial functions and derivatives."""
    seen: Array
    """(blocks, M, W, C), the first density; then its adjoint."""
    mixed: Array
    """(I, blocks, 3, M, W, F), functions f, g and h."""
    product: Array
    """(I, blocks, M, W, F), fg."""
    plain: Array
    """(I, blocks, M, W, 2F), what atoms say, before the gate."""
    gates: Array
    """(I, N, 2, 2F), factors and their derivatives by what the gate is given."""
    spoken: Array
    """(I, N, F/16, 512): values and slopes, harmonics by lanes."""
    heard: Array
    """(I, N, F/16, 256): the adjoint of what each atom hears, harmonics by lanes."""
    invariants: Array
    """(blocks, W, V); then their adjoint."""
    slope: Array
    """(N, K, 3) float64 eV/Å, derivatives of the energy by pair vectors; zero beyond the cutoff."""
    energies: Array
    """(N,) float64 eV."""
    forces: Array
    """(N, 3) float64 eV/Å."""
    virials: Array
    """(N, 3, 3) float64 eV."""
    scratch: Scratch
