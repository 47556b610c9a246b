"""Recorded trajectories as a propagator learns from them: strides from one frame to a later one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn import neighbors as neighbor_lists
from mdlearn import system as systems
from mdlearn.errors import DataError
from mdlearn.neighbors import Neighbors, build
from mdlearn.system import System

MOST_STRIDES, MOST_VALID = 20000, 1000
"""To learn from and to judge by; of more, so many are taken, evenly spread. Frames that follow each
other are nearly the same."""


class Recording(NamedTuple):
    """A trajectory of one system, as a propagator learns from it."""

    name: str
    system: System
    """With the positions of the first frame."""
    positions: NDArray[np.float64]
    """(n_frames, n_atoms, 3) Å, not wrapped."""
    velocities: NDArray[np.float64]
    """(n_frames, n_atoms, 3) Å·sqrt(eV/u)."""
    cells: NDArray[np.float64]
    """(n_frames, 3, 3) Å."""
    times_fs: NDArray[np.float64]
    """(n_frames,)."""


class Stride(NamedTuple):
    """What a training step needs of one stride, or of a batch of them."""

    system: System
    """Where it starts."""
    momenta: Tensor
    """(n_atoms, 3) u·Å/(Å·sqrt(u/eV)), there."""
    neighbors: Neighbors
    displacement: Tensor
    """(n_atoms, 3) Å, how far the atoms went."""
    impulse: Tensor
    """(n_atoms, 3) u·Å/(Å·sqrt(u/eV)), what their momenta changed by."""


class Strides(Sequence[Stride]):
    """Strides between frames of recordings; each is made when it is first asked for, and kept."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        starts: Sequence[tuple[int, int]],
        length: int,
        cutoff: float,
        device: torch.device,
    ) -> None:
        """Makes nothing yet.

        Args:
            recordings: where they are from.
            starts: of each stride, its recording and its first frame.
            length: frames from its start to its end.
            cutoff: Å.
            device: where the strides are to be.
        """
        self._recordings, self._starts, self._length = recordings, starts, length
        self._cutoff, self._device = cutoff, device
        self._kept: dict[int, Stride] = {}

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Stride: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Stride]: ...
    def __getitem__(self, index: int | slice) -> Stride | Sequence[Stride]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        if index not in self._kept:
            self._kept[index] = self._make(*self._starts[index])
        return self._kept[index]

    def _make(self, recording: int, first: int) -> Stride:
        _, system, positions, velocities, _, _ = self._recordings[recording]
        last = first + self._length
        x, y, v, w = (
            torch.tensor(each)
            for each in (positions[first], positions[last], velocities[first], velocities[last])
        )
        system = system._replace(positions=x)
        system = System(*(each.to(self._device) for each in system))
        mass = system.masses[:, None]
        v, w = v.to(self._device), w.to(self._device)
        displacement = (y - x).to(self._device)
        return Stride(system, mass * v, build(system, self._cutoff), displacement, mass * (w - v))

    def sizes(self) -> list[int]:
        """The number of atoms of every stride."""
        return [len(self._recordings[index].system.numbers) for index, _ in self._starts]


def concatenate(strides: Sequence[Stride]) -> Stride:
    """Makes one batch of several strides."""
    capacity = max(each.neighbors.j.shape[1] for each in strides)
    return Stride(
        systems.concatenate([each.system for each in strides]),
        torch.cat([each.momenta for each in strides]),
        neighbor_lists.concatenate([each.neighbors for each in strides], capacity),
        torch.cat([each.displacement for each in strides]),
        torch.cat([each.impulse for each in strides]),
    )


def split_strides(
    recordings: Sequence[Recording], length: int, valid_fraction: float
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Where strides to learn from and strides to judge by start, as `Strides` takes it.

    Those to judge by lie in the last part of each recording, and none to learn from reaches there:
    of two neighboring frames one knows the other.

    Args:
        recordings: of any number of systems.
        length: frames from the start of a stride to its end.
        valid_fraction: of the frames of each recording.

    Raises:
        DataError: they are too short for one stride of each kind.
    """
    train, valid = [], []
    for index, each in enumerate(recordings):
        n = len(each.times_fs)
        border = n - max(length + 1, round(valid_fraction * n))
        train += [(index, first) for first in range(border - length)]
        valid += [(index, first) for first in range(max(0, border), n - length)]
    if not train:
        raise DataError(
            f"{recordings[0].name}: {len(recordings[0].times_fs)} frames are too few for a stride"
            f" of {length} frames to learn from and one to judge by; simulate for longer"
        )
    return thin(train, MOST_STRIDES), thin(valid, MOST_VALID)


def thin(starts: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """At most so many of them, evenly spread."""
    chosen = np.linspace(0, len(starts) - 1, min(most, len(starts))).round().astype(int)
    return [starts[index] for index in chosen]


def frames_of_stride(recording: Recording, stride_fs: float) -> int:
    """How many frames make a stride.

    Raises:
        DataError: no whole number of them does; or the recording is not one to learn from.
    """
    name, _, _, velocities, cells, times = recording
    if len(times) < 3:
        raise DataError(f"{name}: {len(times)} frames; expected three at least")
    if not velocities.any(axis=(0, 2)).all():
        raise DataError(
            f"{name}: atom {int(velocities.any(axis=(0, 2)).argmin())} has no velocity in any"
            " frame; expected a trajectory of `mdlearn simulate` in which all atoms move (no --fix)"
        )
    if (cells != cells[0]).any():
        raise DataError(
            f"{name}: the cell changes, which a propagator cannot follow; expected constant volume"
            " (--ensemble nve or csvr)"
        )
    spacing = float(times[1] - times[0])
    if not np.allclose(np.diff(times), spacing, rtol=1e-6, atol=0.0):
        raise DataError(f"{name}: frames are not evenly spaced in time; expected --every the same")
    length = round(stride_fs / spacing)
    if length < 1 or abs(length * spacing - stride_fs) > 1e-6 * stride_fs:
        possible = ", ".join(f"{each * spacing:g}" for each in (1, 2, 3))
        raise DataError(
            f"{name}: --stride {stride_fs:g}fs: the frames are {spacing:g} fs apart, so a stride is"
            f" {possible}, ... fs; choose one of these, or simulate with another --every"
        )
    return length
