"""What the pairs of PaiNN do: messages both ways, their adjoints, and derivatives by pairs.

What an atom says to all its neighbors are 5F numbers: what is heard by scalars, by vectors along
the line, and its own vectors. The way back goes along the same pairs, with adjoints of 4F numbers
that are heard. One of the atoms of a pair works on it for both; see `spline.tasks_of`.
"""

from __future__ import annotations

from mdlearn.jit import compiled
from mdlearn.lanes import WIDTH, alike, load, store, total
from mdlearn.potentials.kernels.painn_layout import Weights, Workspace
from mdlearn.potentials.kernels.pair import push_pair
from mdlearn.potentials.kernels.spline import ROWS, begin_sums, filtered, share_of


@compiled(inner=True)
def hear(layer: int, task: int, weights: Weights, work: Workspace) -> None:
    """Sums over pairs, for the scalars and the vectors that both atoms of each hear.

    The other atom sees the opposite direction.
    """
    bundle, share, first, last = share_of(task, work)
    tables = weights.tables[layer, bundle]
    plain, along, across = tables[0], tables[1], tables[2]
    said, heard = work.said[layer, bundle].reshape(-1), work.shares[share, bundle].reshape(-1)
    begin_sums(task, layer, work)
    for atom in range(first, last):
        near, places, blends = work.near[atom], work.places[atom], work.blends[atom]
        pairs, here = work.pairs[atom], atom * 5 * WIDTH
        a, b = load(said, here), load(said, here + WIDTH)
        s = alike(0.0, a)
        x, y, z = s, s, s
        for k in range(work.own[atom]):
            place, blend, there = places[k], blends[k], near[k] * 5 * WIDTH
            passes = filtered(plain, place, blend, 0)
            s = s + passes * load(said, there)
            store(heard, there, load(heard, there) + passes * a)
            passes = filtered(along, place, blend, 0)
            comes, goes = passes * load(said, there + WIDTH), passes * b
            x = x + pairs[k, 0] * comes
            y = y + pairs[k, 1] * comes
            z = z + pairs[k, 2] * comes
            to_x = load(heard, there + WIDTH) - pairs[k, 0] * goes
            to_y = load(heard, there + 2 * WIDTH) - pairs[k, 1] * goes
            to_z = load(heard, there + 3 * WIDTH) - pairs[k, 2] * goes
            if layer > 0:
                passes = filtered(across, place, blend, 0)
                x = x + passes * load(said, there + 2 * WIDTH)
                y = y + passes * load(said, there + 3 * WIDTH)
                z = z + passes * load(said, there + 4 * WIDTH)
                to_x = to_x + passes * load(said, here + 2 * WIDTH)
                to_y = to_y + passes * load(said, here + 3 * WIDTH)
                to_z = to_z + passes * load(said, here + 4 * WIDTH)
            store(heard, there + WIDTH, to_x)
            store(heard, there + 2 * WIDTH, to_y)
            store(heard, there + 3 * WIDTH, to_z)
        store(heard, here, load(heard, here) + s)
        store(heard, here + WIDTH, load(heard, here + WIDTH) + x)
        store(heard, here + 2 * WIDTH, load(heard, here + 2 * WIDTH) + y)
        store(heard, here + 3 * WIDTH, load(heard, here + 3 * WIDTH) + z)


@compiled(inner=True)
def hear_back(layer: int, task: int, weights: Weights, work: Workspace) -> None:
    """From what the atoms of pairs heard to adjoints of what they said, and derivatives by pairs.

    With the listener's direction u to the speaker, E = W s·a + W' (u·x) b + W" x·v for what is said
    a, b and v, and the adjoints s and x of what is heard. The other atom sees -u. In turns, since
    each of the three filters has a table that fills a cache.
    """
    begin_sums(task, layer, work)
    _scalars_back(layer, task, weights, work)
    _lines_back(layer, task, weights, work)
    _vectors_back(layer, task, weights, work)


