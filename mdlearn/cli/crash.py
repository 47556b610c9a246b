"""What is said and kept of a simulation that a guard has stopped."""

from __future__ import annotations

import glob
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from mdlearn import units
from mdlearn.cli.ensembles import SimulateConfig
from mdlearn.errors import UnstableError
from mdlearn.files import write_atomically
from mdlearn.guards import at_start
from mdlearn.simulate import CrashError, Dynamics, Snapshot
from mdlearn.system import select, split
from mdlearn.timestep import fastest_period
from mdlearn.trips import Trip, find_trips

COARSE, FINE = 1 / 10, 1 / 20
"""A time step above this share of the fastest period is taken for the cause; one to be advised."""
EARLY = 200
"""Steps in which the strain of a starting structure shows."""


def crash_path(trajectory: Path, replica: int | None = None) -> Path:
    """Where the last steps before a crash are kept, of a single run or of one of many replicas."""
    which = "" if replica is None else f"-replica_{replica:03}"
    return trajectory.with_name(f"{trajectory.stem}{which}-crash.extxyz")


def forget_crashes(trajectory: Path) -> None:
    """Removes what is kept of crashes of an older run of the same name."""
    crash_path(trajectory).unlink(missing_ok=True)
    for each in trajectory.parent.glob(f"{glob.escape(trajectory.stem)}-replica_*-crash.extxyz"):
        each.unlink()


def refuse_start(config: SimulateConfig, dynamics: Dynamics, snapshot: Snapshot) -> None:
    """Raises UnstableError if a guard would trip before the first step."""
    state, neighbors, conserved = snapshot
    assert dynamics.limits is not None
    trips = find_trips(state, neighbors, conserved, at_start(dynamics.limits))
    if trips:
        which = f", replica {trips[0].system}" if len(conserved) > 1 else ""
        raise UnstableError(
            f"{config.structure}{which}: {trips[0].text}; nothing was simulated: relax the"
            " structure first (--relax, or mdlearn relax), check its cell and units, or train on"
            " such frames"
        )


def explain(
    crash: CrashError, trip: Trip, config: SimulateConfig, dynamics: Dynamics, kept: Path
) -> str:
    """Keeps the last steps, and says what happened, why in all likelihood, and what to do."""
    write_frames(kept, crash.snapshots, trip.system, config)
    first, last = crash.snapshots[0].state.step, crash.snapshots[-1].state.step
    return (
        f"step {trip.step}, {trip.step * config.timestep_fs:g} fs: {trip.text};"
        f" {_advise(crash, trip, config, dynamics, kept)}; {kept} holds every step from {first} to"
        f" {last}"
    )


def _advise(
    crash: CrashError, trip: Trip, config: SimulateConfig, dynamics: Dynamics, kept: Path
) -> str:
    """The probable cause, and what to do about it."""
    if config.integrator == "learned":
        return (
            "a propagator is good near what it was trained on, and only for a while: start again"
            " from a frame of its training, or train one with a shorter --stride or on more frames"
        )
    batch, dt = crash.snapshots[0].state.system, config.timestep_fs
    chosen = torch.arange(len(batch.charge), device=batch.charge.device) == trip.system
    mobile = None if dynamics.mobile is None else dynamics.mobile[chosen[batch.system]]
    period = fastest_period(dynamics.potential, select(batch, chosen), mobile) / units.fs
    if dt > COARSE * period:
        return (
            f"the fastest vibration takes {period:.1f} fs, so a time step of {dt:g} fs is too long:"
            f" use --timestep {FINE * period:.1g}"
        )
    if trip.step <= EARLY:
        return (
            "so soon after the start the structure was strained, or is not of the kind that the"
            f" model was trained on: relax it first (--relax), or train on frames such as in {kept}"
        )
    return (
        "the time step is short enough, so the atoms have gone where the model was never trained:"
        f" compute labels for frames of {kept} and train on them too (mdlearn train --from), or"
        " lower the temperature"
    )


def write_frames(
    path: Path, snapshots: Sequence[Snapshot], index: int, config: SimulateConfig
) -> None:
    """Writes one system of several snapshots as extended XYZ."""
    stream = io.StringIO()
    ase.io.write(stream, [_frame(each, index, config) for each in snapshots], format="extxyz")
    write_atomically(path, stream.getvalue().encode())


def _frame(snapshot: Snapshot, index: int, config: SimulateConfig) -> ase.Atoms:
    state = snapshot.state
    mine = (state.system.system == index).cpu()
    system = split(state.system)[index]
    atoms = ase.Atoms(
        system.numbers.cpu().numpy(),
        system.positions.cpu().numpy(),
        cell=system.cell[0].cpu().numpy(),
        pbc=system.pbc[0].cpu().numpy(),
        masses=system.masses.cpu().numpy(),
        momenta=state.momenta.cpu()[mine].numpy(),
        info={"step": state.step, "time_fs": state.step * config.timestep_fs},
    )
    if config.integrator == "learned":  # energy and forces are unknown
        return atoms
    calculator: Any = SinglePointCalculator  # untyped in ASE
    atoms.calc = calculator(
        atoms,
        energy=float(state.evaluation.energy[index]),
        forces=state.evaluation.forces.cpu()[mine].numpy(),
    )
    return atoms
