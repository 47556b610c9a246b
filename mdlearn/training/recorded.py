"""The gradient of a loss as one graph, for a GPU: recorded once for a shape, and then replayed.

Forces are derivatives already, so the gradient of their errors takes some four thousand operations,
of which a GPU does each sooner than it can be told of the next. A batch of few atoms takes it
several times as long to be told as to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdlearn.graph import capture, place_for, put, tensors_of
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import ParametricPotential
from mdlearn.training.dataset import Example
from mdlearn.training.loss import Weights, dipole_of, loss_of

MANY_PAIRS = 40_000
"""Pairs from which on a GPU is busy with what it has been told."""
MOST = 32
"""Recordings that are kept; each holds memory."""


class Gradient(NamedTuple):
    """The share of a batch in a loss, and what follows for the parameters."""

    loss: Tensor
    """()"""
    by_parameters: tuple[Tensor | None, ...]
    """One for each of them; None where it has nothing to do with the loss."""


def gradient_of(
    network: ParametricPotential,
    parameters: Sequence[Tensor],
    batch: Example,
    weights: Weights,
    counts: Tensor,
) -> Gradient:
    """The gradient of the loss of a batch, by autograd.

    Args:
        network: what is trained.
        parameters: of it, those that learn.
        batch: the frames.
        weights: of the loss.
        counts: see `loss.loss_of`.
    """
    evaluation = evaluate(network, batch.system, batch.neighbors, create_graph=True)
    dipole = dipole_of(network, batch)
    loss = loss_of(evaluation, dipole, batch, weights, network.settings.scale, counts)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return Gradient(loss.detach(), found)


class Recordings:
    """Recorded gradients of one network, by the shape of a batch."""

    def __init__(self, network: ParametricPotential, parameters: Sequence[Tensor]) -> None:
        """Records nothing yet."""
        self.network, self.parameters = network, parameters
        self.seen: set[tuple[torch.Size, ...]] = set()
        self.kept: dict[tuple[torch.Size, ...], Recording] = {}

    def gradient(self, batch: Example, weights: Weights, counts: Tensor) -> Gradient:
        """See `gradient_of`; what is replayed is overwritten by the next one.

        A shape is recorded when it comes a second time; to record it takes as long as some steps.
        """
        shape = tuple(each.shape for each in tensors_of(batch))
        known = self.kept.get(shape)
        if known is None and shape in self.seen and len(self.kept) < MOST and _pays(batch):
            known = Recording(self.network, self.parameters, batch, weights, counts)
            self.kept[shape] = known
        self.seen.add(shape)
        if known is None:
            return gradient_of(self.network, self.parameters, batch, weights, counts)
        return known.gradient(batch, weights, counts)


def _pays(batch: Example) -> bool:
    """Whether a recording is worth it."""
    j = batch.neighbors.j
    return j.device.type == "cuda" and j.numel() <= MANY_PAIRS


class Recording:
    """The gradient for batches of one shape."""

    def __init__(
        self,
        network: ParametricPotential,
        parameters: Sequence[Tensor],
        batch: Example,
        weights: Weights,
        counts: Tensor,
    ) -> None:
        """Records it.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        self.batch, self.counts = place_for(batch), place_for(counts)
        self.weights = counts.new_tensor(weights[:-1])
        penalty = weights.penalty

        def launch() -> Gradient:
            # Of which a schedule changes the first at every step.
            now = Weights._make((*self.weights.unbind(), penalty))
            return gradient_of(network, parameters, self.batch, now, self.counts)

        self.replay: Callable[[], Gradient] = capture(launch, counts.device)

    def gradient(self, batch: Example, weights: Weights, counts: Tensor) -> Gradient:
        """Of a batch of this shape."""
        put(batch, self.batch)
        put(counts, self.counts)
        for place, weight in zip(self.weights.unbind(), weights[:-1], strict=True):
            place.fill_(weight)
        return self.replay()
