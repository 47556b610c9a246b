"""The loops of all networks, stage by stage, and steps of dynamics with them.

The way to energies and the way back are two functions, so that two processes can compile them at
the same time; they are called by their place in memory.
"""

from __future__ import annotations

from typing import Any

from mdlearn.jit import call, compiled
from mdlearn.meeting import Meeting, meet
from mdlearn.potentials.kernels.atoms import Inputs
from mdlearn.potentials.kernels.motion import Motion, arrive, depart


@compiled(nogil=True)
def sweep(
    stages: tuple[int, int],
    blocks: tuple[int, int],
    turn: int,
    places: tuple[int, int],
    inputs: Inputs,
    weights: Any,
    work: Any,
    motion: Motion,
    meeting: Meeting,
) -> None:
    """Energies, forces and virials of atoms, in a workspace, and steps of dynamics with them.

    Each stage needs the one before of all blocks; within a stage, blocks are independent.

    Args:
        stages: the first one, and the one after the last.
        blocks: likewise.
        turn: the stage that belongs to both ways.
        places: of the network's `forward` and `backward`, see `jit.place_of`.
        inputs: where the atoms are.
        weights: the network.
        work: is overwritten.
        motion: the steps.
        meeting: of the threads that share blocks, after each stage.
    """
    for step in range(max(1, motion.steps)):
        if not depart(step, blocks, work.invariants.shape[1], inputs, motion, meeting):
            return
        for stage in range(stages[0], stages[1]):
            for block in range(blocks[0], blocks[1]):
                if stage <= turn:
                    call(places[0], (stage, block, inputs, weights, work))
                if stage >= turn:
                    call(places[1], (stage, block, inputs, weights, work))
            if stage + 1 < stages[1] and not meet(meeting):
                return
        if not arrive(step, blocks, inputs, motion, work, meeting):
            return
