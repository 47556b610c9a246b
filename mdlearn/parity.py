"""Pictures of how predictions agree with labels: against each other, and how the errors spread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from ase.data import chemical_symbols
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from mdlearn.plots import BLUE, RED, STYLE, save
from mdlearn.training.comparison import UNNAMED, Comparison, Pair, digits, pairs
from mdlearn.units import meV

PALETTE = (BLUE, RED, "#15803d", "#7c3aed", "#b45309", "#0e7490", "#be185d", "#4d7c0f")
"""For kinds of structures; dark enough for white paper."""
POINTS = 20_000
"""Points of a color in a picture; of more, a part is drawn, and the worst in any case."""
MANY = 300
"""Errors from which on a histogram is logarithmic."""


class Panel(NamedTuple):
    """How one quantity is drawn."""

    title: str
    axis: str
    """Of the parity plot."""
    unit: str
    """Of the parity plot; that of errors is the one of the comparison."""
    scale: float
    """From the unit of errors to that of the parity plot."""
    error: str
    error_unit: str


PANELS = {
    "energy_meV_per_atom": Panel(
        "Energy", "interaction energy", "eV/atom", 1e-3, "the energy", "meV/atom"
    ),
    "forces_meV_per_A": Panel("Forces", "force", "eV/Å", 1e-3, "a force component", "meV/Å"),
    "stress_meV_per_A3": Panel("Stress", "stress", "meV/Å³", 1.0, "a stress component", "meV/Å³"),
    "dipole_meA": Panel("Dipole", "dipole", "e Å", 1e-3, "a dipole component", "me Å"),
}


class Part(NamedTuple):
    """Points of one color."""

    name: str
    color: str
    chosen: NDArray[np.bool_]
    """Along the first axis of a quantity."""


def plot_parity(path: Path, comparisons: Mapping[str, Comparison]) -> None:
    """Predictions against labels: a row for each set of frames, a column for each quantity.

    Args:
        path: of the PNG.
        comparisons: by what to call the set, as in `validation`.
    """
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure, cells = _cells(comparisons, 4.1, 4.3)
        for axes, name, panel, comparison, pair in cells:
            axes.set(title=f"{panel.title}, {name}")
            _parity(axes, panel, pair, _parts(comparison, panel, pair))
        save(figure, path)


def plot_errors(path: Path, comparisons: Mapping[str, Comparison]) -> None:
    """How the errors spread: a row for each set of frames, a column for each quantity.

    Args:
        path: of the PNG.
        comparisons: by what to call the set, as in `validation`.
    """
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure, cells = _cells(comparisons, 4.4, 3.4)
        for axes, name, panel, comparison, pair in cells:
            axes.set(title=f"{panel.title}, {name}")
            _spread(axes, panel, pair, _parts(comparison, panel, pair))
        save(figure, path)


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
    panel, pair = PANELS["forces_meV_per_A"], Pair(reference / meV, predicted / meV)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        parity, spread = figure.subplots(1, 2, width_ratios=[1.0, 1.15])
        _parity(parity, panel, pair, _elements(numbers))
        parity.set(title="Forces on frames not trained on")
        _spread(spread, panel, pair, _elements(numbers))
        spread.set(title="Errors")
        save(figure, path)


Cell = tuple[Axes, str, Panel, Comparison, Pair]


def _cells(
    comparisons: Mapping[str, Comparison], width: float, height: float
) -> tuple[Figure, list[Cell]]:
    """A grid of axes, one for each set and quantity; those without labels are blank."""
    every = {name: pairs(comparison) for name, comparison in comparisons.items()}
    columns = [
        key for key in PANELS if any(np.isfinite(each[key].labels).any() for each in every.values())
    ]
    shape = (len(comparisons), len(columns))
    figure = Figure(figsize=(width * shape[1], height * shape[0]), layout="constrained")
    grid = figure.subplots(*shape, squeeze=False)
    cells = []
    for row, (name, comparison) in zip(grid, comparisons.items(), strict=True):
        for axes, key in zip(row, columns, strict=True):
            if np.isfinite(every[name][key].labels).any():
                cells.append((axes, name, PANELS[key], comparison, every[name][key]))
            else:
                axes.set_axis_off()
    return figure, cells


def _parts(comparison: Comparison, panel: Panel, pair: Pair) -> list[Part]:
    """Forces by element, all else by kind of structure where there are a few of them."""
    if panel is PANELS["forces_meV_per_A"]:
        return _elements(comparison.numbers)
    kinds = np.array(comparison.config_types)
    names = sorted(set(kinds))
    if names == [UNNAMED] or len(names) > len(PALETTE):
        return [Part("", BLUE, np.ones(len(pair.labels), dtype=bool))]
    return [Part(name, PALETTE[index], kinds == name) for index, name in enumerate(names)]


def _elements(numbers: NDArray[np.int64]) -> list[Part]:
    """The atoms of each element, in the colors that chemists know, darkened for white paper."""
    parts = []
    for z in np.unique(numbers).tolist():
        red, green, blue = jmol_colors[z]
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue
        dimmed = jmol_colors[z] * min(1.0, 0.5 / luminance)
        color = "0.35" if z == 6 else "#7fa6c9" if z == 1 else mpl.colors.to_hex(dimmed)
        parts.append(Part(chemical_symbols[z], color, numbers == z))
    return parts


def _parity(axes: Axes, panel: Panel, pair: Pair, parts: list[Part]) -> None:
    """Predictions against labels, with the mean absolute error of each color."""
    known = np.isfinite(pair.labels) & np.isfinite(pair.predictions)
    if not known.any():
        return
    everything = panel.scale * np.concatenate([pair.labels[known], pair.predictions[known]])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.05 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="0.7", linewidth=1.0, zorder=0)
    size = 2.5 if known.sum() > 500 else 5.0
    for part in parts:
        labels, predictions = _points(pair, part)
        if len(labels) == 0:
            continue
        mean = digits(float(np.abs(predictions - labels).mean()))
        labels, predictions = _fewer(labels, predictions)
        axes.plot(
            panel.scale * labels,
            panel.scale * predictions,
            ".",
            color=part.color,
            markersize=size,
            alpha=0.6,
            label=f"{part.name}  {mean}".strip(),
        )
    axes.set(xlabel=f"reference {panel.axis} ({panel.unit})", xlim=limits, ylim=limits)
    axes.set(ylabel=f"predicted {panel.axis} ({panel.unit})", box_aspect=1.0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(useOffset=False)
    axes.legend(
        title=f"mean absolute error, {panel.error_unit}",
        loc="upper left",
        markerscale=10.0 / size,
        handletextpad=0.1,
        fontsize=9.0,
        title_fontsize=9.0,
        borderaxespad=0.1,
        alignment="left",
    )


def _spread(axes: Axes, panel: Panel, pair: Pair, parts: list[Part]) -> None:
    """A histogram of the errors of each color; logarithmic where there are many, for the tails."""
    drawn = [(part, *_points(pair, part)) for part in parts]
    errors = [(part, predictions - labels) for part, labels, predictions in drawn if len(labels)]
    if not errors:
        return
    count = sum(len(error) for _, error in errors)
    limit = max(float(np.abs(error).max()) for _, error in errors) or 1.0
    n_bins = int(np.clip(2.0 * count**0.4, 11, 81)) | 1  # odd, so that the middle one is at zero
    bins = np.linspace(-limit, limit, n_bins + 1).tolist()
    for part, error in errors:
        rmse = digits(float(np.sqrt(np.square(error).mean())))
        percent = np.full(len(error), 100.0 / len(error))
        label = f"{part.name}  {rmse}".strip()
        axes.hist(
            error, bins, histtype="step", color=part.color, weights=percent, label=label, lw=1.3
        )
    axes.axvline(0.0, color="0.8", linewidth=1.0, zorder=0)
    axes.set(xlabel=f"error of {panel.error} ({panel.error_unit})", ylabel="share (%)")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if count > MANY:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    room = 0.12 * (len(errors) + 1)  # of the height, for the legend
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= min(high, 100.0)]
    axes.set_yticks(ticks)
    axes.set_ylim(low, high * (high / low) ** room if count > MANY else high * (1.0 + room))
    axes.legend(
        title=f"root mean square error, {panel.error_unit}",
        fontsize=9.0,
        title_fontsize=9.0,
        loc="upper left",
        borderaxespad=0.1,
        handlelength=1.0,
        alignment="left",
    )


def _points(pair: Pair, part: Part) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and predictions of one color, flat; only numbers."""
    labels, predictions = pair.labels[part.chosen], pair.predictions[part.chosen]
    known = np.isfinite(labels) & np.isfinite(predictions)
    return labels[known], predictions[known]


def _fewer(
    labels: NDArray[np.float64], predictions: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most about `POINTS` of the points, evenly taken, and the hundred worst."""
    if len(labels) <= POINTS:
        return labels, predictions
    chosen = np.arange(0, len(labels), -(-len(labels) // POINTS))
    worst = np.argpartition(-np.abs(predictions - labels), 100)[:100]
    chosen = np.union1d(chosen, worst)
    return labels[chosen], predictions[chosen]
