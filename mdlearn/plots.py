"""Pictures of trainings and trajectories, and the style of all pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from mdlearn.files import write_atomically
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


def plot_learning(path: Path, metrics: Mapping[str, NDArray[np.float64]]) -> None:
    """How loss and errors fell during a training, and where the best model is from.

    Args:
        path: of the PNG.
        metrics: the columns of `metrics.csv`; those that are absent or empty are left out.
    """
    curves = {
        "Loss": ("", {"train_loss": ("training", "0.55"), "valid_loss": ("validation", BLUE)}),
        "Energy, validation": (
            "meV/atom",
            {"valid_energy_mae_meV_per_atom": ("mean absolute error", BLUE)},
        ),
        "Forces, validation": (
            "meV/Å",
            {
                "valid_forces_mae_meV_per_A": ("mean absolute error", BLUE),
                "valid_forces_rmse_meV_per_A": ("root mean square", "#7fa6c9"),
            },
        ),
        "Stress, validation": (
            "meV/Å³",
            {"valid_stress_mae_meV_per_A3": ("mean absolute error", BLUE)},
        ),
        "Dipole, validation": ("me Å", {"valid_dipole_mae_meA": ("mean absolute error", BLUE)}),
        "Learning rate": ("", {"learning_rate": ("", "0.25")}),
    }
    drawn = {
        title: (unit, {name: line for name, line in lines.items() if _numbers(metrics, name)})
        for title, (unit, lines) in curves.items()
    }
    drawn = {title: panel for title, panel in drawn.items() if panel[1]}
    epoch = metrics["epoch"]
    best = int(np.nanargmin(metrics["valid_loss"])) if _numbers(metrics, "valid_loss") else -1
    columns = 2 if len(drawn) <= 4 else 3
    rows = -(-len(drawn) // columns)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(4.5 * columns, 2.7 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
        for axes, (title, (unit, lines)) in zip(grid, drawn.items(), strict=False):
            for name, (label, color) in lines.items():
                marker = "." if len(epoch) < 30 else ""
                axes.plot(epoch, metrics[name], color=color, label=label, marker=marker, lw=1.4)
            axes.set(title=title, ylabel=unit)
            values = np.concatenate([metrics[name] for name in lines])
            # Over less than a factor of three a logarithm shows nothing but odd ticks.
            if title != "Learning rate" and np.nanmax(values) > 3.0 * np.nanmin(values) > 0.0:
                axes.set_yscale("log")
                _plain_log(axes.yaxis)
            if best >= 0:
                axes.axvline(epoch[best], color=RED, linewidth=0.9, linestyle=":", zorder=0)
            if len(lines) > 1:
                axes.legend()
        if best >= 0:
            grid[0].text(
                epoch[best],
                0.98,
                f" best: epoch {epoch[best]:.0f} ",
                color=RED,
                ha="right" if 2 * epoch[best] > epoch[0] + epoch[-1] else "left",
                va="top",
                fontsize=9.0,
                transform=grid[0].get_xaxis_transform(),
            )
        for axes in grid[len(drawn) :]:
            axes.set_axis_off()
        for index, axes in enumerate(grid[: len(drawn)]):
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
            if index + columns >= len(drawn):
                axes.set_xlabel("epoch")
                axes.tick_params(labelbottom=True)
        save(figure, path)


def _numbers(metrics: Mapping[str, NDArray[np.float64]], name: str) -> bool:
    """Whether a column is there and holds any number."""
    return name in metrics and bool(np.isfinite(metrics[name]).any())


def _plain_log(axis: Axis) -> None:
    """Ticks at 1, 2 and 5, written out: most curves span less than two decades."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


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
        save(figure, path)


def _thermometer(
    axes: Axes, time_ps: NDArray[np.float64], temperature: NDArray[np.float64]
) -> None:
    mean = float(temperature.mean())
    running = np.cumsum(temperature) / np.arange(1, len(temperature) + 1)
    axes.plot(time_ps, temperature, color=RED, linewidth=0.5, alpha=0.5)
    axes.plot(time_ps, running, color=RED, linewidth=1.6, label="running mean")
    axes.set(ylabel="K", title=f"Temperature: {mean:.0f} K on average", ylim=(0.0, None))
    axes.legend(loc="lower right")


def save(figure: Figure, path: Path) -> None:
    """Writes a picture as PNG, whole or not at all."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    write_atomically(path, stream.getvalue())
