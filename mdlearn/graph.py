"""What is launched on a GPU, recorded once and replayed as one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def capture(launch: Callable[[], Result], device: torch.device) -> Callable[[], Result]:
    """A CUDA graph of what a function launches, in its place; elsewhere the function itself.

    Args:
        launch: reads tensors that stay where they are, waits for none, and launches the same
            whenever it is called.
        device: where it does.

    Returns:
        Does what the function does, and returns what it returned when it was recorded: tensors that
        the next call overwrites.

    Raises:
        RuntimeError: what it does cannot be recorded.
    """
    if device.type != "cuda":
        return launch
    launch()  # compiles kernels, which must not happen while a graph is recorded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = launch()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def place_for(tensor: Tensor) -> Tensor:
    """A tensor that stays where it is, for a graph to read; with the same values to begin with."""
    return tensor.clone(memory_format=torch.contiguous_format)


def is_recording() -> bool:
    """Whether what is launched now is recorded, and not done."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
