"""What networks have in common when they are frozen for a GPU: launches, recorded and replayed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdlearn.graph import capture, is_recording, place_for, put
from mdlearn.neighbors import Neighbors
from mdlearn.potentials.evaluate import Frozen
from mdlearn.potentials.kernels import triton_geometry as geometry
from mdlearn.potentials.kernels import triton_systems as systems
from mdlearn.potentials.kernels.triton_layout import KernelError
from mdlearn.system import Evaluation, System

THREADS = 128
"""Of a program, one for each feature of each of its atoms."""
PARTS = 8
"""Threads that share the neighbors of an atom, for each feature."""
ATOMS = 512
"""That a program for a system looks at together."""
SLOT = 41
"""Bytes of a slot of a neighbor list: neighbor, translation, reverse, and whether it is one."""


class Recording(NamedTuple):
    """The launches of an evaluation on inputs that stay where they are."""

    shape: tuple[int, int, int]
    """Systems, atoms, and neighbors of an atom."""
    work: Any
    system: System
    neighbors: Neighbors
    replay: Callable[[], Evaluation]


class FrozenOnGPU(Frozen):
    """A network whose evaluation is a fixed sequence of launches.

    What is launched, and in which order, depends on shapes alone, and nothing waits for a value. So
    on a GPU the launches are recorded once for a shape, and replayed from then on.
    """

    def __init__(self) -> None:
        """Records nothing yet."""
        super().__init__()
        self.recording: Recording | None = None
        self.listed: Neighbors | None = None

    @abstractmethod
    def room(self, n_atoms: int, capacity: int) -> Any:
        """What launches for so many atoms and slots work in, to stay where it is."""

    @abstractmethod
    def launch(self, work: Any, system: System, neighbors: Neighbors) -> Evaluation:
        """One evaluation; the result may be part of the workspace."""

    def evaluate(self, system: System, neighbors: Neighbors) -> Evaluation:
        """See `Frozen`.

        Raises:
            RuntimeError: kernels cannot be compiled, or a graph cannot be recorded.
        """
        shape = (len(system.cell), *neighbors.j.shape)
        if self.recording is None or self.recording.shape != shape:
            try:
                self.recording = self.record(system, neighbors)
            except KernelError as error:  # which is no RuntimeError, unlike what torch raises
                raise RuntimeError(f"no kernels for this GPU: {error}") from error
            self.listed = neighbors
        if is_recording():  # all of a step, on inputs that stay where they are, too
            return self.launch(self.recording.work, system, neighbors)
        if self.listed is not neighbors:
            put(neighbors, self.recording.neighbors)
            self.listed = neighbors
        put(system, self.recording.system)
        return place_for(self.recording.replay())

    def record(self, system: System, neighbors: Neighbors) -> Recording:
        """The launches for a shape; a graph, but where Triton is interpreted."""
        n_systems, (n_atoms, capacity) = len(system.cell), neighbors.j.shape
        work = self.room(n_atoms, capacity)
        inputs, lists = place_for(system), place_for(neighbors)

        def launch() -> Evaluation:
            return self.launch(work, inputs, lists)

        replay = capture(launch, inputs.positions.device)
        return Recording((n_systems, n_atoms, capacity), work, inputs, lists, replay)

    def choose_threads(self, system: System, neighbors: Neighbors) -> None:
        """See `Frozen`. A GPU needs none of the processor's."""


def run(kernel: Any, programs: tuple[int, ...], *arguments: Tensor | float) -> None:
    """Launches a kernel, which may fuse products with sums; Triton from 3.9 on asks for a word."""
    kernel[programs](*arguments, num_warps=THREADS // 32, enable_fp_fusion=True)


def collect(work: Any, energies: Tensor, system: System, neighbors: Neighbors) -> Evaluation:
    """What follows from energies of atoms, and from derivatives by pairs in a workspace.

    Args:
        work: has `pairs`, `slots`, `bounds` and `slope` as `triton_geometry.push` reads them, and
            `forces` and `virials` to be filled.
        energies: (N,) eV.
        system: the batch.
        neighbors: its list.
    """
    n_atoms, capacity = neighbors.j.shape
    listed = (work.pairs, work.slots, work.bounds, neighbors.reverse, work.slope)
    shape = (capacity, work.bounds.shape[1] - 1, power_of_two(capacity))
    run(geometry.push, (n_atoms,), *listed, work.forces, work.virials, *shape)
    energy, stress = energies.new_empty(len(system.cell)), torch.empty_like(system.cell)
    given = (energies, work.virials, system.cell, system.system, energy, stress)
    run(systems.add_up, (len(energy),), *given, n_atoms, ATOMS)
    return Evaluation(energy, work.forces, stress, energies, work.virials)


def power_of_two(count: int) -> int:
    """The first that is no less."""
    return 1 << (count - 1).bit_length()


def blocks_of(count: int, size: int) -> tuple[int]:
    """Programs that share out so many things, so many each."""
    return (-(-count // size),)


def share(n_atoms: int, width: int) -> tuple[int, tuple[int, int]]:
    """Programs that share out atoms of so many threads each; atoms in one, and threads of each."""
    row = power_of_two(width)
    block = max(1, THREADS // row)
    return -(-n_atoms // block), (block, row)


def crew(n_atoms: int, width: int, numbers: int = 1) -> tuple[int, tuple[int, int, int]]:
    """The same, with several threads that share the neighbors of an atom; how many stands between.

    Args:
        n_atoms: atoms to share out.
        width: threads of an atom, but for those.
        numbers: that a thread has of what it would have one.
    """
    row, room = power_of_two(width), THREADS * numbers
    some = min(PARTS, max(1, room // row))
    block = max(1, room // (row * some))
    return -(-n_atoms // block), (block, some, row)
