"""From files and ASE's `Atoms` to systems and labels, and the checks at that door.

Whatever comes past here is finite, has known elements, a cell with a volume where it is periodic,
and no two atoms on top of each other; and it is known which key of the file fed which label.
"""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.io
import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.errors import DataError, MDLearnError, ModelError
from mdlearn.neighbors import build, pair_vectors
from mdlearn.system import System

SMALLEST_DISTANCE = 0.1
"""Å. Closer atoms are a mistake in the file, not chemistry."""


class Labels(NamedTuple):
    """What the reference calculation says of a batch; NaN where it says nothing."""

    energy: Tensor
    """(n_systems,) float64 eV."""
    forces: Tensor
    """(n_atoms, 3) float64 eV/Å."""
    stress: Tensor
    """(n_systems, 3, 3) float64 eV/Å³, ASE's sign: positive pulls inward."""
    dipole: Tensor
    """(n_systems, 3) float64 e Å, from negative to positive, about the origin."""


class Keys(NamedTuple):
    """Which key of the file feeds each label; None for a label that is not there."""

    energy: str
    forces: str | None
    stress: str | None
    dipole: str | None


class Frame(NamedTuple):
    """One structure of a file, checked, with its labels."""

    name: str
    """File and index, as in `frames.xyz:12`."""
    system: System
    labels: Labels


