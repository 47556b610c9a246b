"""Milliseconds for a step of molecular dynamics: mdlearn and its peers, each in its own process.

    python benchmarks/step_time.py --threads 1 --output steptime
    python benchmarks/step_time.py --device cuda --packages mdlearn mace torchsim --output gpu

A step is velocity Verlet with forces and with neighbor lists, as each package makes them: MACE and
NequIP by their calculators in ASE, with a list at every step; SchNetPack by its own simulator, and
mdlearn by what `mdlearn simulate` runs, guards included, with lists that are kept while they are
good. SchNet and PaiNN are there twice, by SchNetPack and frozen by mdlearn, with as many features,
interactions and radial functions. Nothing is written. All in float32 (mdlearn keeps positions and
sums in float64) at a cutoff of 5 Å, with random weights, on which the time does not depend.

Atoms begin at 300 K and turn back after 20 steps of 0.5 fs, so that lists wear out and systems
still stay what they are. Times are means of such legs. Peers come at sizes that their documentation
recommends. In each round all engines take turns; ratios are of one round, so that what slows the
whole machine down cancels. Nothing else should run on the machine meanwhile.

On a GPU torch-sim takes part, with MACE, which has no batches of systems in ASE.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import driving
import numpy as np
import peers
import torch
from matplotlib.figure import Figure
from vesin import ase_neighbor_list

CUTOFF = 5.0
SYSTEMS = ("data/ethanol.xyz:9", "data/water.xyz:192", "data/water.xyz:1536")


class Engine(NamedTuple):
    """One way to do a step."""

    label: str
    package: str
    model: dict[str, Any]


DEFAULT = {
    "architecture": "equivariant",
    "features": 32,
    "interactions": 2,
    "radial": 12,
}
SCHNET = {"architecture": "schnet", "features": 128, "interactions": 6, "radial": 20}
PAINN = {"architecture": "painn", "features": 128, "interactions": 3, "radial": 20}
NEQUIP = {"features": 32, "layers": 4, "l_max": 1}
COMPILED = "NequIP, the same, by nequip-compile"
FROZEN = Engine("mdlearn, frozen", "mdlearn", {**DEFAULT, "frozen": True})
ENGINES = (
    FROZEN,
    Engine("mdlearn, not frozen", "mdlearn", {**DEFAULT, "frozen": False}),
    Engine(
        "mdlearn SchNet, 128 features, 6 interactions, frozen",
        "mdlearn",
        {**SCHNET, "frozen": True},
    ),
    Engine(
        "mdlearn PaiNN, 128 features, 3 interactions, frozen",
        "mdlearn",
        {**PAINN, "frozen": True},
    ),
    Engine("SchNetPack SchNet, 128 features, 6 interactions", "schnetpack", SCHNET),
    Engine("SchNetPack PaiNN, 128 features, 3 interactions", "schnetpack", PAINN),
    Engine("MACE, 64 channels, L = 0", "mace", {"channels": 64, "max_l": 0}),
    Engine("MACE, 64 channels, L = 1", "mace", {"channels": 64, "max_l": 1}),
    Engine("MACE, 64 channels, L = 0, by torch-sim", "torchsim", {"channels": 64, "max_l": 0}),
    Engine("MACE, 64 channels, L = 1, by torch-sim", "torchsim", {"channels": 64, "max_l": 1}),
    Engine("NequIP, 32 features, 4 layers, l = 1", "nequip", {**NEQUIP, "compiled": None}),
    Engine(COMPILED, "nequip", NEQUIP),
)


ON_A_GPU = [each for each in ENGINES if each.package != "nequip" and each.model.get("frozen", True)]
"""Those that are asked for a GPU."""
BATCHES = ("mdlearn", "torchsim")
"""Packages that simulate several systems at once."""


class Case(NamedTuple):
    """A system to simulate."""

    name: str
    path: Path
    pairs: int
    replicas: int


def write_case(argument: str, folder: Path) -> Case:
    """The system that `file:atoms` names, with its velocities, where every package can read it.

    `file:atomsxreplicas` names so many of them.
    """
    path, sizes = argument.rsplit(":", 1)
    n_atoms, replicas = [*sizes.split("x"), "1"][:2]
    atoms = driving.grow(path, int(n_atoms))
    name = f"{Path(path).stem}, {len(atoms):,} atoms"
    name = f"{replicas} × {name}" if int(replicas) > 1 else name
    target = (folder / f"{Path(path).stem}-{len(atoms)}.xyz").resolve()
    ase.io.write(target, atoms, format="extxyz")
    (first,) = ase_neighbor_list("i", atoms, CUTOFF)
    return Case(name, target, len(first) * int(replicas), int(replicas))


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100.0 else f"{value:.3g}"


def table(cases: list[Case], times: dict[tuple[str, str], list[tuple[float, float, float]]]) -> str:
    """Medians and quartiles in ms, and ratios to the first engine."""
    header = ["engine"]
    for case in cases:
        header += [f"{case.name} ({case.pairs:,} pairs): ms a step (quartiles)", "times as long"]
    rows = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for engine in ENGINES:
        cells = [engine.label]
        for case in cases:
            own = times.get((case.name, engine.label), [])
            first = times.get((case.name, FROZEN.label), [])
            if not own:
                cells += ["", ""]
                continue
            low, middle, high = np.median(own, 0)
            cells.append(f"{short(middle)} ({short(low)} to {short(high)})")
            ratios = [a[1] / b[1] for a, b in zip(own, first, strict=False)]
            spread = f" ({short(min(ratios))} to {short(max(ratios))})" if len(ratios) > 1 else ""
            cells.append(f"{short(float(np.median(ratios)))}{spread}" if ratios else "")
        if any(cells[1:]):
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(
    cases: list[Case],
    times: dict[tuple[str, str], list[tuple[float, float, float]]],
    about: str,
    path: Path,
) -> None:
    """Medians and quartiles, a panel for each system."""
    figure = Figure(figsize=(4.0 * len(cases) + 3.0, 4.0), layout="constrained")
    axes = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    measured = {label for _, label in times}
    labels = [each.label for each in reversed(ENGINES) if each.label in measured]
    for axis, case in zip(axes, cases, strict=True):
        for place, label in enumerate(labels):
            if found := times.get((case.name, label)):
                low, middle, high = np.median(found, 0)
                color = "C0" if label == FROZEN.label else "0.4"
                axis.plot([low, high], [place, place], color=color)
                axis.plot(middle, place, "o", color=color)
                axis.annotate(f"  {short(middle)}", (high, place), va="center", fontsize=8)
        axis.set_xscale("log")
        axis.margins(x=0.2)
        axis.set_title(case.name)
        axis.set_xlabel("ms a step")
        axis.set_yticks(range(len(labels)), labels)
    figure.suptitle(about, fontsize=6)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measures in rounds, and writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("systems", nargs="*", metavar="FILE:ATOMS", default=SYSTEMS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement")
    parser.add_argument(
        "--packages",
        nargs="+",
        choices=("mdlearn", *peers.PEERS),
        default=["mdlearn", "mace", "nequip", "schnetpack"],
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path("steptime"), help="a folder")
    peers.add_arguments(parser)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / "log.txt"
    gpu = f"{torch.cuda.get_device_name()}, " if options.device != "cpu" else ""
    about = (
        f"{gpu}{peers.machine()}; {options.threads} threads; {options.rounds} rounds of"
        f" {options.seconds:g} s; {peers.versions(options.packages, options.environments)}"
    )
    print(about, flush=True)
    cases = [write_case(each, options.output) for each in options.systems]
    rows: list[dict[str, Any]] = []
    times: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    missing: dict[str, str] = {}
    engines = [each for each in ENGINES if each.package in options.packages]
    if options.device != "cpu":
        engines = [each for each in engines if each in ON_A_GPU]
    for turn in range(options.rounds):
        for case in cases:
            for engine in engines:
                request: dict[str, Any] = {"action": "step", "structure": str(case.path)}
                request |= {"seconds": options.seconds, "cutoff": CUTOFF, **engine.model}
                if options.device != "cpu":
                    request["device"] = options.device
                if engine.package in BATCHES:
                    request["replicas"] = case.replicas
                elif case.replicas > 1:
                    continue
                if engine.label == COMPILED:
                    # Made in the first round, which takes minutes, and for the system at hand.
                    request["compiled"] = str(case.path.with_suffix(".nequip.pt2"))
                found = peers.ask(
                    engine.package, request, options.environments, options.threads, log
                )
                where = f"{case.name} | {engine.label}"
                if "error" in found:
                    missing[where] = found["error"]
                    print(f"{where}: {found['error']}", file=sys.stderr, flush=True)
                    continue
                low, middle, high = (1e3 * np.percentile(found["times"], (25, 50, 75))).tolist()
                times.setdefault((case.name, engine.label), []).append((low, middle, high))
                rows.append(
                    {
                        "system": case.name,
                        "pairs": case.pairs,
                        "engine": engine.label,
                        "package": engine.package,
                        "model": json.dumps(engine.model),
                        "parameters": found["parameters"],
                        "threads": options.threads,
                        "round": turn,
                        "legs": len(found["times"]),
                        "steps_of_a_leg": found["steps"],
                        "step_ms_median": round(middle, 4),
                        "step_ms_lower_quartile": round(low, 4),
                        "step_ms_upper_quartile": round(high, 4),
                        "step_ms_mean": round(1e3 * float(np.mean(found["times"])), 4),
                        "step_ms_processor": round(1e3 * found["processor_time"], 4),
                        "peak_MB": round(found["peak_MB"], 1),
                        "about": about,
                    }
                )
                print(f"{turn} {where} | {middle:.4g} ms", flush=True)
        with (options.output / "rounds.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        notes = "\n".join(f"- not measured: {key}: {why}" for key, why in missing.items())
        text = "\n\n".join(part for part in (about, table(cases, times), notes) if part)
        (options.output / "table.md").write_text(text + "\n", encoding="utf-8")
        draw(cases, times, about, options.output / "steptime.png")
    print(text)


if __name__ == "__main__":
    main()
