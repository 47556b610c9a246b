"""A trained network as the start of another training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mdlearn.atoms import Frame
from mdlearn.errors import UsageError
from mdlearn.potentials.architectures import make_potential
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import ParametricPotential
from mdlearn.training.dataset import Example
from mdlearn.training.statistics import count_atoms, find_species, least_squares
from mdlearn.training.team import ALONE, Team

SLOWER = 0.2
"""The learning rate of a fine-tuning, as a share of that of a training from scratch: enough to
learn what is new, and little enough to keep what is known."""


def adapt(
    old: ParametricPotential,
    examples: Sequence[Example],
    isolated: Sequence[Frame],
    closest: Sequence[tuple[int, int, float]],
    forces: Sequence[tuple[int, float]],
    counts: Sequence[tuple[int, int, int]],
    team: Team = ALONE,
) -> ParametricPotential:
    """The network of a model, made ready for other frames.

    Weights, cutoff and size are those of the model. Elements that it does not know are added, with
    random weights. Energies of isolated atoms are taken from `isolated`; those of the others are
    shifted by least squares, so that the mean energies of the frames are right: another functional
    or program has another zero of energy. The wall retreats to the shorter distance of the two.

    Args:
        old: the network of the model, in the precision of the training.
        examples: frames to train on.
        isolated: frames of a single atom.
        closest: see `dataset.closest_distances`, of these frames.
        forces: see `dataset.largest_forces`, of these frames.
        counts: see `dataset.neighbor_counts`, of these frames.
        team: the processes among which the frames are shared out.

    Raises:
        ModelError: a new element, and an architecture that cannot take it up.
    """
    found = find_species(examples, team)
    given = {int(f.system.numbers[0]): float(f.labels.energy) for f in isolated}
    species = tuple(sorted({*old.species, *found, *given}))
    shortest = {(a, b): distance for a, b, distance in closest}
    for a, b, distance in old.settings.closest:
        shortest[a, b] = min(distance, shortest.get((a, b), distance))
    largest = dict(forces)
    for z, force in old.settings.largest_forces:
        largest[z] = max(force, largest.get(z, force))
    extremes = {z: (few, many) for z, few, many in counts}
    for z, few, many in old.settings.neighbor_counts:
        low, high = extremes.get(z, (few, many))
        extremes[z] = min(few, low), max(many, high)
    settings = old.settings._replace(
        closest=tuple((*pair, d) for pair, d in shortest.items()),
        largest_forces=tuple(largest.items()),
        neighbor_counts=tuple((z, *each) for z, each in extremes.items()),
    )

    def build(energies: dict[int, float]) -> ParametricPotential:
        network = make_potential(species, energies, settings).to(next(old.parameters()))
        network.inherit(old)
        return network

    energies = {z: 0.0 for z in species} | old.elements.energies() | given
    return build(right_on_average(build(energies), examples, energies, set(given), team))


def right_on_average(
    network: ParametricPotential,
    examples: Sequence[Example],
    energies: dict[int, float],
    fixed: set[int],
    team: Team,
) -> dict[int, float]:
    """Energies of isolated atoms with which a network is right on average, but for those given."""
    free = [z for z in energies if z not in fixed]
    if not free:
        return energies

    def missing(each: Example) -> float:
        found = evaluate(network, each.system, each.neighbors).energy
        return float(each.labels.energy - found)

    rows = ((count_atoms(each.system, free), missing(each)) for each in team.share(examples))
    shift, _ = least_squares(rows, len(free), team)
    return energies | {z: energies[z] + s for z, s in zip(free, shift, strict=True)}


def freeze(network: nn.Module, names: Sequence[str]) -> int:
    """Keeps parts of a network as they are.

    Args:
        network: its parameters will not ask for a gradient any more.
        names: of modules or parameters, as in `products.0`.

    Returns:
        How many weights are frozen.

    Raises:
        UsageError: there is no part of that name, or nothing would be left to train.
    """
    parameters = dict(network.named_parameters())
    for wanted in names:
        parts = [name for name in parameters if name == wanted or name.startswith(f"{wanted}.")]
        if not parts:
            known = sorted({name.rsplit(".", 1)[0] for name in parameters})
            raise UsageError(
                f"--freeze: there is no '{wanted}' in this network; its parts are"
                f" {', '.join(known)}"
            )
        for name in parts:
            parameters[name].requires_grad_(False)
    if not any(each.requires_grad for each in parameters.values()):
        raise UsageError("--freeze: nothing is left to train; freeze less")
    return sum(each.numel() for each in parameters.values() if not each.requires_grad)