def read_atoms(path: str | Path) -> list[ase.Atoms]:
    """Reads all structures of a file in any format that ASE knows.

    Raises:
        DataError: the file is missing, empty, truncated or not a structure file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; expected structures in extended XYZ or any format of ASE"
        )
    frames: list[ase.Atoms] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames.extend(ase.io.iread(path, ":"))
    except (Exception, gzip.BadGzipFile) as error:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty; expected at least one structure") from None
        what = str(error).strip() or type(error).__name__
        if isinstance(error, KeyError):
            what = f"unknown element or key {what}"
        raise DataError(
            f"{path}:{len(frames)}: this frame cannot be read ({what}); the {len(frames)} before it"
            " can; repair it, or cut the file before it"
        ) from error
    if not frames:
        raise DataError(f"{path}: no frames; expected at least one structure")
    return frames


def read_structure(path: str | Path) -> ase.Atoms:
    """Reads the last structure of a file and checks that dynamics can start from it."""
    atoms = read_atoms(path)[-1]
    system = to_system(atoms)
    check_structure(system, str(path))
    return atoms


def read_frames(
    path: str | Path,
    *,
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    dipole_key: str | None = None,
    energy_only: bool = False,
    skip_bad: bool = False,
) -> tuple[list[Frame], Keys]:
    """Reads and checks labelled structures.

    Without a key from the user, the energy is `free_energy` where every frame has one (it is the
    one that the forces are the derivative of), else `energy`; forces, stress and dipole are what
    ASE recognizes under these names. Stress and dipole are optional, and a dipole of periodic
    structures is only taken when it is named.

    Args:
        path: the file.
        energy_key: key of the energy, eV.
        forces_key: key of the forces, eV/Å.
        stress_key: key of the stress, eV/Å³, ASE's sign.
        dipole_key: key of the dipole, e Å.
        energy_only: accept frames without forces.
        skip_bad: leave out frames that fail a check instead of raising.

    Returns:
        The frames, and the keys that fed their labels.

    Raises:
        DataError: see `read_atoms` and `check_structure`; or a label is missing in some frames or
            is not finite.
    """
    sound: list[tuple[str, ase.Atoms, System]] = []
    for index, atoms in enumerate(read_atoms(path)):
        name = f"{path}:{index}"
        with _tolerating(skip_bad):
            system = to_system(atoms)
            check_structure(system, name)
            sound.append((name, atoms, system))
    # A single atom has no forces worth naming, so it does not decide which labels there are.
    labelled = [each for each in sound if len(each[1]) > 1] or sound
    names, structures = [each[0] for each in labelled], [each[1] for each in labelled]
    keys = _find_keys(
        structures, names, (energy_key, forces_key, stress_key, dipole_key), energy_only
    )
    frames = []
    for name, atoms, system in sound:
        with _tolerating(skip_bad):
            frames.append(Frame(name, system, _labels(atoms, keys, name)))
    return frames, keys


def _tolerating(bad: bool) -> AbstractContextManager[None]:
    """Swallows what is wrong with a frame, or does not."""
    return suppress(DataError) if bad else nullcontext()


def to_system(atoms: ase.Atoms) -> System:
    """One structure of ASE in float64; `atoms.info["charge"]`, if there, is its charge in e."""
    return System(
        torch.tensor(atoms.positions, dtype=torch.float64),
        torch.tensor(atoms.numbers, dtype=torch.int64),
        torch.tensor(atoms.get_masses(), dtype=torch.float64),
        torch.tensor(atoms.cell.array, dtype=torch.float64)[None],
        torch.tensor(atoms.pbc)[None],
        torch.zeros(len(atoms), dtype=torch.int64),
        torch.tensor([atoms.info.get("charge", 0.0)], dtype=torch.float64),
    )


def check_structure(system: System, name: str) -> None:
    """Turns away a structure that no potential could make sense of.

    Args:
        system: a single system.
        name: what to call it in messages, as in `frames.xyz:12`.

    Raises:
        DataError: no atoms, a dummy atom, a position that is not finite, a periodic cell without
            volume, or two atoms closer than `SMALLEST_DISTANCE`.
    """
    if len(system.numbers) == 0:
        raise DataError(f"{name}: this frame has no atoms; remove it")
    dummies = torch.nonzero(system.numbers == 0).flatten()
    if len(dummies):
        raise DataError(
            f"{name}: atom {int(dummies[0])} is a dummy (X, atomic number 0); expected an element:"
            " remove it or name the element"
        )
    if not bool(torch.isfinite(system.charge).all()):
        raise DataError(f"{name}: the charge is {float(system.charge)}; expected a number in e")
    bad = torch.nonzero(~torch.isfinite(system.positions).all(1)).flatten()
    if len(bad):
        raise DataError(
            f"{name}: atom {int(bad[0])} has the position {system.positions[bad[0]].tolist()};"
            " expected finite numbers in Å"
        )
    try:
        pairs = build(system, SMALLEST_DISTANCE)
    except MDLearnError as error:
        raise DataError(f"{name}: {error}") from None
    if bool(pairs.valid.any()):
        first = int(torch.nonzero(pairs.valid.any(1))[0])
        slot = int(torch.nonzero(pairs.valid[first])[0])
        second = int(pairs.j[first, slot])
        distance = float(pair_vectors(system, pairs)[first, slot].norm())
        symbols = [chemical_symbols[int(system.numbers[atom])] for atom in (first, second)]
        raise DataError(
            f"{name}: atoms {first} ({symbols[0]}) and {second} ({symbols[1]}) are {distance:.3f} Å"
            f" apart; expected at least {SMALLEST_DISTANCE} Å: remove one, or check cell and units"
        )


def require_species(species: Sequence[int], system: System, name: str) -> None:
    """Raises ModelError if a system has an element that is not among a model's species."""
    unknown = sorted(set(system.numbers.tolist()) - set(species))
    if unknown:
        atom = system.numbers.tolist().index(unknown[0])
        known = ", ".join(chemical_symbols[z] for z in species)
        raise ModelError(
            f"{name}: atom {atom} is {chemical_symbols[unknown[0]]}; the model was trained on"
            f" {known} only: use another model, or train with frames that contain it"
        )


