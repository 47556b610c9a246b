"""From files and ASE's `Atoms` to systems and labels, and the checks at that door.

Whatever comes past here is finite, has known elements, a cell with a volume where it is periodic,
and no two atoms on top of each other; and it is known which key of the file fed which label.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from mdlearn.neighbors import Neighbors, build, pair_vectors
from mdlearn.system import System

SMALLEST_DISTANCE = 0.1
"""Å. Closer atoms are a mistake in the file, not chemistry."""
_SEARCHED = 2.0  # Å
_COMPRESSED = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}


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


class Wanted(NamedTuple):
    """What a person says of the keys; None for what is to be found out."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    dipole: str | None = None
    energy_only: bool = False
    """Forces may be missing."""


class Frame(NamedTuple):
    """One structure of a file, checked, with its labels."""

    name: str
    """File and index, as in `frames.xyz:12`."""
    system: System
    labels: Labels
    config_type: str = ""
    """What kind of structure it is, if the file says so; errors are grouped by it."""


def read_atoms(path: str | Path) -> list[ase.Atoms]:
    """Reads all structures of a file in any format that ASE knows.

    Raises:
        DataError: the file is missing, empty, truncated or not a structure file.
    """
    return list(iterate_atoms(path))


def iterate_atoms(path: str | Path) -> Iterator[ase.Atoms]:
    """Reads the structures of a file one after another, never all at once.

    Raises:
        DataError: as `read_atoms`, when the iteration comes to the place.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; expected structures in extended XYZ or any format of ASE"
        )
    count = 0
    structures = _iread(path)
    while True:
        try:
            # Around each step and not around the loop: what others do meanwhile may warn.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                atoms = next(structures, None)
        except (Exception, gzip.BadGzipFile) as error:
            if path.stat().st_size == 0:
                raise DataError(
                    f"{path}: the file is empty; expected at least one structure"
                ) from None
            what = str(error).strip() or type(error).__name__
            if isinstance(error, KeyError):
                what = f"unknown element or key {what}"
            raise DataError(
                f"{path}:{count}: this frame cannot be read ({what}); the {count} before it"
                " can; repair it, or cut the file before it"
            ) from error
        if atoms is None:
            break
        count += 1
        yield atoms
    if not count:
        raise DataError(f"{path}: no frames; expected at least one structure")


def _iread(path: Path) -> Iterator[ase.Atoms]:
    """ASE's reading, spared of going back and forth in a compressed file, which is very slow."""
    decompress = _COMPRESSED.get(path.suffix)
    if decompress is None:
        yield from ase.io.iread(path, ":")
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        with decompress(path) as packed, plain.open("wb") as stream:
            shutil.copyfileobj(packed, stream)
        yield from ase.io.iread(plain, ":")


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
) -> tuple[Sequence[Frame], Keys]:
    """Reads and checks labelled structures.

    A file of packed frames (see `packed`) is recognized by its content and read lazily; its frames
    were checked, and the keys of their labels settled, when they were packed.

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
    from mdlearn.packed import is_packed, open_packed  # which needs what is defined here

    wanted = Wanted(energy_key, forces_key, stress_key, dipole_key, energy_only)
    if is_packed(path):
        packed = open_packed(path, wanted)
        return packed, packed.keys
    sound: list[tuple[str, ase.Atoms, System]] = []
    for index, atoms in enumerate(iterate_atoms(path)):
        name = f"{path}:{index}"
        with _tolerating(skip_bad):
            system = to_system(atoms)
            check_structure(system, name)
            sound.append((name, atoms, system))
    keys = find_keys(((name, atoms) for name, atoms, _ in sound), wanted)
    frames = []
    for name, atoms, system in sound:
        with _tolerating(skip_bad):
            labels = find_labels(atoms, keys, name)
            frames.append(Frame(name, system, labels, _config_type(atoms)))
    return frames, keys


def make_frame(atoms: ase.Atoms, keys: Keys, name: str) -> Frame:
    """Checks a structure and its labels.

    Raises:
        DataError: see `check_structure`; or a label is not finite or has the wrong shape.
    """
    system = to_system(atoms)
    check_structure(system, name)
    return Frame(name, system, find_labels(atoms, keys, name), _config_type(atoms))


def _config_type(atoms: ase.Atoms) -> str:
    return str(atoms.info.get("config_type", ""))


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


def check_geometry(system: System, name: str) -> Neighbors:
    """Turns away a structure that is no structure.

    Args:
        system: a single system.
        name: what to call it in messages, as in `frames.xyz:12`.

    Returns:
        The pairs of near atoms.

    Raises:
        DataError: no atoms, a dummy atom, a position that is not finite, or a periodic cell without
            volume.
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
        # Looking further than need be is faster: the search lays a grid of cells this wide.
        return build(system, _SEARCHED)
    except MDLearnError as error:
        raise DataError(f"{name}: {error}") from None


def check_structure(system: System, name: str) -> None:
    """Turns away a structure that no potential could make sense of.

    Args:
        system: a single system.
        name: what to call it in messages, as in `frames.xyz:12`.

    Raises:
        DataError: see `check_geometry`; or two atoms are closer than `SMALLEST_DISTANCE`.
    """
    pairs = check_geometry(system, name)
    distances = pair_vectors(system, pairs).norm(dim=2)  # (n_atoms, K); padding is far away
    overlaps = torch.nonzero(distances < SMALLEST_DISTANCE)
    if len(overlaps):
        first, slot = overlaps[0].tolist()
        second = int(pairs.j[first, slot])
        distance = float(distances[first, slot])
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


