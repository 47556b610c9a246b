"""What the loops of PaiNN are given, and what they work in.

Axes of arrays: N atoms, in B blocks of W, and in S shares, see `spline.tasks_of`; K neighbors; Z
elements; R radial functions, in P pieces of 32; I layers; F features, filled up to a multiple of
the lanes. Vectors of a block are rows (3 W, F): all x, all y, all z.
"""

from __future__ import annotations

from typing import NamedTuple

from mdlearn.potentials.kernels.spline import ROWS
from mdlearn.words import Array1, Array2, Array3, Array4, Exact1, Exact2, Exact3, Index1, Index2

DIRECTION = 2 * ROWS
"""Where that of a pair stands, after what its filters are blended with,"""
KNOWN = 16
"""in a row of so many numbers: a line of the cache in float32."""


class Weights(NamedTuple):
    """The network as the loops have it, all in one precision but for what is said to be float64.

    Matrices that are multiplied by are `matrices.packed`; here stand the shapes of what is packed.
    What ends in `_back` is the same the other way.
    """

    cutoff: float
    hidden: Array3
    """(F, H), of the head, as are"""
    hidden_back: Array3
    """(H, F)"""
    hidden_bias: Array2
    """(Z, H)"""
    out: Array1
    """(H,) and"""
    linear: Array1
    """(F,)."""
    wall: Exact2
    """(Z, Z) float64 Å, where walls begin."""
    stiffness: float
    """Of the wall, eV."""
    reference: Exact1
    """(Z,) float64 eV, energies of isolated atoms."""
    softness: float
    """Of lengths."""
    crowding: float
    """Of knots at short distances, see `spline.blend_at`."""
    tables: Array4
    """(I - 1, F/32, 3, (intervals + 5) 32), see `spline`, of the layers after the first: filters of
    scalars, of vectors along a line, and of the speaker's vectors."""
    waves: Array2
    """(P, (intervals + 5) 32), the same of the functions that filters are made of,"""
    radial: int
    """and how many these are, R."""
    seen_scalars: Array3
    """(Z R, F), from the density of an atom's neighbors to its scalars after it has heard in the
    first layer,"""
    seen_scalars_back: Array3
    seen_own: Array3
    """(Z R, F), from these on to the hidden layer of the first update; from the density by axis"""
    seen_own_back: Array3
    seen_vectors: Array3
    """(Z R, F), to vectors,"""
    seen_vectors_back: Array3
    seen_mix: Array3
    """(Z R, 2F), and from these on to U v and V v. Maps of the first layer that are a part of these
    are not used: `speak_hidden`, `speak_out`, `own` and `mix`."""
    seen_mix_back: Array3
    speak_start: Array3
    """(I, Z, F), what the hidden layer of a message is given by the element,"""
    speak_hidden: Array4
    """(I, F, F), and by what has changed in the scalars;"""
    speak_hidden_back: Array4
    speak_out: Array4
    """(I, F, 3F), what comes of it,"""
    speak_out_back: Array4
    speak_bias: Array2
    """(I, 3F)."""
    mix: Array4
    """(I, F, 2F), from v to U v and V v."""
    mix_back: Array4
    own_start: Array3
    """(I, Z, F), what the hidden layer of an update is given by the element,"""
    own: Array4
    """(I, F, F), by what has changed in the scalars,"""
    own_back: Array4
    lengths: Array4
    """(I, F, F), and by lengths of vectors;"""
    lengths_back: Array4
    scalars: Array4
    """(I, F, F), what scalars have of it,"""
    scalars_back: Array4
    gates: Array4
    """(I, F, 2F), what products and vectors are multiplied with."""
    gates_back: Array4
    gates_bias: Array2
    """(I, 2F)"""


class Scratch(NamedTuple):
    """What a thread writes and reads within a stage of a block. Every thread has its own.

    What is named after something is its adjoint on the way back.
    """

    lengths: Array2
    """(W, F), of V v,"""
    products: Array2
    """(W, F), U v · V v,"""
    hidden: Array2
    """(W, F), a hidden layer,"""
    gates: Array2
    """(W, 2F), of an update: backward only,"""
    mixed: Array2
    """(3 W, 2F), U v and V v: backward only,"""
    spoken: Array2
    """(W, 3F), what a message is made of,"""
    said: Array2
    """(W, 5F), what is said; forward, what is heard."""
    density: Array3
    """(Z, 4, 32 P), of one atom's neighbors, and"""
    seen: Array2
    """(4 W, Z R), of those of a block: by distance, and by direction, all x, all y, all z."""
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
    own: Index1
    """(N,) int64, how many of them, the first, are pairs that the atom looks after. Of these:"""
    near: Index2
    """(N, K) int64, which atoms they are,"""
    places: Index2
    """(N, K) int64, where their filters stand in a table,"""
    blends: Array3
    """(N, K, 16), how these are blended, and `DIRECTION`; these two of all neighbors,"""
    span: Index2
    """(N, 2) int64, the first of these atoms and of itself, and the one after the last of them,"""
    reached: Index2
    """(S, 2) int64, the same of the atoms of a share,"""
    bent: Array4
    """(F/32, N, K, 4), and derivatives of the energy by their distances and directions."""
    seen: Array4
    """(N, Z, 4, 32 P), adjoints of the density of an atom's neighbors."""
    said: Array4
    """(I - 1, F/32, N, 5 x 32): to scalars, to vectors along the line, and vectors by axis. What an
    atom has of 32 features stands in one piece: pieces of longer rows would share few places of a
    cache."""
    shares: Array4
    """(S, F/32, B W, 5 x 32), sums over the pairs of a share of the atoms: four that are
    heard, or five, adjoints of what was said."""
    heard: Array4
    """(2, F/32, N, 4 x 32), adjoints of what is heard in a layer, and in the one before it."""
    vectors: Array4
    """(I, B, 3 W, F), after each layer."""
    mixed: Array4
    """(I, B, 3 W, 2F), U v and V v."""
    gates: Array4
    """(I, B, W, 2F)"""
    rises: Array4
    """(I, B, W, F), derivatives of the hidden layer of updates, and"""
    speak_rises: Array4
    """(I, B, W, F), of messages."""
    loudness: Array4
    """(I, B, W, F), what vectors are multiplied with before they are said."""
    invariants: Array3
    """(B, W, F), what has changed in the scalars; then its adjoint."""
    turning: Array3
    """(B, 3 W, F), the adjoint of the vectors."""
    slope: Exact3
    """(N, K, 3) float64 eV/Å, derivatives of the energy by pair vectors; zero beyond the cutoff."""
    energies: Exact1
    """(N,) float64 eV."""
    forces: Exact2
    """(N, 3) float64 eV/Å."""
    virials: Exact3
    """(N, 3, 3) float64 eV."""
    scratch: Scratch
