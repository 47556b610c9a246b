"""Packing: frames of any files are checked once, and written as `packed` reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, final

import h5py
import numpy as np
from numpy.typing import NDArray

from mdlearn import h5md
from mdlearn.atoms import Frame, iterate_atoms, make_frame
from mdlearn.errors import DataError, OutputError
from mdlearn.files import refuse_existing, sha256
from mdlearn.labels import Keys, Wanted, find_keys
from mdlearn.packed import ATOMS, BLOCK, BLOCK_ATOMS, FORMAT, FRAMES, VERSION, Array, is_packed

_CHUNK_BYTES = 2**16  # a frame read at random costs one or two chunks of each array


class Packed(NamedTuple):
    """What `pack` did."""

    frames: int
    atoms: int
    skipped: tuple[str, ...]
    """What was wrong with the frames that were left out."""
    keys: Keys


def pack(
    paths: Sequence[Path],
    output: Path,
    wanted: Wanted,
    *,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Packed:
    """Packs the frames of several files, in flat memory; each file is read twice.

    The first reading settles which key feeds which label, for all files together; the second
    checks and writes. The output appears once it is complete.

    Raises:
        DataError: see `atoms.read_frames`.
        OutputError: the output exists, or cannot be written.
    """
    refuse_existing(output, overwrite=overwrite)
    for path in paths:
        if is_packed(path):
            raise DataError(f"{path}: is packed already; pack the files that it was made of")
    keys = find_keys(_named(paths), wanted)
    skipped: list[str] = []
    with PackedWriter(output, keys, paths) as writer:
        for source, path in enumerate(paths):
            for index, atoms in enumerate(iterate_atoms(path)):
                try:
                    frame = make_frame(atoms, keys, f"{path}:{index}")
                except DataError as error:
                    if not skip_bad:
                        raise
                    skipped.append(str(error))
                else:
                    writer.append(frame, source, index)
        if not writer.frames:
            raise DataError(f"{skipped[0]}; and no other frame is sound, so there is none to pack")
    return Packed(writer.frames, writer.atoms, tuple(skipped), keys)


def _named(paths: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    for path in paths:
        for index, atoms in enumerate(iterate_atoms(path)):
            yield f"{path}:{index}", atoms


@final
class PackedWriter:
    """Writes a file of packed frames; a context manager.

    The file appears under its name when the context ends, and not at all if it ends with an error.
    """

    def __init__(self, path: Path, keys: Keys, sources: Sequence[Path]) -> None:
        """Makes the file beside its place.

        Args:
            path: where it will be.
            keys: which key fed each label; decides which labels are stored.
            sources: the files that frames come from.

        Raises:
            OutputError: it cannot be made.
        """
        self.frames = self.atoms = 0
        self._waiting = 0
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}")
        self._pending: list[tuple[Frame, int, int]] = []
        described = [{"name": str(each), "sha256": sha256(each)} for each in sources]
        header = {
            "format": FORMAT,
            "version": VERSION,
            "keys": keys._asdict(),
            "sources": described,
        }
        absent = {label for label, key in keys._asdict().items() if key is None}
        try:
            self._file = h5py.File(self._partial, "x", libver=h5md.LIBVER)
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be made ({h5md.reason(error)}); choose a folder that exists and"
                " that you may write to"
            ) from error
        self._file.attrs["mdlearn"] = json.dumps(header, ensure_ascii=False)
        self._columns = {
            name: _column(self._file, name, each)
            for group, arrays in (("atoms", ATOMS), ("frames", FRAMES))
            for name, each in ((f"{group}/{n}", a) for n, a in arrays.items() if n not in absent)
        }
        self._offsets = _column(self._file, "frames/offsets", Array(np.int64, ()))
        self._offsets.resize(1, axis=0)

    def append(self, frame: Frame, source: int = 0, index: int | None = None) -> None:
        """Takes a frame.

        Args:
            frame: a checked one.
            source: which of the sources it is from.
            index: where in that file; after the one before, if None.

        Raises:
            OutputError: the disk did not take it.
        """
        self._pending.append((frame, source, self.frames if index is None else index))
        self.frames += 1
        self.atoms += len(frame.system.numbers)
        self._waiting += len(frame.system.numbers)
        if len(self._pending) >= BLOCK or self._waiting >= BLOCK_ATOMS:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None and self.frames:
            try:
                self._flush()
                self._file.flush()
                os.fsync(self._file.id.get_vfd_handle())
                self._file.close()
                self._partial.replace(self._path)
            except (OSError, RuntimeError) as failure:
                raise self._abandoned(failure) from failure
        else:
            h5md.abandon(self._file)
            self._partial.unlink(missing_ok=True)

    def _flush(self) -> None:
        """Writes what is pending."""
        rows = [_rows(*each) for each in self._pending]
        self._pending.clear()
        self._waiting = 0
        if not rows:
            return
        try:
            for name, column in self._columns.items():
                join = np.concatenate if name.startswith("atoms/") else np.stack
                _extend(column, join([row[name] for row in rows]))
            ends = np.cumsum([len(row["atoms/numbers"]) for row in rows])
            _extend(self._offsets, int(self._offsets[-1]) + ends)
        except (OSError, RuntimeError) as error:
            raise self._abandoned(error) from error

    def _abandoned(self, error: Exception) -> OutputError:
        h5md.abandon(self._file)
        self._partial.unlink(missing_ok=True)
        return OutputError(
            f"{self._path}: cannot be written ({h5md.reason(error)}) after {self.frames} frames;"
            " free some space, or choose another disk, and pack again"
        )


def _column(file: Any, name: str, array: Array) -> Any:
    row = np.dtype(array.dtype).itemsize * int(np.prod(array.shape))
    chunks = (max(1, _CHUNK_BYTES // row), *array.shape)
    shape, largest = (0, *array.shape), (None, *array.shape)
    return file.create_dataset(name, shape, array.dtype, maxshape=largest, chunks=chunks)


def _extend(column: Any, values: NDArray[Any]) -> None:
    first = len(column)
    column.resize(first + len(values), axis=0)
    column[first:] = values


def _rows(frame: Frame, source: int, index: int) -> dict[str, NDArray[Any]]:
    """A frame as it lies in the file."""
    system, labels = frame.system, frame.labels
    return {
        "atoms/positions": system.positions.numpy(),
        "atoms/numbers": system.numbers.numpy(),
        "atoms/masses": system.masses.numpy(),
        "atoms/forces": labels.forces.numpy(),
        "frames/cell": system.cell[0].numpy(),
        "frames/pbc": system.pbc[0].numpy(),
        "frames/charge": system.charge[0].numpy(),
        "frames/energy": labels.energy[0].numpy(),
        "frames/stress": labels.stress[0].numpy(),
        "frames/dipole": labels.dipole[0].numpy(),
        "frames/source": np.asarray(source),
        "frames/index": np.asarray(index),
        "frames/config_type": np.asarray(frame.config_type, object),
    }