@compiled(inner=True)
def _scalars_back(layer: int, task: int, weights: Weights, work: Workspace) -> None:
    """W s·a, see `hear_back`."""
    bundle, share, first, last = share_of(task, work)
    table, to_said = weights.tables[layer, bundle, 0], work.shares[share, bundle].reshape(-1)
    said, heard = work.said[layer, bundle].reshape(-1), work.heard[layer % 2, bundle].reshape(-1)
    for atom in range(first, last):
        near, places, blends = work.near[atom], work.places[atom], work.blends[atom]
        bent, own = work.bent[bundle, atom], atom * 5 * WIDTH
        a, s = load(said, own), load(heard, atom * 4 * WIDTH)
        to_a = alike(0.0, a)
        for k in range(work.own[atom]):
            place, blend, other = places[k], blends[k], near[k] * 5 * WIDTH
            passes, far = filtered(table, place, blend, 0), load(heard, near[k] * 4 * WIDTH)
            to_a = to_a + passes * far
            store(to_said, other, load(to_said, other) + passes * s)
            both = s * load(said, other) + far * a
            bent[k, 0] += total(filtered(table, place, blend, ROWS) * both)
        store(to_said, own, load(to_said, own) + to_a)


@compiled(inner=True)
def _lines_back(layer: int, task: int, weights: Weights, work: Workspace) -> None:
    """W' (u·x) b, see `hear_back`."""
    bundle, share, first, last = share_of(task, work)
    table, to_said = weights.tables[layer, bundle, 1], work.shares[share, bundle].reshape(-1)
    said, heard = work.said[layer, bundle].reshape(-1), work.heard[layer % 2, bundle].reshape(-1)
    for atom in range(first, last):
        near, places, blends = work.near[atom], work.places[atom], work.blends[atom]
        pairs, bent = work.pairs[atom], work.bent[bundle, atom]
        own, ear = atom * 5 * WIDTH + WIDTH, atom * 4 * WIDTH + WIDTH
        b, x, y = load(said, own), load(heard, ear), load(heard, ear + WIDTH)
        z = load(heard, ear + 2 * WIDTH)
        to_b = alike(0.0, b)
        for k in range(work.own[atom]):
            place, blend = places[k], blends[k]
            other, far = near[k] * 5 * WIDTH + WIDTH, near[k] * 4 * WIDTH + WIDTH
            passes, far_b = filtered(table, place, blend, 0), load(said, other)
            far_x, far_y = load(heard, far), load(heard, far + WIDTH)
            far_z = load(heard, far + 2 * WIDTH)
            line = pairs[k, 0] * x + pairs[k, 1] * y + pairs[k, 2] * z
            far_line = pairs[k, 0] * far_x + pairs[k, 1] * far_y + pairs[k, 2] * far_z
            to_b = to_b - passes * far_line
            store(to_said, other, load(to_said, other) + passes * line)
            both = far_b * line - b * far_line
            bent[k, 0] += total(filtered(table, place, blend, ROWS) * both)
            comes, goes = passes * far_b, passes * b
            bent[k, 1] += total(comes * x - goes * far_x)
            bent[k, 2] += total(comes * y - goes * far_y)
            bent[k, 3] += total(comes * z - goes * far_z)
        store(to_said, own, load(to_said, own) + to_b)


