"""Predictions of a potential beside the labels of frames, and every figure that is made of them.

`loss.measure` is the yardstick of training, a few sums. Here everything is kept, frame by frame and
atom by atom, so that tables and pictures show where a potential errs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.atoms import Frame
from mdlearn.labels import Labels
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import ParametricPotential
from mdlearn.training.dataset import Example, concatenate, make_example, to
from mdlearn.training.loss import dipole_of
from mdlearn.units import meV

Array = NDArray[np.float64]

ATOMS_PER_BATCH = 500
WORST = 5
"""How many of the worst frames are named."""
UNNAMED = "unnamed"
"""The group of frames without a `config_type`, where others have one."""


class Quantities(NamedTuple):
    """Labels of frames, or predictions for them; NaN where there is nothing to compare."""

    energy: Array
    """(n_frames,) eV."""
    forces: Array
    """(n_atoms, 3) eV/Å."""
    stress: Array
    """(n_frames, 3, 3) eV/Å³, ASE's sign."""
    dipole: Array
    """(n_frames, 3) e Å."""


class Comparison(NamedTuple):
    """What a potential says of frames, beside what their labels say."""

    names: tuple[str, ...]
    """Of the frames, as in `frames.xyz:12`."""
    config_types: tuple[str, ...]
    """What kind of structure each frame is; `UNNAMED` where nobody said."""
    numbers: NDArray[np.int64]
    """(n_atoms,) atomic numbers, all frames one behind another."""
    frame: NDArray[np.int64]
    """(n_atoms,) the frame that each atom belongs to."""
    isolated: Array
    """(n_frames,) eV, what the isolated atoms of each frame have in all."""
    labels: Quantities
    predictions: Quantities


class Pair(NamedTuple):
    """Labels and predictions of one quantity, of equal shape (n, ...)."""

    labels: Array
    predictions: Array


class Statistics(NamedTuple):
    """How large the errors of one quantity are, in its unit."""

    mae: float
    """Mean of the absolute errors of all components."""
    rmse: float
    """Root of the mean of their squares."""
    max: float
    """The largest of them."""
    relative_rmse: float
    """`rmse` in units of the standard deviation of the labels: one for a potential that always says
    their mean. NaN where all labels are the same."""


class BadFrame(NamedTuple):
    """A frame with large errors, and the atom with the largest."""

    name: str
    config_type: str
    atom: int
    """Within the frame, counted from 0; -1 where there are no forces to compare."""
    symbol: str
    errors: dict[str, Statistics]


class Group(NamedTuple):
    """Frames, or atoms, that are looked at together."""

    frames: int
    atoms: int
    errors: dict[str, Statistics]
    """By the names in `QUANTITIES`; without those that have no labels."""


class Summary(NamedTuple):
    """The errors of a potential on a set of frames, as a whole and in parts."""

    whole: Group
    elements: dict[str, Group]
    """By symbol: the errors of the forces on these atoms."""
    config_types: dict[str, Group]
    """Empty where no frame has one."""
    worst: tuple[BadFrame, ...]
    """The frames with the largest root mean square error of the forces, or the largest error of the
    energy per atom where most frames have no forces; the worst first."""


QUANTITIES = {
    "energy_meV": ("energy", "meV"),
    "energy_meV_per_atom": ("energy", "meV/atom"),
    "forces_meV_per_A": ("forces", "meV/Å"),
    "stress_meV_per_A3": ("stress", "meV/Å³"),
    "dipole_meA": ("dipole", "me Å"),
}
"""Everything that is compared: the name that JSON has, and name and unit for people."""


