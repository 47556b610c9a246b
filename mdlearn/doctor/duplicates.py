"""Frames that are there twice, or nearly, or follow each other in time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mdlearn.atoms import Frame
from mdlearn.doctor.findings import Finding, about
from mdlearn.doctor.fingerprints import close_pairs, groups, same_coordinates
from mdlearn.doctor.survey import Ints, Survey

SAME = 1e-4
"""Å. Frames whose fingerprints are closer are one frame; files are written with 1e-8."""
NEARLY_SAME = 0.02
"""Å, rms of all distances: a femtosecond or two of the same trajectory."""


def judge_duplicates(seen: Survey, splits: Mapping[str, Sequence[Frame]]) -> Iterator[Finding]:
    """Frames that are there twice, in a split or across, and whether their labels agree."""
    first, second, same = _close_frames(seen)
    frames = list(splits.values())

    def fetch(index: int) -> Frame:
        frame: Frame = frames[seen.split[index]][int(seen.place[index])]
        return frame

    n = seen.atoms
    across = seen.split[first] != seen.split[second]
    energy_apart = np.abs(seen.energy[first] - seen.energy[second]) / n[first]
    forces_apart = np.nan_to_num(np.abs(seen.rms[first] - seen.rms[second]))
    differ = (energy_apart > 1e-3) | (forces_apart > np.maximum(0.02, 0.02 * seen.rms[first]))
    # Looking at coordinates means reading both frames, so only where it matters.
    identical = same & (across | differ)
    identical[identical] = [
        same_coordinates(fetch(a).system, fetch(b).system, SAME)
        for a, b in zip(first[identical].tolist(), second[identical].tolist(), strict=True)
    ]
    conflict = identical & differ
    if conflict.any():
        yield about(
            "conflicting-duplicates",
            "refuse",
            f"the same structure with different labels: energies differ by up to"
            f" {energy_apart[conflict].max():.3g} eV/atom, rms forces by"
            f" {forces_apart[conflict].max():.3g} eV/Å",
            "find out which calculation is right and remove the other",
            _couples(seen, first[conflict], second[conflict]),
        )
    inside = same & ~across
    if inside.any():
        doubles = np.unique(second[inside])
        yield about(
            "duplicate-frames",
            "warn" if len(doubles) > 0.01 * len(n) else "note",
            "frames that are there before in the same file (up to rotation, reflection and"
            " numbering)",
            "they count twice in training; mdlearn data split keeps them on one side",
            _couples(seen, first[inside], second[inside]),
        )
    nearly = ~same & ~across
    if nearly.any():
        yield about(
            "near-duplicates",
            "note",
            f"frames within {NEARLY_SAME} Å (rms of all distances) of another in the same file",
            "take fewer frames of each trajectory; mdlearn data split keeps them on one side",
            _couples(seen, first[nearly], second[nearly]),
        )
    if across.any():
        leaks = across & identical
        sizes = np.bincount(seen.split, minlength=len(seen.splits))
        share = max(
            len(np.unique(np.concatenate([first[leaks], second[leaks]])[of])) / sizes[part]
            if leaks.any()
            else 0.0
            for part in range(len(sizes))
            for of in [
                np.concatenate([seen.split[first[leaks]], seen.split[second[leaks]]]) == part
            ]
        )
        many = share > 0.1 and leaks.sum() > 2
        yield about(
            "across-splits",
            "refuse" if many else "warn",
            f"frames of one file that are also in another: {leaks.sum()} the same,"
            f" {across.sum() - leaks.sum()} equivalent by symmetry or within {NEARLY_SAME} Å;"
            " errors on them say nothing about new structures",
            "split again with mdlearn data split, which keeps such frames together",
            _couples(seen, first[across], second[across]),
        )


def _close_frames(seen: Survey) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """All pairs of frames that are the same (True), or nearly the same and in the same order."""
    several, n = np.flatnonzero(seen.atoms > 1), len(seen.names)
    found: dict[float, list[Ints]] = {NEARLY_SAME: [several[:0]], SAME: [several[:0]]}
    for kinds, prints, tolerance in (
        (seen.ordered, seen.sketches, NEARLY_SAME),
        (seen.kinds, seen.prints, SAME),
    ):
        for members in groups([kinds[index] for index in several]):
            own = several[members]
            a, b, _ = close_pairs(np.array([prints[index] for index in own]), tolerance)
            found[tolerance].append(own[a] * n + own[b])
    nearly, same = (np.concatenate(each) for each in found.values())
    both = np.unique(np.concatenate([nearly, same]))
    first, second = np.divmod(both, max(n, 1))
    return first, second, np.isin(both, same)


def _couples(seen: Survey, first: Ints, second: Ints) -> list[str]:
    """Names of pairs, each frame that comes second once."""
    once = np.unique(second, return_index=True)[1]
    return [f"{seen.names[second[n]]} = {seen.names[first[n]]}" for n in once.tolist()]


def judge_trajectories(seen: Survey) -> Iterator[Finding]:
    """Whether neighbors in a file are neighbors in time."""
    for part, name in enumerate(seen.splits):
        inside = np.flatnonzero((seen.split == part) & (seen.atoms > 1))
        kinds = [seen.kinds[index] for index in inside]
        members = max(groups(kinds), key=len, default=np.zeros(0, np.int64))
        if len(members) < 20:
            continue
        prints = np.array([seen.prints[inside[n]] for n in members])
        shuffled = prints[np.random.default_rng(0).permutation(len(prints))]
        next_, any_ = (
            float(np.median(np.linalg.norm(np.diff(each, axis=0), axis=1)))
            for each in (prints, shuffled)
        )
        if next_ < 0.5 * any_:
            yield about(
                "correlated-frames",
                "note",
                f"{name}: frames next to each other differ by {next_:.2g} Å, any two by"
                f" {any_:.2g} Å, so they follow each other in time",
                "a random split puts neighbors on both sides; validate and test on another run",
            )
