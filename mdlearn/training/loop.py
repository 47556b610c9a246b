"""The training loop, whole, on one screen; and what it needs to go on where it stopped."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mdlearn.errors import DataError, UnstableError, is_out_of_memory
from mdlearn.files import write_atomically
from mdlearn.potentials.frozen import misgiving
from mdlearn.potentials.learning import loops_of
from mdlearn.potentials.model_file import DAMAGE
from mdlearn.potentials.network import ParametricPotential
from mdlearn.training.adam import Adam
from mdlearn.training.dataset import Example, concatenate, deal, find_sizes
from mdlearn.training.loss import Errors, Weights, measure
from mdlearn.training.recorded import Recordings
from mdlearn.training.schedule import WARMUP, Schedule, balance, cosine
from mdlearn.training.step import gradient
from mdlearn.training.team import ALONE, Team

SAVE_EVERY_S = 10.0
"""Seconds of work that a kill can cost."""
CHOOSE_EVERY_S = 30.0
"""Seconds for which a number of threads is kept: when it was chosen, something else may have held a
core for a moment. Trying takes less than a hundredth of it, and changes no bits."""


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


class Training:
    """A training at one moment: all that the rest of it depends on.

    What is drawn at random is a function of the seed and of the step, so there is no generator
    whose state would have to be kept. Saved and loaded, a training goes on to the same bits.
    """

    def __init__(
        self,
        network: ParametricPotential,
        weights: Weights,
        schedule: Schedule,
        frames_sha256: str = "",
    ) -> None:
        """A training that has not begun.

        Args:
            network: trained in place.
            weights: of the loss.
            schedule: how long and how.
            frames_sha256: of the file of the frames; no other training loads what this one saves.
        """
        self.network = network
        self.frames_sha256 = frames_sha256
        self.averaged = copy.deepcopy(network).requires_grad_(False)
        """The running average of the weights: the network that a user gets."""
        pairs = zip(network.parameters(), self.averaged.parameters(), strict=True)
        learning: list[tuple[Tensor, Tensor]] = [each for each in pairs if each[0].requires_grad]
        self.parameters = [each for each, _ in learning]
        self.adam = Adam(self.parameters, [each for _, each in learning])
        self.loops, self.averaged_loops = loops_of(network), loops_of(self.averaged)
        """That give gradients and errors faster than autograd, if there are any for the network."""
        self.without_loops = ""
        """Why there are loops that are not used."""
        self.typical: Example | None = None
        """A batch to try numbers of threads on."""
        self.weights = weights
        self.schedule = schedule
        self.recordings = Recordings(network, self.parameters)
        """Of the gradient by autograd, on a GPU."""
        self.history: list[Epoch] = []
        self.steps = 0
        """Taken in all."""
        self.losses: list[Tensor] = []
        """Of the steps of the epoch that has begun."""
        self.epochs = schedule.epochs or 2
        """How many there will be, as far as is known."""
        self.seconds = 0.0
        """Spent."""
        self.parts = 1
        """In how many parts each batch is computed, since memory did not suffice for fewer."""

    def try_loops(self, example: Example, count: int = 1) -> None:
        """Leaves loops aside that do not agree with the network; compiles them where need be.

        Args:
            example: a frame to try them on.
            count: of such frames in a batch, which settles the number of threads.
        """
        if self.loops is None or self.averaged_loops is None:
            return
        self.without_loops = misgiving(self.loops, self.network, [example.system])
        if self.without_loops:
            self.loops = self.averaged_loops = None
            return
        self.averaged_loops.team = self.loops.team
        self.typical = concatenate([example] * count)
        self.choose_threads()

    def choose_threads(self) -> None:
        """Settles how many threads share a batch."""
        if self.loops is None or self.typical is None:
            return
        try:
            self.loops.choose_threads(self.typical.system, self.typical.neighbors)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):  # a step knows what to do about that
                raise

    def advance(self, loss: Tensor, rate: float) -> None:
        """Takes a step along the gradient that the parameters hold.

        Args:
            loss: () that it is the gradient of.
            rate: the step size.
        """
        # Short memory at first, so that the random start is soon forgotten.
        decay = min(self.schedule.ema, (1 + self.steps) / (10 + self.steps))
        self.adam.step(self.steps + 1, rate, decay)
        self.losses.append(loss)
        self.steps += 1

    def finished(self) -> bool:
        """Whether there is nothing more to do."""
        return len(self.history) >= self.epochs or self.settled()

    def settled(self) -> bool:
        """Whether the validation loss has not become lower for as long as patience lasts."""
        best = max((each.epoch for each in self.history if each.best), default=0)
        patience = self.schedule.patience
        return patience is not None and len(self.history) - best >= patience

    def save(self, path: Path) -> None:
        """Writes everything to a file, whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        numbers = {
            "frames_sha256": self.frames_sha256,
            "schedule": self.schedule,
            "history": self.history,
            "steps": self.steps,
            "epochs": self.epochs,
            "seconds": self.seconds,
        }
        tensors = {name: each.detach().cpu().contiguous() for name, each in self._tensors().items()}
        if self.losses:
            tensors["losses"] = torch.stack(self.losses).cpu()
        write_atomically(path, save(tensors, metadata={"training": json.dumps(numbers)}))

    def load(self, path: Path) -> None:
        """Takes everything from a file that `save` wrote.

        Raises:
            DataError: the file is damaged, or of a training of something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                numbers = json.loads(file.metadata()["training"])
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if numbers["frames_sha256"] != self.frames_sha256:
                raise DataError(
                    f"{path}: the training frames have changed since this was saved; put the old"
                    " ones back, or start again with --overwrite"
                )
            with torch.no_grad():
                for name, each in self._tensors().items():
                    each.copy_(found[name])
            schedule = Schedule(*numbers["schedule"])
            history = [
                Epoch._make([*row, Errors(*errors), best])
                for *row, errors, best in numbers["history"]
            ]
        except (SafetensorError, OSError, *DAMAGE) as error:
            raise DataError(
                f"{path}: no state of this training ({type(error).__name__}: {error}); start again"
                " with --overwrite"
            ) from error
        self.schedule, self.history = schedule, history
        self.steps, self.epochs, self.seconds = (
            numbers[name] for name in ("steps", "epochs", "seconds")
        )
        device = self.parameters[0].device
        self.losses = list(found.get("losses", torch.zeros(0)).to(device))

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors that steps change, by name."""
        tensors: dict[str, Tensor] = {}
        tensors |= {f"network.{name}": each for name, each in self.network.named_parameters()}
        tensors |= {f"average.{name}": each for name, each in self.averaged.named_parameters()}
        return tensors | self.adam.tensors()


