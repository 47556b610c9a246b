"""What the pairs of PaiNN do: messages both ways, their adjoints, and derivatives by pairs.

In the first layer an atom says what its element does, the same everywhere, so what is heard depends
on a density of neighbors alone: on sums, for each of their elements, of radial functions, and of
these times directions. All that is linear in what is heard is one map of it.

In later layers an atom says 5F numbers to all its neighbors: what is heard by scalars, by vectors
along the line, and its own vectors. The way back goes along the same pairs, with adjoints of 4F
numbers that are heard. One of the atoms of a pair works on it for both; see `spline.tasks_of`.
"""

from __future__ import annotations

from mdlearn.jit import compiled, on_stack
from mdlearn.lanes import PART, WIDTH, alike, load, load_four, load_part, store, total, totals
from mdlearn.potentials.kernels.atoms import Inputs
from mdlearn.potentials.kernels.painn_layout import DIRECTION, Weights, Workspace
from mdlearn.potentials.kernels.pair import push_pair
from mdlearn.potentials.kernels.rows import Array, clear
from mdlearn.potentials.kernels.spline import (
    ROWS,
    begin_sums,
    blend_at,
    filtered,
    part_filtered,
    part_with_slopes,
    share_of,
)


@compiled(inner=True)
def see(atoms: tuple[int, int], inputs: Inputs, weights: Weights, work: Workspace) -> None:
    """The density of the neighbors of some atoms, in rows (4 W, Z R) of the scratch.

    Here both atoms of a pair work on it, each for itself.
    """
    bumps, waves, rows = on_stack(ROWS, work.pairs), weights.waves, work.scratch.seen
    density, width = work.scratch.density.reshape(-1), len(rows) // 4
    words = len(waves) * WIDTH
    clear(rows)
    for n in range(atoms[0], atoms[1]):
        clear(density)
        for k in range(work.within[n]):
            pair, blend = work.pairs[n, k], work.blends[n, k]
            if k >= work.own[n]:
                work.places[n, k] = blend_at(pair[3], weights, bumps, blend)
            for axis in range(3):
                blend[DIRECTION + axis] = pair[axis]
            first = inputs.species[inputs.j[n, work.slots[n, k]]] * 4 * words
            for part in range(len(waves)):
                wave, here = filtered(waves[part], work.places[n, k], blend, 0), first
                store(density, here, load(density, here) + wave)
                for axis in range(3):
                    here += words
                    store(density, here, load(density, here) + blend[DIRECTION + axis] * wave)
                first += WIDTH
        _lay_out(work.scratch.density, n - atoms[0], width, weights.radial, rows)


@compiled(inner=True)
def _lay_out(density: Array, place: int, width: int, radial: int, rows: Array) -> None:
    """The density of an atom (Z, 4, 32 P) in its rows, without what fills up lanes."""
    for element in range(len(density)):
        for kind in range(4):
            row, functions = rows[kind * width + place], density[element, kind]
            for r in range(radial):
                row[element * radial + r] = functions[r]


@compiled(inner=True)
def keep_seen(atoms: tuple[int, int], radial: int, work: Workspace) -> None:
    """The adjoints of the densities of some atoms, from their rows to where others find them."""
    rows, seen = work.scratch.seen, work.seen
    width = len(rows) // 4
    for n in range(atoms[0], atoms[1]):
        for element in range(seen.shape[1]):
            for kind in range(4):
                row, functions = rows[kind * width + n - atoms[0]], seen[n, element, kind]
                for r in range(radial):
                    functions[r] = row[element * radial + r]


@compiled(inner=True)
def see_back(atoms: tuple[int, int], index: Array, weights: Weights, work: Workspace) -> None:
    """All derivatives by pair vectors: of densities, and of what later layers heard."""
    waves, bent, seen = weights.waves, work.bent, work.seen.reshape(-1)
    elements, words = work.seen.shape[1], len(waves) * WIDTH
    for n in range(atoms[0], atoms[1]):
        for k in range(work.own[n]):
            pair, blend, other = work.pairs[n, k], work.blends[n, k], work.near[n, k]
            rise, x, y, z = 0.0, 0.0, 0.0, 0.0
            for bundle in range(len(bent)):
                rise += bent[bundle, n, k, 0]
                x += bent[bundle, n, k, 1]
                y += bent[bundle, n, k, 2]
                z += bent[bundle, n, k, 3]
            here = (n * elements + index[other]) * 4 * words
            there = (other * elements + index[n]) * 4 * words
            for part in range(len(waves)):
                wave = filtered(waves[part], work.places[n, k], blend, 0)
                both = load(seen, here) + load(seen, there)
                a, b = here + words, there + words
                to_x = load(seen, a) - load(seen, b)
                to_y = load(seen, a + words) - load(seen, b + words)
                to_z = load(seen, a + 2 * words) - load(seen, b + 2 * words)
                both = both + pair[0] * to_x + pair[1] * to_y + pair[2] * to_z
                rise += total(filtered(waves[part], work.places[n, k], blend, ROWS) * both)
                x, y, z = x + total(wave * to_x), y + total(wave * to_y), z + total(wave * to_z)
                here, there = here + WIDTH, there + WIDTH
            push_pair(pair, rise, (x, y, z), work.slope[n, work.slots[n, k]])


