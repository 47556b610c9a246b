"""What is kept of a training beside its model, whatever is trained."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Iterable, Sequence

import torch

import mdlearn


def to_csv(errors: Sequence[str], epochs: Iterable[tuple[float, ...]]) -> str:
    """A history as CSV.

    Args:
        errors: of the validation frames, by name.
        epochs: number, seconds, learning rate, training loss, and these errors.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [f"valid_{name}" for name in errors]
    writer.writerow(["epoch", "seconds", "learning_rate", "train_loss", *names])
    for number, *values in epochs:
        writer.writerow([number, *(f"{value:.6g}" for value in values)])
    return stream.getvalue()


def versions() -> dict[str, str]:
    """Of what a training ran with."""
    return {
        "mdlearn": mdlearn.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
