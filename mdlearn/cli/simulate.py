"""`mdlearn simulate`."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import NamedTuple

import torch

from mdlearn import __version__, units
from mdlearn.cli.console import Interruption, Line, err, interruptible
from mdlearn.cli.crash import forget_crashes, refuse_start
from mdlearn.cli.ensembles import (
    SimulateConfig,
    count_replicas,
    fixed_atoms,
    make_dynamics,
    mobile_atoms,
    skin_of,
    timed,
)
from mdlearn.cli.inputs import choose_form, choose_structures, place, stored_structures
from mdlearn.cli.memory import within_memory
from mdlearn.cli.options import verb
from mdlearn.cli.recording import (
    Recorder,
    blank_record,
    particles_of,
    progress,
    running_of,
    summarize,
)
from mdlearn.cli.startup import (
    dry_run,
    relaxed,
    require_space,
    warn_of_options,
    warn_of_surroundings,
    with_stride,
    with_timestep,
)
from mdlearn.config import resolve, typed
from mdlearn.device import PRECISIONS
from mdlearn.errors import ModelError, UnstableError, UsageError
from mdlearn.files import refuse_existing, sha256
from mdlearn.h5md import Particles
from mdlearn.momenta import maxwell_boltzmann
from mdlearn.neighbors import build
from mdlearn.potentials.checkpoint import Model, load_model
from mdlearn.potentials.evaluate import Evaluable, choose_threads
from mdlearn.potentials.parts import InParts
from mdlearn.potentials.propagator import NoEnergy
from mdlearn.potentials.propagator_checkpoint import PropagatorModel, load_propagator
from mdlearn.replicas import choose, keep, narrow
from mdlearn.simulate import Dynamics, Snapshot, restore, simulate, start
from mdlearn.system import System, concatenate, select
from mdlearn.trajectory import Trajectory
from mdlearn.writer import TrajectoryWriter

STOPPED = 124
"""Exit code of a run that was told to stop, as `timeout` has it."""
CHOOSE_EVERY_S = 30.0
"""How often it is measured again how many threads are best: other programs come and go."""
COMMIT_S = 2.0
"""Seconds between commits of the trajectory; what a crash of the machine can cost."""
COMMIT_SHARE = 0.05
"""Of the time that commits may take; those of many replicas come further apart for it."""


class Setup(NamedTuple):
    """A simulation that is ready to run."""

    config: SimulateConfig
    model: Model | PropagatorModel
    dynamics: Dynamics
    snapshot: Snapshot
    recorder: Recorder


def run(config: SimulateConfig) -> int:
    """Simulates, and says what came of it."""
    if config.dry_run and not config.resume:
        settled, _, particles, dynamics, snapshot = _begin(config)
        dry_run(settled, dynamics, snapshot, particles)
        return 0
    with interruptible() as interruption:
        setup = _resume(config) if config.resume else _prepare(config)
        recorder = setup.recorder
        first = setup.snapshot.state.step
        began = time.monotonic()
        try:
            last = _run(setup, interruption)
        finally:
            recorder.writer.close()
        summarize(recorder, first, last.state.step, time.monotonic() - began)
    if last.state.step == setup.config.target or not bool(recorder.running.any()):
        return 0 if bool(recorder.running.all()) else UnstableError.exit_code
    err.print(f"stopped early; go on with: mdlearn simulate --resume {recorder.writer.path}")
    return 128 + interruption.received if interruption.received else STOPPED


class Beginning(NamedTuple):
    """A simulation that has no trajectory yet."""

    config: SimulateConfig
    """With everything settled that the options left open."""
    model: Model | PropagatorModel
    particles: list[Particles]
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
    model = _load(config)
    structures = choose_structures(config.structure, config.frame)
    n_replicas = count_replicas(config, len(structures))
    network, system = place(model.network, structures, config.structure, config.device)
    potential = _potential(model)
    neighbors = build(system, network.cutoff, skin_of(potential, system))
    pairs = n_replicas / len(structures) * _usual_pairs(model, system)
    choose_threads(potential, system, neighbors, pairs)
    fix = fixed_atoms(structures, config.fix)
    mobile = mobile_atoms(fix, system)
    if isinstance(model, PropagatorModel):
        config = with_stride(config, model.network, structures)
    else:
        copies = n_replicas // len(structures)
        potential = within_memory(
            str(config.structure),
            potential,
            model.golden,
            neighbors,
            copies,
            at_once=config.atoms_at_once,
        )
        warn_of_surroundings(model.network, system)
        warn_of_options(config)
        if config.relax:
            system = relaxed(potential, system, mobile)
        config = with_timestep(config, potential, system, mobile)
    config = config.model_copy(
        update={
            "output": output,
            "atoms_at_once": potential.most if isinstance(potential, InParts) else None,
            "fix": fix,
            "temperature_K": timed(config.temperature_K, config),
            "pressure_GPa": timed(config.pressure_GPa, config),
        }
    )
    one_each = len(structures) == n_replicas
    if not one_each:
        system, structures = concatenate([system] * n_replicas), structures * n_replicas
    dynamics = make_dynamics(config, network, potential, system)
    if one_each and config.ensemble == "nve" and all(each.has("momenta") for each in structures):
        momenta = torch.cat([torch.tensor(each.get_momenta()) for each in structures])
        momenta = momenta.to(system.positions)
        err.print(f"velocities  of {config.structure}")
    else:
        kT = dynamics.kT(0)
        momenta = maxwell_boltzmann(system, kT, dynamics.seeds, dynamics.mobile)
        kelvin = ", ".join(f"{each / units.kB:g}" for each in dict.fromkeys(kT.tolist()))
        last = config.seed + n_replicas - 1
        seeds = f"seed {config.seed}" if n_replicas == 1 else f"seeds {config.seed} to {last}"
        err.print(f"velocities  drawn at {kelvin} K, {seeds}")
    if dynamics.mobile is not None:
        momenta = momenta * dynamics.mobile
    snapshot = start(dynamics, system, momenta)
    refuse_start(config, dynamics, snapshot)
    return Beginning(config, model, particles_of(network, structures), dynamics, snapshot)


def _load(config: SimulateConfig) -> Model | PropagatorModel:
    """What is to move the atoms.

    Raises:
        ModelError: see `load_model` and `load_propagator`; or it is the other of the two.
    """
    assert config.model is not None
    load = load_propagator if config.integrator == "learned" else load_model
    return load(config.model, PRECISIONS[config.precision])


def _potential(model: Model | PropagatorModel) -> Evaluable:
    """What is evaluated; nothing is known of the energy of what a propagator moves."""
    network = model.network
    if isinstance(model, PropagatorModel):
        return NoEnergy(network.species, network.cutoff)
    return choose_form(model)


def _usual_pairs(model: Model | PropagatorModel, system: System) -> float:
    """How many a batch has if its atoms have as many neighbors as those of the training frames."""
    return len(system.numbers) * model.network.settings.average_neighbors


def _prepare(config: SimulateConfig) -> Setup:
    """A new simulation."""
    config, model, particles, dynamics, snapshot = _begin(config)
    assert config.output is not None
    require_space(config.output, config.target // config.every + 1, particles)
    if config.overwrite:
        forget_crashes(config.output)
    system = snapshot.state.system
    charges = system.charge.tolist()
    record = blank_record(snapshot)
    writer = TrajectoryWriter.create(
        config.output,
        particles=particles,
        provenance=_provenance(config, model)
        | {"charge": charges[0] if len(charges) == 1 else json.dumps(charges)},
        restart=record,
        overwrite=config.overwrite,
    )
    recorder = Recorder(config, model.network, writer, system, record)
    recorder.append(snapshot)
    return Setup(config, model, dynamics, snapshot, recorder)


def _resume(wanted: SimulateConfig) -> Setup:
    """An old simulation, at the state of its last commit."""
    assert wanted.resume is not None
    with Trajectory(wanted.resume) as trajectory:
        stored = json.loads(str(trajectory.provenance["configuration"]))
        model_sha256 = trajectory.provenance["model_sha256"]
        restart = trajectory.restart()
        structures = stored_structures(trajectory, restart)
    changed = {"steps", "time_fs", "extend_fs"} & wanted.model_fields_set
    others = wanted.model_fields_set - changed - {"resume", "device", "max_time_s"}
    if others:
        raise UsageError(
            f"--{typed(SimulateConfig, min(others))}: a resumed run keeps its settings; only"
            " --steps, --time, --extend, --max-time and --device can be given with --resume"
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
    if config.target < int(restart["step"]):
        raise UsageError(
            f"{wanted.resume}: at step {int(restart['step'])} already, and the run was to end at"
            f" step {config.target}; give a later end by --steps or --time, or more by --extend"
        )
    assert config.model is not None
    model = _load(config)
    if sha256(model.path) != model_sha256:
        raise ModelError(
            f"{model.path}: not the model that {wanted.resume} was made with (its hash differs);"
            " put that one back, or start a new trajectory"
        )
    network, system = place(model.network, structures, wanted.resume, config.device)
    running = running_of(restart.get("stopped"), system)
    if not bool(running.any()):
        raise UnstableError(
            f"{wanted.resume}: all replicas have stopped, see mdlearn info {wanted.resume}; start a"
            " new run with another --timestep, structure or model"
        )
    potential, batch = _potential(model), select(system, running)
    neighbors = build(batch, network.cutoff, skin_of(potential, system))
    if not isinstance(model, PropagatorModel):
        potential = within_memory(
            str(wanted.resume), potential, model.golden, neighbors, at_once=config.atoms_at_once
        )
    choose_threads(potential, batch, neighbors, _usual_pairs(model, batch))
    dynamics = narrow(make_dynamics(config, network, potential, system), system, running)
    saved = choose(restart, system, running)
    snapshot = restore(dynamics, batch, saved)
    frames = max(0, config.target - snapshot.state.step) // config.every + 1
    require_space(wanted.resume, frames, particles_of(network, structures))
    recorder = Recorder(config, network, TrajectoryWriter.reopen(wanted.resume), system, restart)
    if recorder.writer.committed == 0:  # it was killed before the first frame was there to stay
        recorder.append(snapshot)
    return Setup(config, model, dynamics, snapshot, recorder)


def _run(setup: Setup, interruption: Interruption) -> Snapshot:
    """Runs to the end or until told to stop; the last state is committed whatever happens."""
    config, model, dynamics, latest, recorder = setup
    first, path = latest.state.step, recorder.writer.path
    began = time.monotonic()
    due, tried = began + COMMIT_S, began
    wish = path.parent / "EXIT"

    def told_to_stop() -> bool:
        if wish.exists():
            wish.unlink(missing_ok=True)
            return True
        late = config.max_time_s is not None and time.monotonic() - began > config.max_time_s
        return late or bool(interruption.received)

    def choose() -> None:
        """As a run decides that is resumed from here."""
        system = latest.state.system
        pairs = _usual_pairs(model, system)
        choose_threads(dynamics.potential, system, latest.neighbors, pairs)

    with Line() as line:

        def observe(snapshot: Snapshot) -> bool:
            nonlocal latest, due, tried
            latest = snapshot
            state, now = snapshot.state, time.monotonic()
            if state.step % config.every == 0:
                recorder.append(snapshot)
            if now > due:
                recorder.commit(snapshot)
                done = time.monotonic()
                due = done + max(COMMIT_S, (done - now) / COMMIT_SHARE)
            if now - tried > CHOOSE_EVERY_S:
                choose()
                tried = time.monotonic()
            recorder.warn_of_lonely_atoms(snapshot)
            rate = (state.step - first) / (now - began)  # steps/s
            line.show(progress(config, snapshot, rate))
            return not told_to_stop()

        try:
            while True:
                choose()
                try:
                    return simulate(
                        dynamics,
                        latest,
                        steps=config.target,
                        every=config.every,
                        observe=observe,
                    )
                except UnstableError as error:
                    staying = recorder.stop(error, dynamics, latest)
                if not bool(staying.any()):
                    return latest
                dynamics, latest = keep(dynamics, latest, staying)
        finally:
            recorder.commit(latest)


def _provenance(
    config: SimulateConfig, model: Model | PropagatorModel
) -> dict[str, str | int | float]:
    return {
        "configuration": config.model_dump_json(by_alias=True, exclude_none=True),
        "model_sha256": sha256(model.path),
        "mdlearn": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


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

    Replicas run as one batch in one trajectory. One that a guard stops leaves the others running;
    the exit code is 5 at the end.

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
      mdlearn simulate ethanol-run start.xyz --temperature 280,300,320 --output ladder.h5
      mdlearn simulate ethanol-run start.xyz --replicas 64 --time 1ns
      mdlearn simulate ethanol-4fs nve.h5 --integrator learned --time 10ps --output out.h5
      mdlearn simulate --resume nve.h5 --extend 100ps --max-time 23h
    """,
)