class _Survey:
    """Which keys the structures of a stream have, without keeping any of them."""

    def __init__(self, candidates: Iterable[str]) -> None:
        self.count = 0
        self.periodic = False
        self.missing: Counter[str] = Counter()
        self.names: dict[str, list[str]] = {key: [] for key in candidates}
        """The first five frames without a key."""
        self.found: dict[str, str] = {}
        """The keys of the first frame without a key."""

    def add(self, name: str, atoms: ase.Atoms) -> None:
        self.count += 1
        self.periodic |= bool(atoms.pbc.any())
        for key, names in self.names.items():
            if lookup(atoms, key) is None:
                self.missing[key] += 1
                self.found.setdefault(key, ", ".join(known_keys(atoms)) or "none")
                if len(names) < 5:
                    names.append(name)

    def everywhere(self, key: str) -> bool:
        return not self.missing[key]

    def require(self, key: str, label: str) -> str:
        missing = self.missing[key]
        if missing:
            some = ", ".join(self.names[key] + ["..."] * (missing > 5))
            allow = ", or --energy-only to train on energies alone" if label == "forces" else ""
            raise DataError(
                f"{self.names[key][0]}: no {label} under the key '{key}' in {missing} of"
                f" {self.count} frames ({some}); keys found there: {self.found[key]}; name the"
                f" right one with --{label}-key{allow}"
            )
        return key


def find_keys(structures: Iterable[tuple[str, ase.Atoms]], wanted: Wanted) -> Keys:
    """Settles which key feeds which label; a stream of named structures is enough.

    Raises:
        DataError: a label that is needed is missing in some frames.
    """
    energy, forces, stress, dipole, energy_only = wanted
    standard = (energy or "energy", forces or "forces", stress or "stress", dipole or "dipole")
    candidates = dict.fromkeys(("free_energy", *standard))
    labelled, single = _Survey(candidates), _Survey(candidates)
    for name, atoms in structures:
        (labelled if len(atoms) > 1 else single).add(name, atoms)
    # A single atom has no forces worth naming, so it does not decide which labels there are.
    survey = labelled if labelled.count else single
    if energy is None:
        energy = "free_energy" if survey.everywhere("free_energy") else "energy"
    if forces is None and not (energy_only and not survey.everywhere("forces")):
        forces = "forces"
    if stress is None and survey.everywhere("stress"):
        stress = "stress"
    # In a periodic system a dipole depends on which image of each atom is meant, and the file does
    # not say; so there it must be asked for.
    if dipole is None and not survey.periodic and survey.everywhere("dipole"):
        dipole = "dipole"
    return Keys(
        survey.require(energy, "energy"),
        forces and survey.require(forces, "forces"),
        stress and survey.require(stress, "stress"),
        dipole and survey.require(dipole, "dipole"),
    )


def known_keys(atoms: ase.Atoms) -> list[str]:
    """Every key under which a structure has something, besides what makes it a structure."""
    results = atoms.calc.results if atoms.calc else {}
    return sorted({*atoms.info, *atoms.arrays, *results} - {"numbers", "positions"})


def lookup(atoms: ase.Atoms, key: str) -> Any:
    """The value under a key, wherever ASE put it; results are read raw, not through constraints."""
    for place in (atoms.calc.results if atoms.calc else {}, atoms.info, atoms.arrays):
        if key in place:
            return place[key]
    return None


def find_labels(atoms: ase.Atoms, keys: Keys, name: str) -> Labels:
    """The labels of one structure as tensors, NaN where there is none.

    Raises:
        DataError: a label is not finite or has the wrong shape, or there is no energy.
    """
    n = len(atoms)

    def label(key: str, name_of_label: str) -> NDArray[np.float64]:
        try:
            return np.asarray(lookup(atoms, key), np.float64)
        except (TypeError, ValueError):
            raise DataError(
                f"{name}: the {name_of_label} label under '{key}' is not made of numbers; repair"
                f" it, or name another key with --{name_of_label}-key"
            ) from None

    energy = label(keys.energy, "energy")
    _check_finite(energy, (), "energy", name)
    forces = np.full((n, 3), np.nan if n > 1 else 0.0)  # symmetry forbids forces on a single atom
    stress = np.full((3, 3), np.nan)
    if keys.forces and lookup(atoms, keys.forces) is not None:
        forces = label(keys.forces, "forces")
        _check_finite(forces, (n, 3), "forces", name)
    if keys.stress and n > 1 and atoms.pbc.all() and lookup(atoms, keys.stress) is not None:
        stress = full_stress(label(keys.stress, "stress"))
        _check_finite(stress, (3, 3), "stress", name)
        stress = 0.5 * (stress + stress.T)
    dipole = np.full(3, np.nan)
    if keys.dipole and n > 1 and lookup(atoms, keys.dipole) is not None:
        dipole = label(keys.dipole, "dipole")
        _check_finite(dipole, (3,), "dipole", name)
    return Labels(
        torch.tensor(energy)[None],
        torch.tensor(forces),
        torch.tensor(stress)[None],
        torch.tensor(dipole)[None],
    )


def full_stress(stress: NDArray[np.float64]) -> NDArray[np.float64]:
    """A stress of six components in Voigt's order (xx, yy, zz, yz, xz, xy), or of nine, as (3, 3).

    What is neither comes back as it is.
    """
    if stress.size == 6:
        stress = stress.reshape(6)[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
    return stress.reshape(3, 3) if stress.size == 9 else stress


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
