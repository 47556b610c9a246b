"""What `mdlearn simulate` writes down while it runs, and what it says of it at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from mdlearn import units
from mdlearn.analysis import energy_drift, follow_bonds
from mdlearn.cli.console import counted, err, hms, out
from mdlearn.cli.crash import crash_path, explain
from mdlearn.cli.ensembles import SimulateConfig
from mdlearn.errors import UnstableError
from mdlearn.guards import lonely_atoms
from mdlearn.h5md import Particles
from mdlearn.integrators import State, conserved_energy, kinetic_energy, pressure
from mdlearn.potentials.evaluate import evaluate_multipoles
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.propagator import Propagator
from mdlearn.replicas import Saved, merge
from mdlearn.simulate import CrashError, Dynamics, Snapshot, save
from mdlearn.system import System, sum_by_system, volume
from mdlearn.trajectory import Trajectory
from mdlearn.writer import TrajectoryWriter

MOTION = {"kinetic_energy": "eV", "temperature": "K"}
ENERGY = {"potential_energy": "eV", "conserved_energy": "eV"}
"""Of models that know it."""
VOLUME = {"volume": "Angstrom3"}
PRESSURE = {"pressure": "GPa"}
"""Of systems with a volume, and of models that know it."""
DIPOLE = {"dipole_x": "e Angstrom", "dipole_y": "e Angstrom", "dipole_z": "e Angstrom"}
"""Of models that were trained on dipoles; about the origin, atoms not wrapped."""
LONGEST_REASON = 800
"""Bytes of what is said of a replica that has stopped."""


def particles_of(
    network: ParametricPotential | Propagator, structures: Sequence[ase.Atoms]
) -> list[Particles]:
    """What a trajectory is to hold of each replica."""
    return [
        Particles(
            atoms.numbers,
            atoms.get_masses(),
            atoms.pbc,
            observables_of(network, periodic=bool(atoms.pbc.all())),
        )
        for atoms in structures
    ]


def observables_of(network: ParametricPotential | Propagator, *, periodic: bool) -> dict[str, str]:
    """The numbers that are known of a system, and their units; a propagator knows no energy."""
    space = VOLUME if periodic else {}
    if isinstance(network, Propagator):
        return MOTION | space
    known = MOTION | ENERGY | space | (PRESSURE if periodic else {})
    return known | (DIPOLE if network.settings.dipole else {})


def blank_record(snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    """What a trajectory keeps to go on from, at the beginning of a run."""
    n = len(snapshot.conserved)
    return save(snapshot) | ({"stopped": np.zeros(n, f"S{LONGEST_REASON}")} if n > 1 else {})


def running_of(stopped: NDArray[np.bytes_] | None, system: System) -> Tensor:
    """Which systems of a batch have not stopped, by what a record has of it; (n_systems,) bool."""
    if stopped is None:
        return torch.ones_like(system.charge, dtype=torch.bool)
    return torch.tensor(stopped == b"", device=system.charge.device)


class Recorder:
    """Frames, commits, and which replicas have stopped."""

    def __init__(
        self,
        config: SimulateConfig,
        network: ParametricPotential | Propagator,
        writer: TrajectoryWriter,
        system: System,
        record: Saved,
    ) -> None:
        """Goes on with a record.

        Args:
            config: of the run.
            network: of the run.
            writer: of its trajectory.
            system: all replicas, also those that have stopped.
            record: as `blank_record` gives it, or as the trajectory has it.
        """
        self.config, self.writer = config, writer
        self._network, self._system = network, system
        self._saved = {name: array for name, array in record.items() if name != "stopped"}
        self._stopped = record.get("stopped")
        self._warned = False

    @property
    def running(self) -> Tensor:
        """Which replicas have not stopped, (n_replicas,) bool."""
        return running_of(self._stopped, self._system)

    def append(self, snapshot: Snapshot) -> None:
        """Takes a frame of each replica that runs."""
        state = snapshot.state
        sizes = torch.bincount(state.system.system).tolist()
        velocities = state.momenta / state.system.masses[:, None]
        forces = state.evaluation.forces
        if isinstance(self._network, Propagator):
            forces = torch.full_like(forces, torch.nan)  # there are none
        arrays = (state.system.positions, velocities, forces)
        positions, velocities_of, forces_of = (
            np.split(each.cpu().numpy(), np.cumsum(sizes)[:-1]) for each in arrays
        )
        cells = state.system.cell.cpu().numpy()
        observables = self._observables(snapshot)
        for index, replica in enumerate(torch.nonzero(self.running)[:, 0].tolist()):
            self.writer.append(
                step=state.step,
                time_fs=state.step * self.config.timestep_fs,
                positions=positions[index],
                velocities=velocities_of[index],
                forces=forces_of[index],
                cell=cells[index],
                observables=observables[index],
                replica=replica,
            )

    def _observables(self, snapshot: Snapshot) -> list[dict[str, float]]:
        """The numbers of each system of a snapshot."""
        state = snapshot.state
        values = {
            "potential_energy": state.evaluation.energy,
            "kinetic_energy": kinetic_energy(state),
            "conserved_energy": conserved_energy(state),
            "temperature": temperature(state),
            "pressure": pressure(state) / units.GPa,
            "volume": volume(state.system),
        }
        network = self._network
        if not isinstance(network, Propagator) and network.settings.dipole:
            with torch.no_grad():
                moments = evaluate_multipoles(network, state.system, snapshot.neighbors).dipole
            values |= dict(zip(DIPOLE, moments.unbind(1), strict=True))
        columns = {name: value.tolist() for name, value in values.items()}
        periodic = state.system.pbc.all(1).tolist()
        return [
            {name: columns[name][index] for name in observables_of(network, periodic=each)}
            for index, each in enumerate(periodic)
        ]

    def commit(self, snapshot: Snapshot) -> None:
        """Makes the frames so far permanent, and a snapshot what a resumed run goes on from."""
        if bool(self.running.any()):  # else everything is as `stop` left it
            self._saved = merge(self._saved, save(snapshot), self._system, self.running)
        stopped = {} if self._stopped is None else {"stopped": self._stopped}
        self.writer.commit(self._saved | stopped)

    def stop(self, error: UnstableError, dynamics: Dynamics, snapshot: Snapshot) -> Tensor:
        """Marks the replicas that have become unstable as stopped, for all time.

        Args:
            error: names them.
            dynamics: of those that ran.
            snapshot: the last that was observed; the rows of those that leave stay at it.

        Returns:
            (n_running,) bool, which of those that ran go on.

        Raises:
            UnstableError: this is no batch, or nobody knows which replica it was.
        """
        running = torch.nonzero(self.running).flatten().tolist()
        path, step = self.writer.path, snapshot.state.step
        several = self._stopped is not None
        reasons = dict(error.systems)
        if isinstance(error, CrashError):
            for trip in error.trips:
                kept = crash_path(path, running[trip.system] if several else None)
                reasons[trip.system] = explain(error, trip, self.config, dynamics, kept)
        if self._stopped is None or not reasons:
            what = "; ".join(reasons.values()) or str(error)
            raise UnstableError(f"{what}; {path} ends at step {step}") from None
        self._saved = merge(self._saved, save(snapshot), self._system, self.running)
        self._stopped = self._stopped.copy()
        for index, reason in reasons.items():
            self._stopped[running[index]] = reason.encode()[:LONGEST_REASON]
            err.print(f"replica {running[index]} stopped at step {step}: {reason}")
        staying = [index not in reasons for index in range(len(running))]
        return torch.tensor(staying, device=self._system.charge.device)

    def warn_of_lonely_atoms(self, snapshot: Snapshot) -> None:
        """Says once that an atom has no neighbor any more."""
        state, neighbors, _ = snapshot
        lonely = [] if self._warned else lonely_atoms(state.system, neighbors)
        if lonely:
            self._warned = True
            index = int(state.system.system[lonely[0]])
            atom = lonely[0] - int((state.system.system < index).sum())
            element = chemical_symbols[int(state.system.numbers[lonely[0]])]
            running = torch.nonzero(self.running).flatten().tolist()
            which = "" if self._stopped is None else f"replica {running[index]}, "
            what = "the model gives it no force and the energy of an isolated atom"
            if isinstance(self._network, Propagator):
                what = "it flies freely"
            err.print(
                f"warning     step {state.step}: {which}atom {atom} ({element}) has no neighbor"
                f" within {float(neighbors.reach):g} Å; {what}"
            )


def temperature(state: State) -> Tensor:
    """T = 2K / (f kB) of each system, K."""
    return 2.0 * kinetic_energy(state) / (state.freedom * units.kB)


def progress(config: SimulateConfig, snapshot: Snapshot, steps_per_s: float) -> str:
    """One line about a run that goes on; of a batch, the mean temperature and the worst drift."""
    state, n = snapshot.state, len(snapshot.conserved)
    n_atoms = sum_by_system(torch.ones_like(state.system.masses), state.system)
    drift = ((conserved_energy(state) - snapshot.conserved) / n_atoms).tolist()
    energy = f" energy {1000 * max(drift, key=abs):+.3f} meV/atom |"
    done = state.step * config.timestep_fs
    left = hms((config.target - state.step) / steps_per_s)
    return (
        f"{done / 1000:.2f} of {config.target * config.timestep_fs / 1000:.2f} ps |"
        f" {'' if n == 1 else f'{n} × '}{ns_per_day(config, steps_per_s):.2f} ns/day |"
        f" {float(temperature(state).mean()):.0f} K |"
        f"{energy if config.integrator == 'newton' else ''} {left} left"
    )


def ns_per_day(config: SimulateConfig, steps_per_s: float) -> float:
    """Speed as people compare it."""
    return steps_per_s * config.timestep_fs * 86400 / 1e6


def summarize(recorder: Recorder, first: int, last: int, seconds: float) -> None:
    """What a user wants to know first about the trajectory."""
    config, path = recorder.config, recorder.writer.path
    steps, n = last - first, len(recorder.running)
    rate = ns_per_day(config, steps / seconds) if steps else 0.0
    times = "" if n == 1 else f"{n} × "
    speed = f"{times}{rate:.3g} ns/day"
    out.print(f"steps        {times}{steps} in {hms(seconds)}, {speed}; now at step {last}")
    if n == 1:
        frames = _summarize_single(path)
        out.print(f"trajectory   {path}, {counted(frames, 'frame')}")
        return
    out.print(replica_table(path))
    for replica in torch.nonzero(~recorder.running)[:, 0].tolist():
        with Trajectory(path, replica) as trajectory:
            out.print(f"replica {replica} stopped: {trajectory.stopped}")
    out.print(f"trajectory   {path}, {n} replicas")


def _summarize_single(path: Path) -> int:
    """Returns the number of frames."""
    with Trajectory(path) as trajectory:
        temperatures = trajectory.observable("temperature")
        drift = energy_drift(trajectory)
        bonds = follow_bonds(trajectory)
        frames = len(trajectory)
    out.print(
        f"temperature  {np.mean(temperatures):.1f} ± {np.std(temperatures):.1f} K (mean,"
        " fluctuation)"
    )
    if drift is None:
        out.print("energy       unknown to a propagator")
    else:
        out.print(
            f"energy       drift {drift}, fluctuation"
            f" {1000 * drift.fluctuation:.4f} meV/atom (conserved quantity)"
        )
    out.print(f"bonds        {bonds}")
    return frames


def replica_table(path: Path) -> Table:
    """The replicas of a trajectory, one in a row."""
    rows = Table(box=None, pad_edge=False)
    rows.add_column("replica", justify="right")
    for name in ("frames", "last step", "temperature, K", "drift, meV/atom/ps"):
        rows.add_column(name, justify="right")
    rows.add_column("bonds")
    rows.add_column("end")
    with Trajectory(path) as trajectory:
        count = trajectory.n_replicas
    for replica in range(count):
        with Trajectory(path, replica) as trajectory:
            temperatures = trajectory.observable("temperature")
            drift, bonds = energy_drift(trajectory), follow_bonds(trajectory)
            rows.add_row(
                str(replica),
                str(len(trajectory)),
                str(trajectory.steps[-1]),
                f"{np.mean(temperatures):.1f} ± {np.std(temperatures):.1f}",
                "unknown" if drift is None else f"{1000 * drift.slope:+.4f}",
                str(bonds),
                "stopped" if trajectory.stopped else "",
            )
    return rows
