"""The training loop, whole, on one screen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from mdlearn.errors import UnstableError
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import ParametricPotential
from mdlearn.training.augmentation import augment
from mdlearn.training.dataset import Example, batches
from mdlearn.training.loss import Errors, Weights, dipole_of, loss_of, measure

CLIP = 10.0
"""Largest norm of the gradient of the loss; only the odd batch of the first epochs is longer."""


ENERGY_FINISH = 25.0
"""By how much the weight of the energy grows during a run. Forces teach the shape of the surface
fast; energies, one number a frame, are noise at a high learning rate and settle at a low one."""


class Schedule(NamedTuple):
    """How long to train, and how."""

    epochs: int | None
    """None: as many as fit into the budget."""
    budget_s: float
    """Seconds; only looked at when `epochs` is None."""
    patience: int | None
    """Epochs without a better validation loss before stopping; None: a third of all."""
    batch_size: int
    learning_rate: float
    ema: float
    """Decay of the running average of the weights, per step."""
    seed: int


class Epoch(NamedTuple):
    """What is known after each epoch."""

    epoch: int
    epochs: int
    """How many there will be, as far as is known."""
    seconds: float
    learning_rate: float
    loss: float
    valid: Errors
    best: bool
    """Whether the averaged network has never been better."""


def fit(
    network: ParametricPotential,
    averaged: ParametricPotential,
    train: Sequence[Example],
    valid: Sequence[Example],
    weights: Weights,
    schedule: Schedule,
    on_step: Callable[[int, int], None],
) -> Iterator[Epoch]:
    """Trains in place and yields after every epoch; stop iterating to stop training.

    Adam with a linear warm-up over the first epoch and a cosine to zero over the others; validation
    is of the running average of the weights, which is the network that a user gets. A network that
    is not invariant under rotations sees every frame turned another way each time.

    Args:
        network: trained in place.
        averaged: a copy of it; becomes the running average.
        train: examples to learn from.
        valid: batches to judge by.
        weights: of the loss.
        schedule: how long and how.
        on_step: called after each step with the step within the epoch and their number.

    Raises:
        UnstableError: the loss is not a number any more.
    """
    parameters: list[torch.Tensor] = list(network.parameters())
    average: list[torch.Tensor] = list(averaged.requires_grad_(False).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)
    generator = np.random.default_rng(schedule.seed)
    steps = math.ceil(len(train) / schedule.batch_size)
    epochs, epoch, lowest, best_epoch = schedule.epochs or 2, 0, math.inf, 0
    started = time.monotonic()
    while epoch < epochs:
        losses, members = [], []
        order = generator.permutation(len(train))
        for step, (batch, chosen) in enumerate(batches(train, schedule.batch_size, order)):
            done = epoch * steps + step
            progress = _progress(done, steps, epochs * steps)
            rate = schedule.learning_rate * min((done + 1) / steps, 1.0 - progress)
            optimizer.param_groups[0]["lr"] = rate
            batch = augment(batch, network.symmetries, schedule.seed, done)
            evaluation = evaluate(network, batch.system, batch.neighbors, create_graph=True)
            dipole = dipole_of(network, batch)
            now = _balance(weights, progress)
            loss = loss_of(evaluation, dipole, batch, now, network.settings.scale)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            # Short memory at first, so that the random start is soon forgotten.
            decay = min(schedule.ema, (1 + done) / (10 + done))
            with torch.no_grad():  # else the average drags the graph of its whole history along
                torch._foreach_lerp_(average, parameters, 1.0 - decay)
            losses.append(loss.detach())
            members.append(chosen)
            on_step(step + 1, steps)

        loss_values = torch.stack(losses).cpu()
        if not bool(loss_values.isfinite().all()):
            first = int(torch.nonzero(~loss_values.isfinite())[0])
            raise UnstableError(
                f"epoch {epoch}, batch {first}: the loss is {float(loss_values[first])}; training"
                f" frames in it: {members[first].tolist()}. The best model so far is kept; look at"
                " these frames, or lower --learning-rate"
            )
        errors = measure(averaged, valid, _balance(weights, 1.0), network.settings.scale)
        best = errors.loss < lowest
        if best:
            lowest, best_epoch = errors.loss, epoch
        epoch += 1
        seconds = time.monotonic() - started
        if schedule.epochs is None:
            epochs = max(epoch, int(schedule.budget_s / seconds * epoch))
        yield Epoch(epoch, epochs, seconds, rate, float(loss_values.mean()), errors, best)
        if epoch - 1 - best_epoch >= (schedule.patience or math.ceil(epochs / 3)):
            return


def _progress(step: int, warmup: int, total: int) -> float:
    """From zero, through the warm-up, along a cosine to one at the last step."""
    return 0.5 * (1.0 - math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup)))


def _balance(weights: Weights, progress: float) -> Weights:
    """The weights of the loss at some point of a run."""
    return weights._replace(energy=weights.energy * (1.0 + (ENERGY_FINISH - 1.0) * progress))
