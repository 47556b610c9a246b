"""What trajectories are held to: distributions in closed form, and the checks of others.

`physical_validation` (P. T. Merz and M. R. Shirts, PLoS ONE 13, e0202764, 2018) knows what an
ensemble implies without knowing the system: how kinetic energies are distributed, and by what
factor energies or volumes become more frequent from one temperature or pressure to another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from physical_validation import ensemble, integrator, kinetic_energy
from physical_validation.data import (
    EnsembleData,
    ObservableData,
    SimulationData,
    SystemData,
    UnitData,
)
from torch import Tensor

from mdlearn import Trajectory, units
from mdlearn.potentials.architectures import make_potential
from mdlearn.potentials.checkpoint import save_model
from mdlearn.potentials.network import Settings

SIGMAS = 4.0
"""A right sampler fails once in 16,000 seeds, and the seeds here are fixed."""
LEAST_P = 1e-3
"""Of kinetic energies to be as far from their distribution as these are."""
QUANTILES = 3.0
"""What two state points may be from their ratio, in standard deviations."""
ASE_UNITS = UnitData(
    kb=units.kB,
    energy_conversion=1.0 / units.kJ_per_mol,
    length_conversion=0.1,
    volume_conversion=1e-3,
    temperature_conversion=1.0,
    pressure_conversion=1e4 / units.GPa,
    time_conversion=1e-3,
    energy_str="eV",
    length_str="Å",
    volume_str="Å³",
    temperature_str="K",
    pressure_str="eV/Å³",
    time_str="fs",
)
"""Of all data here, but for the time, which is in fs."""


class Samples(NamedTuple):
    """Independent samples of one state point, of equal systems."""

    kT: float
    """eV, of the thermostat."""
    pressure: float | None
    """eV/Å³, of the barostat; None where there is none."""
    n_atoms: int
    freedom: float
    """Degrees of freedom of the kinetic energy."""
    kinetic: NDArray[np.float64]
    """(n_samples,) eV."""
    potential: NDArray[np.float64]
    """(n_samples,) eV."""
    volume: NDArray[np.float64]
    """(n_samples,) Å³."""


def simulation_data(samples: Samples) -> SimulationData:
    """What `physical_validation` reads."""
    temperature = samples.kT / units.kB
    bath: dict[str, Any] = {"volume": samples.volume[0], "ensemble": "NVT"}
    if samples.pressure is not None:
        bath = {"pressure": samples.pressure, "ensemble": "NPT"}
    system = SystemData(
        natoms=samples.n_atoms,
        nconstraints=0.0,
        ndof_reduction_tra=3.0 * samples.n_atoms - samples.freedom,
        ndof_reduction_rot=0.0,
    )
    observables = ObservableData(
        kinetic_energy=samples.kinetic,
        potential_energy=samples.potential,
        total_energy=samples.kinetic + samples.potential,
        volume=samples.volume,
    )
    return SimulationData(
        units=ASE_UNITS,
        ensemble=EnsembleData(natoms=samples.n_atoms, temperature=temperature, **bath),
        system=system,
        observables=observables,
    )


def save_argon(path: Path) -> None:
    """A model file of Lennard-Jones argon (A. Rahman, Phys. Rev. 136, A405, 1964)."""
    settings = Settings("lennard-jones", 6.0, 1, 1, 1, average_neighbors=12.0, scale=1.0)
    network = make_potential((18,), {18: 0.0}, settings).double()
    network.get_parameter("log_sigma").data.fill_(math.log(3.405))
    network.get_parameter("log_epsilon").data.fill_(math.log(119.8 * units.kB))
    save_model(path, network, {}, [])


def read_samples(path: Path, kT: float, pressure: float | None, frames: slice) -> Samples:
    """All replicas of a trajectory file, which are of one system at one state point.

    Args:
        path: the file.
        kT: eV, of the thermostat.
        pressure: eV/Å³, of the barostat.
        frames: those that are independent of each other and of the start.
    """
    with Trajectory(path) as trajectory:
        n_replicas, n_atoms = trajectory.n_replicas, len(trajectory.numbers)
    kinetic, potential, volume, freedom = [], [], [], []
    for replica in range(n_replicas):
        with Trajectory(path, replica) as trajectory:
            kinetic.append(trajectory.observable("kinetic_energy")[frames])
            potential.append(trajectory.observable("potential_energy")[frames])
            volume.append(np.linalg.det(trajectory.cells(frames)))
            temperature = trajectory.observable("temperature")[frames]
            freedom.append(2.0 * kinetic[-1] / (units.kB * temperature))
    columns = (np.concatenate(each) for each in (kinetic, potential, volume))
    return Samples(kT, pressure, n_atoms, float(np.mean(freedom)), *columns)


def kinetic_p_value(samples: Samples) -> float:
    """How likely kinetic energies are as far from the gamma distribution as these."""
    data = simulation_data(samples)
    p = kinetic_energy.distribution(data, strict=True, verbosity=0, data_is_uncorrelated=True)
    return float(p)


def ensemble_quantiles(one: Samples, other: Samples) -> float:
    """How far two state points are from the ratio of their weights, in standard deviations."""
    found = ensemble.check(
        simulation_data(one), simulation_data(other), verbosity=0, data_is_uncorrelated=True
    )
    return float(max(found))


def convergence_deviation(
    timesteps_fs: Sequence[float], conserved: Sequence[NDArray[np.float64]]
) -> float:
    """By how much fluctuations of the conserved energy miss to go as the step squared."""
    runs = [
        SimulationData(units=ASE_UNITS, dt=dt, observables=ObservableData(constant_of_motion=each))
        for dt, each in zip(timesteps_fs, conserved, strict=True)
    ]
    return float(integrator.convergence(runs, verbose=False))


def assert_gamma(samples: Tensor, shape: float, scale: float) -> None:
    """Mean and variance of a gamma distribution, from independent samples."""
    n = samples.numel()
    x = samples / scale
    assert abs(float(x.mean()) - shape) < SIGMAS * math.sqrt(shape / n)
    # The variance of (x - mean)² is 2 k² + 6 k for a gamma distribution of shape k.
    spread = math.sqrt((2.0 * shape**2 + 6.0 * shape) / n)
    assert abs(float((x - shape).square().mean()) - shape) < SIGMAS * spread
