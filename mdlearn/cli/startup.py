"""What `mdlearn simulate` thinks about before the first step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import ase
import torch

from mdlearn import h5md, units
from mdlearn.cli.console import counted, err, hms, human_size, out
from mdlearn.cli.ensembles import NPT, SimulateConfig, highest
from mdlearn.cli.memory import estimate_memory, total_memory
from mdlearn.config import option_names, typed
from mdlearn.errors import OutputError, UsageError
from mdlearn.guards import unfamiliar_atom
from mdlearn.minimize import minimize
from mdlearn.neighbors import build
from mdlearn.potentials.evaluate import Evaluable
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.propagator import Propagator
from mdlearn.simulate import Dynamics, Snapshot, simulate
from mdlearn.system import System
from mdlearn.timestep import PROBE_STEPS, STEPS_PER_PERIOD, choose_timestep

RELAX_FMAX = 0.1
"""eV/Å; what heat does to a structure is ten times this."""
RELAX_STEPS = 500
TIMING_S = 2.0
"""For which a dry run runs, but at least `TIMING_STEPS` and at most `MOST_STEPS`."""
TIMING_STEPS = 5
MOST_STEPS = 200
SUFFIXES = {
    "timestep": "fs",
    "_per_GPa": "1/GPa",
    "_per_ps": "1/ps",
    "_GPa": "GPa",
    "_K": "K",
    "_fs": "fs",
    "_s": "s",
}
"""How names of quantities end, and their units."""
OF_NEWTON = {
    "ensemble",
    "timestep",
    "pressure_GPa",
    "friction_per_ps",
    "thermostat_time_fs",
    "barostat_time_fs",
    "compressibility_per_GPa",
    "fix",
    "relax",
}
"""Options that mean nothing where a propagator moves the atoms."""
OF_ENSEMBLES = {
    "pressure_GPa": NPT,
    "barostat_time_fs": NPT,
    "compressibility_per_GPa": ("npt", "npt-flexible"),
    "thermostat_time_fs": ("csvr", "nose-hoover", *NPT),
    "friction_per_ps": ("langevin",),
}
"""Options that only mean something in these ensembles."""


def warn_of_options(config: SimulateConfig) -> None:
    """Says which options were given that the ensemble has no use for."""
    for name, ensembles in OF_ENSEMBLES.items():
        if name in config.model_fields_set and config.ensemble not in ensembles:
            err.print(
                f"warning     --{typed(SimulateConfig, name)} means nothing with --ensemble"
                f" {config.ensemble}, only with {', '.join(ensembles)}"
            )


def relaxed(potential: Evaluable, system: System, mobile: torch.Tensor | None) -> System:
    """Positions with forces that dynamics can start from; says what it did.

    Raises:
        UnstableError: see `minimize`.
    """
    found = minimize(potential, system, fmax=RELAX_FMAX, steps=RELAX_STEPS, mobile=mobile)
    gained = float((found.evaluation.energy - found.first.energy).sum())
    largest = float(found.first.forces.norm(dim=1).max())
    rest = "" if found.converged else f" (more than {RELAX_FMAX:g}; goes on with the best)"
    err.print(
        f"relaxed     in {found.steps} steps: energy {gained:+.3f} eV, largest force"
        f" {largest:.2f} -> {found.residual:.2f} eV/Å{rest}"
    )
    return found.system


def warn_of_surroundings(network: ParametricPotential, system: System, name: str = "") -> bool:
    """Says, and returns, if a model has never seen anything like a structure, of some name."""
    neighbors = build(system, network.cutoff)
    odd = unfamiliar_atom(system, neighbors, network.settings.neighbor_counts)
    if odd:
        where = f"{name}, " if name else ""
        err.print(
            f"warning     {where}{odd}: the model knows nothing of such surroundings, so do not"
            " trust what follows; train with frames like this one (mdlearn train FRAMES --from"
            " MODEL)"
        )
    return odd is not None


def with_timestep(
    config: SimulateConfig,
    potential: Evaluable,
    system: System,
    mobile: torch.Tensor | None,
) -> SimulateConfig:
    """The configuration with a number where the time step was `auto`; says why that one.

    Raises:
        UnstableError: see `choose_timestep`.
    """
    if config.timestep != "auto":
        return config
    kT = units.kB * max(highest(config.temperature_K))
    chosen = choose_timestep(potential, system, kT, mobile)
    halved = f", halved {chosen.halvings} times to conserve energy" if chosen.halvings else ""
    err.print(
        f"time step   {chosen.timestep_fs:g} fs: a {STEPS_PER_PERIOD}th of the fastest vibration,"
        f" {chosen.wavenumber_per_cm:,.0f} 1/cm{halved}; energy moves by"
        f" {1000 * chosen.excursion:.2g} meV/atom in {PROBE_STEPS} steps"
    )
    return config.model_copy(update={"timestep": chosen.timestep_fs})


def with_stride(
    config: SimulateConfig, propagator: Propagator, structures: Sequence[ase.Atoms]
) -> SimulateConfig:
    """The configuration of a run with a propagator: its step is the stride, its energy constant.

    Raises:
        UsageError: it asks for what only equations of motion can do.
    """
    stride_fs = propagator.settings.stride_fs
    if given := config.model_fields_set & OF_NEWTON:
        raise UsageError(
            f"--{typed(SimulateConfig, min(given))}: means nothing with --integrator"
            " learned, where each step is the stride of"
            f" the propagator ({stride_fs:g} fs) without thermostat and forces; leave it out"
        )
    if ":" in config.temperature_K:
        raise UsageError(
            f"--temperature {config.temperature_K}: with --integrator learned there is no"
            " thermostat, and a temperature can only be that of the first velocities; give one"
        )
    if any(atoms.constraints for atoms in structures):
        raise UsageError(
            f"{config.structure}: holds atoms where they are, which a propagator cannot; remove the"
            " constraints"
        )
    return config.model_copy(update={"timestep": stride_fs, "ensemble": "nve"})


def require_space(path: Path, frames: int, particles: Sequence[h5md.Particles]) -> None:
    """Raises OutputError if the disk has no room for so many frames."""
    needed, free = h5md.size(frames, particles), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OutputError(
            f"{path}: {frames} frames need {human_size(needed)}, and {human_size(free)} are free"
            " there: raise --every, run for less time, or choose another --output"
        )


def dry_run(
    config: SimulateConfig,
    dynamics: Dynamics,
    first: Snapshot,
    particles: Sequence[h5md.Particles],
) -> None:
    """Runs a few steps and says what the whole run would take; nothing is written."""
    rate = _steps_per_second(dynamics, first)
    system, neighbors = first.state.system, first.neighbors
    n_atoms = len(system.numbers)
    frames = config.target // config.every + 1
    output = config.output or Path()
    for option, name in option_names(SimulateConfig).items():
        value = getattr(config, name)
        if value is not None and name != "dry_run":
            unit = next((u for suffix, u in SUFFIXES.items() if name.endswith(suffix)), "")
            out.print(f"{option:16} {value} {unit}".rstrip())
    per_day = rate * config.timestep_fs * 86400 / 1e6
    pairs = int(neighbors.valid.sum()) // 2
    out.print(f"\natoms        {n_atoms}, {pairs} pairs; on {system.positions.device}")
    out.print(f"speed        {rate:.3g} steps/s, {per_day:.3g} ns/day")
    length = config.target * config.timestep_fs / 1000.0
    out.print(
        f"run          {config.target} steps, {length:g} ps: about {hms(config.target / rate)}"
    )
    size, free = h5md.size(frames, particles), shutil.disk_usage(output.parent).free
    out.print(
        f"trajectory   {output}: {counted(frames, 'frame')}, {human_size(size)};"
        f" {human_size(free)} free"
    )
    if config.integrator == "newton":
        need = estimate_memory(dynamics.potential, [system], neighbors) / n_atoms
        total = total_memory(system.positions.device)
        atoms = float(f"{total / need:.1g}")
        out.print(
            f"memory       {human_size(need)} an atom; about {atoms:,.0f} atoms like these fit in"
            f" {human_size(total)}"
        )
    out.print("nothing was written")


def _steps_per_second(dynamics: Dynamics, first: Snapshot) -> float:
    """Measured without the first step, which is slower."""
    step = first.state.step
    began = time.monotonic()

    def observe(snapshot: Snapshot) -> bool:
        nonlocal began
        done, now = snapshot.state.step - step, time.monotonic()
        if done == 1:
            began = now
        return done <= TIMING_STEPS or now - began < TIMING_S

    last = simulate(dynamics, first, steps=step + MOST_STEPS, every=1, observe=observe)
    return (last.state.step - step - 1) / (time.monotonic() - began)
