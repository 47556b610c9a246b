"""Sharing out work that compiled loops do without the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch


class Team:
    """As many threads as torch has; they are started when there is something to share."""

    def __init__(self) -> None:
        """Starts nothing yet."""
        self.pool: ThreadPoolExecutor | None = None

    def share(self, count: int, work: Callable[[tuple[int, int]], None]) -> None:
        """Does things 0 to `count`, each thread a part of them.

        Args:
            count: of things.
            work: is given the first one, and the one after the last.
        """
        threads = max(1, min(torch.get_num_threads(), count))
        bounds = [count * thread // threads for thread in range(threads + 1)]
        first, *rest = pairwise(bounds)
        if rest and self.pool is None:
            self.pool = ThreadPoolExecutor()
        others = [self.pool.submit(work, part) for part in rest] if self.pool else []
        work(first)
        for each in others:
            each.result()
