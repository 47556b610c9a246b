"""How wrong a potential is: the loss that training lowers, and the errors that people read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import huber_loss

from mdlearn.jit import compiled
from mdlearn.potentials.evaluate import Evaluable, evaluate, evaluate_multipoles
from mdlearn.potentials.network import ParametricPotential
from mdlearn.system import Evaluation, sum_by_system, volume
from mdlearn.training.dataset import Example
from mdlearn.training.team import ALONE, Team

DEBYE = 0.20819434
"""e Å, the size of a dipole: its error is measured in it (CODATA 2018)."""
HUBER_DELTA = 0.01
"""In units of the typical force: quadratic for the last percent, absolute above it."""


Penalty = Literal["huber", "mse", "mae"]
Array = NDArray[Any]


class Weights(NamedTuple):
    """How much each label counts in the loss, and how the size of its error does."""

    energy: float
    forces: float
    stress: float
    dipole: float = 0.0
    penalty: Penalty = "huber"
    """Of an error x: huber, |x| far out and x²/(2 `HUBER_DELTA`) below it; mse, x²; mae, |x|."""


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
    counts: Tensor | None = None,
) -> Tensor:
    """Weighted loss of energy per atom, force components, virial per atom and dipole.

    Every error is divided by the typical force (times 1 Å for an energy), so that the weights are
    pure numbers and one set of them serves soft and stiff materials.

    Args:
        evaluation: what the potential says.
        dipole: (n_systems, 3) e Å, what it says of dipoles, if it does.
        example: the batch with its labels; NaN labels do not count.
        weights: of energy, forces and stress.
        scale: eV/Å, the typical force.
        counts: what `count_labels` says of the whole batch, where this is a share of it.

    Returns:
        () dimensionless; the share that these frames have in the loss of their batch.
    """
    energy, forces, stress, moment = count_labels(example) if counts is None else counts
    system, labels = example.system, example.labels
    n_atoms = sum_by_system(torch.ones_like(system.masses), system)
    # The virial, because a molecule has one and has no stress: NaN must not reach the derivative.
    virial = sum_by_system(evaluation.virials, system)
    per_atom = n_atoms[:, None, None]
    label = labels.stress * volume(system)[:, None, None]

    def part(found: Tensor, label: Tensor, unit: float, count: Tensor) -> Tensor:
        return _penalty(weights.penalty, found, label, unit) / count.clamp_min(1)

    loss = (
        weights.energy * part(evaluation.energy / n_atoms, labels.energy / n_atoms, scale, energy)
        + weights.forces * part(evaluation.forces, labels.forces, scale, forces)
        + weights.stress * part(virial / per_atom, label / per_atom, scale, stress)
    )
    if dipole is None:
        return loss
    return loss + weights.dipole * part(dipole, labels.dipole, DEBYE, moment)


def count_labels(example: Example) -> Tensor:
    """How many numbers there are among the labels of a batch.

    Returns:
        (4,) of energies, of components of forces, of stress and of dipoles.
    """
    return torch.stack([(~each.isnan()).sum() for each in example.labels]).double()


class Slopes(NamedTuple):
    """A loss, and its derivatives by what it knows of a batch."""

    loss: float
    by_energy: Tensor
    """(n_systems,) 1/eV."""
    by_forces: Tensor
    """(n_atoms, 3) Å/eV."""
    by_virials: Tensor
    """(n_systems, 3, 3) 1/eV, by sums of virials over the atoms of a system."""


def slopes_of(
    evaluation: Evaluation, example: Example, weights: Weights, scale: float, counts: Tensor
) -> Slopes:
    """What `loss_of` says without dipoles, and its derivatives, on a CPU and without a graph.

    For arguments see there. Autograd takes a tenth of a step of a small network for it.
    """
    system, labels = example.system, example.labels
    found = (evaluation.energy, evaluation.forces, evaluation.virials)
    known = (labels.energy, labels.forces, labels.stress, system.cell, system.system)
    energies, forces, stresses, _ = counts.clamp_min(1.0).tolist()
    shares = (weights.energy / energies, weights.forces / forces, weights.stress / stresses)
    arrays = (each.numpy() for each in (*found, *known))
    penalty = get_args(Penalty).index(weights.penalty)
    loss, *slopes = _slopes(penalty, scale, shares, *arrays)
    return Slopes(loss, *map(torch.from_numpy, slopes))


@compiled()
def _slopes(
    penalty: int,
    scale: float,
    shares: tuple[float, float, float],
    energy: Array,
    forces: Array,
    virials: Array,
    energy_label: Array,
    forces_label: Array,
    stress_label: Array,
    cell: Array,
    system: Array,
) -> tuple[float, Array, Array, Array]:
    """The loss and its derivatives; shares are weights divided by numbers of labels."""
    energy_share, forces_share, stress_share = shares
    n_systems, n_atoms = len(energy), len(forces)
    by_energy, by_forces = np.zeros(n_systems), np.zeros((n_atoms, 3))
    sums, by_virials = np.zeros((n_systems, 3, 3)), np.zeros((n_systems, 3, 3))
    sizes, loss = np.zeros(n_systems), 0.0
    for n in range(n_atoms):
        sizes[system[n]] += 1.0
        for axis in range(3):
            value, slope = _penalize(penalty, (forces[n, axis] - forces_label[n, axis]) / scale)
            if not np.isnan(forces_label[n, axis]):
                loss += forces_share * value
                by_forces[n, axis] = forces_share * slope / scale
            for other in range(3):
                sums[system[n], axis, other] += virials[n, axis, other]
    for s in range(n_systems):
        unit = scale * sizes[s]
        value, slope = _penalize(penalty, (energy[s] - energy_label[s]) / unit)
        if not np.isnan(energy_label[s]):
            loss += energy_share * value
            by_energy[s] = energy_share * slope / unit
        a, b, c = cell[s, 0], cell[s, 1], cell[s, 2]
        normal = (b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0])
        volume = abs(a[0] * normal[0] + a[1] * normal[1] + a[2] * normal[2])
        for axis in range(3):
            for other in range(3):
                label = stress_label[s, axis, other] * volume
                value, slope = _penalize(penalty, (sums[s, axis, other] - label) / unit)
                if not np.isnan(label):
                    loss += stress_share * value
                    by_virials[s, axis, other] = stress_share * slope / unit
    return loss, by_energy, by_forces, by_virials


@compiled(inner=True)
def _penalize(penalty: int, x: float) -> tuple[float, float]:
    """What an error counts, and the derivative of that; see `Weights`."""
    size = abs(x)
    if penalty == 1:
        return x * x, 2.0 * x
    if penalty == 0 and size < HUBER_DELTA:
        return 0.5 * x * x / HUBER_DELTA, x / HUBER_DELTA
    less = 0.5 * HUBER_DELTA if penalty == 0 else 0.0
    return size - less, x / size if size > 0.0 else 0.0


def dipole_of(potential: ParametricPotential, example: Example) -> Tensor | None:
    """(n_systems, 3) e Å, what a potential says of dipoles; None if it says nothing."""
    if not potential.settings.dipole:
        return None
    return evaluate_multipoles(potential, example.system, example.neighbors).dipole


def _penalty(penalty: Penalty, found: Tensor, label: Tensor, unit: float) -> Tensor:
    """Sum over the labels that are numbers of what their errors count; see `Weights`."""
    known = ~label.isnan()
    error = torch.where(known, (found - label) / unit, 0.0)
    if penalty == "mse":
        return error.square().sum()
    if penalty == "mae":
        return error.abs().sum()
    total = huber_loss(error, torch.zeros_like(error), delta=HUBER_DELTA, reduction="sum")
    return total / HUBER_DELTA


def measure(
    potential: ParametricPotential,
    examples: Iterable[Example],
    weights: Weights,
    scale: float,
    team: Team = ALONE,
    faster: Evaluable | None = None,
) -> Errors:
    """Errors of a potential over batches of frames, and over those of all of a team.

    Args:
        potential: what is measured.
        examples: batches, in this process.
        weights: of the loss.
        scale: eV/Å, the typical force.
        team: the processes that have all batches.
        faster: gives the same energies, forces and stress.
    """
    sums: list[Tensor] = []
    for example in examples:
        evaluation = evaluate(faster or potential, example.system, example.neighbors)
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
    # A process may have no batch at all; it still takes part in the sum.
    total = torch.stack(sums).sum(0).cpu() if sums else torch.zeros(14, dtype=torch.float64)
    team.add(total)
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
