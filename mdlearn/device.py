"""Which device and which precision: settled once, said aloud, never silently another."""

from __future__ import annotations

import torch

from mdlearn.errors import ResourceError

FEW_PAIRS = 4000
"""Pairs up to which a second thread gains little, and loses much where cores are shared."""
PRECISIONS = {"mixed": torch.float32, "float64": torch.float64}
"""Of the network. Positions, momenta and sums are float64 in both."""


def choose_device(name: str) -> torch.device:
    """The device of a name, `auto` taking a GPU where there is one.

    Raises:
        ResourceError: a GPU was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda: torch finds no GPU here; use --device cpu or auto")
    return torch.device(name)


def choose_threads(pairs: int) -> None:
    """Leaves torch one thread where an evaluation has too few pairs to share out.

    Small operations end sooner than a second thread wakes up; and when another program holds its
    core, every operation waits for it (a factor of ten and more, measured).
    """
    if pairs <= FEW_PAIRS:
        torch.set_num_threads(1)
