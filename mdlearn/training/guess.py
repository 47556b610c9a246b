"""What a pair potential begins with: lengths and depths that suit frames."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from scipy.optimize import nnls
from torch import Tensor

from mdlearn.atoms import Frame
from mdlearn.potentials.classical import PairPotential
from mdlearn.potentials.elements import Elements
from mdlearn.potentials.evaluate import evaluate
from mdlearn.training.dataset import Example
from mdlearn.training.finetune import right_on_average
from mdlearn.training.statistics import sample
from mdlearn.training.team import ALONE, Team

FEW = 8
"""Frames that show how large atoms are, at most."""
SIZES = tuple(1.05**step for step in range(19))
"""What the first guess of lengths is multiplied with, to see what suits frames. It is too short
where atoms come nearer than they would by themselves, as in frames that were rattled."""
CLEARLY = 0.5
"""Share of what the first guess leaves of forces that another size may leave to be better, and not
chance: molecules have no forces of this kind, and then energies are better off with the guess."""
WEAKEST = 0.1
"""Depths of what hardly meets in these frames, as a share of the first guess, at least."""
NOTHING = -80.0
"""The logarithm of what is nothing."""


def begin(
    potential: PairPotential,
    examples: Sequence[Example],
    isolated: Sequence[Frame],
    team: Team = ALONE,
) -> None:
    """Sets lengths and depths, and energies of isolated atoms that are right on average with them.

    These were found by least squares as if there were no bonds, and a potential of distances cannot
    unlearn that.

    Args:
        potential: as it is made; changed in place.
        examples: what it is to be trained on.
        isolated: frames of single atoms, whose energies stay.
        team: the processes among which the frames are shared out.
    """
    suit(potential, sample(examples, most=FEW))
    given = {int(frame.system.numbers[0]) for frame in isolated}
    known = potential.elements.energies()
    energies = right_on_average(potential, examples, known, given, team)
    device = potential.log_depths().device
    potential.elements = Elements(potential.species, energies).to(device)


@torch.no_grad()
def suit(potential: PairPotential, frames: Sequence[Example]) -> None:
    """Sets lengths to those of a few `SIZES` by which forces of frames are given best, if clearly.

    What starts with lengths that are far too short escapes from the atoms, since with less
    repulsion it is nearer to their forces then. For each size depths, which forces are linear in,
    are solved for by least squares.

    Args:
        potential: as it is made; changed in place, unless no forces are known.
        frames: some of those that it is to be trained on.
    """
    first, guess = copy.deepcopy(potential.state_dict()), potential.log_depths().exp()
    wanted = torch.cat([each.labels.forces.flatten() for each in frames])
    known = ~wanted.isnan()
    pairs = torch.triu_indices(*guess.shape).T.tolist()
    best, lowest = first, math.inf
    for size in SIZES if known.any() else ():
        potential.load_state_dict(first)
        potential.stretch(size)
        columns = [_forces_of(pair, potential, frames)[known] for pair in pairs]
        matrix = torch.stack(columns, -1).cpu().numpy()
        depths, left = nnls(matrix, wanted[known].cpu().numpy())
        if size == SIZES[0]:
            lowest = CLEARLY * left
        elif left < lowest:
            for (one, other), depth in zip(pairs, depths, strict=True):
                log = (WEAKEST * guess[one, other]).clamp_min(depth).log()
                potential.log_depths()[[one, other], [other, one]] = log
            best, lowest = copy.deepcopy(potential.state_dict()), left
    potential.load_state_dict(best)


def _forces_of(pair: list[int], potential: PairPotential, frames: Sequence[Example]) -> Tensor:
    """All forces, if two elements had a depth of 1 eV, and others had none."""
    potential.log_depths().fill_(NOTHING)
    potential.log_depths()[pair, pair[::-1]] = 0.0
    found = [evaluate(potential, each.system, each.neighbors).forces for each in frames]
    return torch.cat(found).flatten()
