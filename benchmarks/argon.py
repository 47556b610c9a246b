"""Liquid argon: Lennard-Jones at state points that others have published.

    python benchmarks/argon.py [--density 0.82] [--steps 12000] [--output argon-bench]

`mdlearn simulate` runs 500 atoms at T* = 0.85, first at constant volume, for energy, pressure and
g(r), then at the published pressure, for the density. Published are Monte Carlo results of the full
potential (truncated at 3 σ, with long-range corrections): NIST Standard Reference Simulation
Website, https://mmlapps.nist.gov/srs/LJ_PURE/mc.htm. Our potential ends at 3 σ, and its envelope
takes much away long before. So every frame is weighted by the Boltzmann factor of what is lacking,
pair by pair up to 3 σ and with g = 1 beyond: the averages are those of the full potential. LAMMPS,
in an environment of its own, runs the potential that mdlearn runs, and is compared without that.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import ase
import ase.build
import ase.io
import numpy as np
import torch
from numpy.typing import NDArray
from peers import add_arguments, ask

from mdlearn import Trajectory, units
from mdlearn.potentials.architectures import make_potential
from mdlearn.potentials.checkpoint import save_model
from mdlearn.potentials.network import Settings

Floats = NDArray[np.float64]

EPSILON = 119.8 * units.kB
"""eV."""
SIGMA = 3.405
"""Å. Both are argon's (A. Rahman, Phys. Rev. 136, A405, 1964, has 120 K and 3.4 Å)."""
PRESSURE_UNIT_GPA = EPSILON / SIGMA**3 / units.GPa
"""GPa that a pressure of one in Lennard-Jones units is."""
TEMPERATURE = 0.85
PUBLISHED = {  # density: potential energy per atom, pressure
    0.776: (-5.5121, 0.0067714),
    0.780: (-5.5386, 0.047924),
    0.820: (-5.7947, 0.55355),
    0.860: (-6.0305, 1.2660),
}
"""All in Lennard-Jones units."""
CUTOFF = 3.0
"""σ."""
TIMESTEP_FS = 10.0
EVERY = 5
MELTED = 1000
"""Steps that are left out: the crystal melts at 400 K and cools down."""
BIN = 0.02
"""σ, of g(r)."""
BLOCKS = 20


class Mean(NamedTuple):
    """A mean with its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


def block_average(values: Floats, weights: Floats | None = None) -> Mean:
    """Mean of frames, and its error by leaving out one block after the other (jackknife)."""
    weights = np.ones_like(values) if weights is None else weights
    total, norm = (weights * values).sum(), weights.sum()
    parts = zip(np.array_split(weights, BLOCKS), np.array_split(values, BLOCKS), strict=True)
    means = np.array([(total - (w * x).sum()) / (norm - w.sum()) for w, x in parts])
    return Mean(float(total / norm), float(means.std()) * math.sqrt(BLOCKS - 1))


def save_argon(path: Path, cutoff: float) -> None:
    """Writes a model file of `lennard-jones` for argon, cutoff in Å."""
    settings = Settings("lennard-jones", cutoff, 1, 1, 1, average_neighbors=1.0, scale=1.0)
    network = make_potential((18,), {18: 0.0}, settings).double()
    network.get_parameter("log_sigma").data.fill_(math.log(SIGMA))
    network.get_parameter("log_epsilon").data.fill_(math.log(EPSILON))
    save_model(path, network, {}, [])


def formula(epsilon: float, sigma: float, cutoff: float) -> str:
    """The energy of a pair at r by `lennard-jones`, as LAMMPS and OpenMM read it."""
    return f"4*{epsilon!r}*(s^12-s^6)*(1-28*u^6+48*u^7-21*u^8); s={sigma!r}/r; u=r/{cutoff!r}"


def crystal(cells: int, density: float) -> ase.Atoms:
    """4 cells³ atoms at a density in Lennard-Jones units."""
    edge = SIGMA * (4.0 / density) ** (1.0 / 3.0)
    return ase.build.bulk("Ar", "fcc", a=edge, cubic=True) * (cells, cells, cells)


def simulate(folder: Path, start: ase.Atoms, name: str, steps: int, *options: object) -> Path:
    """Runs mdlearn up to a step, or goes on with what is there; returns the trajectory."""
    model, structure = folder / "argon.safetensors", folder / f"{name}.extxyz"
    output = folder / f"{name}.h5"
    command: list[object] = [sys.executable, "-m", "mdlearn", "simulate"]
    if output.exists():
        command += ["--resume", output]
    else:
        ase.io.write(structure, start)
        save_argon(model, CUTOFF * SIGMA)
        command += [model, structure, "--timestep", TIMESTEP_FS, "--every", EVERY]
        command += ["--thermostat-time", "500fs", "--output", output, *options]
    subprocess.run([*map(str, command), "--steps", str(steps)], check=True, stdout=sys.stderr)
    return output


def lost(r: Floats) -> tuple[Floats, Floats]:
    """What the envelope takes from a pair at r: energy ΔV and r ΔV', Lennard-Jones units."""
    u = r / CUTOFF
    energy = 4.0 * (r**-12 - r**-6)
    slope = -24.0 * (2.0 * r**-12 - r**-6)  # r dV/dr
    taken = u**6 * (28.0 - 48.0 * u + 21.0 * u**2)
    steepness = u**6 * (168.0 - 336.0 * u + 168.0 * u**2)  # u d(taken)/du
    return energy * taken, slope * taken + energy * steepness


