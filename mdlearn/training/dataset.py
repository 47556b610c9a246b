"""Frames made ready for training: neighbors and batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn import neighbors as neighbor_lists
from mdlearn import system as systems
from mdlearn.atoms import Frame
from mdlearn.labels import Labels
from mdlearn.neighbors import Neighbors
from mdlearn.packed import PackedFrames
from mdlearn.system import System


class Example(NamedTuple):
    """What a training step needs of one frame, or of a batch of them."""

    system: System
    neighbors: Neighbors
    labels: Labels
    name: str = ""
    """Of the frames, for messages."""


def select(frames: Sequence[Frame], chosen: Sequence[int]) -> Sequence[Frame]:
    """Some frames; of frames that are read when they are asked for, none is read."""
    if isinstance(frames, PackedFrames):
        return frames.select(chosen)
    return [frames[index] for index in chosen]


def frame_sizes(frames: Sequence[Frame]) -> list[int]:
    """The number of atoms of every frame, without reading the frames where that can be."""
    if isinstance(frames, PackedFrames):
        return frames.sizes
    return [len(frame.system.numbers) for frame in frames]


class Examples(Sequence[Example]):
    """Frames as a training sees them.

    Those of frames in memory are made once and kept. Those of frames that are read when they are
    asked for are made anew each time, so that memory stays flat however many there are.
    """

    def __init__(self, frames: Sequence[Frame], cutoff: float, device: torch.device) -> None:
        """Makes nothing yet.

        Args:
            frames: a list of them, or a sequence that reads them.
            cutoff: Å.
            device: where the examples are to be.
        """
        self._frames = frames
        self.cutoff = cutoff
        self._device = device
        self.in_memory = isinstance(frames, list)
        self._kept: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self._frames)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            if self.in_memory:
                return [self[each] for each in range(*index.indices(len(self)))]
            return Examples(self._frames[index], self.cutoff, self._device)
        if index in self._kept:
            return self._kept[index]
        example = self._make(self._frames[index])
        if self.in_memory:
            self._kept[index] = example
        return example

    def __iter__(self) -> Iterator[Example]:
        """One after another, which is faster where they are read."""
        if self.in_memory:
            return (self[index] for index in range(len(self)))
        return map(self._make, self._frames)

    def _make(self, frame: Frame) -> Example:
        return to(make_example(frame, self.cutoff), self._device)

    def sizes(self) -> list[int]:
        """The number of atoms of every frame."""
        return frame_sizes(self._frames)


def find_sizes(examples: Sequence[Example]) -> list[int]:
    """The number of atoms of every example."""
    if isinstance(examples, Examples):
        return examples.sizes()
    return [len(each.system.numbers) for each in examples]


class Batches:
    """Examples in batches, in their order; can be gone through as often as one likes."""

    def __init__(self, examples: Examples, atoms: int) -> None:
        """Makes nothing yet.

        Args:
            examples: the frames.
            atoms: about how many make a batch.
        """
        sizes = np.array(examples.sizes(), np.int64)
        self._examples = examples
        self._groups = deal(np.arange(len(sizes)), sizes, atoms) if len(sizes) else []
        self._kept: list[Example] = []

    def __iter__(self) -> Iterator[Example]:
        if len(self._kept) == len(self._groups):
            yield from self._kept
            return
        self._kept.clear()
        examples = iter(self._examples)
        for group in self._groups:
            batch = concatenate(list(islice(examples, len(group))))
            if self._examples.in_memory:
                self._kept.append(batch)
            yield batch


def make_example(frame: Frame, cutoff: float) -> Example:
    """Finds the neighbors of a frame once and for all."""
    pairs = neighbor_lists.build(frame.system, cutoff)
    return Example(frame.system, pairs, frame.labels, frame.name)


def concatenate(examples: Sequence[Example]) -> Example:
    """Makes one batch of several examples."""
    if len(examples) == 1:
        return examples[0]
    capacity = max(each.neighbors.j.shape[1] for each in examples)
    return Example(
        systems.concatenate([each.system for each in examples]),
        neighbor_lists.concatenate([each.neighbors for each in examples], capacity),
        Labels(*(torch.cat(each) for each in zip(*(x.labels for x in examples), strict=True))),
        ", ".join(each.name for each in examples),
    )


def deal(order: NDArray[np.int64], costs: NDArray[np.int64], limit: int) -> list[NDArray[np.int64]]:
    """Deals frames into batches, in the given order, as many into each as the limit allows.

    Args:
        order: indices of frames.
        costs: of each frame: its atoms, or one.
        limit: the cost of a batch; a frame that is dearer has a batch to itself.
    """
    firsts, room = [0], limit
    for place, index in enumerate(order):
        if costs[index] > room and place > firsts[-1]:
            firsts.append(place)
            room = limit
        room -= int(costs[index])
    return np.split(order, firsts[1:])


def split_frames(
    frames: Sequence[Frame], fraction: float, generator: np.random.Generator
) -> tuple[Sequence[Frame], Sequence[Frame]]:
    """Deals frames at random into training and validation, at least one to each."""
    count = min(len(frames) - 1, max(1, round(fraction * len(frames))))
    held_out = set(generator.permutation(len(frames))[:count].tolist())
    kept = [index for index in range(len(frames)) if index not in held_out]
    return select(frames, kept), select(frames, sorted(held_out))


def to(example: Example, device: torch.device) -> Example:
    """Moves an example to a device."""

    def move(part: tuple[Tensor, ...]) -> Iterator[Tensor]:
        return (each.to(device) for each in part)

    return Example(
        System(*move(example.system)),
        Neighbors(*move(example.neighbors)),
        Labels(*move(example.labels)),
        example.name,
    )
