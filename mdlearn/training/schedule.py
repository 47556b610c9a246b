"""How long a training is, and how steps and the weights of the loss change in the course of it."""

from __future__ import annotations

import math
from typing import NamedTuple

from mdlearn.training.config import ATOMS_PER_BATCH
from mdlearn.training.loss import Weights

ENERGY_START, ENERGY_FINISH = 0.1, 10.0
"""What the weight of the energy is multiplied by, first and last. An energy is one number a frame:
at a high learning rate it is noise that drowns the forces, which teach the shape of the surface.
On 450 frames of 3BPA, 40 epochs, a weight that rises to 25 in step with the cosine leaves 23
meV/Å, a constant one 17 and a tenth of it 16."""
ENERGY_RISE = 4
"""Power of the progress that it rises with: late, when the learning rate is nearly zero."""

WARMUP = 100
"""Steps over which the learning rate rises, or an epoch where that is longer."""


class Schedule(NamedTuple):
    """How long to train, and how."""

    epochs: int | None
    """None: as many as fit into the budget."""
    budget_s: float
    """Seconds; only looked at when `epochs` is None."""
    patience: int | None
    """Epochs without a better validation loss before stopping; None: never, since what small steps
    bring at the end of a schedule, energies above all, is not seen before."""
    batch_size: int | None
    """Frames per step; None: as many as have about `batch_atoms` atoms."""
    learning_rate: float
    ema: float
    """Decay of the running average of the weights, per step."""
    seed: int
    batch_atoms: int = ATOMS_PER_BATCH
    """Atoms per step, where `batch_size` is None."""
    long: float | None = None
    """Steps of a run from which on the learning rate is divided by the root of how many times as
    many there are, so that weights walk no further; None: never."""

    def highest_rate(self, total: int) -> float:
        """The learning rate after the warm-up, of a run of so many steps."""
        longer = total / self.long if self.long else 1.0
        return self.learning_rate / math.sqrt(max(1.0, longer))


def cosine(step: float, warmup: float, total: float) -> float:
    """From zero, through the warm-up, along a cosine to one at the last step."""
    return 0.5 * (1.0 - math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup)))


def balance(weights: Weights, progress: float) -> Weights:
    """The weights of the loss at some point of a run."""
    rise = (ENERGY_FINISH - ENERGY_START) * progress**ENERGY_RISE
    return weights._replace(energy=weights.energy * (ENERGY_START + rise))
