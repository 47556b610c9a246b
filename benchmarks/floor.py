"""How far frozen networks are from what this processor can do at best, on one thread.

    python benchmarks/floor.py data/water.xyz:192 data/water.xyz:1536 --output floor

The default network, and SchNet with 128 features and 6 interactions. Operations are counted from
the shapes (additions and multiplications, each as one; roots and exponentials are left out), for N
atoms with P pairs within the cutoff, each counted from both ends. The default network, with M = 16
harmonics, Z elements, B radial functions, F features, I layers, G Gaunt couplings, H hidden
units and V = 3FI invariants; C = ZB channels in the first layer, ZB + F in those after it:

    pairs of the first density      P (2MB + 20B)          back  P (8MB + 8B)
    a message, per pair             P (16MF + 4BF + 4F)    back  P (40MF + 8BF + 18F + 21M)
    mixing and products, per atom   N M (6CF + 3F + 2F) + 3NGF
                                                     back  N M (6CF + 3F + 3F) + 5NGF
    what is said, per atom          N (8MF² + 12F² + 2MF)  back  N (8MF² + 12F² + 6MF)
    energies, per atom              N (2VH + 2V)           back  N (2VH + V)

SchNet, with F features, I layers, H hidden units and S shares of atoms; five rows of a table make a
filter, one of both atoms of a pair works on it for both, and only one element speaks at the start
of a layer, to which no adjoints go back:

    how filters are blended, per pair    42 P
    what is heard, per pair              P 6.5F            back  P 6.5F, but for the first layer
    slopes, per pair                                       back  P 7F
    sums of shares, per atom             N (S - 1) F       back  N (S - 1) F, likewise
    hidden layer and change, per atom    N (4F² + 3F)      back  N (4F² + F)
    what is said next, per atom          N (2F² + F)       back  N (2F² + F)
    energies, per atom                   N (2FH + 2F)      back  N (2FH + F)

Bytes are what stands between the loops, written once and read once, and the lists and the weights,
read once: `Workspace`, `Neighbors` and `Weights` as they are. The floor is the longer one of
operations at the rate of a large matrix product in float32, and of bytes at the rate of a large
copy, both by torch on the same thread in the same rounds. A workspace that fits the caches needs
fewer bytes from memory; operations have no such way out.

All times are those that this process had the processor. Other programs still take caches, memory
and the other thread of a core: nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import driving
import numpy as np
import peers
import torch
from driver_mdlearn import random_network
from matplotlib import colormaps
from matplotlib.figure import Figure
from step_time import CUTOFF

from mdlearn.atoms import to_system
from mdlearn.cli.ensembles import skin_of
from mdlearn.neighbors import build
from mdlearn.potentials import frozen_network
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.frozen import freeze
from mdlearn.potentials.frozen_network import FrozenNetwork
from mdlearn.potentials.frozen_tables import shares_of
from mdlearn.potentials.kernels import equivariant as kernel
from mdlearn.potentials.kernels import schnet
from mdlearn.potentials.kernels.sweep import sweep
from mdlearn.potentials.network import Size

SIZES = {"equivariant": Size(32, 2, 12), "schnet": Size(128, 6, 20)}
SIDE = 2048
"""Of the matrices."""
COPIED = 64 * 2**20
"""Numbers in float32 that are copied."""


def operations_of_schnet(
    weights: schnet.Weights, n_atoms: int, n_pairs: int
) -> list[tuple[str, float]]:
    """What each stage of `kernels.schnet` does, in words, and its operations."""
    n_layers, _, features = weights.start.shape
    hidden = len(weights.out)
    square = 2.0 * features**2

    shares = n_atoms * (shares_of(n_atoms) - 1.0) * features
    listen_back = n_atoms * (2 * square + features)
    read = n_atoms * (4.0 * features * hidden + 3 * features)
    stages = [("distances, filters", 42.0 * n_pairs)]
    for layer in range(n_layers):
        last = layer + 1 == n_layers
        count = read + listen_back if last else n_atoms * (square + features)
        count += shares + n_atoms * (2 * square + 3 * features)
        stages.append((f"layer {layer + 1}: pairs", n_pairs * 6.5 * features))
        stages.append((f"layer {layer + 1}: atoms{', energies' if last else ''}", count))
    for layer in reversed(range(n_layers)):
        count = shares + n_atoms * (square + features) + listen_back if layer else 3.0 * n_pairs
        stages.append(
            (f"back: layer {layer + 1}: pairs", n_pairs * (13.5 if layer else 7.0) * features)
        )
        stages.append((f"back: layer {layer + 1}: atoms", count))
    return [*stages, ("forces", 27.0 * n_pairs)]


def operations(weights: kernel.Weights, n_atoms: int, n_pairs: int) -> list[tuple[str, float]]:
    """What each stage of `kernels.equivariant` does, in words, and its operations."""
    n_layers, n_species, _ = weights.element.shape
    features, radial = SIZES["equivariant"].features, SIZES["equivariant"].radial
    harmonics, couplings = kernel.HARMONICS, len(weights.coupling)
    invariants, hidden = len(weights.linear), len(weights.out)
    across = harmonics * features

    def product(layer: int, triple: int, coupled: int) -> float:
        channels = n_species * radial + (features if layer else 0)
        per_atom = across * (6 * channels + 3 + triple) + coupled * couplings * features
        return float(n_atoms * per_atom)

    def speak(gates: int) -> float:
        return float(n_atoms * (8 * across * features + 12 * features**2 + gates * across))

    filters = radial * features
    hear = n_pairs * (16.0 * across + 4 * filters + 4 * features)
    hear_back = n_pairs * (40.0 * across + 8 * filters + 18 * features + 21 * harmonics)
    expand = n_pairs * (2.0 * harmonics * radial + 20 * radial)
    expand_back = n_pairs * (8.0 * harmonics * radial + 8 * radial)
    read = float(n_atoms * (4 * invariants * hidden + 3 * invariants))
    stages = []
    for layer in range(n_layers):
        last = layer == n_layers - 1
        count = product(layer, 2, 3) + (0.0 if last else speak(2)) + (hear if layer else expand)
        what = "messages" if layer else "distances, densities"
        stages.append((f"{what}, products of layer {layer + 1}", count))
    for layer in reversed(range(n_layers)):
        last = layer == n_layers - 1
        count = product(layer, 3, 5) + (read if last else speak(6) + hear_back)
        what = "energies, products" if last else "messages and products"
        if layer == 0:
            count, what = count + expand_back, f"{what}, densities"
        stages.append((f"back: {what} of layer {layer + 1}", count))
    return [*stages, ("forces", 27.0 * n_pairs)]


class Stages:
    """Stands in for the loops of a network and takes the time of each stage.

    Stages are done from the first one on, one more each time; what that adds is the time of one.
    So the sum of all is not of the evaluation that is timed as a whole, and may be a little longer.
    """

    def __init__(self) -> None:
        self.seconds = np.zeros(0)

    def __call__(self, stages: int, *arguments: Any) -> None:
        """Does the stages."""
        until = [0.0]
        for count in range(1, stages + 1):
            began = time.process_time()
            sweep(count, *arguments)
            until.append(time.process_time() - began)
        self.seconds = np.diff(until).clip(0.0)


def best_rates() -> tuple[float, float]:
    """Operations and bytes per second of a large matrix product and of a large copy."""
    a, b = torch.rand(2, SIDE, SIDE)
    source = torch.rand(COPIED)
    target = torch.empty_like(source)
    out = torch.empty_like(a)

    def fastest(action: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            began = time.process_time()
            action()
            times.append(time.process_time() - began)
        return min(times)

    product = fastest(lambda: torch.mm(a, b, out=out))
    copy = fastest(lambda: target.copy_(source))
    return 2.0 * SIDE**3 / product, 2.0 * source.nbytes / copy


def measure(architecture: str, argument: str, rounds: int) -> tuple[str, list[dict[str, Any]]]:
    """Text and rows about a network and the system that `file:atoms` names."""
    path, n_atoms = argument.rsplit(":", 1)
    system = to_system(driving.grow(path, int(n_atoms)))
    network = random_network(system, CUTOFF, architecture, SIZES[architecture])
    frozen = freeze(network)
    assert isinstance(frozen, FrozenNetwork)
    neighbors = build(system, CUTOFF, skin_of(frozen, system))
    evaluate(frozen, system, neighbors)
    work = frozen.work
    assert work is not None
    n_pairs = int(work.within.sum())
    count_of = operations if architecture == "equivariant" else operations_of_schnet
    counted = count_of(frozen.weights, int(n_atoms), n_pairs)
    lists = (neighbors.j, neighbors.shift, neighbors.reverse, neighbors.valid)
    read = sum(each.nbytes for each in lists)
    read += sum(each.nbytes for each in frozen.weights if isinstance(each, np.ndarray))
    n_bytes = 2.0 * frozen.workspace(*neighbors.j.shape) + read
    whole, parts, rates, stages = [], [], [], Stages()
    for _ in range(rounds):
        rates.append(best_rates())
        evaluate(frozen, system, neighbors)  # caches are as they are in a simulation again
        for _ in range(5):
            began = time.process_time()
            evaluate(frozen, system, neighbors)
            whole.append(time.process_time() - began)
            with patch.object(frozen_network, "sweep", stages):
                evaluate(frozen, system, neighbors)
            parts.append(stages.seconds)
    flops, bandwidth = np.max(rates, 0).tolist()
    total = sum(count for _, count in counted)
    by_operations, by_bytes = 1e3 * total / flops, 1e3 * n_bytes / bandwidth
    low, middle, high = (1e3 * np.percentile(whole, (25, 50, 75))).tolist()
    floor = max(by_operations, by_bytes)
    others = np.array(whole) - np.sum(parts, 1)
    ms = (1e3 * np.median(np.column_stack([parts, others]), 0)).tolist()
    counts = [*counted, ("the rest: Python, sums, copies of results", 0.0)]
    name = f"{architecture}, {Path(path).stem}, {int(n_atoms):,} atoms, {n_pairs:,} pairs"
    lines = [
        f"{name}: {middle:.3g} ms an evaluation ({low:.3g} to {high:.3g}).",
        "",
        f"- {total / 1e9:.4g} G operations at {flops / 1e9:.3g} G/s: {by_operations:.3g} ms",
        f"- {n_bytes / 1e6:.4g} MB at {bandwidth / 1e9:.3g} GB/s: {by_bytes:.3g} ms",
        f"- floor {floor:.3g} ms; measured {middle / floor:.3g} times as long",
        "",
        "| stage | ms | G operations | G/s | of the peak |",
        "|---|---|---|---|---|",
    ]
    rows = []
    for (what, count), taken in zip(counts, ms, strict=True):
        told = count > 0.0 and taken > 0.005 * middle  # what takes less is lost in noise
        rate = 1e3 * count / taken if told else 0.0
        shown = f"{count / 1e9:.3g} | {rate / 1e9:.3g} | {100.0 * rate / flops:.0f} %"
        lines.append(f"| {what} | {taken:.3g} | {shown if told else '| |'} |")
        rows.append(
            {
                "network": architecture,
                "system": name,
                "stage": what,
                "stage_ms": taken,
                "operations": count,
                "evaluation_ms": middle,
                "evaluation_ms_lower_quartile": low,
                "evaluation_ms_upper_quartile": high,
                "operations_floor_ms": by_operations,
                "bytes_floor_ms": by_bytes,
                "bytes": n_bytes,
                "peak_operations_per_s": flops,
                "peak_bytes_per_s": bandwidth,
            }
        )
    return "\n".join(lines), rows


def draw(rows: list[dict[str, Any]], about: str, path: Path) -> None:
    """For each system: floors, and the evaluation by stages, in units of the higher floor."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(11.0, 4.0 * len(networks)), layout="constrained")
    axes = figure.subplots(len(networks), squeeze=False)[:, 0]
    for axis, network in zip(axes, networks, strict=True):
        names = list(dict.fromkeys(row["system"] for row in rows if row["network"] == network))
        for place, name in enumerate(names):
            own = [row for row in rows if row["system"] == name]
            floors = (own[0]["operations_floor_ms"], own[0]["bytes_floor_ms"])
            left = 0.0
            for index, row in enumerate(own):
                width = row["stage_ms"] / max(floors)
                color = colormaps["tab20"](index % 20)
                label = None if place else row["stage"]
                axis.barh(place, width, left=left, height=0.6, color=color, label=label)
                left += width
            for kind, style, floor in zip(("operations", "bytes"), ("-", ":"), floors, strict=True):
                at = [floor / max(floors)] * 2
                label = None if place else f"floor by {kind}"
                axis.plot(at, [place - 0.45, place + 0.45], f"k{style}", label=label)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel("times the floor")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.suptitle(about, fontsize=6)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measures, and writes tables and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    systems = ["data/ethanol.xyz:9", "data/water.xyz:192", "data/water.xyz:1536"]
    parser.add_argument("systems", nargs="*", metavar="FILE:ATOMS", default=systems)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("floor"), help="a folder")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    about = (
        f"{peers.machine()}; 1 thread; {options.rounds} rounds;"
        f" {peers.versions(['mdlearn'], peers.ENVIRONMENTS)}"
    )
    print(about, flush=True)
    texts, rows = [about], []
    for architecture, argument in itertools.product(SIZES, options.systems):
        text, found = measure(architecture, argument, options.rounds)
        texts.append(text)
        rows += found
        print(f"\n{text}", flush=True)
    (options.output / "table.md").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    with (options.output / "floor.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "about"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"about": about} for row in rows)
    draw(rows, about, options.output / "floor.png")


if __name__ == "__main__":
    main()
