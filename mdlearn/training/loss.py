"""How wrong a potential is: the loss that training lowers, and the errors that people read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from mdlearn.potentials.evaluate import evaluate, evaluate_multipoles
from mdlearn.potentials.network import ParametricPotential
from mdlearn.system import Evaluation, sum_by_system, volume
from mdlearn.training.dataset import Example

DEBYE = 0.20819434
"""e Å, the size of a dipole: its error is measured in it (CODATA 2018)."""
HUBER_DELTA = 0.01
"""In units of the typical force: quadratic for the last percent, absolute above it."""


class Weights(NamedTuple):
    """How much each label counts in the loss."""

    energy: float
    forces: float
    stress: float
    dipole: float = 0.0


class Errors(NamedTuple):
    """Errors of a potential on a set of frames; NaN where there are no labels."""

    energy_mae_meV: float  # noqa: N815
    """Per frame, meV."""
    energy_mae_meV_per_atom: float  # noqa: N815
    forces_mae_meV_per_A: float  # noqa: N815
    """Per component, meV/Å."""
    forces_rmse_meV_per_A: float  # noqa: N815
    stress_mae_meV_per_A3: float  # noqa: N815
    """Per component, meV/Å³."""
    dipole_mae_meA: float  # noqa: N815
    """Per component, me Å."""
    loss: float


def loss_of(
    evaluation: Evaluation,
    dipole: Tensor | None,
    example: Example,
    weights: Weights,
    scale: float,
) -> Tensor:
    """Weighted Huber loss of energy per atom, force components, virial per atom and dipole.

    Every error is divided by the typical force (times 1 Å for an energy), so that the weights are
    pure numbers and one set of them serves soft and stiff materials.

    Args:
        evaluation: what the potential says.
        dipole: (n_systems, 3) e Å, what it says of dipoles, if it does.
        example: the batch with its labels; NaN labels do not count.
        weights: of energy, forces and stress.
        scale: eV/Å, the typical force.

    Returns:
        () dimensionless.
    """
    system, labels = example.system, example.labels
    n_atoms = sum_by_system(torch.ones_like(system.masses), system)
    # The virial, because a molecule has one and has no stress: NaN must not reach the derivative.
    virial = sum_by_system(evaluation.virials, system)
    per_atom = n_atoms[:, None, None]
    label = labels.stress * volume(system)[:, None, None]
    loss = (
        weights.energy * _huber(evaluation.energy / n_atoms, labels.energy / n_atoms, scale)
        + weights.forces * _huber(evaluation.forces, labels.forces, scale)
        + weights.stress * _huber(virial / per_atom, label / per_atom, scale)
    )
    if dipole is None:
        return loss
    return loss + weights.dipole * _huber(dipole, labels.dipole, DEBYE)


def dipole_of(potential: ParametricPotential, example: Example) -> Tensor | None:
    """(n_systems, 3) e Å, what a potential says of dipoles; None if it says nothing."""
    if not potential.settings.dipole:
        return None
    return evaluate_multipoles(potential, example.system, example.neighbors).dipole


def _huber(found: Tensor, label: Tensor, scale: float) -> Tensor:
    """Mean Huber loss over the labels that are numbers, normalized to |error|/scale far out."""
    known = ~label.isnan()
    error = torch.where(known, (found - label) / scale, 0.0)
    total = huber_loss(error, torch.zeros_like(error), delta=HUBER_DELTA, reduction="sum")
    return total / HUBER_DELTA / known.sum().clamp_min(1)


def measure(
    potential: ParametricPotential, examples: Iterable[Example], weights: Weights, scale: float
) -> Errors:
    """Errors of a potential over batches of frames."""
    sums: list[Tensor] = []
    for example in examples:
        evaluation = evaluate(potential, example.system, example.neighbors)
        with torch.no_grad():
            dipole = dipole_of(potential, example)
        n_atoms = sum_by_system(torch.ones_like(example.system.masses), example.system)
        energy = (evaluation.energy - example.labels.energy).abs()
        forces = evaluation.forces - example.labels.forces
        stress = evaluation.stress - example.labels.stress
        label = example.labels
        moment = torch.full_like(label.dipole, torch.nan) if dipole is None else dipole
        moment = (moment - label.dipole).abs()
        labels = (label.energy, label.energy, label.forces, label.forces, label.stress, moment)
        labelled = [~each.isnan() for each in labels]
        terms = [energy, energy / n_atoms, forces.abs(), forces.square(), stress.abs(), moment]
        loss = loss_of(evaluation, dipole, example, weights, scale) * len(energy)
        row = [
            torch.where(known, each, 0.0).sum() for known, each in zip(labelled, terms, strict=True)
        ]
        row += [known.sum() for known in labelled]
        sums.append(torch.stack([*row, loss, torch.ones_like(energy).sum()]))
    total = torch.stack(sums).sum(0).cpu()
    energy, per_atom, absolute, square, stress, moment = (total[:6] / total[6:12]).tolist()
    return Errors(
        1e3 * energy,
        1e3 * per_atom,
        1e3 * absolute,
        1e3 * square**0.5,
        1e3 * stress,
        1e3 * moment,
        float(total[12] / total[13]),
    )
