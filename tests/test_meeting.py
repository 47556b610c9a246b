"""Threads of compiled loops wait for one another, and never for one that has given up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mdlearn.jit import compiled
from mdlearn.meeting import Meeting, Shared, meet, meeting_of, shared_by, take
from mdlearn.potentials.frozen_network import share_blocks
from mdlearn.potentials.threads import Team

Array = NDArray[Any]


@compiled(keep=False, nogil=True)
def mix(turns: int, blocks: tuple[int, int], values: Array, meeting: Meeting) -> bool:
    """Each block adds up all of the turn before: wrong wherever one thread is ahead of another."""
    for turn in range(1, turns + 1):
        for block in range(blocks[0], blocks[1]):
            total = 0
            for each in values[turn - 1]:
                total += each
            values[turn, block] = (31 * total + block) % 1009
        if not meet(meeting):
            return False
    return True


@compiled(keep=False, nogil=True)
def mix_shared(
    stages: int,
    thread: int,
    shared: Shared,
    work: Array,
    values: Array,
    who: Array,
    meeting: Meeting,
) -> bool:
    """The same of blocks that whoever is there takes; some threads take longer than others."""
    for stage in range(stages):
        block = take(stage, thread, shared)
        while block >= 0:
            total = 0
            for _ in range(work[thread]):
                total = 0
                for each in values[stage]:
                    total += each
            values[stage + 1, block] += (31 * total + block) % 1009
            who[stage, block] = thread
            block = take(stage, thread, shared)
        if not meet(meeting):
            return False
    return True


def mixed(turns: int, blocks: int) -> tuple[Array, Array]:
    """Values to mix in so many turns, and what they are afterwards."""
    values = np.zeros((turns + 1, blocks), np.int64)
    values[0] = np.arange(blocks)
    expected = values.copy()
    for turn in range(1, turns + 1):
        expected[turn] = (31 * expected[turn - 1].sum() + np.arange(blocks)) % 1009
    return values, expected


@compiled(keep=False)
def take_once(stage: int, thread: int, shared: Shared) -> int:
    """For Python to call."""
    return take(stage, thread, shared)


@pytest.mark.parametrize(("threads", "blocks"), [(1, 5), (2, 2), (2, 7), (3, 8), (8, 3)])
def test_nobody_is_ahead(threads: int, blocks: int) -> None:
    turns = 200
    values, expected = mixed(turns, blocks)
    team = Team()
    team.size = threads
    there: list[bool] = []
    share_blocks(
        team, blocks, lambda mine, meeting: there.append(mix(turns, mine, values, meeting))
    )
    assert there == [True] * min(threads, blocks)
    assert np.array_equal(values, expected)


@pytest.mark.parametrize(("threads", "blocks"), [(1, 5), (2, 2), (2, 7), (3, 8), (8, 9)])
def test_every_block_is_taken_once(threads: int, blocks: int) -> None:
    """In every stage, by whomever; and nobody is ahead."""
    stages = 200
    values, expected = mixed(stages, blocks)
    who = np.full((stages, blocks), -1)
    work = np.full(threads, 10)
    work[-1] = 20_000
    team = Team()
    team.size = threads
    bounds = team.bounds(blocks)
    shared, there = shared_by(bounds), []

    def part(mine: tuple[int, int], meeting: Meeting) -> None:
        thread = bounds.index(mine[0])
        there.append(mix_shared(stages, thread, shared, work, values, who, meeting))

    share_blocks(team, blocks, part)
    assert there == [True] * threads
    assert np.array_equal(values, expected)
    assert who.min() >= 0


def test_own_blocks_come_first() -> None:
    """Then what others have left; and in the next stage all are there again."""
    shared = shared_by([0, 2, 5])
    for stage in range(3):
        assert [take_once(stage, 1, shared) for _ in range(2)] == [2, 3]
        assert [take_once(stage, 0, shared) for _ in range(4)] == [0, 1, 4, -1]
        assert [take_once(stage, 1, shared) for _ in range(2)] == [-1, -1]


@pytest.mark.parametrize("bad", [0, 3])
def test_whoever_fails_keeps_nobody_waiting(bad: int) -> None:
    """Be it the thread that asks, or another one."""
    team = Team()
    team.size = 4
    values = np.zeros((11, 4), np.int64)
    left: list[bool] = []

    def sweep(mine: tuple[int, int], meeting: Meeting) -> None:
        if mine[0] == bad:
            raise MemoryError("no room")
        left.append(mix(10, mine, values, meeting))

    with pytest.raises(MemoryError, match="no room"):
        share_blocks(team, 4, sweep)
    assert team.pool is not None
    team.pool.shutdown()  # which waits for the others
    assert left == [False] * 3


def test_one_alone_waits_for_nobody() -> None:
    meeting = meeting_of(1)
    values = np.zeros((3, 1), np.int64)
    assert mix(2, (0, 1), values, meeting)
    assert meeting.tolist() == [1, 0, 0]
