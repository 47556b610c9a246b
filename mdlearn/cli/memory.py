"""Memory: what an evaluation needs, what there is, and what to say where that is less."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mdlearn.cli.console import err, human_size
from mdlearn.division import surroundings
from mdlearn.errors import ResourceError
from mdlearn.neighbors import Neighbors, build
from mdlearn.potentials.evaluate import Evaluable, Frozen, evaluate, kept_for_derivatives
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.parts import VECTORS, InParts, reach_of
from mdlearn.system import System, concatenate

WORKSPACE = 1.35
"""Memory that an evaluation needs, in units of what it keeps for its derivative."""
SHARE = 0.8
"""Of the memory that is left, for one part at a time."""
ENOUGH = 100
"""Atoms of an example, at least: what does not grow with their number is then a small part."""


def within_memory(
    name: str,
    potential: Evaluable,
    golden: Sequence[System],
    neighbors: Neighbors,
    copies: int = 1,
    at_once: int | None = None,
) -> Evaluable:
    """What to evaluate, given the memory there is: a potential, or the same in parts; says so.

    Args:
        name: of the structure, for the message.
        potential: what is to be evaluated.
        golden: structures that it can be tried on.
        neighbors: the pairs of the structure.
        copies: of it, in one batch.
        at_once: atoms of a part, if that is settled already; of no meaning to what is frozen.

    Raises:
        ResourceError: there is too little for a single atom and its surroundings.
    """
    if not (golden or isinstance(potential, Frozen)):
        return potential
    n_atoms, capacity = neighbors.j.shape
    need = copies * estimate_memory(potential, golden, neighbors)
    lists = copies * sum(each.nbytes for each in neighbors)
    n_atoms, free = copies * n_atoms, _free(neighbors.j.device)
    if isinstance(potential, ParametricPotential) and (at_once or need > free):
        size = int((need - lists) / n_atoms)
        left = SHARE * (free - lists - n_atoms * capacity * VECTORS)
        most = at_once or int(left / size)
        listed = neighbors.j.cpu().numpy()
        single = surroundings(np.zeros(1, np.int64), listed, reach_of(potential))
        if at_once or most >= len(single):
            err.print(
                f"memory      all {n_atoms:,} atoms at once need {human_size(need)}, and"
                f" {human_size(free)} are free: forces are computed in parts, one after another,"
                f" {most:,} atoms at a time with those around them"
            )
            return InParts(potential, most, size)
    if need > free:
        fit = float(f"{n_atoms * free / need:.1g}")
        loops = "; the default network needs far less, on a CPU"
        less = "" if isinstance(potential, Frozen) else loops
        raise ResourceError(
            f"{name}: {n_atoms:,} atoms need about {human_size(need)} of memory, and"
            f" {human_size(free)} are free, enough for about {fit:,.0f} atoms like these: take"
            f" fewer atoms or --replicas, or a machine with more memory{less}"
        )
    return potential


def estimate_memory(potential: Evaluable, golden: Sequence[System], neighbors: Neighbors) -> float:
    """Bytes that an evaluation with a list needs, the list included.

    What is not frozen is measured on an example with as many slots per atom: on a GPU the peak of
    an evaluation, else what it keeps for its derivative, times `WORKSPACE`.

    Args:
        potential: what is to be evaluated.
        golden: structures that it can be tried on; what is frozen needs none.
        neighbors: the list.
    """
    lists = sum(each.nbytes for each in neighbors)
    if isinstance(potential, Frozen):
        return lists + potential.workspace(*neighbors.j.shape)
    n_atoms, capacity = neighbors.j.shape
    device = neighbors.j.device
    largest = max(golden, key=lambda each: len(each.numbers))
    batch = concatenate([largest] * -(-ENOUGH // len(largest.numbers)))
    example = System(*(each.to(device) for each in batch))
    listed = build(example, potential.cutoff, 0.0, capacity)
    share = n_atoms / len(example.numbers)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        evaluate(potential, example, listed)
        return lists + share * (torch.cuda.max_memory_allocated(device) - before)
    return lists + share * WORKSPACE * _kept(potential, example, listed)


def _kept(potential: Evaluable, system: System, neighbors: Neighbors) -> int:
    """Bytes of what an evaluation keeps for its derivative."""
    assert isinstance(potential, ParametricPotential)
    weights = [*potential.parameters(), *potential.buffers()]
    theirs = {each.untyped_storage().data_ptr() for each in weights}
    kept = kept_for_derivatives(potential, system, neighbors)
    return sum(size for pointer, size in kept.items() if pointer not in theirs)


def total_memory(device: torch.device) -> int:
    """Of the device in all, bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free(device: torch.device) -> int:
    """What can be had of a device's memory, bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    statistics = Path("/proc/meminfo")
    if not statistics.exists():  # only Linux tells what files in its cache could make room for
        return total_memory(device)
    found = re.search(r"MemAvailable:\s+(\d+) kB", statistics.read_text(encoding="utf-8"))
    return 1024 * int(found[1]) if found else total_memory(device)