@compiled(inner=True)
def hear(layer: int, task: int, weights: Weights, work: Workspace) -> None:
    """Sums over pairs, for the scalars and the vectors that both atoms of each hear."""
    begin_sums(task, layer - 1, work)
    for part in range(0, WIDTH, PART):
        _hear(layer, task, part, weights, work)


@compiled(inner=True)
def _hear(layer: int, task: int, part: int, weights: Weights, work: Workspace) -> None:
    """The same for a part of the features; the other atom sees the opposite direction."""
    bundle, share, first, last = share_of(task, work)
    tables = weights.tables[layer - 1, bundle]
    plain, along, across = tables[0], tables[1], tables[2]
    said, heard = work.said[layer - 1, bundle].reshape(-1), work.shares[share, bundle].reshape(-1)
    for atom in range(first, last):
        near, places, blends = work.near[atom], work.places[atom], work.blends[atom]
        here = atom * 5 * WIDTH + part
        a, b = load_part(said, here), load_part(said, here + WIDTH)
        v, w = load_part(said, here + 2 * WIDTH), load_part(said, here + 3 * WIDTH)
        u = load_part(said, here + 4 * WIDTH)
        s = alike(0.0, a)
        x, y, z = s, s, s
        for k in range(work.own[atom]):
            place, blend, there = places[k] + part, blends[k], near[k] * 5 * WIDTH + part
            passes = part_filtered(plain, place, blend)
            s = s + passes * load_part(said, there)
            store(heard, there, load_part(heard, there) + passes * a)
            there += WIDTH
            passes = part_filtered(along, place, blend)
            comes, goes = passes * load_part(said, there), passes * b
            # One axis after the other, or values do not stay in registers.
            passes, axis = part_filtered(across, place, blend), blend[DIRECTION]
            x = x + axis * comes + passes * load_part(said, there + WIDTH)
            store(heard, there, load_part(heard, there) - axis * goes + passes * v)
            there, axis = there + WIDTH, blend[DIRECTION + 1]
            y = y + axis * comes + passes * load_part(said, there + WIDTH)
            store(heard, there, load_part(heard, there) - axis * goes + passes * w)
            there, axis = there + WIDTH, blend[DIRECTION + 2]
            z = z + axis * comes + passes * load_part(said, there + WIDTH)
            store(heard, there, load_part(heard, there) - axis * goes + passes * u)
        store(heard, here, load_part(heard, here) + s)
        store(heard, here + WIDTH, load_part(heard, here + WIDTH) + x)
        store(heard, here + 2 * WIDTH, load_part(heard, here + 2 * WIDTH) + y)
        store(heard, here + 3 * WIDTH, load_part(heard, here + 3 * WIDTH) + z)


@compiled(inner=True)
def hear_back(layer: int, task: int, weights: Weights, work: Workspace) -> None:
    """From what the atoms of pairs heard to adjoints of what they said, and derivatives by pairs.

    With the listener's direction u to the speaker, E = W s·a + W' (u·x) b + W" x·v for what is said
    a, b and v, and the adjoints s and x of what is heard. The other atom sees -u. In turns, since
    tables fill a cache.
    """
    begin_sums(task, layer - 1, work)
    for part in range(0, WIDTH, PART):
        _lines_back(layer, task, part, weights, work)
        _vectors_back(layer, task, part, weights, work)


