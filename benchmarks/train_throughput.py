"""Structures per second in training: mdlearn and its peers, in turns, each in its own process.

    python benchmarks/train_throughput.py ethanol.xyz:10 water.xyz:4 --output throughput

Each argument is a file of labelled frames and how many of its first frames make a batch. One step
is energy, forces, a loss on both, its gradient by the parameters, clipping where the package's own
trainer clips, and a step of Adam; in float32 (mdlearn keeps positions and sums in float64). The
batch, with its neighbor lists, is made beforehand, for all alike: some packages make it in the
processes of their data loaders and some keep it. Running averages of the weights are left out.

Peers come at sizes that their documentation recommends, and each is compared with mdlearn's network
of the same kind with as many features and layers. The environments are made on the first run.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
import peers
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from mdlearn.atoms import read_atoms, read_frames

CUTOFF = 5.0
TRAINED = ("mdlearn", "mace", "nequip", "schnetpack")


class Network(NamedTuple):
    """One network to time."""

    label: str
    package: str
    model: dict[str, Any]
    against: str
    """The label of mdlearn's network that it is compared with."""


def _mdlearn(architecture: str, features: int, interactions: int, radial: int) -> Network:
    label = f"mdlearn {architecture}, {features} features, {interactions} interactions"
    sizes = {"features": features, "interactions": interactions, "radial": radial}
    return Network(label, "mdlearn", {"architecture": architecture, **sizes}, label)


DEFAULT = _mdlearn("equivariant", 32, 2, 12)
WIDE = _mdlearn("equivariant", 64, 2, 8)
DEEP = _mdlearn("equivariant", 32, 4, 8)
SCHNET = _mdlearn("schnet", 128, 6, 20)
PAINN = _mdlearn("painn", 128, 3, 20)
NETWORKS = (
    DEFAULT,
    WIDE,
    Network("MACE, 64 channels, L = 0", "mace", {"channels": 64, "max_l": 0}, WIDE.label),
    Network("MACE, 64 channels, L = 1", "mace", {"channels": 64, "max_l": 1}, WIDE.label),
    DEEP,
    Network(
        "NequIP, 32 features, 4 layers, l = 1",
        "nequip",
        {"features": 32, "layers": 4, "l_max": 1, "compiled": False},
        DEEP.label,
    ),
    Network(
        "NequIP, the same, compiled",
        "nequip",
        {"features": 32, "layers": 4, "l_max": 1, "compiled": True},
        DEEP.label,
    ),
    SCHNET,
    Network(
        "SchNetPack SchNet, 128 features, 6 interactions",
        "schnetpack",
        {"architecture": "schnet", "features": 128, "interactions": 6, "radial": 20},
        SCHNET.label,
    ),
    PAINN,
    Network(
        "SchNetPack PaiNN, 128 features, 3 interactions",
        "schnetpack",
        {"architecture": "painn", "features": 128, "interactions": 3, "radial": 20},
        PAINN.label,
    ),
)


class Batch(NamedTuple):
    """Frames that are trained on at once."""

    name: str
    path: Path
    structures: int


def write_batch(argument: str, folder: Path) -> Batch:
    """Copies the frames that `file:count` names into a file that every package reads alike."""
    path, count = argument.rsplit(":", 1)
    frames, structures = read_frames(path)[0][: int(count)], []
    for atoms, frame in zip(read_atoms(path), frames, strict=False):
        clean = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        labels = {"energy": float(frame.labels.energy), "forces": frame.labels.forces.numpy()}
        clean.calc = SinglePointCalculator(clean, **labels)
        structures.append(clean)
    target = folder / f"{len(list(folder.iterdir()))}.xyz"
    ase.io.write(target, structures, format="extxyz")
    name = f"{Path(path).name.split('.')[0]}, {len(frames)} × {len(structures[0])} atoms"
    return Batch(name, target, len(frames))


def spread(values: list[float]) -> str:
    """Median and the whole range."""
    return f"{np.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def table(
    batches: list[Batch], networks: list[Network], rates: dict[tuple[str, str], list[float]]
) -> str:
    """Rates of all networks, with how many times as fast mdlearn's counterpart is."""
    header = ["network"]
    for batch in batches:
        header += [f"{batch.name}: structures/s", "mdlearn is faster by"]
    rows = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for network in networks:
        cells = [network.label]
        for batch in batches:
            own = rates.get((batch.name, network.label), [])
            other = rates.get((batch.name, network.against), [])
            cells.append(spread(own) if own else "failed")
            # Each round gives a ratio, so that what slows the whole machine down cancels.
            ratios = [b / a for a, b in zip(own, other, strict=False)]
            cells.append(spread(ratios) if ratios and network.against != network.label else "")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Measures in rounds, and writes the tables after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("batches", nargs="+", metavar="FILE:COUNT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement")
    parser.add_argument(
        "--packages",
        nargs="+",
        choices=TRAINED,
        default=TRAINED,
    )
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="NequIP also as torch.compile makes it: minutes of compiling for each measurement",
    )
    parser.add_argument("--output", type=Path, default=Path("throughput"), help="a folder")
    peers.add_arguments(parser)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / "log.txt"
    networks = [
        each
        for each in NETWORKS
        if each.package in options.packages and (options.compiled or not each.model.get("compiled"))
    ]
    about = (
        f"{peers.machine()}; {options.threads} threads; {options.rounds} rounds of"
        f" {options.seconds:g} s; {peers.versions(options.packages, options.environments)}"
    )
    print(about, flush=True)
    rows: list[dict[str, Any]] = []
    rates: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        batches = [write_batch(each, Path(folder)) for each in options.batches]
        for turn in range(options.rounds):
            for batch in batches:
                for network in networks:
                    request: dict[str, Any] = {"action": "throughput", "frames": str(batch.path)}
                    request |= {"seconds": options.seconds, "cutoff": CUTOFF, **network.model}
                    found = peers.ask(
                        network.package, request, options.environments, options.threads, log
                    )
                    if "error" in found:
                        print(f"{network.label}: {found['error']}", file=sys.stderr, flush=True)
                        continue
                    rate = batch.structures / float(np.median(found["times"]))
                    rates.setdefault((batch.name, network.label), []).append(rate)
                    rows.append(
                        {
                            "batch": batch.name,
                            "network": network.label,
                            "package": network.package,
                            "model": json.dumps(network.model),
                            "parameters": found["parameters"],
                            "pairs": found["pairs"],
                            "threads": options.threads,
                            "round": turn,
                            "steps": len(found["times"]),
                            "step_ms_median": round(1e3 * float(np.median(found["times"])), 3),
                            "step_ms_processor": round(1e3 * found["processor_time"], 3),
                            "structures_per_s": round(rate, 4),
                        }
                    )
                    print(f"{turn} {batch.name} | {network.label} | {rate:.3g}/s", flush=True)
            with (options.output / "rounds.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            text = f"{about}\n\n{table(batches, networks, rates)}\n"
            (options.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