def _find_keys(
    structures: Sequence[ase.Atoms],
    names: Sequence[str],
    wanted: tuple[str | None, str | None, str | None, str | None],
    energy_only: bool,
) -> Keys:
    """Settles which key feeds which label; raises unless every frame has it."""
    energy_key, forces_key, stress_key, dipole_key = wanted

    def everywhere(key: str) -> bool:
        return all(_lookup(atoms, key) is not None for atoms in structures)

    def require(key: str, label: str) -> str:
        missing = [index for index, atoms in enumerate(structures) if _lookup(atoms, key) is None]
        if missing:
            some = ", ".join([names[index] for index in missing[:5]] + ["..."] * (len(missing) > 5))
            first = structures[missing[0]]
            results = first.calc.results if first.calc else {}
            found = sorted({*first.info, *first.arrays, *results} - {"numbers", "positions"})
            allow = ", or --energy-only to train on energies alone" if label == "forces" else ""
            raise DataError(
                f"{names[missing[0]]}: no {label} under the key '{key}' in {len(missing)} of"
                f" {len(structures)} frames ({some}); keys found there:"
                f" {', '.join(found) or 'none'}; name the right one with --{label}-key{allow}"
            )
        return key

    energy = energy_key or ("free_energy" if everywhere("free_energy") else "energy")
    forces: str | None = forces_key or "forces"
    if energy_only and forces_key is None and not everywhere("forces"):
        forces = None
    stress = stress_key or ("stress" if everywhere("stress") else None)
    # In a periodic system a dipole depends on which image of each atom is meant, and the file does
    # not say; so there it must be asked for.
    molecules = not any(atoms.pbc.any() for atoms in structures)
    dipole = dipole_key or ("dipole" if molecules and everywhere("dipole") else None)
    return Keys(
        require(energy, "energy"),
        forces and require(forces, "forces"),
        stress and require(stress, "stress"),
        dipole and require(dipole, "dipole"),
    )


def _lookup(atoms: ase.Atoms, key: str) -> Any:
    """The value under a key, wherever ASE put it; results are read raw, not through constraints."""
    for place in (atoms.calc.results if atoms.calc else {}, atoms.info, atoms.arrays):
        if key in place:
            return place[key]
    return None


def _labels(atoms: ase.Atoms, keys: Keys, name: str) -> Labels:
    """The labels of one structure as tensors, NaN where there is none."""
    n = len(atoms)
    energy = np.asarray(_lookup(atoms, keys.energy), np.float64)
    _check_finite(energy, (), "energy", name)
    forces = np.full((n, 3), np.nan if n > 1 else 0.0)  # symmetry forbids forces on a single atom
    stress = np.full((3, 3), np.nan)
    if keys.forces and (n > 1 or _lookup(atoms, keys.forces) is not None):
        forces = np.asarray(_lookup(atoms, keys.forces), np.float64)
        _check_finite(forces, (n, 3), "forces", name)
    if keys.stress and n > 1 and atoms.pbc.all():
        stress = np.asarray(_lookup(atoms, keys.stress), np.float64)
        if stress.size == 6:
            stress = stress.reshape(6)[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]  # Voigt order
        stress = stress.reshape(3, 3)
        _check_finite(stress, (3, 3), "stress", name)
        stress = 0.5 * (stress + stress.T)
    dipole = np.full(3, np.nan)
    if keys.dipole and n > 1:
        dipole = np.asarray(_lookup(atoms, keys.dipole), np.float64)
        _check_finite(dipole, (3,), "dipole", name)
    return Labels(
        torch.tensor(energy)[None],
        torch.tensor(forces),
        torch.tensor(stress)[None],
        torch.tensor(dipole)[None],
    )


def _check_finite(
    values: NDArray[np.float64], shape: tuple[int, ...], label: str, name: str
) -> None:
    if values.shape != shape:
        raise DataError(f"{name}: the {label} label has the shape {values.shape}; expected {shape}")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        where = f", atom {bad[0][0]}" if label == "forces" else ""
        raise DataError(
            f"{name}{where}: the {label} label is {values[tuple(bad[0])]}; expected a finite"
            " number: remove the frame or recompute it (--skip-bad leaves such frames out)"
        )
