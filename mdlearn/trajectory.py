"""The trajectory file: a writer whose commits survive whatever follows, and a reader.

Everything here is in ASE units (eV, Å, u); the file holds other ones (`h5md` describes it), and
conversion happens here only. A frame exists once it is committed, and not before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, final

import h5py
import numpy as np
import numpy.typing as npt

from mdlearn import h5md, lock
from mdlearn.errors import DataError, MDLearnError, OutputError
from mdlearn.h5md import EDGES, LIBVER, OURS, STEP, TIME, VECTORS

if TYPE_CHECKING:
    import ase

Floats: TypeAlias = npt.NDArray[np.float64]


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
        self._commits, self.committed = h5md.committed(self._file)
        # All handles stay open: HDF5 writes when a handle goes, and then cannot report an error.
        self._series = {name: self._file[name] for name in h5md.series(self._file)}
        self._slots = [dict(self._file[f"{OURS}/restart/{slot}"]) for slot in "01"]
        self._counters = {name: self._file[f"{OURS}/{name}"] for name in ("frames", "commits")}
        self._shapes = {name: data.shape[1:] for name, data in self._series.items()}
        self._restart = {name: (data.shape, data.dtype) for name, data in self._slots[0].items()}
        self._pending: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in self._series}
        self._file.swmr_mode = True

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        numbers: npt.ArrayLike,
        masses: npt.ArrayLike,
        pbc: npt.ArrayLike,
        observables: Mapping[str, str],
        provenance: Mapping[str, str | int | float],
        restart: Mapping[str, npt.NDArray[Any]],
        dtype: npt.DTypeLike = np.float64,
        overwrite: bool = False,
    ) -> Self:
        """Makes a new file without frames.

        Args:
            path: Where; the directory must exist.
            numbers: Atomic numbers, (n_atoms,).
            masses: Masses in u, (n_atoms,).
            pbc: Periodic along each cell vector, (3,).
            observables: Unit of each number stored per frame, by name; "" if it has none.
            provenance: What made the file, by name.
            restart: Initial restart state; its names, shapes and dtypes hold for the whole file.
            dtype: Floating type of positions, velocities and forces in the file.
            overwrite: Replace an existing file, once the new one is complete.

        Raises:
            OutputError: The file exists, has another writer, or cannot be written.
        """
        path = Path(path)
        image = h5md.blank(numbers, masses, pbc, observables, provenance, restart, dtype)
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
        Trajectory(path).close()  # refuse other files before touching anything
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

        Raises:
            MDLearnError: A shape or a name differs from what the file was made for.
        """
        frame = {STEP: step, TIME: time_fs, EDGES: cell}
        vectors = {"position": positions, "velocity": velocities, "force": forces}
        for name, (_, factor) in VECTORS.items():
            frame[f"particles/all/{name}/value"] = np.asarray(vectors[name], np.float64) * factor
        frame |= {f"observables/{name}/value": value for name, value in observables.items()}
        rows = {name: np.array(value) for name, value in frame.items()}
        found = {name: row.shape for name, row in rows.items()}
        if found != self._shapes:
            raise MDLearnError(
                f"{self.path}: expected, in step {step}, rows of the shapes {self._shapes}, found "
                f"{found}. Pass the atoms and observables that the file was made for."
            )
        for name, row in rows.items():
            self._pending[name].append(row.astype(self._series[name].dtype))

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
        frames = self.committed + len(self._pending[STEP])
        slot = (self._commits + 1) % 2
        self._torn = True
        try:
            for name, rows in self._pending.items():
                self._series[name].resize(frames, axis=0)
                if rows:
                    self._series[name][self.committed : frames] = np.stack(rows)
            for name, array in state.items():
                self._slots[slot][name][...] = array
            self._counters["frames"][slot] = frames
            self._sync()
            self._counters["commits"][()] = self._commits + 1
            self._sync()
        except (OSError, RuntimeError) as error:
            raise self._abandoned(error) from error
        self._commits, self.committed, self._torn = self._commits + 1, frames, False
        for rows in self._pending.values():
            rows.clear()

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
        rows = [row for rows in self._pending.values() for row in rows]
        needed, free = sum(row.nbytes for row in rows), shutil.disk_usage(self.path.parent).free
        return OutputError(
            f"{self.path}: expected to write {len(self._pending[STEP])} frames, {needed / 1e6:.3g} "
            f"MB ({free / 1e6:.3g} MB are free), found: {h5md.reason(error)}. The {self.committed} "
            "frames committed before are intact. Free the space or raise the limit, then resume."
        )


