"""A few numbers of every frame, from one reading of all of them; what the doctor thinks about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mdlearn.atoms import Frame
from mdlearn.doctor.fingerprints import Kind, fingerprints, kind_of
from mdlearn.doctor.yardsticks import pairs
from mdlearn.labels import SIX

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

SEARCHED = 3.2
"""Å. How far the shortest distances are looked for."""


class Survey(NamedTuple):
    """Numbers of all frames, one after another; arrays have one row per frame."""

    splits: tuple[str, ...]
    split: Ints
    """Which split each frame is of."""
    place: Ints
    """Where in its split."""
    names: list[str]
    kinds: list[Kind]
    """What frames must share to be compared: elements, periodic directions, charge."""
    ordered: list[Kind]
    """The same, and the order of the atoms."""
    numbers: list[Ints]
    """Sorted atomic numbers."""
    energy: Floats
    """(n,) eV."""
    rms: Floats
    """(n,) of the force components, eV/Å; NaN without forces."""
    largest: Floats
    """(n,) longest force, eV/Å."""
    net: Floats
    """(n,) length of the sum of all forces, eV/Å."""
    torque: Floats
    """(n,) torque on a molecule, over the largest that such forces could have; NaN otherwise."""
    forceless: Ints
    """(n,) atoms on which the force is exactly zero."""
    periodic: Ints
    """(n,) number of periodic directions."""
    volume: Floats
    """(n,) Å³."""
    stress: Floats
    """(n, 6) eV/Å³; NaN without."""
    prints: list[Floats]
    """Fingerprints, Å."""
    sketches: list[Floats]
    """Å."""
    shortest: list[dict[tuple[int, int], float]]
    """Å, by ascending atomic numbers."""

    @property
    def atoms(self) -> Ints:
        """(n,) number of atoms."""
        return np.array([len(each) for each in self.numbers], np.int64)

    def pick(self, which: Ints) -> list[str]:
        """Names of some of the frames, by their indices."""
        return [self.names[index] for index in which.tolist()]

    def counts(self, species: Sequence[int]) -> Floats:
        """Atoms of each element in each frame, (n, n_species)."""
        return np.array(
            [[np.count_nonzero(z == each) for each in species] for z in self.numbers], float
        )


def survey(splits: Mapping[str, Sequence[Frame]]) -> Survey:
    """Reads every frame once; a lazy sequence is read in flat memory."""
    columns: list[tuple[Any, ...]] = []
    known: dict[Any, Any] = {}
    for part, frames in enumerate(splits.values()):
        for index, frame in enumerate(frames):
            columns.append((part, index, *_row(frame, known)))
    rows: list[list[Any]] = [list(each) for each in zip(*columns, strict=True)]
    rows = rows or [[] for _ in range(18)]
    parts, places, names, kinds, ordered, numbers = rows[:6]
    energy, rms, largest, net, torque = (np.array(each, np.float64) for each in rows[6:11])
    forceless, periodic = (np.array(each, np.int64) for each in rows[11:13])
    volume, stress = (np.array(each, np.float64) for each in rows[13:15])
    prints, sketches, shortest = rows[15:]
    return Survey(
        tuple(splits),
        np.array(parts, np.int64),
        np.array(places, np.int64),
        names,
        kinds,
        ordered,
        numbers,
        energy,
        rms,
        largest,
        net,
        torque,
        forceless,
        periodic,
        volume,
        stress,
        prints,
        sketches,
        shortest,
    )


def _row(frame: Frame, known: dict[Any, Any]) -> tuple[Any, ...]:
    """The numbers of one frame, in the order of `Survey` after `place`.

    Args:
        frame: to look at.
        known: what frames seen before have in common; of each, one is kept for all.
    """
    system, labels = frame.system, frame.labels
    forces = labels.forces.numpy()
    length = np.linalg.norm(forces, axis=1)
    numbers = np.sort(system.numbers.numpy())
    kind, ordered = (kind_of(system, ordered=each) for each in (False, True))
    shortest = {known.setdefault(a, a): d for a, d in shortest_distances(frame).items()}
    x = system.positions.numpy() - system.positions.numpy().mean(0)
    periodic = int(system.pbc.sum())
    torque = np.nan
    if not periodic and len(x) > 1:
        possible = np.sqrt(np.square(x).sum() * np.square(length).sum())
        torque = np.linalg.norm(np.cross(x, forces).sum(0)) / max(possible, 1e-12)
    return (
        frame.name,
        known.setdefault(kind, kind),
        known.setdefault(ordered, ordered),
        known.setdefault(numbers.tobytes(), numbers),
        float(labels.energy[0]),
        np.sqrt(np.mean(np.square(forces))),
        length.max(),
        np.linalg.norm(forces.sum(0)),
        torque,
        np.count_nonzero(length == 0.0),
        periodic,
        abs(np.linalg.det(system.cell[0].numpy())),
        labels.stress[0].numpy()[SIX],
        *fingerprints(system),
        shortest,
    )


def shortest_distances(frame: Frame) -> dict[tuple[int, int], float]:
    """The shortest distance of each pair of elements that is not far apart, Å."""
    z = frame.system.numbers.numpy()
    if bool(frame.system.pbc.any()) or len(z) > 500:
        i, j, r = pairs(frame, SEARCHED)
    else:
        i, j = np.triu_indices(len(z), 1)
        x = frame.system.positions.numpy()
        r = x[j] - x[i]
    d = np.linalg.norm(r, axis=1)
    kind = np.minimum(z[i], z[j]) * 1000 + np.maximum(z[i], z[j])
    return {
        (int(each) // 1000, int(each) % 1000): float(d[kind == each].min())
        for each in np.unique(kind)
    }
