"""Files of frames as they are: what reading them would refuse, and then what the doctor finds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.formula import Formula

from mdlearn.atoms import Frame, make_frame, read_atoms
from mdlearn.doctor import judge
from mdlearn.doctor.findings import Finding, about, in_order
from mdlearn.doctor.survey import Survey, survey
from mdlearn.errors import DataError
from mdlearn.labels import Keys, Wanted, full_stress, known_keys, lookup
from mdlearn.packed import is_packed, open_packed


class Diagnosis(NamedTuple):
    """What the doctor has to say of some files."""

    keys: Keys | None
    """Which key feeds each label; None if no energy was found at all."""
    frames: dict[str, int]
    """Number of frames that can be used, by file."""
    compositions: dict[str, dict[str, int]]
    """Number of frames of each formula, by file."""
    shortest: dict[tuple[int, int], float]
    """Shortest distances, Å, by ascending atomic numbers."""
    findings: tuple[Finding, ...]
    """The worst first."""


class _Raw(NamedTuple):
    name: str
    part: str
    atoms: ase.Atoms


def diagnose(paths: Sequence[Path], wanted: Wanted) -> Diagnosis:
    """Examines files, each of which is a split: train first.

    What `read_frames` would raise about single frames becomes a finding here.

    Raises:
        DataError: a file is missing or cannot be read as structures.
    """
    if all(is_packed(path) for path in paths):
        packed = {str(path): open_packed(path, wanted) for path in paths}
        keys = next(iter(packed.values())).keys
        return _conclude(packed, keys, [])
    raw = [
        _Raw(f"{path}:{index}", str(path), atoms)
        for path in paths
        for index, atoms in enumerate(read_atoms(path))
    ]
    found: list[Finding] = []
    keys_or_none = _choose_keys(raw, wanted, found)
    splits: dict[str, list[Frame]] = {str(path): [] for path in paths}
    if keys_or_none is None:
        return _conclude(splits, None, found)
    missing = {label: list[str]() for label in ("energy", "forces")}
    bad: list[tuple[str, str]] = []
    for each in raw:
        if lookup(each.atoms, keys_or_none.energy) is None:
            missing["energy"].append(each.name)
            continue
        several, forces = len(each.atoms) > 1, keys_or_none.forces
        if several and forces and lookup(each.atoms, forces) is None:
            missing["forces"].append(each.name)
        try:
            splits[each.part].append(make_frame(each.atoms, keys_or_none, each.name))
        except DataError as error:
            bad.append((each.name, str(error)))
    found += [
        about(
            f"missing-{label}",
            "refuse",
            f"no {label} under '{getattr(keys_or_none, label)}'",
            "compute them, or remove the frames"
            + (", or use --energy-only" if label == "forces" else ""),
            names,
        )
        for label, names in missing.items()
        if names
    ]
    if bad:
        found.append(
            about(
                "bad-frames",
                "refuse",
                f"frames that cannot be used; the first: {bad[0][1]}",
                "repair them, or leave them out with --skip-bad",
                [name for name, _ in bad],
            )
        )
    found += _as_written(raw, keys_or_none)
    return _conclude(splits, keys_or_none, found)


def _conclude(
    splits: Mapping[str, Sequence[Frame]], keys: Keys | None, found: list[Finding]
) -> Diagnosis:
    seen = survey(splits)
    if keys is not None:
        found = found + judge(seen, splits, keys)
    return Diagnosis(
        keys,
        {name: len(frames) for name, frames in splits.items()},
        _compositions(seen),
        _shortest(seen),
        tuple(in_order(found)),
    )


def _choose_keys(raw: Sequence[_Raw], wanted: Wanted, found: list[Finding]) -> Keys | None:
    """The keys that most frames have; other spellings are found, but not let pass."""
    several = [each.atoms for each in raw if len(each.atoms) > 1] or [each.atoms for each in raw]
    counts = Counter(key for atoms in several for key in known_keys(atoms))

    def settle(label: str, given: str | None) -> str | None:
        if given is not None or counts[label]:
            return given or label
        shape = (lambda a: ()) if label == "energy" else (lambda a: (len(a), 3))
        pattern = "energy" if label == "energy" else "force"
        others = [
            key
            for key, _ in counts.most_common()
            if re.search(pattern, key, re.IGNORECASE) and _fits(several, key, shape)
        ]
        if not others:
            return None
        found.append(
            about(
                "unusual-keys",
                "refuse",
                f"no '{label}', but {' and '.join(repr(each) for each in others)}; taken here:"
                f" '{others[0]}'",
                f"--{label}-key {others[0]}, or mdlearn data convert with it",
            )
        )
        return others[0]

    energy = wanted.energy
    if energy is None and counts["free_energy"] == len(several):
        energy = "free_energy"
        if counts["energy"]:
            apart = [
                abs(lookup(a, "energy") - lookup(a, "free_energy")) / len(a)
                for a in several
                if lookup(a, "energy") is not None
            ]
            if max(apart) > 1e-6:
                found.append(
                    about(
                        "two-energies",
                        "note",
                        f"'energy' and 'free_energy' differ by up to {1000 * max(apart):.3g}"
                        " meV/atom; taken: 'free_energy', of which forces are the derivative",
                        "--energy-key energy takes the other",
                    )
                )
    energy = settle("energy", energy)
    if energy is None:
        names = [each.name for each in raw]
        keys = ", ".join(sorted(counts)) or "none"
        message = f"no energies at all; keys found: {keys}"
        found.append(
            about("missing-energy", "refuse", message, "name one with --energy-key", names)
        )
        return None
    forces = settle("forces", wanted.forces)
    if forces is None and not wanted.energy_only and max(map(len, several)) > 1:
        forces = "forces"
    everywhere = {key for key, count in counts.items() if count == len(several)}
    open_ = not any(atoms.pbc.any() for atoms in several)
    stress = wanted.stress or ("stress" if counts["stress"] else None)
    dipole = wanted.dipole or ("dipole" if open_ and "dipole" in everywhere else None)
    if stress and wanted.stress is None and "stress" not in everywhere:
        lacking = [e.name for e in raw if len(e.atoms) > 1 and lookup(e.atoms, "stress") is None]
        found.append(
            about(
                "missing-stress",
                "note",
                "some frames have a stress and some have none, so train will use none",
                "nothing to do, or leave these frames out to train on the stress of the others",
                lacking,
            )
        )
    return Keys(energy, forces, stress, dipole)


def _fits(several: Sequence[ase.Atoms], key: str, shape: Any) -> bool:
    """Whether what is under a key could be a label."""
    atoms = next(each for each in several if lookup(each, key) is not None)
    value = np.asarray(lookup(atoms, key))
    return value.shape == shape(atoms) and value.dtype.kind in "fi"


def _as_written(raw: Sequence[_Raw], keys: Keys) -> list[Finding]:
    """What only the file knows: constraints, and a stress that is not symmetric."""
    fixed = [each.name for each in raw if each.atoms.constraints]
    found = []
    if fixed:
        found.append(
            about(
                "constraints",
                "note",
                "frames with fixed atoms; their forces are read as they are in the file",
                "nothing to do if the file has the raw forces, as codes write them",
                fixed,
            )
        )
    crooked = []
    for each in raw:
        value = lookup(each.atoms, keys.stress) if keys.stress else None
        if value is not None and np.size(value) == 9:
            stress = full_stress(np.asarray(value, np.float64))
            if np.abs(stress - stress.T).max() > 1e-3 * max(np.abs(stress).max(), 1e-3):
                crooked.append(each.name)
    if crooked:
        found.append(
            about(
                "asymmetric-stress",
                "warn",
                "stresses that are not symmetric; they will be made so",
                "check the order of the nine components",
                crooked,
            )
        )
    return found


def _compositions(seen: Survey) -> dict[str, dict[str, int]]:
    """Number of frames of each formula, in each split, the commonest first."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in seen.splits}
    for part, numbers in zip(seen.split.tolist(), seen.numbers, strict=True):
        symbols = ase.Atoms(numbers).get_chemical_symbols()
        counts[seen.splits[part]][f"{Formula.from_list(symbols):hill}"] += 1
    return {name: dict(each.most_common()) for name, each in counts.items()}


def _shortest(seen: Survey) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = {}
    for each in seen.shortest:
        for pair, distance in each.items():
            found[pair] = min(distance, found.get(pair, np.inf))
    return dict(sorted(found.items()))
