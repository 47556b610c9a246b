"""Frames packed into one HDF5 file: checked once, read one by one in flat memory.

    atoms/{positions,numbers,masses,forces}       all frames, one behind another
    frames/offsets                                where the atoms of each frame begin, and the end
    frames/{cell,pbc,charge,energy,stress,dipole}
    frames/{source,index}                         the file each frame is from, and where in it
    frames/config_type                            what kind of structure each frame is, UTF-8;
                                                  not in files of layout version 1

Units are eV, Å, u and e; NaN stands where there is no label, and a label that no frame has is not
in the file. The attribute `mdlearn` of the root is JSON: `format`, `version`, the `keys` that fed
the labels, and the `sources` with their hashes. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, final, overload

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from mdlearn import h5md
from mdlearn.atoms import Frame
from mdlearn.errors import DataError
from mdlearn.labels import Keys, Labels, Wanted
from mdlearn.system import System

FORMAT = "mdlearn-frames"
VERSION = 2
"""Of the layout; readers refuse files with a higher one."""

_MAGIC = b"\x89HDF\r\n\x1a\n"
BLOCK = 512
"""Frames that are written, or read on the way through the file, at a time, at most."""
BLOCK_ATOMS = 50_000
"""Atoms, likewise; a frame that is larger is a block of its own."""


class Array(NamedTuple):
    """How an array of the file is stored; its first axis, of atoms or of frames, grows."""

    dtype: np.typing.DTypeLike
    shape: tuple[int, ...]


ATOMS = {
    "positions": Array(np.float64, (3,)),
    "numbers": Array(np.int16, ()),
    "masses": Array(np.float64, ()),
    "forces": Array(np.float64, (3,)),
}
"""What there is of every atom."""
FRAMES = {
    "cell": Array(np.float64, (3, 3)),
    "pbc": Array(np.bool_, (3,)),
    "charge": Array(np.float64, ()),
    "energy": Array(np.float64, ()),
    "stress": Array(np.float64, (3, 3)),
    "dipole": Array(np.float64, (3,)),
    "source": Array(np.int32, ()),
    "index": Array(np.int64, ()),
    "config_type": Array(h5py.string_dtype(), ()),
}
"""What there is of every frame, besides `offsets`."""


def is_packed(path: str | Path) -> bool:
    """Whether a file holds packed frames, by its content."""
    try:
        with Path(path).open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                return False
        with h5py.File(path, "r", locking=False) as file:
            return _header(file).get("format") == FORMAT
    except (OSError, RuntimeError):
        # A truncated one says so when it is opened; here its name is in the first kilobytes.
        with suppress(OSError), Path(path).open("rb") as stream:
            return f'"format": "{FORMAT}"'.encode() in stream.read(2**16)
        return False


def open_packed(path: str | Path, wanted: Wanted) -> PackedFrames:
    """Opens packed frames, if they hold the labels that are wanted.

    Raises:
        DataError: a label was packed from another key, or not at all.
    """
    frames = PackedFrames(path)
    asked = zip(Keys._fields, frames.keys, wanted[:4], strict=True)
    for label, key, other in asked:
        if other is not None and key != other:
            found = f"the {label} of '{key}'" if key else f"no {label}"
            raise DataError(
                f"{path}: was packed with {found}; pack the frames again with --{label}-key {other}"
            )
    if frames.keys.forces is None and not wanted.energy_only:
        raise DataError(
            f"{path}: was packed without forces; pack the frames again without --energy-only, or"
            " train with --energy-only"
        )
    return frames


class _Open(NamedTuple):
    """A file as one process has it open."""

    process: int
    file: Any
    columns: dict[str, Any]
    """The arrays that it has, by name; looking one up takes longer than reading a frame of it."""


@final
class PackedFrames(Sequence[Frame]):
    """The frames of a packed file, read when they are asked for; a slice reads nothing either.

    The file is opened once in each process, so that frames survive a fork and can be pickled.

    Attributes:
        path: the file.
        keys: which key of the sources fed each label.
        sources: name and sha256 of the files that were packed.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the file.

        Raises:
            DataError: it cannot be read, or was made by a newer version.
        """
        self.path = Path(path)
        self._file: _Open | None = None
        try:
            file = self._open().file
            header = _header(file)
            if header.get("format") != FORMAT or header["version"] > VERSION:
                found = header.get("format", "another HDF5 file")
                raise DataError(
                    f"{path}: expected packed frames of layout version {VERSION} or lower, found"
                    f" {found} {header.get('version', '')}; use a newer mdlearn, or pack again"
                )
            self.keys = Keys(**header["keys"])
            self.sources: tuple[tuple[str, str], ...] = tuple(
                (each["name"], each["sha256"]) for each in header["sources"]
            )
            self._offsets: NDArray[np.int64] = file["frames/offsets"][()]
            if len(file["atoms/numbers"]) != self._offsets[-1]:
                raise DataError(f"{path}: its arrays do not fit together; pack the frames again")
        except (OSError, RuntimeError, KeyError, TypeError) as error:
            raise self._unreadable(error) from error
        self._chosen: NDArray[np.int64] = np.arange(len(self._offsets) - 1)

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def sizes(self) -> list[int]:
        """The number of atoms of every frame; reads nothing."""
        sizes: list[int] = np.diff(self._offsets)[self._chosen].tolist()
        return sizes

    def select(self, chosen: Sequence[int] | NDArray[np.int64] | slice) -> PackedFrames:
        """Some of the frames, by their indices; reads nothing."""
        part = object.__new__(PackedFrames)
        part.__dict__.update(self.__dict__ | {"_chosen": self._chosen[chosen]})
        return part

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> PackedFrames: ...
    def __getitem__(self, index: int | slice) -> Frame | PackedFrames:
        if isinstance(index, slice):
            return self.select(index)
        return next(self._read(self._chosen[index, None]))

    def __iter__(self) -> Iterator[Frame]:
        """Reads in blocks as long as frames stand in the order of the file."""
        first = 0
        while first < len(self._chosen):
            block = self._chosen[first : first + BLOCK]
            full = np.searchsorted(self._offsets, self._offsets[block[0]] + BLOCK_ATOMS)
            end = min(int(full), int(block[0]) + BLOCK)
            beyond = (block >= end) | (np.diff(block, prepend=block[0] - 1) <= 0)
            count = max(1, int(beyond.argmax()) if beyond.any() else len(block))
            yield from self._read(block[:count])
            first += count

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def _open(self) -> _Open:
        """The file of this process."""
        if self._file is None or self._file.process != os.getpid():
            file = h5py.File(self.path, "r", locking=False)
            names = [f"atoms/{name}" for name in ATOMS] + [f"frames/{name}" for name in FRAMES]
            columns = {name: file[name] for name in names if name in file}
            self._file = _Open(os.getpid(), file, columns)
        return self._file

    def _read(self, chosen: NDArray[np.int64]) -> Iterator[Frame]:
        """Frames, in ascending order, with one access to each array."""
        first, end = int(chosen[0]), int(chosen[-1]) + 1
        begin, stop = self._offsets[first], self._offsets[end]
        try:
            columns = self._open().columns
            atoms = {name: _part(columns, f"atoms/{name}", begin, stop) for name in ATOMS}
            frames = {name: _part(columns, f"frames/{name}", first, end) for name in FRAMES}
        except (OSError, RuntimeError, KeyError) as error:
            raise self._unreadable(error) from error
        for n in (chosen - first).tolist():
            own = slice(self._offsets[first + n] - begin, self._offsets[first + n + 1] - begin)
            # Copies, so that a frame that is kept does not keep the block that it came with.
            per_atom = {name: torch.tensor(values[own]) for name, values in atoms.items()}
            per_frame = {
                name: torch.tensor(values[n])
                for name, values in frames.items()
                if name != "config_type"
            }
            source, index = int(frames["source"][n]), int(frames["index"][n])
            yield Frame(
                f"{self.sources[source][0]}:{index}",
                System(
                    per_atom["positions"],
                    per_atom["numbers"].long(),
                    per_atom["masses"],
                    per_frame["cell"][None],
                    per_frame["pbc"][None],
                    torch.zeros(len(per_atom["numbers"]), dtype=torch.int64),
                    per_frame["charge"][None],
                ),
                Labels(
                    per_frame["energy"][None],
                    per_atom["forces"],
                    per_frame["stress"][None],
                    per_frame["dipole"][None],
                ),
                frames["config_type"][n].decode(),
            )

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: expected packed frames, found: {h5md.reason(error)}; if the file was"
            " copied, a part of it may be missing: copy it, or pack the frames, again"
        )


def _part(columns: dict[str, Any], name: str, first: int, end: int) -> NDArray[Any]:
    """Rows of an array; NaN, or an empty text, for what the file does not have."""
    if name not in columns:
        group, label = name.split("/")
        array = (ATOMS if group == "atoms" else FRAMES)[label]
        missing = b"" if label == "config_type" else np.nan
        return np.full((end - first, *array.shape), missing)
    values: NDArray[Any] = columns[name][first:end]
    return values


def _header(file: Any) -> dict[str, Any]:
    """What the root says of the file; empty if it is not one of ours."""
    try:
        header = json.loads(file.attrs["mdlearn"])
    except (KeyError, TypeError, ValueError):
        return {}
    return header if isinstance(header, dict) else {}
