"""What a training came to: tables, pictures, and one page with all of it."""

from __future__ import annotations

import base64
import html
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols

from mdlearn.atoms import Frame
from mdlearn.errors import ResourceError
from mdlearn.files import write_atomically
from mdlearn.potentials.checkpoint import Model, load_model
from mdlearn.training.comparison import (
    QUANTITIES,
    Comparison,
    Group,
    Summary,
    compare,
    digits,
    summarize,
)

PICTURES = ("learning.png", "parity.png", "errors.png")
REPORT_OUTPUTS = (*PICTURES, "report.html")
"""What `write_report` leaves in a run folder."""

STYLE = """
:root { color-scheme: light dark; --line: #d4d4d8; --soft: #52525b;
  --good: #15803d; --bad: #b91c1c }
@media (prefers-color-scheme: dark) {
  :root { --line: #3f3f46; --soft: #a1a1aa; --good: #4ade80; --bad: #f87171 }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line) }
p, figcaption, caption { color: var(--soft) }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .3rem }
th, td { text-align: right; padding: .15rem .9rem .15rem 0; vertical-align: top }
th:first-child, td:first-child, td.text, th.text { text-align: left }
td.text { overflow-wrap: anywhere } td.text:first-child { white-space: nowrap }
thead th { border-bottom: 1px solid var(--line); font-weight: 600 }
figure { margin: 1rem 0 }
img { max-width: 100%; background: #fff; border-radius: 6px }
.good { color: var(--good) } .bad { color: var(--bad); font-weight: 600 }
@media print {
  body { font-size: 10pt; max-width: none; margin: 0 }
  h2 { break-after: avoid } figure, tr { break-inside: avoid }
}
"""


