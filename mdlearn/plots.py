"""Pictures of models and trajectories."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from ase.data import chemical_symbols
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mdlearn.trajectory import Trajectory

STYLE = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 150.0,
}
BLUE, RED = "#2563a8", "#c2410c"


def plot_force_parity(
    path: Path,
    numbers: NDArray[np.int64],
    reference: NDArray[np.float64],
    predicted: NDArray[np.float64],
) -> None:
    """Predicted against reference forces, a color for each element, and how the errors spread.

    Args:
        path: of the PNG.
        numbers: (n_atoms,) atomic numbers, all frames one behind another.
        reference: (n_atoms, 3) eV/Å.
        predicted: (n_atoms, 3) eV/Å.
    """
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        parity, spread = figure.subplots(1, 2, width_ratios=[1.0, 1.15])
        edge = 1.05 * float(np.abs(reference).max())
        parity.plot([-edge, edge], [-edge, edge], color="0.7", linewidth=1.0, zorder=0)
        error = 1000.0 * (predicted - reference)  # meV/Å
        limit = float(np.quantile(np.abs(error), 0.995))
        bins = np.linspace(-limit, limit, 61)
        for z in np.unique(numbers):
            of_element = numbers == z
            mean = float(np.abs(error[of_element]).mean())
            label = f"{chemical_symbols[z]}  {mean:.0f} meV/Å"
            color = "0.35" if z == 6 else "#7fa6c9" if z == 1 else jmol_colors[z]
            x, y = reference[of_element].ravel(), predicted[of_element].ravel()
            parity.plot(x, y, ".", color=color, markersize=2.5, alpha=0.6, label=label)
            spread.hist(error[of_element].ravel(), bins, histtype="step", color=color, density=True)
        parity.set(xlabel="reference force (eV/Å)", ylabel="predicted force (eV/Å)")
        parity.set(title="Forces on frames not trained on", aspect="equal")
        parity.legend(title="mean abs. error", markerscale=4.0, handletextpad=0.1)
        spread.set(xlabel="error of a force component (meV/Å)", ylabel="density")
        spread.set(title=f"Errors: {float(np.abs(error).mean()):.0f} meV/Å on average", yticks=[])
        _save(figure, path)


def plot_energy_and_temperature(path: Path, trajectory: Trajectory) -> None:
    """Energies from their start, and the temperature, over time.

    Args:
        path: of the PNG.
        trajectory: with the observables that `mdlearn simulate` writes.
    """
    time_ps = trajectory.times_fs / 1000.0
    n_atoms = len(trajectory.numbers)
    potential = trajectory.observable("potential_energy")
    conserved = trajectory.observable("conserved_energy")
    temperature = trajectory.observable("temperature")
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(9.0, 5.4), layout="constrained")
        energy, error, thermal = figure.subplots(3, 1, sharex=True, height_ratios=[1.2, 1.0, 1.2])
        scale = 1000.0 / n_atoms  # eV -> meV per atom
        energy.plot(time_ps, scale * (potential - potential.mean()), color=BLUE, linewidth=0.6)
        energy.set(ylabel="meV/atom", title="Potential energy, from its mean")
        error.plot(time_ps, scale * (conserved - conserved[0]), color="0.25", linewidth=0.6)
        error.set(ylabel="meV/atom", title="Conserved energy: the error of the integration")
        _thermometer(thermal, time_ps, temperature)
        thermal.set(xlabel="time (ps)")
        figure.align_ylabels()
        _save(figure, path)


def _thermometer(
    axes: Axes, time_ps: NDArray[np.float64], temperature: NDArray[np.float64]
) -> None:
    mean = float(temperature.mean())
    running = np.cumsum(temperature) / np.arange(1, len(temperature) + 1)
    axes.plot(time_ps, temperature, color=RED, linewidth=0.5, alpha=0.5)
    axes.plot(time_ps, running, color=RED, linewidth=1.6, label="running mean")
    axes.set(ylabel="K", title=f"Temperature: {mean:.0f} K on average", ylim=(0.0, None))
    axes.legend(loc="lower right")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path)
