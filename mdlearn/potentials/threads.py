"""Sharing out work that compiled loops do without the interpreter's lock."""

from __future__ import annotations

import math
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

FEW_PAIRS = 4000
"""Pairs up to which a second thread gains little, and loses much where cores are shared."""
MOST = 1024
"""Threads of a team. Parts may wait for one another, so none may wait for a thread."""
REPEATS = 5
"""Times that something is measured; what is fastest has been disturbed least."""
WORTH = 0.9
"""Share of the time that twice as many threads may take at most, to be worth it."""


class Team:
    """Threads that are started when there is something to share."""

    def __init__(self) -> None:
        """Starts nothing yet."""
        self.pool: ThreadPoolExecutor | None = None
        self.size: int | None = None
        """How many threads there are; None: as many as torch has."""

    def __len__(self) -> int:
        return self.size or torch.get_num_threads()

    def measure(self, most: int, work: Callable[[], object]) -> None:
        """Settles how many threads share: twice as many each time, as long as that is faster.

        Args:
            most: threads there may be.
            work: to be measured; shares something.
        """
        fastest = math.inf
        for size in (2**power for power in range(most.bit_length())):
            before, self.size = self.size, size
            work()  # starts threads
            seconds = min(timeit.repeat(work, number=1, repeat=REPEATS))
            if seconds > WORTH * fastest:
                self.size = before
                return
            fastest = seconds

    def bounds(self, count: int) -> list[int]:
        """Where the part of each thread begins of so many things, and where the last one ends."""
        threads = max(1, min(len(self), count))
        return [count * thread // threads for thread in range(threads + 1)]

    def share(self, count: int, work: Callable[[tuple[int, int]], None]) -> None:
        """Does things 0 to `count`, each thread a part of them.

        Args:
            count: of things.
            work: is given the first one, and the one after the last.
        """
        first, *rest = pairwise(self.bounds(count))
        if rest and self.pool is None:
            self.pool = ThreadPoolExecutor(MOST)  # of which only those are started that are used
        others = [self.pool.submit(work, part) for part in rest] if self.pool else []
        work(first)
        for each in others:
            each.result()


def leave_one_thread(pairs: float) -> None:
    """Leaves torch one thread where an evaluation has too few pairs to share out.

    Small operations end sooner than a second thread wakes up; and when another program holds its
    core, every operation waits for it (a factor of ten and more, measured).
    """
    if pairs <= FEW_PAIRS:
        torch.set_num_threads(1)
