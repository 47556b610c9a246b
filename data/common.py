"""What the two data scripts share: a resumable cache, near-duplicate removal and writing."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

Array = np.ndarray


class Cache:
    """Results kept one JSON line each, so that a stopped run picks up where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, dict] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # the last line of a run killed while writing
                    continue
                self.results[entry["key"]] = entry

    def add(self, key: str, **values: object) -> None:
        """Store one result and append it to the file at once."""
        entry = {"key": key, **values}
        self.results[key] = entry
        with self.path.open("a") as handle:
            handle.write(json.dumps(entry) + "\n")


def run_cached(
    cache: Cache, function: Callable[..., dict], tasks: dict[str, tuple], workers: int
) -> None:
    """Run ``function(*tasks[key])`` for every key the cache lacks, in single-threaded processes.

    The tasks of a set are many and small, so one thread in each of several processes is quicker
    than several threads in one.
    """
    todo = {key: args for key, args in tasks.items() if key not in cache.results}
    if not todo:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the spawned processes
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(function, *args): key for key, args in todo.items()}
        for done, future in enumerate(as_completed(futures), start=1):
            cache.add(futures[future], **future.result())
            if done % 20 == 0 or done == len(todo):
                spent = time.monotonic() - start
                print(f"{cache.path.name}: {done}/{len(todo)} in {spent:.0f} s", flush=True)


def fingerprint(atoms: Atoms) -> Array:
    """Sorted distances (Å) of each pair of species; unchanged by moving or relabelling atoms."""
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    numbers = atoms.numbers
    upper = np.triu(np.ones(distances.shape, dtype=bool), k=1)
    parts = []
    for first in np.unique(numbers):
        for second in np.unique(numbers[numbers >= first]):
            # Unlike pairs appear on both sides of the diagonal according to the atoms' order.
            block = (numbers[:, None] == first) & (numbers[None, :] == second)
            parts.append(np.sort(distances[block & upper if first == second else block]))
    return np.concatenate(parts)


def near_duplicates(frames: list[Atoms], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs ``(earlier, later)`` of frames whose fingerprints' RMS difference is too small."""
    prints = np.array([fingerprint(atoms) for atoms in frames])
    for later in range(1, len(prints)):
        rms = np.sqrt(((prints[:later] - prints[later]) ** 2).mean(axis=1))
        for earlier in np.flatnonzero(rms < threshold):
            yield int(earlier), later


def drop_near_duplicates(frames: list[Atoms], threshold: float) -> list[Atoms]:
    """The frames less those that are nearly the same as an earlier one."""
    dropped = {later for _, later in near_duplicates(frames, threshold)}
    return [atoms for index, atoms in enumerate(frames) if index not in dropped]


def attach_label(atoms: Atoms, label: dict) -> Atoms:
    """A copy of the frame with the label in ASE's own keys, at the digits the file keeps."""
    frame = atoms.copy()
    forces = np.round(label["forces"], 8) + 0.0  # no negative zeros
    results = {"energy": round(label["energy"], 9), "forces": forces}
    if "stress" in label:
        results["stress"] = np.round(label["stress"], 10)
    frame.calc = SinglePointCalculator(frame, **results)
    return frame


def write_frames(path: Path, frames: list[Atoms]) -> None:
    """Write extended XYZ by way of a temporary file, so that no reader meets half a file."""
    temporary = path.with_suffix(".partial")
    write(temporary, frames, format="extxyz")
    temporary.replace(path)
    print(f"wrote {len(frames)} frames, {path.stat().st_size / 1e6:.2f} MB: {path}", flush=True)
