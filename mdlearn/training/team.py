"""Several processes that train one network, each on its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as processes

Item = TypeVar("Item")


class Team(NamedTuple):
    """The processes of a training; the first one writes, and speaks for all."""

    rank: int = 0
    """Of this process, from 0."""
    size: int = 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """What this process sees to: every `size`-th item."""
        return items[self.rank :: self.size] if self.size > 1 else items

    def add(self, values: Tensor) -> Tensor:
        """Sums values of all processes, in place; the same bits in each of them."""
        if self.size > 1:
            processes.all_reduce(values)
        return values

    def lowest(self, values: Tensor) -> Tensor:
        """The lowest values of all processes, in place."""
        if self.size > 1:
            processes.all_reduce(values, processes.ReduceOp.MIN)
        return values


ALONE = Team()


@contextmanager
def assemble(device: torch.device) -> Iterator[Team]:
    """Joins the processes that `torchrun` started; a process that it did not start is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Sums over numbers that the host needs never wait for a GPU.
    processes.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(processes.get_rank(), size)
        processes.barrier()  # who leaves while others still send takes them down
    finally:
        processes.destroy_process_group()
