"""The one who reads a trajectory file. A frame exists once it is committed, and not before.

Everything here is in ASE units (eV, Å, u); the file holds other ones (`h5md` describes it), and
conversion happens here and in `writer` only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, final

import h5py
import numpy as np
import numpy.typing as npt

from mdlearn import h5md
from mdlearn.errors import DataError
from mdlearn.h5md import OURS, VECTORS

if TYPE_CHECKING:
    import ase

Floats: TypeAlias = npt.NDArray[np.float64]


@final
class Trajectory:
    """Reads a trajectory file: finished, left by a kill, or being written by another process.

    Only committed frames exist. A file being written grows between two calls: for arrays of one
    length, take `n = len(trajectory)` once and select `slice(n)`. Nothing is ever modified.

    A file may hold several replicas; this reads one of them.

    Attributes:
        n_replicas: How many the file holds.
        numbers: Atomic numbers, (n_atoms,).
        masses: Masses in u, (n_atoms,).
        pbc: Periodic along each cell vector, (3,).
        provenance: What made the file, by name.
        observable_names: Names of the numbers stored per frame.
    """

    def __init__(self, path: str | os.PathLike[str], replica: int = 0) -> None:
        """Opens the file.

        Args:
            path: Where it is.
            replica: Which one to read, from 0.

        Raises:
            DataError: There is no such file or replica, or it is not a trajectory this version can
                read.
            OutputError: Reading it is not permitted.
        """
        self.path = Path(path)
        self._file, self._raw = h5md.open_for_reading(self.path, replica)
        replicas = h5md.replicas(self._file)
        self.n_replicas = len(replicas)
        self._replica, self._paths = replica, replicas[replica]
        self._state = (-1, 0)  # commits, frames
        self._grows = bool(self._file.swmr_mode)  # somebody writes it, or was killed doing so
        particles = self._file[self._paths.particles]
        self.numbers: npt.NDArray[np.int64] = particles["species"][()]
        self.masses: Floats = particles["mass"][()]
        self.pbc = np.array([kind == "periodic" for kind in particles["box"].attrs["boundary"]])
        self.observable_names = tuple(self._file[self._paths.observables])
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
        steps: npt.NDArray[np.int64] = self._read(self._paths.step, slice(None))
        return steps

    @property
    def times_fs(self) -> Floats:
        """Time of each frame in fs, (n_frames,)."""
        times: Floats = self._read(self._paths.time, slice(None))
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
        cells: Floats = self._read(self._paths.edges, selection)
        return cells

    def observable(self, name: str) -> Floats:
        """One number per frame in `observable_unit(name)`, (n_frames,).

        Raises:
            DataError: The file has no such observable.
        """
        self.observable_unit(name)
        values: Floats = self._read(self._paths.observable(name), slice(None))
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
        return str(self._file[self._paths.observable(name)].attrs.get("unit", ""))

    def restart(self) -> dict[str, npt.NDArray[Any]]:
        """The restart state of the last commit, by name, bit for bit."""
        while True:
            commits, _ = self._committed()
            slot = f"{OURS}/restart/{commits % 2}"
            names = list(self._file[slot])
            state = {n: np.asarray(self._dataset(f"{slot}/{n}")[()]) for n in names}
            # A writer enters this slot again only after the next commit.
            if commits == self._committed()[0]:
                return state

    @property
    def stopped(self) -> str:
        """Why this replica was stopped while the others went on, "" if it was not."""
        reasons = self.restart().get("stopped")
        return "" if reasons is None else bytes(reasons[self._replica]).decode(errors="ignore")

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
            info={
                "step": int(self._read(self._paths.step, i)),
                "time_fs": float(self._read(self._paths.time, i)),
            },
        )
        results: dict[str, Any] = {"forces": self.forces(i)}
        if "potential_energy" in self.observable_names:
            results["energy"] = float(self._read(self._paths.observable("potential_energy"), i))
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
            commits = int(self._dataset(f"{OURS}/commits")[()])
            if commits == self._state[0]:
                return self._state
            frames = h5md.frames_in(self._dataset(f"{OURS}/frames"), commits)
            # Returned only if still valid: a commit meanwhile may have changed this entry.
            self._state = (commits, frames[self._replica])

    def _dataset(self, name: str) -> Any:
        """A handle for one use.

        To refresh a handle of HDF5 2.0 and to let go of it spoils what other handles of the same
        data in this process find: numbers of other frames. So none is kept.
        """
        dataset = self._file[name]
        if self._grows:  # else HDF5 would go on showing the last chunk as it was
            dataset.refresh()
        return dataset

    def _read(self, name: str, selection: int | slice) -> Any:
        try:
            _, n_frames = self._committed()
            dataset = self._dataset(name)
            chosen = range(n_frames)[selection]
            if isinstance(chosen, int):
                return dataset[chosen]
            rising = chosen if chosen.step > 0 else chosen[::-1]  # the only order HDF5 knows
            rows = dataset[rising.start : max(rising.stop, rising.start) : rising.step]
            return rows if chosen.step > 0 else rows[::-1]
        except (OSError, RuntimeError) as error:
            raise h5md.unreadable(self.path, error) from error

    def _vectors(self, name: str, selection: int | slice) -> Floats:
        stored = self._read(self._paths.vector(name), selection)
        vectors: Floats = np.asarray(stored, np.float64) / VECTORS[name][1]
        return vectors
