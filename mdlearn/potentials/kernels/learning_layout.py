"""What the loops that learn are given, and what they leave behind.

Axes: N atoms, taken in blocks; M harmonics; F features in bundles of 16 lanes; C channels of the
first density, for each radial function the elements; I layers; V = 3F I invariants; H hidden.
"""

from __future__ import annotations

from typing import NamedTuple

from mdlearn.words import (
    Array1,
    Array2,
    Array3,
    Array4,
    Array5,
    Exact1,
    Exact2,
    Exact3,
    Index1,
    Index2,
)


class Weights(NamedTuple):
    """Parameters as loops have them, and what does not change.

    Matrices are `matrices.packed`; here stand the shapes that they are packed of. What ends in
    `_back` is the same the other way.
    """

    cutoff: float
    stretch: float
    near: float
    radial: int
    """B, at most 16."""
    norm: float
    """What sums over neighbors are multiplied by."""
    scale: float
    """eV, what the head's answer is multiplied by."""
    frequency_weight: Exact1
    """(16,) float64, of radial functions."""
    table: Array1
    """(64,) of harmonics, see `harmonics`."""
    degree: Index1
    """(M,) int64."""
    coupling: Array1
    """(G,) Gaunt coefficients, and the harmonics that they couple:"""
    couples: Index2
    """(G, 3) int64, product, first factor, second factor."""
    wall: Exact2
    """(Z, Z) float64 Å, where walls begin."""
    stiffness: float
    """Of the wall, eV."""
    reference: Exact1
    """(Z,) float64 eV, energies of isolated atoms."""
    filters: Array4
    """(I - 1, F/16, 2, 256): the radial maps of messages, times the norm, as in `layout`."""
    element: Array3
    """(I, Z, 3F)"""
    gate_bias: Array2
    """(I - 1, 2F)"""
    said: Array3
    """(I - 1, Z, 2F)"""
    hidden_bias: Array2
    """(Z, H)"""
    out: Array2
    """(1, H)"""
    linear: Array2
    """(1, V)"""
    first: Array4
    """(4, C, 3F), the map of the first density by degree, and"""
    mix: Array5
    """(I - 1, 4, C + F, 3F), of the others."""
    first_back: Array4
    """(4, 3F, C)"""
    seen_back: Array5
    """(I - 1, 4, 3F, C), of the rows of `mix` for what is seen,"""
    told_back: Array5
    """(I - 1, 4, 3F, F), and for what is heard."""
    speak: Array5
    """(I - 1, 4, 2F, 2F)"""
    speak_back: Array5
    gate: Array4
    """(I - 1, 3F, 2F)"""
    gate_back: Array4
    hidden: Array3
    """(V, H)"""
    hidden_back: Array3


class Pass(NamedTuple):
    """What a pass of the loops over a batch leaves behind.

    On the way back an adjoint takes the place of what it is of, where nothing else is asked of
    that: what does not fit into caches is what the loops would wait for.
    """

    within: Index1
    """(N,) int64, neighbors within the cutoff,"""
    slots: Index2
    """(N, K) int64, and where they are listed."""
    pairs: Exact3
    """(N, K, 4) float64, directions and distances of these,"""
    basis: Array3
    """(N, K, 32), and their radial functions and derivatives."""
    seen: Array3
    """(M, N, C), the first density."""
    told: Array4
    """(I - 1, M, N, F), what is heard; the densities after the first one are both."""
    raw: Array4
    """(I, M, N, 3F), the same mixed, before the factors of elements; then its adjoint."""
    functions: Array4
    """(I, M, N, 2F), f and fg,"""
    plain: Array4
    """(I - 1, M, N, 2F), what atoms say, before the gate; then its adjoint."""
    gates: Array4
    """(I - 1, N, 2, 2F), factors and their derivatives by what the gate is given."""
    spoken: Array4
    """(I - 1, N, F/16, 512): values and slopes, harmonics by lanes; then what an atom has
    said adds to the adjoint of the filters."""
    invariants: Array2
    """(N, V)"""
    hidden: Array2
    """(N, H), before the activation."""
    to_seen: Array3
    """(M, N, C), the adjoint of the first density; those after it are of what is named alike:"""
    to_element: Array3
    """(I, N, 3F), of the factors of an atom's element."""
    to_gate: Array3
    """(I - 1, N, 2F), of what the gate makes before its activation."""
    to_said: Array3
    """(I - 1, N, 2F), of what an atom's element says."""
    heard: Array4
    """(I - 1, N, F/16, 256): of what each atom hears, harmonics by lanes."""
    to_invariants: Array2
    """(N, V)"""
    slope: Exact3
    """(N, K, 3) float64 eV/Å, derivatives of the energy by pair vectors; zero beyond the cutoff."""
    energies: Exact1
    """(N,) float64 eV."""
    forces: Exact2
    """(N, 3) float64 eV/Å."""
    virials: Exact3
    """(N, 3, 3) float64 eV."""


class Gradient(NamedTuple):
    """A gradient by the parameters; the shapes are those of `Weights`."""

    filters: Array4
    first: Array3
    mix: Array4
    element: Array3
    speak: Array4
    gate: Array3
    gate_bias: Array2
    said: Array3
    hidden: Array2
    hidden_bias: Array2
    out: Array2
    linear: Array2
