"""The loops of all networks, stage by stage, and steps of dynamics with them.

The way to energies and the way back are two functions, so that two processes can compile them at
the same time, and so is what comes before and after them in a step. They are called by their place
in memory, and given what they work with by its place (`words`): so that is compiled once for all
networks, and what moves atoms only where atoms move.
"""

from __future__ import annotations

from mdlearn.jit import ask, call, compiled
from mdlearn.meeting import Meeting, Shared, meet, take


@compiled(nogil=True)
def sweep(
    stages: int,
    thread: int,
    shared: Shared,
    turn: int,
    places: tuple[int, int, int, int],
    known: tuple[int, int, int, int, int],
    steps: int,
    meeting: Meeting,
) -> None:
    """Energies, forces and virials of atoms, in a workspace, and steps of dynamics with them.

    Each stage needs the one before of all blocks; within a stage, blocks are independent.

    Args:
        stages: how many there are.
        thread: which one this is.
        shared: the blocks of all threads, who take what is left of them in every stage.
        turn: the stage that belongs to both ways.
        places: of the network's `forward` and `backward`, and of `motion.depart` and
            `motion.arrive`, see `jit.place_of`.
        known: addresses of inputs, weights and workspace, of what is found, and of the motion,
            see `words`.
        steps: of that motion; zero to evaluate only.
        meeting: of the threads that share blocks, after each stage.
    """
    forward, backward, depart, arrive = places
    inputs, weights, work, found, motion = known
    blocks = (shared[thread, 0], shared[thread, 1])  # in what comes before and after forces
    for step in range(max(1, steps)):
        if steps > 0 and not ask(depart, (step, blocks, inputs, found, motion, meeting)):
            return
        for stage in range(stages):
            nth = step * stages + stage
            block = take(nth, thread, shared)
            while block >= 0:
                if stage <= turn:
                    call(forward, (stage, block, inputs, weights, work))
                if stage >= turn:
                    call(backward, (stage, block, inputs, weights, work))
                block = take(nth, thread, shared)
            if not meet(meeting):
                return
        if steps > 0 and not ask(arrive, (step, blocks, inputs, found, motion, meeting)):
            return