def compare(potential: ParametricPotential, frames: Iterable[Frame]) -> Comparison:
    """Evaluates a potential on frames, once, about `ATOMS_PER_BATCH` atoms at a time.

    Args:
        potential: on the device where to compute.
        frames: labelled; at least one.
    """
    device = potential.elements.rank.device
    names: list[str] = []
    kinds: list[str] = []
    numbers: list[NDArray[np.int64]] = []
    given: list[Labels] = []
    found: list[tuple[Tensor, ...]] = []
    for group in _in_groups(frames):
        example = concatenate([make_example(each, potential.cutoff) for each in group])
        names += [each.name for each in group]
        kinds += [each.config_type or UNNAMED for each in group]
        numbers += [each.system.numbers.numpy() for each in group]
        given.append(example.labels)
        found.append(_predict(potential, to(example, device)))
    labels = Quantities(*(torch.cat(each).numpy() for each in zip(*given, strict=True)))
    if not potential.settings.dipole:  # nothing is said of dipoles, so nothing is wrong
        labels = labels._replace(dipole=np.full_like(labels.dipole, np.nan))
    energies = potential.elements.energies()
    return Comparison(
        tuple(names),
        tuple(kinds),
        np.concatenate(numbers),
        np.repeat(np.arange(len(names)), [len(each) for each in numbers]),
        np.array([sum(energies[z] for z in each.tolist()) for each in numbers]),
        labels,
        Quantities(*(torch.cat(each).double().cpu().numpy() for each in zip(*found, strict=True))),
    )


def _in_groups(frames: Iterable[Frame]) -> Iterator[list[Frame]]:
    """Frames in their order, in groups of about `ATOMS_PER_BATCH` atoms."""
    group: list[Frame] = []
    n_atoms = 0
    for frame in frames:
        if group and n_atoms + len(frame.system.numbers) > ATOMS_PER_BATCH:
            yield group
            group, n_atoms = [], 0
        group.append(frame)
        n_atoms += len(frame.system.numbers)
    yield group


def _predict(potential: ParametricPotential, example: Example) -> tuple[Tensor, ...]:
    """Energy, forces, stress and dipole of a batch."""
    evaluation = evaluate(potential, example.system, example.neighbors)
    with torch.no_grad():
        dipole = dipole_of(potential, example)
    if dipole is None:
        dipole = torch.full_like(example.labels.dipole, torch.nan)
    return evaluation.energy, evaluation.forces, evaluation.stress, dipole


def pairs(comparison: Comparison) -> dict[str, Pair]:
    """Labels and predictions by the names in `QUANTITIES` and in their units.

    Energies are less those of the isolated atoms, so that frames of different composition can be
    looked at side by side.
    """
    n_atoms = np.bincount(comparison.frame, minlength=len(comparison.names))

    def scaled(quantities: Quantities) -> dict[str, Array]:
        energy = (quantities.energy - comparison.isolated) / meV
        return {
            "energy_meV": energy,
            "energy_meV_per_atom": energy / n_atoms,
            "forces_meV_per_A": quantities.forces / meV,
            "stress_meV_per_A3": quantities.stress / meV,
            "dipole_meA": quantities.dipole * 1e3,
        }

    labels, predictions = scaled(comparison.labels), scaled(comparison.predictions)
    return {name: Pair(labels[name], predictions[name]) for name in QUANTITIES}


def statistics(pair: Pair) -> Statistics | None:
    """How large the errors of one quantity are; None without labels."""
    known = ~np.isnan(pair.labels)
    if not known.any():
        return None
    labels = pair.labels[known]
    error = np.abs(pair.predictions[known] - labels)
    rmse, spread = math.sqrt(np.square(error).mean()), float(labels.std())
    # Less than this is rounding of equal labels.
    told_apart = spread > 1e-9 * float(np.abs(labels).max())
    relative = rmse / spread if told_apart else math.nan
    return Statistics(float(error.mean()), rmse, float(error.max()), relative)


def restrict(comparison: Comparison, chosen: NDArray[np.bool_]) -> Comparison:
    """A comparison on some of its frames.

    Args:
        comparison: on all.
        chosen: (n_frames,) bool.
    """
    atoms = chosen[comparison.frame]

    def some(quantities: Quantities) -> Quantities:
        energy, forces, stress, dipole = quantities
        return Quantities(energy[chosen], forces[atoms], stress[chosen], dipole[chosen])

    kept = np.flatnonzero(chosen)
    return Comparison(
        tuple(comparison.names[index] for index in kept),
        tuple(comparison.config_types[index] for index in kept),
        comparison.numbers[atoms],
        np.searchsorted(kept, comparison.frame[atoms]),
        comparison.isolated[chosen],
        some(comparison.labels),
        some(comparison.predictions),
    )


