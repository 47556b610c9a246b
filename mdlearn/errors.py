"""Everything that can go wrong for a user, and the exit code it ends with.

MDLearnError              1   a bug of ours, if it reaches the user bare
├── UsageError            2   an option, a configuration key or a value
├── DataError             3   frames, labels, structures or trajectories that cannot be used
├── ModelError            4   a model file, or a model asked for what it was not built for
├── UnstableError         5   a simulation or a training run that left the physics
├── OutputError           6   disk, lock, permission, an output that is already there
└── ResourceError         7   a device or memory that is not there

A message says what was expected, what was found, where (file, frame, atom), and what to do.
Frames and atoms are counted from 0, as ASE counts them.
"""

from __future__ import annotations

from collections.abc import Mapping


class MDLearnError(Exception):
    """Base of all errors that the command line reports as one line."""

    exit_code = 1


class UsageError(MDLearnError):
    """An option, a configuration key or a value is not one that can be used."""

    exit_code = 2


class DataError(MDLearnError):
    """Frames, labels or a structure cannot be used as they are."""

    exit_code = 3


class ModelError(MDLearnError):
    """A model file cannot be read, or the model was not built for this system."""

    exit_code = 4


class UnstableError(MDLearnError):
    """A simulation or a training run left the region where its numbers mean anything.

    Args:
        message: all that is to be said.
        systems: of a batch, those that it is about, by index, each with what is to be said of it;
            the others are sound.
    """

    exit_code = 5

    def __init__(self, message: str, systems: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.systems = dict(systems or {})


class OutputError(MDLearnError):
    """An output exists, is locked, or cannot be written."""

    exit_code = 6


class ResourceError(MDLearnError):
    """A device or the memory that was asked for is not there."""

    exit_code = 7


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of Python or of torch, says that memory ran out: the host's or a GPU's."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (
            type(error).__name__ == "OutOfMemoryError"
            or "out of memory" in said
            or "can't allocate memory" in said
        )
    )
