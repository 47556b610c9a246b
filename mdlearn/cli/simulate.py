"""`mdlearn simulate`."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import NamedTuple

import ase
import numpy as np
import torch
from ase.data import chemical_symbols

from mdlearn import __version__, units
from mdlearn.analysis import energy_drift, first_broken_bond
from mdlearn.cli.console import Interruption, Line, err, hms, interruptible, out
from mdlearn.cli.crash import crash_path, explain, refuse_start
from mdlearn.cli.ensembles import (
    SimulateConfig,
    fixed_atoms,
    make_dynamics,
    mobile_atoms,
    timed,
)
from mdlearn.cli.inputs import choose_structure, place
from mdlearn.cli.options import verb
from mdlearn.cli.startup import dry_run, relaxed, require_space, with_timestep
from mdlearn.config import resolve
from mdlearn.device import PRECISIONS, choose_threads
from mdlearn.errors import ModelError, UnstableError, UsageError
from mdlearn.files import refuse_existing, sha256
from mdlearn.guards import lonely_atoms
from mdlearn.integrators import (
    State,
    conserved_energy,
    kinetic_energy,
    pressure,
)
from mdlearn.neighbors import SKIN, build
from mdlearn.potentials.checkpoint import Model, load_model
from mdlearn.potentials.evaluate import evaluate_multipoles
from mdlearn.potentials.network import ParametricPotential
from mdlearn.simulate import (
    CrashError,
    Dynamics,
    Snapshot,
    maxwell_boltzmann,
    restore,
    save,
    simulate,
    start,
)
from mdlearn.system import volume
from mdlearn.trajectory import Trajectory, TrajectoryWriter

OBSERVABLES = {
    "potential_energy": "eV",
    "kinetic_energy": "eV",
    "conserved_energy": "eV",
    "temperature": "K",
}
PERIODIC = {"pressure": "GPa", "volume": "Angstrom3"}
"""Of systems with a volume."""
DIPOLE = {"dipole_x": "e Angstrom", "dipole_y": "e Angstrom", "dipole_z": "e Angstrom"}
"""Of models that were trained on dipoles; about the origin, atoms not wrapped."""
STOPPED = 124
"""Exit code of a run that was told to stop, as `timeout` has it."""
COMMIT_S = 2.0
"""Seconds between commits of the trajectory; what a crash of the machine can cost."""


class Setup(NamedTuple):
    """A simulation that is ready to run."""

    config: SimulateConfig
    potential: ParametricPotential
    dynamics: Dynamics
    snapshot: Snapshot
    writer: TrajectoryWriter


def run(config: SimulateConfig) -> int:
    """Simulates, and says what came of it."""
    if config.dry_run and not config.resume:
        settled, model, atoms, dynamics, snapshot = _begin(config)
        dry_run(settled, dynamics, snapshot, len(_observables(model.network, atoms)))
        return 0
    with interruptible() as interruption:
        setup = _resume(config) if config.resume else _prepare(config)
        first = setup.snapshot.state.step
        began = time.monotonic()
        try:
            last = _run(setup, interruption)
        finally:
            setup.writer.close()
        _summarize(setup, first, last.state.step, time.monotonic() - began)
    if last.state.step == setup.config.target:
        return 0
    err.print(f"stopped early; go on with: mdlearn simulate --resume {setup.writer.path}")
    return 128 + interruption.received if interruption.received else STOPPED


class Beginning(NamedTuple):
    """A simulation that has no trajectory yet."""

    config: SimulateConfig
    """With everything settled that the options left open."""
    model: Model
    atoms: ase.Atoms
    dynamics: Dynamics
    snapshot: Snapshot


def _begin(config: SimulateConfig) -> Beginning:
    """Everything up to the first step; writes nothing."""
    if config.extend_fs:
        raise UsageError("--extend: only with --resume; a new run is as long as --time says")
    if config.model is None or config.structure is None:
        raise UsageError(
            "expected MODEL and STRUCTURE, as in: mdlearn simulate ethanol-run start.xyz"
        )
    output = config.output or Path(f"{config.structure.name.split('.')[0]}-traj.h5")
    refuse_existing(output, overwrite=config.overwrite)
    model = load_model(config.model, PRECISIONS[config.precision])
    atoms = choose_structure(config.structure, config.frame)
    network, system = place(model, atoms, config.structure, config.device)
    choose_threads(build(system, network.cutoff, SKIN).j.numel())
    fix = fixed_atoms(atoms, config.fix)
    mobile = mobile_atoms(fix, system)
    if config.relax:
        system = relaxed(network, system, mobile)
    config = with_timestep(config, network, system, mobile)
    config = config.model_copy(
        update={
            "output": output,
            "fix": fix,
            "temperature_K": timed(config.temperature_K, config),
            "pressure_GPa": timed(config.pressure_GPa, config),
        }
    )
    dynamics = make_dynamics(config, network, system)
    if atoms.has("momenta") and config.ensemble == "nve":
        momenta = torch.tensor(atoms.get_momenta()).to(system.positions)
        err.print(f"velocities  of {config.structure}")
    else:
        kT = dynamics.kT(0)
        momenta = maxwell_boltzmann(system, kT, dynamics.seeds, dynamics.mobile)
        err.print(f"velocities  drawn at {float(kT) / units.kB:g} K, seed {config.seed}")
    if dynamics.mobile is not None:
        momenta = momenta * dynamics.mobile
    snapshot = start(dynamics, system, momenta)
    refuse_start(config, dynamics, snapshot)
    return Beginning(config, model, atoms, dynamics, snapshot)


def _observables(network: ParametricPotential, atoms: ase.Atoms) -> dict[str, str]:
    """What is stored of a frame besides vectors, with units."""
    return (
        OBSERVABLES
        | (PERIODIC if atoms.pbc.all() else {})
        | (DIPOLE if network.settings.dipole else {})
    )


def _prepare(config: SimulateConfig) -> Setup:
    """A new simulation."""
    config, model, atoms, dynamics, snapshot = _begin(config)
    network = model.network
    assert config.output is not None
    observables = _observables(network, atoms)
    frames = config.target // config.every + 1
    if config.overwrite:
        crash_path(config.output).unlink(missing_ok=True)
    require_space(config.output, frames, len(atoms), len(observables))
    writer = TrajectoryWriter.create(
        config.output,
        numbers=atoms.numbers,
        masses=atoms.get_masses(),
        pbc=atoms.pbc,
        observables=observables,
        provenance=_provenance(config, model) | {"charge": float(snapshot.state.system.charge)},
        restart=save(snapshot),
        overwrite=config.overwrite,
    )
    setup = Setup(config, network, dynamics, snapshot, writer)
    _append(setup, snapshot)
    return setup


def _resume(wanted: SimulateConfig) -> Setup:
    """An old simulation, at the state of its last commit."""
    assert wanted.resume is not None
    with Trajectory(wanted.resume) as trajectory:
        stored = json.loads(str(trajectory.provenance["configuration"]))
        model_sha256 = trajectory.provenance["model_sha256"]
        restart = trajectory.restart()
        charge = float(trajectory.provenance["charge"])
        numbers, masses, pbc = trajectory.numbers, trajectory.masses, trajectory.pbc
    changed = {"steps", "time_fs", "extend_fs"} & wanted.model_fields_set
    others = wanted.model_fields_set - changed - {"resume", "device", "max_time_s"}
    if others:
        raise UsageError(
            f"--{min(others).replace('_', '-')}: a resumed run keeps its settings; only --steps,"
            " --time, --extend, --max-time and --device can be given with --resume"
        )
    config = resolve(SimulateConfig, None, stored)
    steps = wanted.steps if changed else config.steps
    if wanted.extend_fs:
        steps = int(restart["step"]) + round(wanted.extend_fs / config.timestep_fs)
    config = config.model_copy(
        update={
            "steps": steps,
            "time_fs": wanted.time_fs if "time_fs" in changed else config.time_fs,
            "max_time_s": wanted.max_time_s,
            "device": wanted.device,
        }
    )
    assert config.model is not None
    model = load_model(config.model, PRECISIONS[config.precision])
    if sha256(model.path) != model_sha256:
        raise ModelError(
            f"{model.path}: not the model that {wanted.resume} was made with (its hash differs);"
            " put that one back, or start a new trajectory"
        )
    atoms = ase.Atoms(
        numbers,
        restart["positions"],
        cell=restart["cell"][0],
        pbc=pbc,
        masses=masses,
        info={"charge": charge},
    )
    network, system = place(model, atoms, wanted.resume, config.device)
    dynamics = make_dynamics(config, network, system)
    snapshot = restore(dynamics, system, restart)
    frames = max(0, config.target - snapshot.state.step) // config.every + 1
    observables = len(_observables(network, atoms))
    require_space(wanted.resume, frames, len(atoms), observables)
    return Setup(config, network, dynamics, snapshot, TrajectoryWriter.reopen(wanted.resume))


def _run(setup: Setup, interruption: Interruption) -> Snapshot:
    """Runs to the end or until told to stop; the last state is committed whatever happens."""
    config, writer = setup.config, setup.writer
    choose_threads(setup.snapshot.neighbors.j.numel())
    first, latest = setup.snapshot.state.step, setup.snapshot
    began = committed = time.monotonic()
    warned = False
    wish = writer.path.parent / "EXIT"

    def told_to_stop() -> bool:
        if wish.exists():
            wish.unlink(missing_ok=True)
            return True
        late = config.max_time_s is not None and time.monotonic() - began > config.max_time_s
        return late or bool(interruption.received)

    def warn_of_lonely_atoms(snapshot: Snapshot) -> None:
        nonlocal warned
        state, neighbors, _ = snapshot
        lonely = [] if warned else lonely_atoms(state.system, neighbors)
        if lonely:
            warned = True
            n, reach = lonely[0], float(neighbors.reach)
            element = chemical_symbols[int(state.system.numbers[n])]
            err.print(
                f"warning     step {state.step}: atom {n} ({element}) has no neighbor within"
                f" {reach:g} Å; the model gives it no force and the energy of an isolated atom"
            )

    with Line() as line:

        def observe(snapshot: Snapshot) -> bool:
            nonlocal latest, committed
            latest = snapshot
            state, now = snapshot.state, time.monotonic()
            if state.step % config.every == 0:
                _append(setup, snapshot)
            if now - committed > COMMIT_S:
                writer.commit(save(snapshot))
                committed = now
            warn_of_lonely_atoms(snapshot)
            rate = (state.step - first) / (now - began)  # steps/s
            line.show(_progress(config, snapshot, rate))
            return not told_to_stop()

        try:
            return simulate(
                setup.dynamics,
                setup.snapshot,
                steps=config.target,
                every=config.every,
                observe=observe,
            )
        except UnstableError as error:
            if isinstance(error, CrashError):
                error = explain(error, config, setup.dynamics, writer.path)
            where = f"{writer.path} ends at step {latest.state.step}"
            raise UnstableError(f"{error}; {where}") from None
        finally:
            writer.commit(save(latest))


def _append(setup: Setup, snapshot: Snapshot) -> None:
    config, state = setup.config, snapshot.state
    system = state.system
    observables = {
        "potential_energy": float(state.evaluation.energy),
        "kinetic_energy": float(kinetic_energy(state)),
        "conserved_energy": float(conserved_energy(state)),
        "temperature": _temperature(state),
    }
    if bool(system.pbc.all()):
        observables["pressure"] = float(pressure(state)) / units.GPa
        observables["volume"] = float(volume(system))
    if setup.potential.settings.dipole:
        with torch.no_grad():
            moment = evaluate_multipoles(setup.potential, system, snapshot.neighbors).dipole[0]
        observables |= dict(zip(DIPOLE, moment.tolist(), strict=True))
    setup.writer.append(
        step=state.step,
        time_fs=state.step * config.timestep_fs,
        positions=system.positions.cpu().numpy(),
        velocities=(state.momenta / system.masses[:, None]).cpu().numpy(),
        forces=state.evaluation.forces.cpu().numpy(),
        cell=system.cell[0].cpu().numpy(),
        observables=observables,
    )


def _temperature(state: State) -> float:
    """T = 2K / (f kB), K."""
    return float(2.0 * kinetic_energy(state) / (state.freedom * units.kB))


def _progress(config: SimulateConfig, snapshot: Snapshot, steps_per_s: float) -> str:
    state = snapshot.state
    n_atoms = len(state.system.numbers)
    drift = float(conserved_energy(state) - snapshot.conserved) / n_atoms
    done = state.step * config.timestep_fs
    left = hms((config.target - state.step) / steps_per_s)
    return (
        f"{done / 1000:.2f} of {config.target * config.timestep_fs / 1000:.2f} ps |"
        f" {_ns_per_day(config, steps_per_s):.2f} ns/day |"
        f" {_temperature(state):.0f} K |"
        f" energy {1000 * drift:+.3f} meV/atom | {left} left"
    )


def _ns_per_day(config: SimulateConfig, steps_per_s: float) -> float:
    return steps_per_s * config.timestep_fs * 86400 / 1e6


def _provenance(config: SimulateConfig, model: Model) -> dict[str, str | int | float]:
    return {
        "configuration": config.model_dump_json(by_alias=True, exclude_none=True),
        "model_sha256": sha256(model.path),
        "mdlearn": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _summarize(setup: Setup, first: int, last: int, seconds: float) -> None:
    """What a user wants to know first about the trajectory."""
    config = setup.config
    with Trajectory(setup.writer.path) as trajectory:
        temperature = trajectory.observable("temperature")
        drift = energy_drift(trajectory)
        broken = first_broken_bond(trajectory)
        frames = len(trajectory)
    steps = last - first
    rate = _ns_per_day(config, steps / seconds) if steps else 0.0
    out.print(f"steps        {steps} in {hms(seconds)}, {rate:.3g} ns/day; now at step {last}")
    out.print(
        f"temperature  {np.mean(temperature):.1f} ± {np.std(temperature):.1f} K (mean, fluctuation)"
    )
    out.print(
        f"energy       drift {1000 * drift.slope:+.4f} meV/atom/ps, fluctuation"
        f" {1000 * drift.fluctuation:.4f} meV/atom (conserved quantity)"
    )
    if broken:
        a, b = broken.atoms
        out.print(
            f"bonds        {a}-{b} broken at frame {broken.frame}: {broken.distance:.2f} Å apart"
        )
    else:
        out.print("bonds        none broken")
    out.print(f"trajectory   {setup.writer.path}, {frames} frames")


command = verb(
    "simulate",
    SimulateConfig,
    ["model", "structure"],
    run,
    """Run molecular dynamics of STRUCTURE with MODEL.

    MODEL is a file made by `mdlearn train`, or its run folder; STRUCTURE is any file that ASE
    reads. Time step in fs (auto: what the fastest vibration allows), temperature in K, pressure in
    GPa, friction in 1/ps. The trajectory is H5MD; Ctrl-C, --max-time, or a file EXIT beside the
    trajectory end the run at a step that --resume goes on from (exit code 130, 124, 124).

    Guards stop a run that has left the physics (exit code 5), say which atom did what, and keep the
    last 50 steps in TRAJECTORY-crash.extxyz: a pair closer than 0.75 of the shortest distance of
    the training frames (0.92 before the first step), a force over 5 times their largest on that
    element and over 10 eV/Å, a temperature over 3 times the highest of the thermostat and what
    fluctuates, or the conserved energy off by 0.3 eV per atom.

    \b
    Ensembles:
      nve           constant energy: velocity Verlet
      langevin      constant temperature: friction and noise (BAOAB); the safe choice
      csvr          constant temperature: stochastic velocity rescaling, for dynamics
      nose-hoover   constant temperature: Nosé-Hoover chains, deterministic
      npt           and constant pressure: stochastic cell rescaling; the cell keeps its shape
      npt-flexible  the same, and all components of the cell change
      mtk           constant pressure: Martyna-Tobias-Klein, deterministic; the cell keeps its shape

    \b
    Examples:
      mdlearn simulate ethanol-run start.xyz --temperature 350 --time 100ps
      mdlearn simulate ethanol-run start.xyz --ensemble nve --timestep 0.5 --output nve.h5
      mdlearn simulate water-run box.xyz --ensemble npt --temperature 100:300 --pressure 0.1
      mdlearn simulate ethanol-run start.xyz --relax --timestep auto --time 1ns --dry-run
      mdlearn simulate --resume nve.h5 --extend 100ps --max-time 23h
    """,
)
