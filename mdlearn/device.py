"""Which device and which precision: settled once, said aloud, never silently another."""

from __future__ import annotations

import torch

from mdlearn.errors import ResourceError

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
