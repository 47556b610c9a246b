"""Layout of the trajectory file: H5MD 1.1 in HDF5, and what makes a commit final.

    particles/all/{position,velocity,force}/{step,time,value}    Å, Å/fs, kJ/(mol Å); fs
    particles/all/box/edges/{step,time,value}                    Å, rows are the cell vectors
    particles/all/{species,mass}                                 atomic numbers, u
    observables/<name>/{step,time,value}                         one number per frame
    parameters/provenance/<name>                                 what made the file
    parameters/mdlearn/{commits,frames}, restart/{0,1}/<name>    what is valid, where to go on

All `step` and `time` are hard links to one pair of datasets. Datasets may be longer than what is
valid: `commits` counts the commits, the valid slot is `commits` modulo 2, and `frames[slot]` frames
and the restart state in `restart/<slot>` are valid. A commit fills the other slot, waits for the
disk, and then adds one to `commits`: these 8 bytes switch frames and restart state together.

A file of several replicas has particles/replica_000, particles/replica_001, ... in place of
particles/all, and observables/replica_000/<name>, ...; each replica has frames of its own number,
so that `frames[slot]` is a row of numbers, and a `step` and a `time` of its own.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from mdlearn.errors import DataError, MDLearnError, OutputError
from mdlearn.units import fs, kJ_per_mol

SCHEMA = 1
"""Version of the layout; readers refuse files with a higher one."""
LIBVER = ("v110", "v110")
"""The oldest HDF5 format that bears a reader beside the writer (SWMR), and survives a kill."""
OURS = "parameters/mdlearn"
VECTORS = {
    "position": ("Angstrom", 1.0),
    "velocity": ("Angstrom fs-1", fs),
    "force": ("kJ mol-1 Angstrom-1", 1 / kJ_per_mol),
}
"""Per-atom vectors: unit in the file, and what one ASE unit is in it."""


class Particles(NamedTuple):
    """What a file is to hold of one run; of several replicas it has one of these for each."""

    numbers: npt.ArrayLike
    """Atomic numbers, (n_atoms,)."""
    masses: npt.ArrayLike
    """Masses in u, (n_atoms,)."""
    pbc: npt.ArrayLike
    """Periodic along each cell vector, (3,)."""
    observables: Mapping[str, str]
    """Unit of each number stored per frame, by name; "" if it has none."""


class Paths(NamedTuple):
    """Where the frames of one replica are."""

    particles: str
    observables: str

    @property
    def step(self) -> str:
        """The number of the time step of each frame."""
        return f"{self.particles}/position/step"

    @property
    def time(self) -> str:
        """The time of each frame."""
        return f"{self.particles}/position/time"

    @property
    def edges(self) -> str:
        """The cell vectors of each frame."""
        return f"{self.particles}/box/edges/value"

    def vector(self, name: str) -> str:
        """One of `VECTORS`."""
        return f"{self.particles}/{name}/value"

    def observable(self, name: str) -> str:
        """One of the numbers."""
        return f"{self.observables}/{name}/value"

    def series(self, file: Any) -> tuple[str, ...]:
        """Paths of the datasets that grow by one row per frame."""
        vectors = (self.vector(name) for name in VECTORS)
        observables = (self.observable(name) for name in file[self.observables])
        return (self.step, self.time, self.edges, *vectors, *observables)


_CHUNK_BYTES = 2**16  # a commit rewrites the last chunk, a reader reads whole ones
_CHUNK_FRAMES = 512
_WRITTEN_SWMR = 4  # bit of the consistency flags, byte 11 of the superblock


def blank(
    particles: Sequence[Particles],
    provenance: Mapping[str, str | int | float],
    restart: Mapping[str, npt.NDArray[Any]],
    dtype: npt.DTypeLike,
) -> memoryview:
    """The bytes of a file without frames; see `TrajectoryWriter.create` for the arguments.

    Made in memory, so that a disk that is full is a plain error and no file is ever half made.
    """
    image = io.BytesIO()
    with h5py.File(image, "w", libver=LIBVER) as file:
        header = file.create_group("h5md")
        header.attrs["version"] = [1, 1]
        header.create_group("author").attrs["name"] = os.environ.get("USER", "unknown")
        header.create_group("creator").attrs.update(name="mdlearn", version=_version())
        header.create_group("modules/units").attrs["version"] = [1, 0]
        for paths, each in zip(_paths(len(particles)), particles, strict=True):
            _add_particles(file, paths, each, np.dtype(dtype))
        records = file.create_group("parameters/provenance")
        for name, value in provenance.items():
            _refuse_paths(name)
            records[name] = value
        ours = file.create_group(OURS)
        ours.attrs["schema"] = SCHEMA
        ours["commits"] = np.int64(0)
        ours["frames"] = np.zeros((2, len(particles)) if len(particles) > 1 else 2, np.int64)
        for slot in "01":
            state = ours.create_group(f"restart/{slot}")
            for name, array in restart.items():
                _refuse_paths(name)
                state[name] = array
    return image.getbuffer()


def install(image: memoryview, path: Path) -> None:
    """Puts a complete file in place, durably; a file already there goes only at that moment."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        with fresh.open("wb") as raw:
            raw.write(image)
            raw.flush()
            os.fsync(raw.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every system can do this to a folder
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def replicas(file: Any) -> list[Paths]:
    """Where the frames of each replica are; of a single run, in one place."""
    return _paths(len(file["particles"]))


def _paths(count: int) -> list[Paths]:
    if count == 1:
        return [Paths("particles/all", "observables")]
    digits = max(3, len(str(count - 1)))  # so that the order of names is that of numbers
    names = [f"replica_{index:0{digits}}" for index in range(count)]
    return [Paths(f"particles/{name}", f"observables/{name}") for name in names]


def series(file: Any) -> dict[str, int]:
    """Paths of the datasets that grow by one row per frame, each with its replica."""
    return {
        name: index for index, paths in enumerate(replicas(file)) for name in paths.series(file)
    }


def committed(file: Any) -> tuple[int, list[int]]:
    """Number of commits, and of committed frames of each replica."""
    commits = int(file[f"{OURS}/commits"][()])
    return commits, frames_in(file[f"{OURS}/frames"], commits)


def frames_in(counts: Any, commits: int) -> list[int]:
    """How many frames of each replica a number of commits has made valid."""
    return [int(each) for each in np.ravel(counts[commits % 2])]


def open_for_reading(path: Path, replica: int | None = None) -> tuple[Any, io.FileIO]:
    """Opens a file that is finished, left by a kill, or being written, without changing it.

    Args:
        path: Where it is.
        replica: The one to be read, from 0; all if None. It is looked at whether it is whole.

    Returns:
        The HDF5 file, and a plain one below it; both are to be closed.

    Raises:
        DataError: There is no such file or replica, or it is not a trajectory this version can
            read.
        OutputError: Reading it is not permitted.
    """
    try:
        raw = path.open("rb", buffering=0)
    except PermissionError as error:
        raise OutputError(
            f"{path}: expected a readable file, found: {reason(error)}. Change its permissions."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        # HDF5's own drivers refuse a file marked as being written, unless they are told how; a
        # writer killed while opening leaves a mark that only a Python file object gets past. They
        # also read zeros beyond the end of a truncated file if told that it is being written.
        mark = int.from_bytes(raw.read(12)[11:])
        if not mark or mark & _WRITTEN_SWMR:
            file = h5py.File(path, "r", swmr=bool(mark), locking=False)
        else:
            file = h5py.File(raw, "r")
        try:
            _check(file, path, replica)
        except BaseException:
            file.close()
            raise
    except DataError:
        raw.close()
        raise
    except (OSError, RuntimeError, KeyError) as error:
        raw.seek(0)
        moved = mark != int.from_bytes(raw.read(12)[11:])
        raw.close()
        if moved:  # a writer opened or closed the file at this very moment
            return open_for_reading(path, replica)
        raise unreadable(path, error) from error
    return file, raw


def _check(file: Any, path: Path, replica: int | None) -> None:
    """Refuses other layouts, and a file whose committed frames are not all in it."""
    schema = file[OURS].attrs["schema"] if OURS in file else None
    if schema is None or schema > SCHEMA:
        found = "another HDF5 file" if schema is None else f"layout version {schema}"
        todo = "Check the path" if schema is None else "Use a newer mdlearn"
        raise DataError(
            f"{path}: expected a trajectory made by mdlearn, of layout version {SCHEMA} or lower, "
            f"found {found}. {todo}."
        )
    size, places = path.stat().st_size, list(zip(replicas(file), committed(file)[1], strict=True))
    if replica is not None:
        if not 0 <= replica < len(places):
            raise DataError(
                f"{path}: expected a replica from 0 to {len(places) - 1}, found {replica}. Ask for"
                " one of these."
            )
        places = [places[replica]]
    for paths, frames in places:
        grown = paths.series(file)
        for name in (*(f"{paths.particles}/{each}" for each in ("species", "mass", "box")), *grown):
            dataset = file[name]
            if frames and name in grown:
                first = (frames - 1) // dataset.chunks[0] * dataset.chunks[0]
                chunk = dataset.id.get_chunk_info_by_coord((first,) + (0,) * (dataset.ndim - 1))
                if chunk.byte_offset is None or chunk.byte_offset + chunk.size > size:
                    raise OSError(f"truncated file: frame {frames - 1} of {name} is missing")


def unreadable(path: Path, error: Exception) -> DataError:
    """The error to raise where a file cannot be read."""
    return DataError(
        f"{path}: expected a trajectory made by mdlearn, found: {reason(error)}. Check the path; "
        "if the file was copied, a part of it may be missing: copy it again."
    )


def repair(path: Path) -> None:
    """Clears the mark a killed writer left, and cuts every dataset to the committed frames.

    HDF5's own drivers refuse a marked file; through a Python file object it opens. Every prefix of
    the writes made here leaves a readable file.
    """
    with path.open("r+b") as raw:
        superblock = raw.read(36)
        if superblock[11]:
            # The superblock may count bytes that a failed or interrupted commit did not write.
            end = int.from_bytes(superblock[28:36], "little")
            raw.truncate(max(end, raw.seek(0, os.SEEK_END)))
        with h5py.File(raw, "r+", libver=LIBVER) as file:
            frames = committed(file)[1]
            for name, replica in series(file).items():
                file[name].resize(frames[replica], axis=0)
        raw.flush()
        os.fsync(raw.fileno())


def abandon(file: Any) -> None:
    """Lets go of a file that cannot be written; what is on the disk stays as it is.

    HDF5 would try the failed writes again when it closes the file, and crash the process at exit
    when they fail again. It may write to nowhere instead: for the disk this is the same as a kill.
    """
    if file:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, file.id.get_vfd_handle())
        os.close(nowhere)
        with suppress(OSError, RuntimeError):
            file.close()


def reason(error: Exception) -> str:
    """What the system or HDF5 says of a failure, to stand inside a message."""
    text = getattr(error, "strerror", None) or str(error)
    cause = re.search("error message = '([^']+)'", text)  # HDF5 hides the system's own words here
    return cause[1] if cause else text.partition("\n")[0]


def _add_particles(file: Any, paths: Paths, made_of: Particles, dtype: np.dtype[Any]) -> None:
    particles = file.create_group(paths.particles)
    species = np.asarray(made_of.numbers, np.int64)  # (n_atoms,)
    particles["species"] = species
    particles["mass"] = np.asarray(made_of.masses, np.float64)
    particles["mass"].attrs["unit"] = "u"
    _series(particles, "position/step", (), np.dtype(np.int64), "")
    _series(particles, "position/time", (), np.dtype(np.float64), "fs")
    for name, (unit, _) in VECTORS.items():
        _series(particles, f"{name}/value", (*species.shape, 3), dtype, unit)
    _series(particles, "box/edges/value", (3, 3), np.dtype(np.float64), "Angstrom")
    particles["box"].attrs["dimension"] = 3
    boundary = np.where(np.broadcast_to(np.asarray(made_of.pbc, bool), 3), "periodic", "none")
    particles["box"].attrs["boundary"] = boundary.tolist()
    observables = file.require_group(paths.observables)
    for name, unit in made_of.observables.items():
        _refuse_paths(name)
        _series(observables, f"{name}/value", (), np.dtype(np.float64), unit)
    grown = [particles[name] for name in ("velocity", "force", "box/edges")]
    for group in (*grown, *observables.values()):
        group["step"], group["time"] = file[paths.step], file[paths.time]


def _series(group: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], unit: str) -> Any:
    chunks = (_chunk(dtype.itemsize * math.prod(shape)), *(max(1, n) for n in shape))
    dataset = group.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunks)
    if unit:
        dataset.attrs["unit"] = unit
    return dataset


def _chunk(row: int) -> int:
    """Frames in a chunk of a series that has so many bytes a frame."""
    return min(_CHUNK_FRAMES, max(1, _CHUNK_BYTES // max(1, row)))


def size(frames: int, particles: Sequence[Particles]) -> int:
    """Bytes that so many frames in float64 take in a file, whole chunks of them."""
    rows = []
    for each in particles:
        vector = 8 * 3 * len(np.asarray(each.numbers))
        rows += [vector] * len(VECTORS) + [8 * 9] + [8] * (2 + len(each.observables))
    return sum(row * -(-frames // _chunk(row)) * _chunk(row) for row in rows)


def _refuse_paths(name: str) -> None:
    if not name.strip(".") or "/" in name:
        raise MDLearnError(f"Expected a plain name inside a trajectory, found {name!r}. Rename it.")


def _version() -> str:
    try:
        return metadata.version("mdlearn")
    except metadata.PackageNotFoundError:
        return "unknown"
