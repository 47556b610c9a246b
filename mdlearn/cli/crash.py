"""What is said and kept of a simulation that a guard has stopped."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
from ase.calculators.singlepoint import SinglePointCalculator

from mdlearn import units
from mdlearn.cli.ensembles import SimulateConfig
from mdlearn.errors import UnstableError
from mdlearn.files import write_atomically
from mdlearn.guards import at_start, find_trips
from mdlearn.simulate import CrashError, Dynamics, Snapshot
from mdlearn.system import split
from mdlearn.timestep import fastest_period

COARSE, FINE = 1 / 10, 1 / 20
"""A time step above this share of the fastest period is taken for the cause; one to be advised."""
EARLY = 200
"""Steps in which the strain of a starting structure shows."""


def crash_path(trajectory: Path) -> Path:
    """Where the last steps before a crash are kept."""
    return trajectory.with_name(f"{trajectory.stem}-crash.extxyz")


def refuse_start(config: SimulateConfig, dynamics: Dynamics, snapshot: Snapshot) -> None:
    """Raises UnstableError if a guard would trip before the first step."""
    state, neighbors, conserved = snapshot
    assert dynamics.limits is not None
    trips = find_trips(state, neighbors, conserved, at_start(dynamics.limits))
    if trips:
        raise UnstableError(
            f"{config.structure}: {trips[0].text}; nothing was simulated: relax the structure first"
            " (--relax, or mdlearn relax), check its cell and units, or train on such frames"
        )


def explain(
    crash: CrashError, config: SimulateConfig, dynamics: Dynamics, trajectory: Path
) -> UnstableError:
    """Keeps the last steps, and says what happened, why in all likelihood, and what to do."""
    kept = crash_path(trajectory)
    write_frames(kept, crash.snapshots, crash.trips[0].system, config.timestep_fs)
    first = crash.snapshots[0]
    what = "; ".join(
        f"step {each.step}, {each.step * config.timestep_fs:g} fs: {each.text}"
        for each in crash.trips
    )
    return UnstableError(
        f"{what}; {_advise(crash, config, dynamics, kept)}; {kept} holds every step from"
        f" {first.state.step} to {crash.snapshots[-1].state.step}"
    )


def _advise(crash: CrashError, config: SimulateConfig, dynamics: Dynamics, kept: Path) -> str:
    """The probable cause, and what to do about it."""
    first, dt = crash.snapshots[0], config.timestep_fs
    system = first.state.system
    period = fastest_period(dynamics.potential, system, dynamics.mobile) / units.fs
    if dt > COARSE * period:
        return (
            f"the fastest vibration takes {period:.1f} fs, so a time step of {dt:g} fs is too long:"
            f" use --timestep {FINE * period:.1g}"
        )
    if crash.trips[0].step <= EARLY:
        return (
            "so soon after the start the structure was strained, or is not of the kind that the"
            f" model was trained on: relax it first (--relax), or train on frames such as in {kept}"
        )
    return (
        "the time step is short enough, so the atoms have gone where the model was never trained:"
        f" compute labels for frames of {kept} and train on them too (mdlearn train --from), or"
        " lower the temperature"
    )


def write_frames(path: Path, snapshots: Sequence[Snapshot], index: int, timestep_fs: float) -> None:
    """Writes one system of several snapshots as extended XYZ."""
    stream = io.StringIO()
    ase.io.write(stream, [_frame(each, index, timestep_fs) for each in snapshots], format="extxyz")
    write_atomically(path, stream.getvalue().encode())


def _frame(snapshot: Snapshot, index: int, timestep_fs: float) -> ase.Atoms:
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
        info={"step": state.step, "time_fs": state.step * timestep_fs},
    )
    calculator: Any = SinglePointCalculator  # untyped in ASE
    atoms.calc = calculator(
        atoms,
        energy=float(state.evaluation.energy[index]),
        forces=state.evaluation.forces.cpu()[mine].numpy(),
    )
    return atoms