@final
class Trajectory:
    """Reads a trajectory file: finished, left by a kill, or being written by another process.

    Only committed frames exist. A file being written grows between two calls: for arrays of one
    length, take `n = len(trajectory)` once and select `slice(n)`. Nothing is ever modified.

    Attributes:
        numbers: Atomic numbers, (n_atoms,).
        masses: Masses in u, (n_atoms,).
        pbc: Periodic along each cell vector, (3,).
        provenance: What made the file, by name.
        observable_names: Names of the numbers stored per frame.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the file; raises as `h5md.open_for_reading` does."""
        self.path = Path(path)
        self._file, self._raw = h5md.open_for_reading(self.path)
        self._commits, self._frames = (self._file[f"{OURS}/{n}"] for n in ("commits", "frames"))
        self._state = (-1, 0)  # commits, frames
        self._datasets: dict[str, tuple[int, Any]] = {}  # commits when it was last refreshed
        particles = self._file["particles/all"]
        self.numbers: npt.NDArray[np.int64] = particles["species"][()]
        self.masses: Floats = particles["mass"][()]
        self.pbc = np.array([kind == "periodic" for kind in particles["box"].attrs["boundary"]])
        self.observable_names = tuple(self._file["observables"])
        self.provenance: dict[str, str | int | float] = {
            name: value.asstr()[()] if h5py.check_string_dtype(value.dtype) else value[()].item()
            for name, value in self._file["parameters/provenance"].items()
        }
        self._committed()

    def __len__(self) -> int:
        """Number of committed frames, now."""
        return self._committed()[1]

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """Number of the time step of each frame, (n_frames,)."""
        steps: npt.NDArray[np.int64] = self._read(STEP, slice(None))
        return steps

    @property
    def times_fs(self) -> Floats:
        """Time of each frame in fs, (n_frames,)."""
        times: Floats = self._read(TIME, slice(None))
        return times

    def positions(self, selection: int | slice) -> Floats:
        """Positions in Å: (n_atoms, 3) of one frame, (n_selected, n_atoms, 3) of a slice."""
        return self._vectors("position", selection)

    def velocities(self, selection: int | slice) -> Floats:
        """Velocities in Å·sqrt(eV/u): (n_atoms, 3), or (n_selected, n_atoms, 3) of a slice."""
        return self._vectors("velocity", selection)

    def forces(self, selection: int | slice) -> Floats:
        """Forces in eV/Å: (n_atoms, 3) of one frame, (n_selected, n_atoms, 3) of a slice."""
        return self._vectors("force", selection)

    def cells(self, selection: int | slice) -> Floats:
        """Cell vectors as rows in Å: (3, 3) of one frame, (n_selected, 3, 3) of a slice."""
        cells: Floats = self._read(EDGES, selection)
        return cells

    def observable(self, name: str) -> Floats:
        """One number per frame in `observable_unit(name)`, (n_frames,).

        Raises:
            DataError: The file has no such observable.
        """
        self.observable_unit(name)
        values: Floats = self._read(f"observables/{name}/value", slice(None))
        return values

    def observable_unit(self, name: str) -> str:
        """The unit of an observable, "" if it has none.

        Raises:
            DataError: The file has no such observable.
        """
        if name not in self.observable_names:
            raise DataError(
                f"{self.path}: expected an observable {name!r}, found only "
                f"{list(self.observable_names)}. Ask for one of these."
            )
        return str(self._file[f"observables/{name}/value"].attrs.get("unit", ""))

    def restart(self) -> dict[str, npt.NDArray[Any]]:
        """The restart state of the last commit, by name, bit for bit."""
        while True:
            commits, _ = self._committed()
            slot = f"{OURS}/restart/{commits % 2}"
            names = list(self._file[slot])
            state = {n: np.asarray(self._dataset(f"{slot}/{n}", commits)[()]) for n in names}
            # A writer enters this slot again only after the next commit.
            if commits == self._committed()[0]:
                return state

    def atoms(self, i: int) -> ase.Atoms:
        """One frame as `ase.Atoms` with velocities, forces and, if stored, the potential energy."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator

        i = range(len(self))[i]
        atoms = Atoms(
            numbers=self.numbers,
            positions=self.positions(i),
            masses=self.masses,
            cell=self.cells(i),
            pbc=self.pbc,
            velocities=self.velocities(i),
            info={"step": int(self._read(STEP, i)), "time_fs": float(self._read(TIME, i))},
        )
        results: dict[str, Any] = {"forces": self.forces(i)}
        if "potential_energy" in self.observable_names:
            results["energy"] = float(self._read("observables/potential_energy/value", i))
        calculator: Any = SinglePointCalculator  # untyped in ASE
        atoms.calc = calculator(atoms, **results)
        return atoms

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _committed(self) -> tuple[int, int]:
        """Number of commits and of committed frames, now."""
        while True:
            self._commits.refresh()
            commits = int(self._commits[()])
            if commits == self._state[0]:
                return self._state
            self._frames.refresh()
            # Returned only if still valid: a commit meanwhile may have changed this entry.
            self._state = (commits, int(self._frames[commits % 2]))

    def _dataset(self, name: str, commits: int) -> Any:
        known, dataset = self._datasets.get(name, (None, None))
        if dataset is None:
            dataset = self._file[name]
        if known != commits:  # else HDF5 would go on showing the last chunk as it was
            dataset.refresh()
            self._datasets[name] = (commits, dataset)
        return dataset

    def _read(self, name: str, selection: int | slice) -> Any:
        try:
            commits, n_frames = self._committed()
            dataset = self._dataset(name, commits)
            chosen = range(n_frames)[selection]
            if isinstance(chosen, int):
                return dataset[chosen]
            rising = chosen if chosen.step > 0 else chosen[::-1]  # the only order HDF5 knows
            rows = dataset[rising.start : max(rising.stop, rising.start) : rising.step]
            return rows if chosen.step > 0 else rows[::-1]
        except (OSError, RuntimeError) as error:
            raise h5md.unreadable(self.path, error) from error

    def _vectors(self, name: str, selection: int | slice) -> Floats:
        stored = self._read(f"particles/all/{name}/value", selection)
        vectors: Floats = np.asarray(stored, np.float64) / VECTORS[name][1]
        return vectors
