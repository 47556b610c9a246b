"""What the options of `mdlearn simulate` mean for the physics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import ase
import torch
from ase.constraints import FixAtoms
from pydantic import BeforeValidator, Field
from torch import Tensor

from mdlearn import units
from mdlearn.config import PRECISION, Config, parse_course, parse_duration
from mdlearn.errors import UsageError
from mdlearn.guards import Limits, make_limits
from mdlearn.integrators import (
    Integrator,
    cell_rescaling,
    csvr,
    langevin,
    learned,
    martyna_tobias_klein,
    nose_hoover,
    velocity_verlet,
)
from mdlearn.neighbors import choose_skin
from mdlearn.potentials.evaluate import Evaluable, Frozen
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.propagator import Propagator, propagate
from mdlearn.simulate import Course, Dynamics, piecewise_linear, piecewise_linear_each
from mdlearn.system import System

TIMES = {"fs": 1.0, "ps": 1e3, "ns": 1e6, "us": 1e9}
CLOCK = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
Seconds = Annotated[float, BeforeValidator(lambda text: parse_duration(text, CLOCK))]
Femtoseconds = Annotated[float, BeforeValidator(lambda text: parse_duration(text, TIMES))]


def _course_text(text: object, least: float) -> str:
    """What can be read as the course of a quantity, as it is."""
    if any(value < least for _, value in parse_course(str(text), TIMES)):
        raise ValueError(f"expected no number below {least:g}")
    return str(text)


def _course_texts(text: object, least: float) -> str:
    """Courses joined by commas; a configuration file may have them as a list."""
    parts = text if isinstance(text, list) else str(text).split(",")
    return ",".join(_course_text(part, least) for part in parts)


def _frames_text(text: object) -> str:
    """What can be read as one frame or a slice of frames, as it is."""
    if not re.fullmatch(r"-?\d+|all|(-?\d*:){1,2}-?\d*", str(text)):
        raise ValueError("expected a number, all, or first:end as in 0:10, where end is not in it")
    return str(text)


Kelvin = Annotated[str, BeforeValidator(lambda text: _course_texts(text, 0.0))]
Gigapascal = Annotated[str, BeforeValidator(lambda text: _course_text(text, -1e3))]
NPT = ("npt", "npt-flexible", "mtk")


def _timestep(text: object) -> object:
    """A number of fs, with its unit or without, or `auto`."""
    try:
        if text == "auto":
            return text
        timestep = float(str(text).strip().removesuffix("fs"))
        if 0.0 < timestep <= LONGEST_FS:
            return timestep
    except ValueError:
        pass
    raise ValueError(f"expected a number of fs above 0 and at most {LONGEST_FS:g}, or auto")


LONGEST_FS = 20.0
TimeStep = Annotated[float | Literal["auto"], BeforeValidator(_timestep)]


class SimulateConfig(Config):
    """Options of `mdlearn simulate`."""

    model: Path | None = Field(None, description="a model file, or the run folder that holds one")
    structure: Path | None = Field(None, description="where to start: any file that ASE reads")
    frame: Annotated[str, BeforeValidator(_frames_text)] = Field(
        "-1",
        description="which structure of the file, from 0; -1 is the last; 0:10 or all: a replica"
        " for each",
    )
    replicas: int | None = Field(
        None, ge=1, description="runs of the same structure in one batch, with different seeds"
    )
    resume: Path | None = Field(
        None, description="go on with this trajectory, up to --steps or --time"
    )
    output: Path | None = Field(
        None, description="trajectory [default: name of STRUCTURE + '-traj.h5']"
    )
    overwrite: bool = Field(False, description="replace an output that exists")

    integrator: Literal["newton", "learned"] = Field(
        "newton",
        description="newton: MODEL is a potential, whose forces move the atoms in the --ensemble;"
        " learned: MODEL is a propagator of `mdlearn train --propagator`, and a step is its stride",
    )
    ensemble: Literal["nve", "langevin", "csvr", "nose-hoover", "npt", "npt-flexible", "mtk"] = (
        Field("langevin", description="what is kept constant, and how")
    )
    temperature_K: Kelvin = Field(  # noqa: N815
        "300",
        alias="temperature",
        description="of the thermostat and of the first velocities, K; 100:300 rises over the run,"
        " 100@0ps:300@5ps:300@10ps:50@20ps is linear between points; 280,300,320: a replica for"
        " each",
    )
    pressure_GPa: Gigapascal = Field(  # noqa: N815
        "0.0001", alias="pressure", description="of the barostat, GPa; may vary like --temperature"
    )
    friction_per_ps: float = Field(5.0, ge=0, alias="friction", description="of langevin, 1/ps")
    thermostat_time_fs: Femtoseconds = Field(
        "100fs",
        gt=0,
        alias="thermostat-time",
        validate_default=True,
        description="over which csvr, nose-hoover and npt correct the temperature",
    )
    barostat_time_fs: Femtoseconds = Field(
        "1ps",
        gt=0,
        alias="barostat-time",
        validate_default=True,
        description="over which npt and mtk correct the pressure",
    )
    compressibility_per_GPa: float = Field(  # noqa: N815
        0.45,
        gt=0,
        alias="compressibility",
        description="of the material, 1/GPa, roughly; makes the time of npt what it says",
    )
    fix: str | None = Field(
        None,
        description="atoms that are held where they are, as in 0,5,10-19; with those that the"
        " structure has fixed",
    )
    timestep: TimeStep = Field(
        0.5, description="time step, fs; auto: a 20th of the fastest vibration's period"
    )
    steps: int | None = Field(None, ge=0, description="steps in all, instead of --time")
    time_fs: Femtoseconds = Field(
        "10ps",
        gt=0,
        alias="time",
        validate_default=True,
        description="time in all, as in 500fs, 10ps, 1ns",
    )
    extend_fs: Femtoseconds | None = Field(
        None, gt=0, alias="extend", description="with --resume: so much longer than it is now"
    )
    max_time_s: Seconds | None = Field(
        None,
        gt=0,
        alias="max-time",
        description="stop after so much wall-clock time, as in 23h, in a state to resume from",
    )
    every: int = Field(10, ge=1, description="steps between frames of the trajectory")
    guards: Literal["on", "off"] = Field(
        "on",
        description="stop where atoms come too near, forces too large or temperatures too high for"
        " what the model was trained on",
    )

    relax: bool = Field(
        False, description="first let the atoms go downhill until no force is above 0.1 eV/Å"
    )
    dry_run: bool = Field(
        False,
        alias="dry-run",
        description="say what the run would do and take, after a few steps; writes nothing",
    )
    seed: int = Field(
        0, ge=0, description="of the first velocities and the thermostat; one more for each replica"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    precision: Literal["mixed", "float64"] = Field("mixed", description=PRECISION)
    atoms_at_once: int | None = Field(
        None,
        ge=1,
        description="whose forces are computed together, where the model is not frozen and memory"
        " does not suffice for all [default: as many as it suffices for]",
    )

    @property
    def timestep_fs(self) -> float:
        """The time step, once it is known."""
        assert not isinstance(self.timestep, str)
        return self.timestep

    @property
    def target(self) -> int:
        """The step to end at."""
        return self.steps if self.steps is not None else round(self.time_fs / self.timestep_fs)


def make_dynamics(
    config: SimulateConfig,
    network: ParametricPotential | Propagator,
    potential: Evaluable,
    system: System,
) -> Dynamics:
    """What a configuration asks for.

    Raises:
        UsageError: it asks for what cannot be.
    """
    if isinstance(network, Propagator):
        nothing = piecewise_linear([(0, 0.0)], system)
        return Dynamics(
            potential,
            learned(partial(propagate, network)),
            _course(config.temperature_K, units.kB, config, system),
            nothing,
            range(config.seed, config.seed + len(system.charge)),
            None,
            _limits(config, network, system),
            network.skin,
        )
    if config.ensemble in NPT:
        if not bool(system.pbc.all()):
            raise UsageError(
                f"--ensemble {config.ensemble}: {config.structure} is not periodic in all three"
                " directions, so it has no pressure; use langevin, csvr or nose-hoover"
            )
        if config.fix:
            raise UsageError(
                f"--ensemble {config.ensemble}: atoms that are held cannot move with the cell; use"
                " csvr, or leave out --fix"
            )
    return Dynamics(
        potential,
        _integrator(config),
        _course(config.temperature_K, units.kB, config, system),
        _course(config.pressure_GPa, units.GPa, config, system),
        range(config.seed, config.seed + len(system.charge)),
        mobile_atoms(config.fix, system),
        _limits(config, network, system),
        skin_of(potential, system),
    )


def skin_of(potential: Evaluable, system: System) -> float:
    """Of the lists of dynamics, Å."""
    return choose_skin(system, potential.skins if isinstance(potential, Frozen) else (0.0, 0.0))


def _limits(
    config: SimulateConfig, network: ParametricPotential | Propagator, system: System
) -> Limits:
    """What the guards hold the run to: without them, that atoms do not overlap."""
    infinite = torch.full_like(system.charge, torch.inf)
    hottest = system.charge.new_tensor(highest(config.temperature_K)) * units.kB
    if isinstance(network, Propagator):
        limits = make_limits(network.settings.closest, (), hottest.expand_as(infinite))
        limits = limits if config.guards == "on" else make_limits((), (), infinite)
        return limits._replace(drift=torch.inf)
    if config.guards == "off":
        return make_limits((), (), infinite)
    kT = infinite if config.ensemble == "nve" else hottest.expand_as(infinite)
    return make_limits(network.settings.closest, network.settings.largest_forces, kT)


def highest(text: str) -> list[float]:
    """The highest value of each course of a list."""
    return [max(value for _, value in parse_course(part, TIMES)) for part in text.split(",")]


def _integrator(config: SimulateConfig) -> Integrator:
    dt, fs = config.timestep_fs * units.fs, units.fs
    time, slow = config.thermostat_time_fs * fs, config.barostat_time_fs * fs
    compressibility = config.compressibility_per_GPa / units.GPa
    match config.ensemble:
        case "nve":
            return velocity_verlet(dt)
        case "langevin":
            return langevin(dt, config.friction_per_ps / units.ps)
        case "csvr":
            return csvr(dt, time)
        case "nose-hoover":
            return nose_hoover(dt, time)
        case "mtk":
            return martyna_tobias_klein(dt, time, slow)
    flexible = config.ensemble == "npt-flexible"
    return cell_rescaling(dt, time, slow, compressibility, flexible=flexible)


def _course(text: str, unit: float, config: SimulateConfig, system: System) -> Course:
    points = [
        [
            (round((time or 0.0) / config.timestep_fs), value * unit)
            for time, value in parse_course(part, TIMES)
        ]
        for part in text.split(",")
    ]
    if len(points) == 1:
        return piecewise_linear(points[0], system)
    return piecewise_linear_each(points, system)


def timed(text: str, config: SimulateConfig) -> str:
    """A ramp over the run as one between times, which does not change when the run goes on."""

    def timed_one(part: str) -> str:
        points = parse_course(part, TIMES)
        if len(points) == 1 or points[0][0] is not None:
            return part
        return f"{points[0][1]}@0fs:{points[1][1]}@{config.target * config.timestep_fs}fs"

    return ",".join(timed_one(part) for part in text.split(","))


def count_replicas(config: SimulateConfig, n_structures: int) -> int:
    """How many systems a run has: as many as there are structures, temperatures, or `--replicas`.

    Raises:
        UsageError: these are different numbers, and not one.
    """
    counts = {
        f"--frame {config.frame}": n_structures,
        f"--temperature {config.temperature_K}": len(config.temperature_K.split(",")),
        f"--replicas {config.replicas}": config.replicas or 1,
    }
    several = {given: count for given, count in counts.items() if count > 1}
    if len(set(several.values())) > 1:
        raise UsageError(
            f"{' and '.join(several)}: expected equal numbers of replicas, or one, found"
            f" {' and '.join(map(str, several.values()))}"
        )
    return max(counts.values())


def fixed_atoms(structures: Sequence[ase.Atoms], fix: str | None) -> str | None:
    """The atoms that are held, joined by commas: those of the structures and those of `--fix`.

    Raises:
        UsageError: `--fix` is no list of atoms, or the structures do not hold the same ones.
    """
    fixed = {_fixed_atoms(atoms, fix) for atoms in structures}
    if len(fixed) > 1:
        raise UsageError(
            "the structures hold different atoms where they are; in one batch all must hold the"
            " same ones: run them one by one, or remove the constraints"
        )
    return fixed.pop()


def _fixed_atoms(atoms: ase.Atoms, fix: str | None) -> str | None:
    """The atoms of one structure that are held, joined by commas.

    Raises:
        UsageError: `--fix` is no list of atoms of this structure.
    """
    fixed = {
        int(atom)
        for each in atoms.constraints
        if isinstance(each, FixAtoms)
        for atom in each.get_indices()
    }
    for part in (fix or "").split(","):
        first, _, last = part.partition("-")
        try:
            fixed |= set(range(int(first), int(last or first) + 1)) if part else set()
        except ValueError:
            raise UsageError(
                f"--fix {fix}: expected numbers of atoms, from 0, as in 0,5,10-19"
            ) from None
    if fixed and max(fixed) >= len(atoms):
        raise UsageError(f"--fix: there is no atom {max(fixed)}; there are {len(atoms)}, from 0")
    return ",".join(str(atom) for atom in sorted(fixed)) or None


def mobile_atoms(fix: str | None, system: System) -> Tensor | None:
    """Zero for atoms that are held and one for others, (n_atoms, 1), from what `fixed_atoms` says.

    In a batch, the same atoms of every system.

    Raises:
        UsageError: no atom is left to move.
    """
    if fix is None:
        return None
    mobile = torch.ones_like(system.masses)[:, None]
    sizes = torch.bincount(system.system)
    firsts = sizes.cumsum(0) - sizes
    for atom in fix.split(","):
        mobile[firsts + int(atom)] = 0.0
    if not bool(mobile.any()):
        raise UsageError("--fix: all atoms are held; leave some free to move")
    return mobile