def summarize(comparison: Comparison) -> Summary:
    """The errors as a whole, by element and by kind of structure, and the worst frames."""
    elements = {}
    forces = pairs(comparison)["forces_meV_per_A"]
    for z in np.unique(comparison.numbers).tolist():
        atoms = comparison.numbers == z
        found = statistics(Pair(forces.labels[atoms], forces.predictions[atoms]))
        if found is not None:
            frames = len(np.unique(comparison.frame[atoms]))
            group = Group(frames, int(atoms.sum()), {"forces_meV_per_A": found})
            elements[chemical_symbols[z]] = group
    kinds = np.array(comparison.config_types)
    parts = {name: _group(restrict(comparison, kinds == name)) for name in sorted(set(kinds))}
    named = set(kinds) != {UNNAMED}
    return Summary(_group(comparison), elements, parts if named else {}, _worst(comparison))


def _group(comparison: Comparison) -> Group:
    found = {name: statistics(pair) for name, pair in pairs(comparison).items()}
    errors = {name: each for name, each in found.items() if each is not None}
    return Group(len(comparison.names), len(comparison.numbers), errors)


def _worst(comparison: Comparison) -> tuple[BadFrame, ...]:
    """The frames with the largest errors, the worst first."""
    n_frames = len(comparison.names)
    every = pairs(comparison)
    forces = every["forces_meV_per_A"]
    difference = forces.predictions - forces.labels
    square = np.square(difference).mean(1)  # (n_atoms,)
    known = ~np.isnan(forces.labels).any(1)
    count = np.bincount(comparison.frame, known, n_frames)
    total = np.bincount(comparison.frame, np.where(known, square, 0.0), n_frames)
    badness = total / np.maximum(count, 1)
    labelled = count > 0
    if 2 * labelled.sum() < n_frames:
        energy = every["energy_meV_per_atom"]
        badness = np.abs(energy.predictions - energy.labels)
        labelled = ~np.isnan(energy.labels)
    # A prediction that is no number is as bad as can be; no label at all is not bad.
    badness = np.where(labelled, np.where(np.isnan(badness), np.inf, badness), -np.inf)
    frames = []
    for index in np.argsort(-badness, kind="stable")[: min(WORST, int(labelled.sum()))].tolist():
        group = _group(restrict(comparison, np.arange(n_frames) == index))
        atom, symbol = -1, ""
        if "forces_meV_per_A" in group.errors:
            mine = np.flatnonzero(comparison.frame == index)
            atom = int(np.abs(difference[mine]).max(1).argmax())
            symbol = chemical_symbols[int(comparison.numbers[mine[atom]])]
        kind = comparison.config_types[index]
        frames.append(BadFrame(comparison.names[index], kind, atom, symbol, group.errors))
    return tuple(frames)


def digits(value: float) -> str:
    """A figure for people: three digits, without an exponent; a dash for what is no number."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def to_json(summary: Summary) -> dict[str, Any]:
    """A summary as JSON has it: nested, without quantities that have no labels, and without NaN."""

    def errors(found: dict[str, Statistics]) -> dict[str, dict[str, float | None]]:
        return {
            name: {
                key: value if math.isfinite(value) else None
                for key, value in each._asdict().items()
            }
            for name, each in found.items()
        }

    def group(each: Group) -> dict[str, Any]:
        return {"frames": each.frames, "atoms": each.atoms, **errors(each.errors)}

    def frame(each: BadFrame) -> dict[str, Any]:
        named = {"name": each.name}
        if summary.config_types:
            named["config_type"] = each.config_type
        where = {"atom": each.atom, "element": each.symbol} if each.symbol else {}
        return {**named, **where, **errors(each.errors)}

    return {
        **group(summary.whole),
        "elements": {name: group(each) for name, each in summary.elements.items()},
        "config_types": {name: group(each) for name, each in summary.config_types.items()},
        "worst_frames": [frame(each) for each in summary.worst],
    }