class Table(NamedTuple):
    """Rows of text under a head, for a terminal or a page."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables(name: str, summary: Summary) -> list[Table]:
    """The errors of a potential on a set of frames, as people read them.

    Args:
        name: of the set.
        summary: of the errors.

    Returns:
        The errors of every quantity; of the forces by element; by kind of structure, if frames have
        one; and of the worst frames.
    """
    whole = summary.whole
    found = [
        Table(
            f"{name}: {whole.frames:,} frames, {whole.atoms:,} atoms",
            ("quantity", "unit", *_HEAD),
            [(*QUANTITIES[key], *_figures(whole, key)) for key in whole.errors],
        )
    ]
    if summary.elements:
        by_element = [
            (element, f"{group.atoms:,}", *_figures(group, "forces_meV_per_A"))
            for element, group in summary.elements.items()
        ]
        found.append(Table("forces by element, meV/Å", ("element", "atoms", *_HEAD), by_element))
    if summary.config_types:
        shown = [key for key in whole.errors if key != "energy_meV"]
        head = [f"{QUANTITIES[key][0]} {x}\n{QUANTITIES[key][1]}" for key in shown for x in _TWO]
        by_kind = [
            (kind, f"{group.frames:,}", *(x for key in shown for x in _figures(group, key)[:2]))
            for kind, group in summary.config_types.items()
        ]
        found.append(Table("by kind of structure", ("config_type", "frames", *head), by_kind))
    if summary.worst:
        worst = [
            (
                Path(bad.name).name,
                *((bad.config_type,) if summary.config_types else ()),
                *(_figures(Group(1, 0, bad.errors), key)[index] for key, index, _ in _WORST),
                f"{bad.atom} ({bad.symbol})" if bad.symbol else "–",
            )
            for bad in summary.worst
        ]
        kind = ("config_type",) if summary.config_types else ()
        names = ("frame", *kind, *(title for _, _, title in _WORST), "worst atom")
        found.append(Table("worst frames", names, worst))
    return found


_TWO = ("MAE", "RMSE")
_HEAD = (*_TWO, "max", "RMSE/spread")
_WORST = (
    ("energy_meV_per_atom", 0, "energy error\nmeV/atom"),
    ("forces_meV_per_A", 1, "forces RMSE\nmeV/Å"),
    ("forces_meV_per_A", 2, "forces max\nmeV/Å"),
)


def _figures(group: Group, key: str) -> tuple[str, str, str, str]:
    """The statistics of a quantity as text; dashes where there are no labels."""
    if key not in group.errors:
        return ("–",) * 4
    mae, rmse, largest, relative = group.errors[key]
    percent = f"{digits(100.0 * relative)} %" if math.isfinite(relative) else "–"
    return digits(mae), digits(rmse), digits(largest), percent


def write_report(
    folder: Path, sets: Mapping[str, Sequence[Frame]], device: torch.device | None = None
) -> None:
    """Adds the pictures `PICTURES` and the page `report.html` to a run folder.

    The page needs nothing but itself: no network, no scripts, pictures inside.

    Args:
        folder: of a run of `mdlearn train`, with `config.toml`, `metrics.csv` and the model.
        sets: frames that were not trained on, by what to call them, as in `validation`; empty sets
            are left out.
        device: where to evaluate; the CPU if None.

    Raises:
        ModelError: there is no model, or it is damaged.
        OutputError: a file cannot be written.
    """
    # A second that nobody should wait for who only wants tables.
    from mdlearn import parity, plots

    model = load_model(folder)
    network = model.network.to(device or torch.device("cpu"))
    compared = {name: compare(network, frames) for name, frames in sets.items() if len(frames)}
    metrics = np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True)
    names = metrics.dtype.names or ()
    plots.plot_learning(folder / "learning.png", {n: np.atleast_1d(metrics[n]) for n in names})
    parity.plot_parity(folder / "parity.png", compared)
    parity.plot_errors(folder / "errors.png", compared)
    write_atomically(folder / "report.html", _page(folder, model, compared).encode())


def _page(folder: Path, model: Model, compared: Mapping[str, Comparison]) -> str:
    """The report as HTML."""
    provenance = dict(model.provenance)
    versions = provenance.pop("versions", {})
    provenance.pop("configuration", None)  # is config.toml
    provenance.pop("valid", None)  # is in the tables
    settings = tomllib.loads((folder / "config.toml").read_text("utf-8"))
    elements = model.network.elements.energies()
    network = model.network.settings._asdict()
    closest, forces = network.pop("closest"), dict(network.pop("largest_forces"))
    counts = {z: f"{few} to {many}" for z, few, many in network.pop("neighbor_counts")}
    weights = sum(each.numel() for each in model.network.parameters())
    title = f"{network['architecture']} for {', '.join(chemical_symbols[z] for z in elements)}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(folder.resolve().name)}: trained by mdlearn"
        f" {html.escape(str(versions.get('mdlearn', '')))}</p>",
        "<h2>Errors</h2>",
        "<p>On frames that the model was not trained on. MAE: mean absolute error, RMSE: root mean"
        " square error, of every component; spread: standard deviation of the labels, so that a"
        " model that always says their mean has 100 %. Energies are less those of the isolated"
        " atoms.</p>",
        *(_html(each) for name in compared for each in tables(name, summarize(compared[name]))),
        _image(folder / "parity.png", "Predictions against labels"),
        _image(folder / "errors.png", "How the errors spread"),
        "<h2>Training</h2>",
        _image(
            folder / "learning.png",
            "Loss and errors after each epoch. The weight of the energy in the training loss grows"
            " during a run; the validation loss has the last weight throughout.",
        ),
        "<h2>Certificate</h2>",
        _certificate(model),
        "<h2>Data</h2>",
        _html(Table("", ("", ""), list(_flatten(provenance))), text=True),
        _html(
            Table(
                "elements",
                (
                    "",
                    "energy of the isolated atom, eV",
                    "wall between two, Å",
                    "largest force, eV/Å",
                    "neighbors",
                ),
                [
                    (
                        chemical_symbols[z],
                        f"{energy:.6f}",
                        next((f"{d:.3f}" for a, b, d in closest if a == b == z), "–"),
                        f"{forces[z]:.3g}" if z in forces else "–",
                        counts.get(z, "–"),
                    )
                    for z, energy in elements.items()
                ],
            )
        ),
        "<h2>Network</h2>",
        _html(
            Table("in Å and eV", ("", ""), [("weights", f"{weights:,}"), *_flatten(network)]),
            text=True,
        ),
        "<h2>Settings</h2>",
        _html(Table("config.toml", ("", ""), list(_flatten(settings))), text=True),
        "<h2>Versions</h2>",
        _html(Table("", ("", ""), list(_flatten(versions))), text=True),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _flatten(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Names and values of a nested mapping, as rows of text."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{above}{name}, ")
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{above}{name}".replace("_", " "), text


def _html(table: Table, *, text: bool = False) -> str:
    """A table as HTML.

    Args:
        table: what it says.
        text: left-aligned, for words; figures are aligned right.
    """
    cls = ' class="text"' if text else ""

    def row(cells: Iterable[str], tag: str) -> str:
        marked = (html.escape(each).replace("\n", "<br>") for each in cells)
        return "<tr>" + "".join(f"<{tag}{cls}>{each}</{tag}>" for each in marked) + "</tr>"

    caption = f"<caption>{html.escape(table.title)}</caption>" if table.title else ""
    head = f"<thead>{row(table.head, 'th')}</thead>" if any(table.head) else ""
    rows = "\n".join(row(each, "td") for each in table.rows)
    return f"<table>{caption}{head}<tbody>\n{rows}\n</tbody></table>"


def _certificate(model: Model) -> str:
    """What the model promises, and whether it keeps it."""
    if model.certificate is None:
        return "<p>None: the training did not come to its end. See <code>mdlearn check</code>.</p>"
    classes = {"holds": "good", "does not hold": "bad", "reported only": ""}
    rows, text = [], ' class="text"'
    for each in model.certificate:
        found = f"{each.value:.1e}" if math.isfinite(each.value) else "no number"
        cells = (each.name, each.what, found, f"{each.limit:g}", each.unit)
        marked = "".join(
            f"<td{text if index == 1 else ''}>{html.escape(cell)}</td>"
            for index, cell in enumerate(cells)
        )
        verdict = f'<td class="{classes[each.verdict]}">{each.verdict}</td>'
        rows.append(f"<tr>{marked}{verdict}</tr>")
    head = '<th>claim</th><th class="text">measured</th><th>found</th><th>limit</th><th>unit</th>'
    return (
        f"<table><thead><tr>{head}<th>verdict</th></tr></thead><tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table>"
    )


def _image(path: Path, caption: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def open_tensorboard(folder: Path) -> Callable[[int, Mapping[str, float]], None]:
    """Starts a log that TensorBoard reads, and returns what adds an epoch to it.

    Args:
        folder: for its files; made if it is not there.

    Returns:
        A function of the epoch and of scalars by name; those that are NaN are left out. What it was
        given is on disk when it returns.

    Raises:
        ResourceError: the package `tensorboard` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ResourceError(
            "tensorboard is not installed; install it with `pip install 'mdlearn[tensorboard]'`, or"
            " leave out --tensorboard"
        ) from None
    writer = SummaryWriter(str(folder))

    def log(epoch: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            if not math.isnan(value):
                writer.add_scalar(name, value, epoch)
        writer.flush()

    return log
