"""What is launched on a GPU, recorded once and replayed as one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Value = TypeVar("Value")


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


def place_for(value: Value) -> Value:
    """Where a graph reads what it is given: the same tensors, elsewhere, to stay there.

    Args:
        value: a tensor, or a named tuple of tensors, of such tuples, and of what no graph reads.
    """
    there: Any = value
    kind: Any = type(value)
    if isinstance(value, Tensor):
        there = value.clone(memory_format=torch.contiguous_format)
    elif isinstance(value, tuple):
        there = kind._make(map(place_for, value))
    placed: Value = there
    return placed


def tensors_of(value: object) -> list[Tensor]:
    """The tensors of what `place_for` takes, in their order."""
    if isinstance(value, tuple):
        return [each for part in value for each in tensors_of(part)]
    return [value] if isinstance(value, Tensor) else []


def put(value: object, place: object) -> None:
    """Writes the tensors of a value to a place for it, as few launches."""
    pairs = zip(tensors_of(place), tensors_of(value), strict=True)
    changed = [(mine, new) for mine, new in pairs if new is not mine]
    if changed:
        mine, new = zip(*changed, strict=True)
        torch._foreach_copy_(list(mine), list(new))


def is_recording() -> bool:
    """Whether what is launched now is recorded, and not done."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