def never(step: int, steps: int) -> bool:
    """Nobody wants a training to stop."""
    return False


def fit(
    training: Training,
    train: Sequence[Example],
    valid: Iterable[Example],
    stops: Callable[[int, int], bool] = never,
    *,
    path: Path | None = None,
    before_saving: Callable[[], None] = lambda: None,
    team: Team = ALONE,
    most_parts: int = 1,
) -> Iterator[Epoch]:
    """Trains from where a training stands, and yields after every epoch.

    Adam with a linear warm-up and then a cosine to zero; validation is of the running average of
    the weights. A network that is not invariant under rotations sees every frame turned another way
    each time.

    Args:
        training: changed in place.
        train: examples to learn from.
        valid: batches to judge by; of a team, the share of this process.
        stops: called after each step with the step within the epoch and their number; returns
            whether to stop there. A team stops when any of its processes wants to.
        path: where to save the training, now and then, and where it stops.
        before_saving: keeps what came of it until then.
        team: the processes that train together; only the first one saves.
        most_parts: in how many parts a batch may be computed where memory does not suffice.

    Raises:
        ResourceError: it does not suffice for that, either.
        UnstableError: the loss is not a number any more. What was saved is from before.
    """
    schedule, network = training.schedule, training.network
    sizes = np.array(find_sizes(train))
    costs, limit = (
        (np.ones_like(sizes), schedule.batch_size)
        if schedule.batch_size
        else (sizes, schedule.batch_atoms)
    )
    training.try_loops(train[0], max(1, int(limit // costs[0])))
    began = time.monotonic() - training.seconds
    saved = tried = time.monotonic()

    def save_if(due: bool) -> None:
        nonlocal saved
        training.seconds = time.monotonic() - began
        if path is not None and team.rank == 0 and due:
            before_saving()
            training.save(path)
            saved = time.monotonic()

    while not training.finished():
        epoch = len(training.history)
        order = np.random.default_rng([schedule.seed, epoch]).permutation(len(train))
        groups = deal(order, costs, limit)
        stop = False
        for step in range(len(training.losses), len(groups)):
            total = training.epochs * len(groups)
            warmup = max(len(groups), WARMUP)
            if schedule.epochs or epoch > 0:  # else nobody knows yet how many there will be
                warmup = max(1, min(warmup, total // 8))
            progress = cosine(epoch * len(groups) + step, warmup, total)
            rate = min((training.steps + 1) / warmup, 1.0 - progress) * schedule.highest_rate(total)
            weights = balance(training.weights, progress)
            seeds = [(schedule.seed, epoch, int(index)) for index in groups[step]]
            chosen = [train[index] for index in team.share(groups[step].tolist())]
            loss = gradient(
                training, chosen, team.share(seeds), weights, team, most_parts=most_parts
            )
            training.advance(loss, rate)
            stop = _any_of(team, stops(step + 1, len(groups)))
            due = stop or time.monotonic() - saved > SAVE_EVERY_S
            if due or step + 1 == len(groups):
                _require_numbers(training.losses, epoch, groups, train)
            if due and step + 1 < len(groups):
                save_if(True)
            if stop and step + 1 < len(groups):
                return
            if time.monotonic() - tried > CHOOSE_EVERY_S:
                training.choose_threads()
                tried = time.monotonic()

        mean = float(torch.stack(training.losses).mean())
        final = balance(training.weights, 1.0)
        errors = measure(
            training.averaged,
            valid,
            final,
            network.settings.scale,
            team,
            training.averaged_loops,
        )
        lowest = min((each.valid.loss for each in training.history), default=math.inf)
        seconds = _mean_of(team, time.monotonic() - began)
        if schedule.epochs is None:
            fitting = int(schedule.budget_s / seconds * (epoch + 1))
            training.epochs = max(epoch + 1, fitting)
        result = Epoch(
            epoch + 1, training.epochs, seconds, rate, mean, errors, errors.loss < lowest
        )
        training.history.append(result)
        training.losses = []
        yield result
        save_if(stop or time.monotonic() - saved > SAVE_EVERY_S)
        if stop:
            return
    save_if(True)


def _require_numbers(
    losses: Sequence[Tensor],
    epoch: int,
    groups: Sequence[NDArray[np.int64]],
    train: Sequence[Example],
) -> None:
    """Raises UnstableError if a loss of this epoch is not a number; waits for the device."""
    values = torch.stack(list(losses)).cpu()
    bad = torch.nonzero(~values.isfinite()).flatten().tolist()
    if bad:
        names = ", ".join(train[index].name for index in groups[bad[0]])
        raise UnstableError(
            f"epoch {epoch + 1}, step {bad[0] + 1}: the loss is {float(values[bad[0]])}; the"
            f" training frames in it: {names}. The best model so far is kept, and the training as"
            " it was before: look at these frames, or start again with a lower --learning-rate"
        )


def _any_of(team: Team, wanted: bool) -> bool:
    """Whether any process of a team wants something."""
    return wanted if team.size == 1 else bool(team.add(torch.tensor([wanted * 1.0])) > 0.0)


def _mean_of(team: Team, value: float) -> float:
    """What the processes of a team agree on."""
    if team.size == 1:
        return value
    return float(team.add(torch.tensor([value], dtype=torch.float64))) / team.size