@compiled(inner=True)
def _lines_back(layer: int, task: int, part: int, weights: Weights, work: Workspace) -> None:
    """W s·a + W' (u·x) b, see `hear_back`."""
    bundle, share, first, last = share_of(task, work)
    plain, along = weights.tables[layer - 1, bundle, 0], weights.tables[layer - 1, bundle, 1]
    said, to_said = work.said[layer - 1, bundle].reshape(-1), work.shares[share, bundle].reshape(-1)
    heard = work.heard[layer % 2, bundle].reshape(-1)
    bent, capacity = work.bent[bundle].reshape(-1), work.bent.shape[2]
    for atom in range(first, last):
        near, places, blends = work.near[atom], work.places[atom], work.blends[atom]
        own, ear = atom * 5 * WIDTH + part, atom * 4 * WIDTH + part
        a, b, s = load_part(said, own), load_part(said, own + WIDTH), load_part(heard, ear)
        x, y = load_part(heard, ear + WIDTH), load_part(heard, ear + 2 * WIDTH)
        z = load_part(heard, ear + 3 * WIDTH)
        to_a = alike(0.0, a)
        to_b = to_a
        for k in range(work.own[atom]):
            place, blend = places[k] + part, blends[k]
            other, far = near[k] * 5 * WIDTH + part, near[k] * 4 * WIDTH + part
            passes, rise = part_with_slopes(plain, place, blend)
            far_s = load_part(heard, far)
            to_a = to_a + passes * far_s
            store(to_said, other, load_part(to_said, other) + passes * s)
            rises = rise * (s * load_part(said, other) + far_s * a)
            other, far = other + WIDTH, far + WIDTH
            passes, rise = part_with_slopes(along, place, blend)
            far_x, far_y = load_part(heard, far), load_part(heard, far + WIDTH)
            far_z, to_x = load_part(heard, far + 2 * WIDTH), blend[DIRECTION]
            to_y, to_z = blend[DIRECTION + 1], blend[DIRECTION + 2]
            line = to_x * x + to_y * y + to_z * z
            far_line = to_x * far_x + to_y * far_y + to_z * far_z
            to_b = to_b - passes * far_line
            store(to_said, other, load_part(to_said, other) + passes * line)
            far_b = load_part(said, other)
            rises = rises + rise * (far_b * line - b * far_line)
            comes, goes = passes * far_b, passes * b
            x_back, y_back = comes * x - goes * far_x, comes * y - goes * far_y
            z_back, here = comes * z - goes * far_z, 4 * (atom * capacity + k)
            sums = totals(rises, x_back, y_back, z_back)
            store(bent, here, load_four(bent, here) + sums)
        store(to_said, own, load_part(to_said, own) + to_a)
        store(to_said, own + WIDTH, load_part(to_said, own + WIDTH) + to_b)


@compiled(inner=True)
def _vectors_back(layer: int, task: int, part: int, weights: Weights, work: Workspace) -> None:
    """W" x·v, see `hear_back`."""
    bundle, share, first, last = share_of(task, work)
    table, said = weights.tables[layer - 1, bundle, 2], work.said[layer - 1, bundle].reshape(-1)
    to_said = work.shares[share, bundle].reshape(-1)
    heard = work.heard[layer % 2, bundle].reshape(-1)
    for atom in range(first, last):
        near, places, blends = work.near[atom], work.places[atom], work.blends[atom]
        bent = work.bent[bundle, atom]
        own, ear = (atom * 5 + 2) * WIDTH + part, (atom * 4 + 1) * WIDTH + part
        v, w = load_part(said, own), load_part(said, own + WIDTH)
        u = load_part(said, own + 2 * WIDTH)
        x, y = load_part(heard, ear), load_part(heard, ear + WIDTH)
        z = load_part(heard, ear + 2 * WIDTH)
        to_v = alike(0.0, v)
        to_w, to_u = to_v, to_v
        for k in range(work.own[atom]):
            other, far = (near[k] * 5 + 2) * WIDTH + part, (near[k] * 4 + 1) * WIDTH + part
            passes, rise = part_with_slopes(table, places[k] + part, blends[k])
            back = load_part(heard, far)
            to_v, both = to_v + passes * back, x * load_part(said, other) + back * v
            store(to_said, other, load_part(to_said, other) + passes * x)
            other, back = other + WIDTH, load_part(heard, far + WIDTH)
            to_w, both = to_w + passes * back, both + y * load_part(said, other) + back * w
            store(to_said, other, load_part(to_said, other) + passes * y)
            other, back = other + WIDTH, load_part(heard, far + 2 * WIDTH)
            to_u, both = to_u + passes * back, both + z * load_part(said, other) + back * u
            store(to_said, other, load_part(to_said, other) + passes * z)
            bent[k, 0] += total(rise * both)
        store(to_said, own, load_part(to_said, own) + to_v)
        store(to_said, own + WIDTH, load_part(to_said, own + WIDTH) + to_w)
        store(to_said, own + 2 * WIDTH, load_part(to_said, own + 2 * WIDTH) + to_u)
