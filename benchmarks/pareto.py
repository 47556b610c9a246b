"""Error against time of a step: which of some models is worth its price.

    python benchmarks/pareto.py small-run medium-run large-run --test test.xyz --output pareto

With peers, and every network trained on the same frames for the same time:

    python benchmarks/side_by_side.py train.xyz valid.xyz test.xyz --budget 10min --only mace nequip
    python benchmarks/ladder.py train.xyz valid.xyz test.xyz --budget 10min
    python benchmarks/pareto.py ladder/*/ --beside sidebyside --test test.xyz --output pareto

The error is that of forces by `mdlearn evaluate` on the test frames, or what `side_by_side.py`
found on them; the step is that of `step_time.py`, from the first test frame at 300 K, repeated up
to `--atoms` if it is periodic, and for a peer with random weights, on which its time does not
depend. A model is on the front where no other one has both a smaller error and a faster step.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import ase.io
import driving
import numpy as np
import peers
import torch
from ase import Atoms
from driver_mdlearn import Run
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from step_time import CUTOFF

from mdlearn.atoms import to_system
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.frozen import freeze


def measure(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Errors and times of one model."""
    command = [sys.executable, "-m", "mdlearn", "evaluate", str(model), str(options.test), "--json"]
    if options.energy_key:
        command += ["--energy-key", options.energy_key]
    if options.forces_key:
        command += ["--forces-key", options.forces_key]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    errors = json.loads(said)
    atoms = structure(options)
    network = load_model(model, torch.float32).network
    torch.set_num_threads(options.threads)
    run = Run(network, freeze(network), to_system(atoms), atoms.get_momenta())
    timed = driving.time_dynamics(run.advance, run.turn, options.seconds)
    settings = network.settings
    return {
        "model": model.name,
        "network": f"{settings.architecture}, {settings.features} features,"
        f" {settings.interactions} interactions",
        "parameters": driving.count(network),
        "forces_mae_meV_per_A": errors["forces_meV_per_A"]["mae"],
        "energy_mae_meV_per_atom": errors["energy_meV_per_atom"]["mae"],
        **steps(timed, len(atoms)),
    }


def measure_peer(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Errors of a peer as `side_by_side.py` found them, and the time of a step of such a network.

    Raises:
        RuntimeError: the peer failed.
    """
    found = json.loads((options.beside / name / "result.json").read_text(encoding="utf-8"))
    errors = found["tests"][options.test.name]
    atoms = structure(options)
    place = (options.output / f"{name}.xyz").resolve()
    ase.io.write(place, atoms, format="extxyz")
    request = {"action": "step", "structure": str(place), "seconds": options.seconds}
    request |= {"cutoff": CUTOFF, **found["sizes"]}
    if name == "nequip":
        request["compiled"] = None
    log = options.output / "log.txt"
    timed = peers.ask(name, request, options.environments, options.threads, log)
    if "error" in timed:
        raise RuntimeError(f"{name}: {timed['error']} (see {log})")
    return {
        "model": name,
        "network": found["about"],
        "parameters": found["parameters"],
        "forces_mae_meV_per_A": errors["forces_mae_meV_per_A"],
        "energy_mae_meV_per_atom": errors["energy_mae_meV"] / len(ase.io.read(options.test, 0)),
        **steps(timed, len(atoms)),
    }


def structure(options: argparse.Namespace) -> Atoms:
    """What steps are timed on."""
    return driving.grow(options.test, options.atoms or len(ase.io.read(options.test, 0)))


def steps(timed: dict[str, Any], n_atoms: int) -> dict[str, Any]:
    """The times of a step as they are written."""
    low, middle, high = (1e3 * np.percentile(timed["times"], (25, 50, 75))).tolist()
    return {
        "atoms": n_atoms,
        "step_ms_median": middle,
        "step_ms_lower_quartile": low,
        "step_ms_upper_quartile": high,
    }


def on_front(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether no other model has both a smaller error and a faster step."""
    keys = ("forces_mae_meV_per_A", "step_ms_median")
    return not any(all(other[key] < row[key] for key in keys) for other in rows)


def draw(rows: list[dict[str, Any]], about: str, path: Path) -> None:
    """A point for each model, and a line through the front."""
    figure = Figure(figsize=(6.0, 4.5), layout="constrained")
    axis = figure.subplots()
    for row in rows:
        place = (row["step_ms_median"], row["forces_mae_meV_per_A"])
        axis.loglog(*place, "o", color="C0" if on_front(row, rows) else "0.6")
        axis.annotate(f" {row['model']}", place, fontsize=8)
    front = sorted((row for row in rows if on_front(row, rows)), key=lambda r: r["step_ms_median"])
    times = [row["step_ms_median"] for row in front]
    axis.loglog(times, [row["forces_mae_meV_per_A"] for row in front], color="C0", zorder=0)
    axis.set_xlabel(f"ms a step, {rows[0]['atoms']:,} atoms")
    axis.set_ylabel("mean absolute error of forces, meV/Å")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter(NullFormatter())
    axis.margins(x=0.15)
    figure.suptitle(textwrap.fill(about, 110), fontsize=6)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measures, and writes the table and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--test", type=Path, required=True, help="labelled frames")
    parser.add_argument("--atoms", type=int, help="of the system [those of the first test frame]")
    parser.add_argument("--energy-key")
    parser.add_argument("--forces-key")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement")
    parser.add_argument("--beside", type=Path, help="output folder of side_by_side.py")
    parser.add_argument("--output", type=Path, default=Path("pareto"), help="a folder")
    peers.add_arguments(parser)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.beside.glob("*/result.json") if options.beside else ()
    others = sorted({each.parent.name for each in results} - {"mdlearn"})
    about = (
        f"{peers.machine()}; {options.threads} threads; {options.seconds:g} s each;"
        f" {peers.versions(['mdlearn', *others], options.environments)}; {options.test.name}"
    )
    rows = [measure(model, options) for model in options.models]
    rows += [measure_peer(name, options) for name in others]
    lines = [
        "| model | network | parameters | forces, meV/Å | energy, meV/atom | ms (quartiles) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["step_ms_lower_quartile"], row["step_ms_upper_quartile"]
        star = " *" if on_front(row, rows) else ""
        lines.append(
            f"| {row['model']}{star} | {row['network']} | {row['parameters']:,} |"
            f" {row['forces_mae_meV_per_A']:.2f} | {row['energy_mae_meV_per_atom']:.3f} |"
            f" {row['step_ms_median']:.3g} ({low:.3g} to {high:.3g}) |"
        )
    with (options.output / "pareto.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "about"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"about": about} for row in rows)
    text = "\n\n".join([about, "\n".join(lines), "* on the front"])
    (options.output / "table.md").write_text(text + "\n", encoding="utf-8")
    draw(rows, about, options.output / "pareto.png")
    print(text)


if __name__ == "__main__":
    main()
