r"""mdlearn, MACE and NequIP trained on the same frames for the same time: errors on test frames.

    python benchmarks/side_by_side.py train.xyz valid.xyz test_300K.xyz test_600K.xyz \
        --isolated-atoms isolated.xyz --budget 45min --output sidebyside

Every program trains by its own command, with the same number of threads, from what its authors
publish for such data (see `train` in `driver_*.py`), with the schedule fitted to the time: two
epochs of trial, which do not count, tell how many there will be. The clock runs from the beginning
of training to its end, validation included; importing, reading files and evaluation do not count.
What is not through by then is stopped, and stands with the best checkpoint it left.

All get the same labels: energies less those of the isolated atoms (a fit to the compositions where
these are not given), so that no network in float32 has to tell millielectronvolts in tens of
thousands of them. Errors are measured by the same code, through each program's calculator for ASE.

What is in the output folder already is kept: with `--only NAME` runs can be spread out.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import peers
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mdlearn.atoms import Frame, read_frames
from mdlearn.config import parse_duration
from mdlearn.training.statistics import find_species, fit_reference_energies

NAMES = ("mdlearn", "mace", "nequip")
CUTOFF = 5.0
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def prepare(options: argparse.Namespace, folder: Path) -> tuple[int, ...]:
    """Writes all files of frames with the same keys, and returns the elements."""

    def read(path: Path, energy_only: bool = False) -> Sequence[Frame]:
        keys = {} if energy_only else {"forces_key": options.forces_key}
        key = options.energy_key
        return read_frames(path, energy_key=key, energy_only=energy_only, **keys)[0]

    folder.mkdir(parents=True, exist_ok=True)
    train = read(options.train)
    isolated = read(options.isolated_atoms, True) if options.isolated_atoms else []
    alone = fit_reference_energies(train, isolated).energies
    files = {"train": train, "valid": read(options.valid)}
    files |= {f"test_{number}": read(path) for number, path in enumerate(options.test)}
    for name, frames in files.items():
        structures = []
        for frame in frames:
            system = frame.system
            numbers = system.numbers.tolist()
            atoms = Atoms(
                numbers, system.positions.numpy(), cell=system.cell[0].numpy(), pbc=system.pbc[0]
            )
            binding = float(frame.labels.energy) - sum(alone[number] for number in numbers)
            atoms.info["REF_energy"] = binding
            atoms.arrays["REF_forces"] = frame.labels.forces.numpy()
            structures.append(atoms)
        ase.io.write(folder / f"{name}.xyz", structures, format="extxyz")
    return find_species(train)


def errors(found: dict[str, Any], labelled: Sequence[Atoms]) -> dict[str, float]:
    """Errors in meV and meV/Å, of energies per frame and of the components of forces."""
    energy = np.array(found["energies"]) - [each.info["REF_energy"] for each in labelled]
    force = np.concatenate(
        [
            (np.array(forces) - each.arrays["REF_forces"]).ravel()
            for forces, each in zip(found["forces"], labelled, strict=True)
        ]
    )

    def rmse(error: NDArray[np.float64]) -> float:
        return float(np.sqrt(np.mean(error**2)))

    return {
        "energy_mae_meV": 1e3 * float(np.abs(energy).mean()),
        "energy_rmse_meV": 1e3 * rmse(energy),
        "forces_mae_meV_per_A": 1e3 * float(np.abs(force).mean()),
        "forces_rmse_meV_per_A": 1e3 * rmse(force),
    }


def train_and_measure(
    name: str, species: tuple[int, ...], options: argparse.Namespace
) -> dict[str, Any]:
    """Everything about one program, as it is kept in its `result.json`.

    Raises:
        RuntimeError: the program failed.
    """
    data, output = options.output / "data", options.output / name
    output.mkdir(parents=True, exist_ok=True)
    request: dict[str, Any] = {
        "action": "train",
        "data": str(data.resolve()),
        "output": str(output.resolve()),
    }
    request |= {"budget": options.budget, "seed": options.seed, "cutoff": CUTOFF}
    sizes: dict[str, int] = {}
    if name == "mace":
        sizes = {"channels": options.mace_channels, "max_l": options.mace_max_l}
        request |= {"numbers": list(species), **sizes}
    if name == "nequip":
        sizes = {"features": options.nequip_features, "layers": options.nequip_layers}
        sizes |= {"l_max": options.nequip_l_max}
        request |= {"symbols": [chemical_symbols[number] for number in species]}
        request |= {"compiled": options.nequip_compiled, **sizes}

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        log = output / "driver.log"
        answer = peers.ask(name, request, options.environments, options.threads, log)
        if "error" in answer:
            raise RuntimeError(f"{name}: {answer['error']} (see {log})")
        return answer

    result = ask(request) | {"sizes": sizes}
    result |= {"budget": options.budget, "seed": options.seed, "threads": options.threads}
    result |= {"machine": peers.machine(), "version": peers.versions([name], options.environments)}
    result["tests"] = {}
    for number, path in enumerate(options.test):
        frames = data / f"test_{number}.xyz"
        request = {"action": "predict", "output": str(output.resolve()), "frames": str(frames)}
        began = time.perf_counter()
        found = ask(request)
        result["tests"][path.name] = errors(found, list(ase.io.iread(frames)))
        result["tests"][path.name]["seconds"] = time.perf_counter() - began
    return result


def report(options: argparse.Namespace) -> str:
    """Writes the tables of all results that are there, and returns the one for people."""
    lines = [
        "| program | test | energy, meV | (rmse) | forces, meV/Å | (rmse) |",
        "|---|---|---|---|---|---|",
    ]
    notes, rows = [], []
    for name in NAMES:
        path = options.output / name / "result.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        about = {key: value for key, value in result.items() if key != "tests"}
        for test, found in result["tests"].items():
            lines.append(
                f"| {name} | {test} | {found['energy_mae_meV']:.1f} |"
                f" {found['energy_rmse_meV']:.1f} | {found['forces_mae_meV_per_A']:.1f} |"
                f" {found['forces_rmse_meV_per_A']:.1f} |"
            )
            rows.append({"program": name, "test": test, **found, **about})
        notes.append(
            f"- {name}: {result['about']}; {result['parameters']:,} parameters,"
            f" {result['epochs']} epochs in {result['seconds']:.0f} s of {result['budget']:.0f} s;"
            f" {result['threads']} threads, seed {result['seed']}; {result['version']};"
            f" {result['machine']}"
        )
    if rows:
        with (options.output / "table.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    table = "\n".join([*lines, "", *notes])
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    return table


def seconds_of(text: str) -> float:
    """A duration as in 45min.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        return float(str(parse_duration(text, UNITS)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    """Trains what was asked for, and reports on what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("test", type=Path, nargs="+")
    parser.add_argument("--budget", type=seconds_of, default="45min")
    parser.add_argument("--isolated-atoms", type=Path)
    parser.add_argument("--energy-key")
    parser.add_argument("--forces-key")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mace-channels", type=int, default=64)
    parser.add_argument("--mace-max-l", type=int, default=0)
    parser.add_argument("--nequip-features", type=int, default=32)
    parser.add_argument("--nequip-layers", type=int, default=4)
    parser.add_argument("--nequip-l-max", type=int, default=1)
    parser.add_argument("--nequip-compiled", action="store_true", help="by torch.compile")
    parser.add_argument("--again", action="store_true", help="train also what is there already")
    parser.add_argument("--output", type=Path, default=Path("sidebyside"), help="a folder")
    peers.add_arguments(parser)
    options = parser.parse_args()
    species = prepare(options, options.output / "data")
    for name in options.only:
        path = options.output / name / "result.json"
        if path.exists() and not options.again:
            continue
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        result = train_and_measure(name, species, options)
        path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(report(options))


if __name__ == "__main__":
    main()