def beyond(density: float) -> tuple[float, float]:
    """Energy per atom and pressure of pairs beyond the cutoff with g = 1.

    M. P. Allen, D. J. Tildesley, Computer Simulation of Liquids, 2nd ed., eqs. 2.144 and 2.145.
    """
    x = CUTOFF**-3
    energy = 8.0 / 9.0 * math.pi * density * (x**3 - 3.0 * x)
    pressure = 32.0 / 9.0 * math.pi * density**2 * (x**3 - 1.5 * x)
    return energy, pressure


class Liquid(NamedTuple):
    """What a trajectory says, in Lennard-Jones units; numbers have one entry for each frame."""

    energy: Floats
    """Per atom, of the potential that was run."""
    pressure: Floats
    """Likewise."""
    full_energy: Floats
    """Per atom, of the full potential."""
    full_pressure: Floats
    """Likewise."""
    weights: Floats
    """Of the frames, for averages of the full potential."""
    r: Floats
    g: Floats
    """Of the potential that was run."""


def analyze(path: Path, density: float) -> Liquid:
    """Energy and pressure of the full potential, and g(r)."""
    chosen = slice(MELTED // EVERY, None)
    with Trajectory(path) as trajectory:
        energy = trajectory.observable("potential_energy")[chosen] / EPSILON
        pressure = trajectory.observable("pressure")[chosen] / PRESSURE_UNIT_GPA
        positions = trajectory.positions(chosen) / SIGMA
        length = float(trajectory.cells(0)[0, 0]) / SIGMA
    n = positions.shape[1]
    first, second = np.triu_indices(n, 1)
    edges = np.arange(0.0, CUTOFF + BIN / 2, BIN)
    counts = np.zeros(len(edges) - 1)
    taken = []
    for x in positions:
        vectors = x[second] - x[first]
        vectors -= length * np.round(vectors / length)  # half of it is beyond the cutoff
        r = np.sqrt((vectors**2).sum(1))
        r = r[r < CUTOFF]
        taken.append([each.sum() for each in lost(r)])
        counts += np.histogram(r, edges)[0]
    gained = np.array(taken) * [1.0 / n, -1.0 / (3.0 * length**3)] + beyond(density)
    lacking = n * (gained[:, 0] - gained[:, 0].mean())
    shells = 4.0 / 3.0 * math.pi * np.diff(edges**3)
    return Liquid(
        energy / n,
        pressure,
        energy / n + gained[:, 0],
        pressure + gained[:, 1],
        np.exp(-lacking / TEMPERATURE),
        0.5 * (edges[1:] + edges[:-1]),
        counts / len(positions) / (0.5 * n * density * shells),
    )


def first_peak(r: Floats, g: Floats) -> tuple[float, float]:
    """Position and height, by a parabola through what is within 0.06 σ of the highest bin."""
    near = np.abs(r - r[g.argmax()]) < 3.5 * BIN
    a, b, c = np.polyfit(r[near], g[near], 2)
    return float(-b / (2.0 * a)), float(c - b * b / (4.0 * a))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--density", type=float, default=0.82, choices=PUBLISHED)
    parser.add_argument("--steps", type=int, default=12000, help="of each run")
    parser.add_argument("--cells", type=int, default=5, help="4 n³ atoms")
    parser.add_argument("--output", type=Path, default=Path("argon-bench"))
    add_arguments(parser)
    options = parser.parse_args()
    folder, density = options.output, options.density
    folder.mkdir(exist_ok=True)
    kelvin = TEMPERATURE * EPSILON / units.kB
    start = crystal(options.cells, density)
    ramp = ["--temperature", f"400@0ps:400@2ps:{kelvin}@5ps"]
    path = simulate(folder, start, "nvt", options.steps, "--ensemble", "csvr", *ramp)
    nvt = analyze(path, density)
    published_energy, published_pressure = PUBLISHED[density]
    energy, force = block_average(nvt.energy), block_average(nvt.pressure)
    full_energy = block_average(nvt.full_energy, nvt.weights)
    full_force = block_average(nvt.full_pressure, nvt.weights)
    # What our potential has where the full one has the published pressure.
    pressure = (published_pressure + force.value - full_force.value) * PRESSURE_UNIT_GPA
    barostat = ["--ensemble", "npt", "--pressure", pressure, "--compressibility", 2]
    barostat += ["--temperature", kelvin]
    with Trajectory(path) as trajectory:
        start = trajectory.atoms(-1)
    path = simulate(folder, start, "npt", options.steps, *barostat)
    with Trajectory(path) as trajectory:
        volumes = trajectory.observable("volume")[MELTED // EVERY :] / SIGMA**3
        densities = len(trajectory.numbers) / volumes
    request = {
        "action": "liquid",
        "cells": options.cells,
        "density": density,
        "temperature": TEMPERATURE,
        "formula": formula(1.0, 1.0, CUTOFF),
        "cutoff": CUTOFF,
        "steps": 2 * options.steps,
        "bin": BIN,
    }
    lammps = ask("lammps", request, options.environments, options.threads)
    if "error" in lammps:
        raise SystemExit(f"LAMMPS: {lammps['error']}")
    theirs = [block_average(np.array(lammps[name])) for name in ("energy", "pressure")]
    peaks = first_peak(nvt.r, nvt.g), first_peak(np.array(lammps["r"]), np.array(lammps["g"]))
    steps = options.steps - MELTED
    print(
        f"\nT* = {TEMPERATURE}, {4 * options.cells**3} atoms, {steps} steps of {TIMESTEP_FS} fs\n"
    )
    print("| our potential | mdlearn | LAMMPS |")
    print("|---|---|---|")
    print(f"| energy per atom, ε | {energy} | {theirs[0]} |")
    print(f"| pressure, ε/σ³ | {force} | {theirs[1]} |")
    print("| first peak of g(r): position, σ | {:.3f} | {:.3f} |".format(*(x for x, _ in peaks)))
    print("| and height | {:.3f} | {:.3f} |".format(*(height for _, height in peaks)))
    print("\n| full potential | mdlearn | published |")
    print("|---|---|---|")
    print(f"| energy per atom, ε | {full_energy} | {published_energy} |")
    print(f"| pressure, ε/σ³ | {full_force} | {published_pressure} |")
    print(f"| density at the published pressure, 1/σ³ | {block_average(densities)} | {density} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
