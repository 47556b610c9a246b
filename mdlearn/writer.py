"""The one who writes a trajectory file; what it has committed survives whatever follows.

Everything here is in ASE units (eV, Å, u); the file holds other ones (`h5md` describes it), and
conversion happens here and in `trajectory` only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, final

import h5py
import numpy as np
import numpy.typing as npt

from mdlearn import h5md, lock
from mdlearn.errors import MDLearnError, OutputError
from mdlearn.h5md import LIBVER, OURS, VECTORS, Particles


@final
class TrajectoryWriter:
    """The one writer of a trajectory file, to be made by `create` or `reopen`.

    Frames are kept in memory until `commit`; `close` drops those never committed. A lock file
    `<path>.lock` keeps a second writer out, because HDF5 does not.
    """

    def __init__(self, path: Path, lock_file: Path) -> None:
        self.path = path
        self._lock = lock_file
        self._file = h5py.File(path, "r+", libver=LIBVER, locking=False)
        self._torn = False
        self._commits, self._frames = h5md.committed(self._file)
        self._replicas = h5md.replicas(self._file)
        # All handles stay open: HDF5 writes when a handle goes, and then cannot report an error.
        self._series = [
            {name: self._file[name] for name in paths.series(self._file)}
            for paths in self._replicas
        ]
        self._slots = [dict(self._file[f"{OURS}/restart/{slot}"]) for slot in "01"]
        self._counters = {name: self._file[f"{OURS}/{name}"] for name in ("frames", "commits")}
        self._shapes = [
            {name: data.shape[1:] for name, data in series.items()} for series in self._series
        ]
        self._kinds = [
            {name: data.dtype for name, data in series.items()} for series in self._series
        ]
        self._restart = {name: (data.shape, data.dtype) for name, data in self._slots[0].items()}
        self._pending: list[dict[str, list[npt.NDArray[Any]]]] = [
            {name: [] for name in series} for series in self._series
        ]
        self._file.swmr_mode = True

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        particles: Sequence[Particles],
        provenance: Mapping[str, str | int | float],
        restart: Mapping[str, npt.NDArray[Any]],
        dtype: npt.DTypeLike = np.float64,
        overwrite: bool = False,
    ) -> Self:
        """Makes a new file without frames.

        Args:
            path: Where; the directory must exist.
            particles: What the frames are of, for each replica.
            provenance: What made the file, by name.
            restart: Initial restart state; its names, shapes and dtypes hold for the whole file.
            dtype: Floating type of positions, velocities and forces in the file.
            overwrite: Replace an existing file, once the new one is complete.

        Raises:
            OutputError: The file exists, has another writer, or cannot be written.
        """
        path = Path(path)
        image = h5md.blank(particles, provenance, restart, dtype)
        with lock.claimed(path) as lock_file:
            if path.exists() and not overwrite:
                raise OutputError(
                    f"{path}: expected a new file, found an existing one. Choose another name, "
                    "continue that run, or allow overwriting."
                )
            h5md.install(image, path)
            return cls(path, lock_file)

    @classmethod
    def reopen(cls, path: str | os.PathLike[str]) -> Self:
        """Goes on after the last committed frame of a file, however its writer ended.

        Raises:
            DataError: There is no such file, or it is not a trajectory this version can read.
            OutputError: The file has another writer, or cannot be written.
        """
        path = Path(path)
        for opened in h5md.open_for_reading(path):  # refuse other files before touching anything
            opened.close()
        with lock.claimed(path) as lock_file:
            h5md.repair(path)
            return cls(path, lock_file)

    def append(
        self,
        *,
        step: int,
        time_fs: float,
        positions: npt.ArrayLike,
        velocities: npt.ArrayLike,
        forces: npt.ArrayLike,
        cell: npt.ArrayLike,
        observables: Mapping[str, float],
        replica: int = 0,
    ) -> None:
        """Takes a copy of one frame, to be written by the next `commit`.

        Args:
            step: Number of the time step.
            time_fs: Time in fs.
            positions: In Å, (n_atoms, 3).
            velocities: In Å·sqrt(eV/u), (n_atoms, 3).
            forces: In eV/Å, (n_atoms, 3).
            cell: Cell vectors as rows in Å, (3, 3).
            observables: A number in its declared unit for every declared name.
            replica: The one that the frame is of.

        Raises:
            MDLearnError: A shape or a name differs from what the file was made for.
        """
        paths, shapes = self._replicas[replica], self._shapes[replica]
        frame = {paths.step: step, paths.time: time_fs, paths.edges: cell}
        vectors = {"position": positions, "velocity": velocities, "force": forces}
        for name, (_, factor) in VECTORS.items():
            frame[paths.vector(name)] = np.asarray(vectors[name], np.float64) * factor
        frame |= {paths.observable(name): value for name, value in observables.items()}
        kinds = self._kinds[replica]
        rows = {name: np.array(value, kinds.get(name)) for name, value in frame.items()}
        found = {name: row.shape for name, row in rows.items()}
        if found != shapes:
            raise MDLearnError(
                f"{self.path}: expected, in step {step}, rows of the shapes {shapes}, found "
                f"{found}. Pass the atoms and observables that the file was made for."
            )
        pending = self._pending[replica]
        for name, row in rows.items():
            pending[name].append(row)

    def commit(self, restart: Mapping[str, npt.NDArray[Any]]) -> None:
        """Makes the frames appended since the last commit, and the restart state, permanent.

        On return both survive a kill and a power cut. No frame need have been appended.

        Args:
            restart: Arrays of the names, shapes and dtypes the file was made for, kept bit by bit.

        Raises:
            MDLearnError: A name, shape or dtype of `restart` differs.
            OutputError: The disk did not take it. What was committed is intact; this is closed.
        """
        if not self._file:
            raise MDLearnError(
                f"{self.path}: expected an open file, found a closed one. Reopen it."
            )
        state = {name: np.asarray(array) for name, array in restart.items()}
        found = {name: (array.shape, array.dtype) for name, array in state.items()}
        if found != self._restart:
            raise MDLearnError(
                f"{self.path}: expected a restart state of {self._restart}, found {found}. "
                "Names, shapes and dtypes are fixed when the file is made."
            )
        frames = [
            before + len(pending[paths.step])
            for before, pending, paths in zip(
                self._frames, self._pending, self._replicas, strict=True
            )
        ]
        slot = (self._commits + 1) % 2
        self._torn = True
        try:
            for replica, (before, now) in enumerate(zip(self._frames, frames, strict=True)):
                for name, rows in self._pending[replica].items():
                    if rows:
                        self._series[replica][name].resize(now, axis=0)
                        self._series[replica][name][before:now] = np.stack(rows)
            for name, array in state.items():
                self._slots[slot][name][...] = array
            self._counters["frames"][slot] = frames
            self._sync()
            self._counters["commits"][()] = self._commits + 1
            self._sync()
        except (OSError, RuntimeError) as error:
            raise self._abandoned(error) from error
        self._commits, self._frames, self._torn = self._commits + 1, frames, False
        for pending in self._pending:
            for rows in pending.values():
                rows.clear()

    @property
    def committed(self) -> int:
        """Number of committed frames; of several replicas, of the one that has most."""
        return max(self._frames)

    def close(self) -> None:
        """Closes the file and gives the lock back; frames that were not committed are dropped.

        Raises:
            OutputError: The disk did not take the last bytes. Committed frames are intact.
        """
        if not self._file:
            return
        try:
            self._file.close()
            if self._torn:  # interrupted inside a commit: other programs would count its frames
                h5md.repair(self.path)
        except (OSError, RuntimeError) as error:
            raise self._abandoned(error) from error
        self._lock.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.id.get_vfd_handle())

    def _abandoned(self, error: Exception) -> OutputError:
        """Lets go of a file that cannot be written; what is on the disk stays as it is."""
        h5md.abandon(self._file)
        self._lock.unlink(missing_ok=True)
        pending = [rows for each in self._pending for rows in each.values()]
        rows = [row for rows in pending for row in rows]
        needed, free = sum(row.nbytes for row in rows), shutil.disk_usage(self.path.parent).free
        return OutputError(
            f"{self.path}: expected to write {max(map(len, pending))} frames, {needed / 1e6:.3g} "
            f"MB ({free / 1e6:.3g} MB are free), found: {h5md.reason(error)}. The {self.committed} "
            "frames committed before are intact. Free the space or raise the limit, then resume."
        )
