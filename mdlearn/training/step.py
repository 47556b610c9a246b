"""The gradient of a step: of all processes' shares of a batch, in as many parts as memory asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mdlearn.errors import ResourceError, is_out_of_memory
from mdlearn.potentials.evaluate import kept_for_derivatives
from mdlearn.potentials.learning import Loops
from mdlearn.potentials.network import ParametricPotential
from mdlearn.training.augmentation import augment
from mdlearn.training.dataset import Example, concatenate
from mdlearn.training.loss import Weights, count_labels, slopes_of
from mdlearn.training.team import Team

if TYPE_CHECKING:
    from mdlearn.training.loop import Training

MOST_PARTS = 8
"""A batch is halved three times at most."""


def gradient(
    training: Training,
    chosen: Sequence[Example],
    seeds: Sequence[tuple[int, ...]],
    weights: Weights,
    team: Team,
    *,
    most_parts: int,
) -> Tensor:
    """Leaves the gradient of the loss of a batch in the parameters of a training.

    Where memory runs out, the share of this process is computed in twice as many parts from there
    on, one after another. The loss of a part is divided by the label counts of the whole batch, so
    that the parts add up to the same gradient.

    Args:
        training: its network, and in how many parts it computes.
        chosen: the share of this process; may be empty in a team.
        seeds: of the random rotations, one for each example.
        weights: of the loss.
        team: the processes that train together.
        most_parts: one: raise where memory runs out.

    Returns:
        () the loss of the batch.

    Raises:
        ResourceError: memory runs out, and there are no more parts to be made.
    """
    parameters = training.parameters
    device = parameters[0].device
    batches = _batches(training, chosen, seeds)
    counts = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in batches:
        counts += count_labels(batch)
    team.add(counts)
    while (total := _add_up(training, batches, weights, counts)) is None:
        # Not where the error is caught, which holds on to what has been computed.
        if training.parts >= min(most_parts, len(chosen)):
            raise ResourceError(_explain(training, chosen, most_parts))
        training.parts *= 2
        batches = _batches(training, chosen, seeds)
    if team.size == 1:
        return total
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([*(each.flatten().double() for each in gradients), total[None]])
    shares: Sequence[Tensor] = team.add(flat).split([*(each.numel() for each in parameters), 1])
    for parameter, share in zip(parameters, shares, strict=False):
        parameter.grad = share.view_as(parameter).to(parameter.dtype)
    return shares[-1][0]


def _batches(
    training: Training, chosen: Sequence[Example], seeds: Sequence[tuple[int, ...]]
) -> list[Example]:
    """The share of this process in as many batches as its training has parts."""
    parts = min(training.parts, len(chosen))
    return [
        augment(
            concatenate([chosen[index] for index in part]),
            training.network.symmetries,
            [seeds[index] for index in part],
        )
        for part in (np.array_split(np.arange(len(chosen)), parts) if parts else [])
    ]


def _add_up(
    training: Training, batches: Sequence[Example], weights: Weights, counts: Tensor
) -> Tensor | None:
    """The loss of batches, and its gradient in the parameters; None if memory does not suffice."""
    total = torch.zeros((), dtype=torch.float64, device=counts.device)
    for each in training.parameters:
        each.grad = None
    try:
        for batch in batches:
            if training.loops is not None:
                total += _in_loops(training, training.loops, batch, weights, counts)
                continue
            loss, found = training.recordings.gradient(batch, weights, counts)
            total += loss
            for parameter, more in zip(training.parameters, found, strict=True):
                if parameter.grad is not None and more is not None:
                    parameter.grad += more
                elif more is not None:  # and the next batch may overwrite it
                    parameter.grad = more if len(batches) == 1 else more.clone()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return total


def _in_loops(
    training: Training, loops: Loops, batch: Example, weights: Weights, counts: Tensor
) -> float:
    """The loss of a batch; adds its gradient to that of the parameters, without a graph."""
    point = loops.begin(batch.system, batch.neighbors)
    scale = training.network.settings.scale
    slopes = slopes_of(point.evaluation, batch, weights, scale, counts)
    # Every other step looks to the other side, so that what a difference is off by averages out.
    sign = -1.0 if training.steps % 2 else 1.0
    point.add_gradient(slopes.by_energy, slopes.by_forces, slopes.by_virials, sign)
    return slopes.loss


def _explain(training: Training, chosen: Sequence[Example], most_parts: int) -> str:
    """What to say, and what to do, when memory has run out."""
    smallest = min(chosen, key=lambda each: each.neighbors.j.numel())
    atoms = [len(each.system.numbers) for each in chosen]
    needed = (
        training.loops.workspace(*smallest.neighbors.j.shape)
        if training.loops
        else estimate_memory(training.network, smallest)
    )
    if needed is None:
        return (
            f"out of memory: not even {smallest.name}, a frame of {min(atoms)} atoms, fits; train a"
            " smaller network (--size small), or with a shorter --cutoff, or on another machine"
        )
    slots = sum(atoms) * max(each.neighbors.j.shape[1] for each in chosen)
    size = needed * slots / smallest.neighbors.j.numel() / training.parts / 1e9
    which = f"a {'batch' if training.parts == 1 else f'part (of {training.parts}) of a batch'}"
    halves = "go on with --resume and --auto-batch, which computes it in parts, or "
    return (
        f"out of memory: {which} of {len(chosen)} frames and {sum(atoms)} atoms needs at least"
        f" {size:.2g} GB; {halves if most_parts == 1 and len(chosen) > 1 else ''}start again with"
        f" --batch-atoms {max(1, sum(atoms) // 2)}, --size small or a shorter --cutoff"
    )


def estimate_memory(network: ParametricPotential, example: Example) -> int | None:
    """Bytes that a training step keeps for its derivatives; None if they cannot be had.

    It is measured, so it grows with the neighbors of the example and the size of the network alike.
    """
    try:
        kept = kept_for_derivatives(network, example.system, example.neighbors, create_graph=True)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return sum(kept.values())