@compiled(inner=True)
def _vectors_back(layer: int, task: int, weights: Weights, work: Workspace) -> None:
    """W" x·v, see `hear_back`."""
    bundle, share, first, last = share_of(task, work)
    table, to_said = weights.tables[layer, bundle, 2], work.shares[share, bundle].reshape(-1)
    said, heard = work.said[layer, bundle].reshape(-1), work.heard[layer % 2, bundle].reshape(-1)
    for atom in range(first, last):
        near, places, blends = work.near[atom], work.places[atom], work.blends[atom]
        bent = work.bent[bundle, atom]
        own, ear = atom * 5 * WIDTH + 2 * WIDTH, atom * 4 * WIDTH + WIDTH
        v, w, u = load(said, own), load(said, own + WIDTH), load(said, own + 2 * WIDTH)
        x, y = load(heard, ear), load(heard, ear + WIDTH)
        z = load(heard, ear + 2 * WIDTH)
        to_v = alike(0.0, v)
        to_w, to_u = to_v, to_v
        for k in range(work.own[atom]):
            place, blend = places[k], blends[k]
            other, far = near[k] * 5 * WIDTH + 2 * WIDTH, near[k] * 4 * WIDTH + WIDTH
            passes, far_x = filtered(table, place, blend, 0), load(heard, far)
            far_y, far_z = load(heard, far + WIDTH), load(heard, far + 2 * WIDTH)
            to_v, to_w, to_u = to_v + passes * far_x, to_w + passes * far_y, to_u + passes * far_z
            store(to_said, other, load(to_said, other) + passes * x)
            store(to_said, other + WIDTH, load(to_said, other + WIDTH) + passes * y)
            store(to_said, other + 2 * WIDTH, load(to_said, other + 2 * WIDTH) + passes * z)
            both = x * load(said, other) + far_x * v
            both = both + y * load(said, other + WIDTH) + far_y * w
            both = both + z * load(said, other + 2 * WIDTH) + far_z * u
            bent[k, 0] += total(filtered(table, place, blend, ROWS) * both)
        store(to_said, own, load(to_said, own) + to_v)
        store(to_said, own + WIDTH, load(to_said, own + WIDTH) + to_w)
        store(to_said, own + 2 * WIDTH, load(to_said, own + 2 * WIDTH) + to_u)


@compiled(inner=True)
def bend(task: int, weights: Weights, work: Workspace) -> None:
    """The derivatives by pairs in the first layer, where nobody has vectors to say."""
    bundle, _, first, last = share_of(task, work)
    plain, along = weights.tables[0, bundle, 0], weights.tables[0, bundle, 1]
    said, heard = work.said[0, bundle].reshape(-1), work.heard[0, bundle].reshape(-1)
    for atom in range(first, last):
        near, places, blends = work.near[atom], work.places[atom], work.blends[atom]
        pairs, bent = work.pairs[atom], work.bent[bundle, atom]
        own, ear = atom * 5 * WIDTH, atom * 4 * WIDTH
        for k in range(work.own[atom]):
            place, blend = places[k], blends[k]
            other, far = near[k] * 5 * WIDTH, near[k] * 4 * WIDTH
            both = load(heard, ear) * load(said, other) + load(heard, far) * load(said, own)
            rise = filtered(plain, place, blend, ROWS) * both
            b, back = load(said, other + WIDTH), load(said, own + WIDTH)
            x = b * load(heard, ear + WIDTH) - back * load(heard, far + WIDTH)
            y = b * load(heard, ear + 2 * WIDTH) - back * load(heard, far + 2 * WIDTH)
            z = b * load(heard, ear + 3 * WIDTH) - back * load(heard, far + 3 * WIDTH)
            line = pairs[k, 0] * x + pairs[k, 1] * y + pairs[k, 2] * z
            passes = filtered(along, place, blend, 0)
            bent[k, 0] += total(rise + filtered(along, place, blend, ROWS) * line)
            bent[k, 1] += total(passes * x)
            bent[k, 2] += total(passes * y)
            bent[k, 3] += total(passes * z)


@compiled(inner=True)
def point(atoms: tuple[int, int], work: Workspace) -> None:
    """From derivatives by distances and directions to those by pair vectors."""
    bent = work.bent
    for atom in range(atoms[0], atoms[1]):
        for k in range(work.own[atom]):
            rise, x, y, z = 0.0, 0.0, 0.0, 0.0
            for bundle in range(len(bent)):
                rise += bent[bundle, atom, k, 0]
                x += bent[bundle, atom, k, 1]
                y += bent[bundle, atom, k, 2]
                z += bent[bundle, atom, k, 3]
            slope = work.slope[atom, work.slots[atom, k]]
            push_pair(work.pairs[atom, k], rise, (x, y, z), slope)
