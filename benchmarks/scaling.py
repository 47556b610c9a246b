"""How the time of a step and its memory grow: with atoms, and with replicas in one batch.

    python benchmarks/scaling.py --largest 12288 --threads 1 --output scaling

The default network, frozen, with random weights; a step and its time are what they are in
`step_time.py`. Boxes of water from 96 atoms on, doubled; then 1 to 256 replicas of ethanol, of
which one is the smallest system here, with 9 atoms. Every measurement has a process of its own,
whose largest memory is given with the Python and the libraries in it. The slope is that of
log(time) over log(atoms) by least squares: one for a time that is proportional. Nothing else should
run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import ase.io
import driving
import numpy as np
import peers
from matplotlib.figure import Figure
from step_time import CUTOFF, FROZEN

WATER, ETHANOL = "data/water.xyz", "data/ethanol.xyz"
SMALLEST = 96
REPLICAS = "× ethanol"


def slope(rows: list[dict[str, Any]]) -> str:
    """Of log(time) over log(atoms), where there are points enough for one."""
    if len(rows) < 2:
        return "no slope"
    atoms, times = (np.log([row[key] for row in rows]) for key in ("atoms", "step_ms_median"))
    return f"slope {np.polyfit(atoms, times, 1)[0]:.3f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Of one kind of systems."""
    lines = ["| system | atoms | ms a step (quartiles) | µs a step and atom | memory, MB |"]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        low, high = row["step_ms_lower_quartile"], row["step_ms_upper_quartile"]
        middle = row["step_ms_median"]
        lines.append(
            f"| {row['system']} | {row['atoms']:,} | {middle:.3g} ({low:.3g} to {high:.3g}) |"
            f" {1e3 * middle / row['atoms']:.3g} | {row['peak_MB']:.0f} |"
        )
    return "\n".join(lines)


def draw(groups: dict[str, list[dict[str, Any]]], about: str, path: Path) -> None:
    """Time and memory over atoms."""
    figure = Figure(figsize=(10.0, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in groups.items():
        atoms = [row["atoms"] for row in rows]
        label = f"{name}, {slope(rows)}"
        left.loglog(atoms, [row["step_ms_median"] for row in rows], "o-", label=label)
        right.loglog(atoms, [row["peak_MB"] for row in rows], "o-")
    left.set_ylabel("ms a step")
    right.set_ylabel("largest memory of the process, MB")
    for axis in (left, right):
        axis.set_xlabel("atoms")
    left.legend()
    figure.suptitle(about, fontsize=6)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measures, and writes tables and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=12288, help="atoms of water [%(default)s]")
    parser.add_argument("--replicas", type=int, default=256, help="at most [%(default)s]")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement")
    parser.add_argument("--output", type=Path, default=Path("scaling"), help="a folder")
    peers.add_arguments(parser)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    about = (
        f"{peers.machine()}; {options.threads} threads; {options.seconds:g} s each;"
        f" {peers.versions(['mdlearn'], options.environments)}"
    )
    print(about, flush=True)

    def doubled(first: int, last: int) -> list[int]:
        return [first * 2**power for power in range(64) if first * 2**power <= last]

    plan = [("water", WATER, atoms, 1) for atoms in doubled(SMALLEST, options.largest)]
    plan += [(REPLICAS, ETHANOL, 9, count) for count in doubled(1, options.replicas)]
    groups: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, source, n_atoms, replicas in plan:
            path = Path(folder) / f"{kind}-{n_atoms}.xyz"
            ase.io.write(path, driving.grow(source, n_atoms), format="extxyz")
            request: dict[str, Any] = {"action": "step", "structure": str(path)}
            request |= {"seconds": options.seconds, "cutoff": CUTOFF, **FROZEN.model}
            request |= {"replicas": replicas}
            log = options.output / "log.txt"
            found = peers.ask("mdlearn", request, options.environments, options.threads, log)
            if "error" in found:
                raise SystemExit(f"{kind}, {n_atoms} atoms: {found['error']} (see {log})")
            low, middle, high = (1e3 * np.percentile(found["times"], (25, 50, 75))).tolist()
            row = {
                "system": f"{replicas} {kind}" if kind == REPLICAS else kind,
                "atoms": n_atoms * replicas,
                "replicas": replicas,
                "threads": options.threads,
                "step_ms_median": middle,
                "step_ms_lower_quartile": low,
                "step_ms_upper_quartile": high,
                "step_ms_processor": 1e3 * found["processor_time"],
                "peak_MB": found["peak_MB"],
                "about": about,
            }
            groups.setdefault(kind, []).append(row)
            print(f"{row['system']}, {row['atoms']:,} atoms: {middle:.4g} ms", flush=True)
    rows = [row for group in groups.values() for row in group]
    with (options.output / "scaling.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    parts = [about]
    for kind, group in groups.items():
        parts += [f"{kind}: {slope(group)}", table(group)]
    text = "\n\n".join(parts)
    (options.output / "table.md").write_text(text + "\n", encoding="utf-8")
    draw(
        {name: rows for name, rows in groups.items() if len(rows) > 1},
        about,
        options.output / "scaling.png",
    )
    print(text)


if __name__ == "__main__":
    main()
