"""Whether `mdlearn simulate` samples the ensembles that it names: the long form of the tests.

    python benchmarks/ensembles.py
    python benchmarks/ensembles.py ethanol-run ethanol.xyz --temperature 300 --timestep 0.5

Without a model, Lennard-Jones argon: 32 atoms at 150 K and 0.05 GPa, a fluid. Each ensemble runs at
that state point, and then at a higher temperature and, if it has a pressure, at a higher pressure:
as far away as `physical_validation` advises. Frames are thinned until energies and volumes have an
autocorrelation below 0.1. A structure that is not periodic has no pressure.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.build
import ase.io
import numpy as np
from numpy.typing import NDArray
from physical_validation.ensemble import estimate_interval

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from validation import (
    Samples,
    convergence_deviation,
    ensemble_quantiles,
    kinetic_p_value,
    read_samples,
    save_argon,
    simulation_data,
)

from mdlearn import Trajectory
from mdlearn.units import GPa, kB

NVT = ("langevin", "csvr", "nose-hoover")
NPT = ("npt", "mtk")
START = 0.1
"""Of a run, which is not looked at: it equilibrates."""


class Point(NamedTuple):
    """A state point of an ensemble."""

    ensemble: str
    temperature_K: float  # noqa: N815
    pressure_GPa: float | None  # noqa: N815


def run(options: argparse.Namespace, arguments: Sequence[Any], output: Path) -> None:
    """One run of `mdlearn simulate`."""
    command = [sys.executable, "-m", "mdlearn", "simulate", options.model, options.structure]
    command += ["--precision", "float64", "--output", output, "--overwrite", *arguments]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


def sample(options: argparse.Namespace, folder: Path, point: Point) -> tuple[Samples, str]:
    """Independent samples of a state point, and the temperature of each element."""
    output = folder / f"{point.ensemble}.h5"
    arguments = ["--ensemble", point.ensemble, "--temperature", point.temperature_K]
    arguments += ["--replicas", options.replicas, "--timestep", options.timestep]
    arguments += ["--steps", options.steps, "--every", options.every]
    pressure = None
    if point.pressure_GPa is not None:
        arguments += [
            "--pressure",
            point.pressure_GPa,
            "--compressibility",
            options.compressibility,
        ]
        pressure = point.pressure_GPa * GPa
    run(options, arguments, output)
    frames = independent(output)
    samples = read_samples(output, point.temperature_K * kB, pressure, frames)
    return samples, elements(output, frames, samples)


def independent(path: Path) -> slice:
    """Frames with an autocorrelation below 0.1 of all that is looked at."""
    series = []
    with Trajectory(path) as trajectory:
        n_replicas, n_frames = trajectory.n_replicas, len(trajectory)
    for replica in range(n_replicas):
        with Trajectory(path, replica) as trajectory:
            names = {"kinetic_energy", "potential_energy", "volume"}
            names &= set(trajectory.observable_names)
            series.append([trajectory.observable(name) for name in sorted(names)])
    first = round(START * n_frames)
    x = np.array(series)[:, :, first:]  # (n_replicas, n_names, n_frames)
    x -= x.mean((0, 2), keepdims=True)
    variance = np.maximum((x**2).mean((0, 2)), 1e-20)
    for stride in range(1, x.shape[2] // 2):
        correlation = (x[:, :, stride:] * x[:, :, :-stride]).mean((0, 2)) / variance
        if correlation.max() < 0.1:
            return slice(first, None, stride)
    raise SystemExit(f"{path}: the run is too short for two independent frames of a replica")


def elements(path: Path, frames: slice, samples: Samples) -> str:
    """The temperature of each element, with its error."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    with Trajectory(path) as trajectory:
        n_replicas = trajectory.n_replicas
    for replica in range(n_replicas):
        with Trajectory(path, replica) as trajectory:
            m, symbols = trajectory.masses, np.array(trajectory.atoms(0).get_chemical_symbols())
            kinetic = 0.5 * m * (trajectory.velocities(frames) ** 2).sum(2)
            share = np.full_like(kinetic, 3.0)
            if samples.freedom < 3 * len(m):
                share = at_rest(trajectory.positions(frames), m, bool(trajectory.pbc.any()))
            for symbol in dict.fromkeys(symbols):
                own = symbols == symbol
                each = 2.0 * kinetic[:, own].sum(1) / (kB * share[:, own].sum(1))
                found.setdefault(symbol, []).append(each)
    joined = {symbol: np.concatenate(each) for symbol, each in found.items()}
    return ", ".join(
        f"{symbol} {each.mean():.1f} ± {each.std() / len(each) ** 0.5:.1f}"
        for symbol, each in joined.items()
    )


