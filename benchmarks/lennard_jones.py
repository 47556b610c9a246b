"""Argon by Lennard-Jones: what a step of dynamics costs, against LAMMPS.

    python benchmarks/lennard_jones.py [--cells 10 20] [--output lennard-jones.csv]

4 n³ atoms of the crystal at 90 K, 8.5 Å, velocity Verlet at constant energy, everything that a
step has: neighbor lists, and of mdlearn the guards. LAMMPS runs `lj/cut` with a skin of 2 Å, its
default, and of 1 Å, which is faster here; mdlearn runs `lennard-jones`, which has an envelope
besides and gives virials at every step. The programs take turns; counted is the time that a
process had the processor, so that other programs disturb little. Medians, quartiles, and the
ratio within each round.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from peers import add_arguments, ask, machine

HEADER = ("program", "skin", "atoms", "round", "ms_per_step")


def main() -> None:
    """Prints a table, and writes every measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="of each measurement")
    parser.add_argument("--timestep", type=float, default=2.0, help="fs")
    parser.add_argument("--output", type=Path, default=Path("lennard-jones.csv"))
    add_arguments(parser)
    options = parser.parse_args()
    print(f"{machine()}; {options.threads} threads, time step {options.timestep} fs\n")
    print("| atoms | program | ms per step (quartiles) | mdlearn takes |")
    print("|---|---|---|---|")
    rows = []
    for cells in options.cells:
        request = {
            "action": "lennard_jones",
            "cells": cells,
            "steps": options.steps,
            "timestep": options.timestep,
        }
        programs = [("mdlearn", 0.0), ("lammps", 2.0), ("lammps", 1.0)]
        found: list[list[float]] = [[] for _ in programs]
        for turn in range(options.rounds):
            for (name, skin), times in zip(programs, found, strict=True):
                asked = request | ({"skin": skin} if skin else {})
                answer = ask(name, asked, options.environments, options.threads)
                if "error" in answer:
                    sys.exit(f"{name}: {answer['error']}")
                times.append(answer["ms_per_step"])
                rows.append((name, skin, 4 * cells**3, turn, times[-1]))
        ours = np.array(found[0])
        for (name, skin), times in zip(programs, found, strict=True):
            low, middle, high = np.percentile(times, (25, 50, 75))
            label = f"{name}, skin {skin:g} Å" if skin else name
            ratio = np.median(ours / times)
            spread = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            print(f"| {4 * cells**3} | {label} | {spread} | {ratio:.2f} |")
    with options.output.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])


if __name__ == "__main__":
    main()
