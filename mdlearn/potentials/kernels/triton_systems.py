"""What is known of a system from all of its atoms, on a GPU: each in one loop instead of in many.

A program has one system, and looks at all atoms of the batch, some at a time: those of other
systems it leaves out. For a large system this is less than what its forces take, and a batch of
small ones has few atoms. Sums have one order, whatever else runs.

Axes: N atoms, S systems, P pairs that are watched.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_NUMBER = tl.constexpr(0x7FF8000000000000)
"""Bits of NaN, which as a number differs from itself: to Triton that is a constant that changes."""


@triton.jit(do_not_specialize=["atoms"])
def add_up(
    energies: tl.tensor,
    virials: tl.tensor,
    cell: tl.tensor,
    system: tl.tensor,
    energy: tl.tensor,
    stress: tl.tensor,
    atoms: tl.int64,
    block: tl.constexpr,
) -> None:
    """Energies and stresses of systems from those of atoms.

    Args:
        energies: (N,) eV.
        virials: (N, 3, 3) eV.
        cell: (S, 3, 3) Å.
        system: (N,) which one each atom belongs to.
        energy: (S,) eV is filled.
        stress: (S, 3, 3) eV/Å³ is filled; NaN where there is no volume.
        atoms: N.
        block: atoms at a time.
    """
    s = tl.program_id(0).to(tl.int64)
    total = tl.zeros((block,), tl.float64)
    xx, xy, xz, yx, yy = total, total, total, total, total
    yz, zx, zy, zz = total, total, total, total
    for first in range(0, atoms, block):
        n = first + tl.arange(0, block).to(tl.int64)
        mine = tl.load(system + n, n < atoms, -1) == s
        total += tl.load(energies + n, mine, 0.0)
        w = virials + n * 9
        xx += tl.load(w, mine, 0.0)
        xy += tl.load(w + 1, mine, 0.0)
        xz += tl.load(w + 2, mine, 0.0)
        yx += tl.load(w + 3, mine, 0.0)
        yy += tl.load(w + 4, mine, 0.0)
        yz += tl.load(w + 5, mine, 0.0)
        zx += tl.load(w + 6, mine, 0.0)
        zy += tl.load(w + 7, mine, 0.0)
        zz += tl.load(w + 8, mine, 0.0)
    tl.store(energy + s, tl.sum(total, 0))
    a, b, c = matrix(cell + s * 9)
    turned = (b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0])
    space = tl.abs(a[0] * turned[0] + a[1] * turned[1] + a[2] * turned[2])
    missing = tl.full((), NO_NUMBER, tl.int64).to(tl.float64, bitcast=True)
    space = tl.where(space > 0.0, space, missing)
    sums = (xx, xy, xz, yx, yy, yz, zx, zy, zz)
    for i in tl.static_range(9):
        tl.store(stress + s * 9 + i, tl.sum(sums[i], 0) / space)


@triton.jit
def matrix(at: tl.tensor) -> tuple[tl.tuple, tl.tuple, tl.tuple]:
    """The rows of a matrix of three by three."""
    a = (tl.load(at), tl.load(at + 1), tl.load(at + 2))
    b = (tl.load(at + 3), tl.load(at + 4), tl.load(at + 5))
    c = (tl.load(at + 6), tl.load(at + 7), tl.load(at + 8))
    return a, b, c


@triton.jit(do_not_specialize=["atoms", "pairs", "systems"])
def look_at(
    positions: tl.tensor,
    momenta: tl.tensor,
    forces: tl.tensor,
    masses: tl.tensor,
    numbers: tl.tensor,
    system: tl.tensor,
    cell: tl.tensor,
    energy: tl.tensor,
    bath: tl.tensor,
    conserved: tl.tensor,
    reference: tl.tensor,
    reference_cell: tl.tensor,
    inverse_cell: tl.tensor,
    wear: tl.tensor,
    reach: tl.tensor,
    one: tl.tensor,
    other: tl.tensor,
    shift: tl.tensor,
    nearest: tl.tensor,
    strongest: tl.tensor,
    hottest: tl.tensor,
    furthest: tl.tensor,
    moved: tl.tensor,
    used: tl.tensor,
    atoms: tl.int64,
    pairs: tl.int64,
    systems: tl.int64,
    block: tl.constexpr,
) -> None:
    """How far atoms have moved since lists were built, and how much of its limit all has used.

    See `neighbors.moved_since_build` and `guards.shares`. All numbers are float64.

    Args:
        positions: (N, 3) Å.
        momenta: (N, 3)
        forces: (N, 3) eV/Å.
        masses: (N,) u.
        numbers: (N,) atomic numbers.
        system: (N,) which one each atom belongs to.
        cell: (S, 3, 3) Å.
        energy: (S,) eV, potential.
        bath: (S,) eV.
        conserved: (S,) eV, the conserved energy at the start.
        reference: (N, 3) Å, and the next four: see `Neighbors`.
        reference_cell: (S, 3, 3) Å.
        inverse_cell: (S, 3, 3) 1/Å.
        wear: (S,)
        reach: () Å.
        one: (P,) and the next three: see `guards.Watched`.
        other: (P,)
        shift: (P, 3)
        nearest: (P,) Å.
        strongest: (119,) eV/Å by atomic number.
        hottest: (S,) eV, the largest kinetic energy there may be.
        furthest: () eV per atom that the conserved energy may move.
        moved: (S,) Å is filled.
        used: (4, S) is filled.
        atoms: N.
        pairs: P.
        systems: S.
        block: atoms, or pairs, at a time.
    """
    s = tl.program_id(0).to(tl.int64)
    a, b, c = matrix(cell + s * 9)
    strain = strained(inverse_cell + s * 9, a, b, c, reference_cell + s * 9)
    way = tl.zeros((block,), tl.float64)
    strong, kinetic, count, close = way, way, way, way
    for first in range(0, atoms, block):
        n = first + tl.arange(0, block).to(tl.int64)
        mine = tl.load(system + n, n < atoms, -1) == s
        x, y, z = vector(positions + n * 3, mine)
        rx, ry, rz = vector(reference + n * 3, mine)
        gone = square(
            x - rx - (rx * strain[0] + ry * strain[3] + rz * strain[6]),
            y - ry - (rx * strain[1] + ry * strain[4] + rz * strain[7]),
            z - rz - (rx * strain[2] + ry * strain[5] + rz * strain[8]),
        )
        way = larger(way, tl.where(mine, gone, 0.0))
        fx, fy, fz = vector(forces + n * 3, mine)
        limit = tl.load(strongest + tl.load(numbers + n, mine, 0), mine, 1.0)
        strong = larger(strong, square(fx, fy, fz) / (limit * limit))
        px, py, pz = vector(momenta + n * 3, mine)
        kinetic += square(px, py, pz) / (2.0 * tl.load(masses + n, mine, 1.0))
        count += tl.where(mine, 1.0, 0.0)
    for first in range(0, pairs, block):
        p = first + tl.arange(0, block).to(tl.int64)
        n = tl.load(one + p, p < pairs, 0)
        mine = (p < pairs) & (tl.load(system + n, p < pairs, -1) == s)
        x, y, z = vector(positions + n * 3, mine)
        jx, jy, jz = vector(positions + tl.load(other + p, mine, 0) * 3, mine)
        u, v, w = vector(shift + p * 3, mine)
        apart = square(
            jx - x + (u * a[0] + v * b[0] + w * c[0]),
            jy - y + (u * a[1] + v * b[1] + w * c[1]),
            jz - z + (u * a[2] + v * b[2] + w * c[2]),
        )
        limit = tl.load(nearest + p, mine, 0.0)
        close = larger(close, limit * limit / tl.where(mine, apart, 1.0))

    stretched = tl.zeros_like(a[0])
    for i in tl.static_range(9):
        stretched += strain[i] * strain[i]
    closer = 0.5 * tl.load(reach) * tl.sqrt(stretched)
    tl.store(moved + s, tl.load(wear + s) * (tl.sqrt(tl.reduce(way, 0, larger)) + closer))
    hot = tl.sum(kinetic, 0)
    off = tl.load(energy + s) + hot + tl.load(bath + s) - tl.load(conserved + s)
    tl.store(used + s, tl.reduce(close, 0, larger))
    tl.store(used + systems + s, tl.reduce(strong, 0, larger))
    tl.store(used + 2 * systems + s, hot / tl.load(hottest + s))
    tl.store(used + 3 * systems + s, tl.abs(off) / tl.sum(count, 0) / tl.load(furthest))


@triton.jit
def strained(
    inverse: tl.tensor, a: tl.tuple, b: tl.tuple, c: tl.tuple, reference: tl.tensor
) -> tl.tuple:
    """How much a cell is strained: its inverse, as it was, times its change; by rows."""
    first, second, third = matrix(reference)
    rows = matrix(inverse)
    strain: tl.tuple = ()
    for i in tl.static_range(3):
        for axis in tl.static_range(3):
            strain += (
                rows[i][0] * (a[axis] - first[axis])
                + rows[i][1] * (b[axis] - second[axis])
                + rows[i][2] * (c[axis] - third[axis]),
            )
    return strain


@triton.jit
def vector(at: tl.tensor, live: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Three numbers of each."""
    return tl.load(at, live, 0.0), tl.load(at + 1, live, 0.0), tl.load(at + 2, live, 0.0)


@triton.jit
def square(x: tl.tensor, y: tl.tensor, z: tl.tensor) -> tl.tensor:
    """The square of the length of vectors."""
    return x * x + y * y + z * z


@triton.jit
def larger(one: tl.tensor, other: tl.tensor) -> tl.tensor:
    """NaN if any of the two is."""
    return tl.where((other > one) | (other != other), other, one)
