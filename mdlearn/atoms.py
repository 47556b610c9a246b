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
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import ase
import ase.io
import torch
from ase.data import chemical_symbols

from mdlearn.errors import DataError, MDLearnError, ModelError
from mdlearn.labels import Keys, Labels, Wanted, find_keys, find_labels
from mdlearn.neighbors import Neighbors, build, pair_vectors
from mdlearn.system import System

SMALLEST_DISTANCE = 0.1
"""Å. Closer atoms are a mistake in the file, not chemistry."""
_SEARCHED = 2.0  # Å
_COMPRESSED = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}


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
            rest = f", or cut the file there: the {count} before it can be read" if count else ""
            raise DataError(
                f"{path}:{count}: this frame cannot be read ({what}); repair it{rest}"
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