def at_rest(x: NDArray[np.float64], m: NDArray[np.float64], periodic: bool) -> NDArray[np.float64]:
    """Degrees of freedom of each atom where the system does not move as a whole.

    Without net momentum 3 (1 - m/M). In an open system without angular momentum also less the trace
    of m (r² - r r) I⁻¹, with the tensor of inertia I.

    Args:
        x: (n_frames, n_atoms, 3) Å.
        m: (n_atoms,) u.
        periodic: whether the system may have an angular momentum.

    Returns:
        (n_frames, n_atoms).
    """
    share = np.broadcast_to(3.0 * (1.0 - m / m.sum()), x.shape[:2])
    if periodic:
        return share
    r = x - (m[:, None] * x).sum(1, keepdims=True) / m.sum()
    square = (r**2).sum(2)[:, :, None, None] * np.eye(3)
    own = m[:, None, None] * (square - r[..., :, None] * r[..., None, :])
    inverse = np.linalg.inv(own.sum(1))
    return share - np.einsum("fnij,fji->fn", own, inverse)


def row(options: argparse.Namespace, folder: Path, ensemble: str) -> str:
    """What is found of an ensemble, as a line of the table."""
    pressure = options.pressure if ensemble in NPT else None
    point = Point(ensemble, options.temperature, pressure)
    samples, by_element = sample(options, folder, point)
    n = len(samples.kinetic)
    kelvin = 2.0 * samples.kinetic / (samples.freedom * kB)
    interval = estimate_interval(simulation_data(samples), verbosity=0, data_is_uncorrelated=True)
    hotter, _ = sample(
        options,
        folder,
        point._replace(temperature_K=round(options.temperature + interval["dT"], 1)),
    )
    ratios = [f"{ensemble_quantiles(samples, hotter):.1f} σ at {hotter.kT / kB:.0f} K"]
    p_values = [kinetic_p_value(samples), kinetic_p_value(hotter)]
    if pressure is not None:
        higher = round(pressure + interval["dP"] / GPa, 4)
        denser, _ = sample(options, folder, point._replace(pressure_GPa=higher))
        ratios.append(f"{ensemble_quantiles(samples, denser):.1f} σ at {higher:.3f} GPa")
        p_values.append(kinetic_p_value(denser))
    return (
        f"| `{ensemble}` | {n} | {kelvin.mean():.2f} ± {kelvin.std() / n**0.5:.2f} |"
        f" {by_element} | {', '.join(f'{p:.2f}' for p in p_values)} | {', '.join(ratios)} |"
    )


def convergence(options: argparse.Namespace, folder: Path) -> str:
    """How fluctuations at constant energy go with the time step."""
    conserved, timesteps = [], [options.timestep / 2**n for n in range(3)]
    for n, timestep in enumerate(timesteps):
        output = folder / "nve.h5"
        steps = 200 * 2**n
        arguments = ["--ensemble", "nve", "--timestep", timestep, "--steps", steps]
        arguments += ["--temperature", options.temperature, "--every", 2**n]
        run(options, arguments, output)
        with Trajectory(output) as trajectory:
            conserved.append(trajectory.observable("conserved_energy"))
    ratios = [one.std() / other.std() for one, other in itertools.pairwise(conserved)]
    found = " and ".join(f"{ratio:.3f}" for ratio in ratios)
    return (
        f"nve: on halving {options.timestep:g} fs twice, fluctuations fall by {found}; 4 is right"
        f" (largest deviation {convergence_deviation(timesteps, conserved):.3f})"
    )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", help="[default: Lennard-Jones argon]")
    parser.add_argument("structure", type=Path, nargs="?")
    parser.add_argument("--temperature", type=float, default=150.0, help="K")
    parser.add_argument("--pressure", type=float, default=0.05, help="GPa")
    parser.add_argument("--compressibility", type=float, default=8.0, help="1/GPa")
    parser.add_argument("--timestep", type=float, default=8.0, help="fs")
    parser.add_argument("--steps", type=int, default=4000, help="of each run")
    parser.add_argument("--every", type=int, default=25, help="steps between frames")
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--ensembles", nargs="+", choices=NVT + NPT, default=NVT + NPT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.model is None:
            options.model, options.structure = folder / "argon.safetensors", folder / "argon.extxyz"
            save_argon(options.model)
            (ase.build.bulk("Ar", "fcc", 6.0, cubic=True) * 2).write(options.structure)
        periodic = bool(ase.io.read(options.structure).pbc.all())
        print("| ensemble | samples | temperature, K | by element, K | p of K | between points |")
        print("|---|---|---|---|---|---|")
        for ensemble in options.ensembles:
            if periodic or ensemble in NVT:
                print(row(options, folder, ensemble), flush=True)
        print(convergence(options, folder))


if __name__ == "__main__":
    main()
