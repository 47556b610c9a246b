"""The physics certificate: what every potential promises, measured on one that was trained.

Symmetry, derivatives, balance, extensivity, smoothness, precision and conservation of energy hold
by construction, and the tests of the package say so for random weights. The certificate says it of
the model at hand: each promise is one `Claim`, with the largest violation that was found. What a
potential does not promise (an so3 network and reflection) is measured and reported all the same.

The measurements are made on structures that the model was made for, on a random molecule, and on a
random crystal that is smaller than the cutoff. Everything that is drawn has a fixed seed, and how
much is measured depends on sizes alone, so a model always gets the same certificate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mdlearn import probes
from mdlearn.errors import UnstableError
from mdlearn.integrators import conserved_energy, velocity_verlet
from mdlearn.momenta import maxwell_boltzmann
from mdlearn.neighbors import build, pair_vectors
from mdlearn.potentials.checkpoint import Claim
from mdlearn.potentials.evaluate import Potential, evaluate
from mdlearn.potentials.network import ParametricPotential
from mdlearn.simulate import Snapshot, isolated, simulate, start
from mdlearn.system import Evaluation, System, concatenate, volume
from mdlearn.units import fs, kB, meV, ps

EXACT = 1e-10
"""Relative; what is true but for rounding. Float64 leaves about 1e-14."""
DIFFERENCE = 1e-6
"""Relative; what finite differences can tell."""
ENERGY_AT_CUTOFF, FORCE_AT_CUTOFF = 1e-6, 1e-8
"""In eV and eV/Å, from `WIDTH` inside of the cutoff to `WIDTH` outside. With two continuous
derivatives the force changes by some 1e-10 there; one that only ends at zero by 1e-6 or more."""
SINGLE_ENERGY, SINGLE_FORCES = 1.0, 1e-3
"""In meV/atom, and relative: what float32 may cost. Good models have larger errors."""
DRIFT, EXCURSION = 5.0, 5.0
"""In meV/atom/ps and meV/atom, where thermal energy is 39 meV/atom. So short a run cannot tell
smaller drifts from the oscillation of the energy with the vibrations."""

DIFFERENCE_STEPS = (5e-5, 2e-6)
"""Å, and strain, of finite differences: the second where the first does not say that all is well.
Among atoms that sit on one another a network may change within less than the first; the second
rounds more. A wrong derivative is wrong by either."""
WIDTH = 2e-6
"""In cutoffs."""
TIMESTEP_FS = 0.5
TEMPERATURE_K = 300.0
STEPS = 200
SMALL_ENERGY, SMALL_FORCE = 1e-3, 1e-2
"""In eV and eV/Å. Where there is nothing but less than this, errors are relative to this."""

ATOMS_AT_ONCE = 400
"""Displaced copies are evaluated in batches of about so many atoms."""
STRUCTURES_WORK, DIFFERENCES_WORK, DYNAMICS_WORK = 1e6, 2e7, 2e7
"""How far large structures are measured, in units of `_work`: about 0.25 µs on a slow core."""


class Case(NamedTuple):
    """A structure and what the potential says of it."""

    system: System
    found: Evaluation
    work: float
    """See `_work`."""


def certify(
    exact: ParametricPotential, single: ParametricPotential, structures: Sequence[System]
) -> tuple[Claim, ...]:
    """Measures everything that a potential promises.

    Takes seconds for a small molecule, and about 20 on one slow core for 200 atoms: large
    structures get fewer finite differences and fewer steps of dynamics, and of several only the
    first is used.

    Args:
        exact: the potential in float64, on the CPU.
        single: the same in float32.
        structures: single systems of the kind that the potential is for, with their masses;
            dynamics starts from the first. Without any, there are no claims about dynamics.
    """
    potential = _without_references(exact)
    cases: list[Case] = []
    work = 0.0
    for system in structures:
        work += _work(potential, system)
        if cases and work > STRUCTURES_WORK:
            break
        cases.append(_case(potential, system))
    random = [
        _case(potential, make(potential.species, potential.cutoff))
        for make in (probes.random_molecule, probes.random_crystal)
    ]
    everything = [*cases, *random]
    claims = [
        *_symmetries(potential, everything),
        *_derivatives(potential, everything),
        *_balance(potential, everything),
        _extensivity(potential, everything),
        *_cutoff(potential),
        _isolated_atoms(exact, single),
        _degenerate_geometry(exact, single),
        *_single_precision(_without_references(single), cases or random),
    ]
    if cases:
        claims += _dynamics(potential, cases[0])
    return tuple(claims)


def failures(certificate: Iterable[Claim]) -> str:
    """What does not hold, as in `rotation (0.1, limit 1e-10)`; empty if all claims do."""
    broken = (claim for claim in certificate if claim.verdict == "does not hold")
    return ", ".join(f"{each.name} ({each.value:.2g}, limit {each.limit:g})" for each in broken)


def _claim(
    name: str, what: str, value: float, unit: str, limit: float, claimed: bool = True
) -> Claim:
    """A measurement with its verdict."""
    if not claimed:
        return Claim(name, what, value, unit, limit, "reported only")
    # `<=` is False for NaN.
    return Claim(name, what, value, unit, limit, "holds" if value <= limit else "does not hold")


def _without_references(potential: ParametricPotential) -> ParametricPotential:
    """The same potential with isolated atoms at zero: energies of -2,000 eV hide what is small."""
    bare = copy.deepcopy(potential).requires_grad_(False)
    bare.elements.bits.zero_()  # the bits of 0.0
    return bare


def _evaluate(potential: Potential, system: System) -> Evaluation:
    return evaluate(potential, system, build(system, potential.cutoff))


def _case(potential: ParametricPotential, system: System) -> Case:
    return Case(system, _evaluate(potential, system), _work(potential, system))


def _work(potential: ParametricPotential, system: System) -> float:
    """How much there is to do in an evaluation: slots of pairs, times what a network does there."""
    slots = build(system, potential.cutoff).j.numel()
    settings = potential.settings
    return float(slots * max(1, settings.features * settings.interactions))


def _worst(values: Iterable[Tensor]) -> float:
    """The largest of some numbers; NaN if one is."""
    return float(torch.stack(list(values)).max())


def _symmetries(potential: ParametricPotential, cases: Sequence[Case]) -> list[Claim]:
    """How much the energy, and the forces taken back, change under each symmetry."""
    measurements: dict[str, Callable[[Potential, Case], Tensor]] = {
        "translation": _under_translation,
        "permutation": _under_permutation,
        "rotation": partial(_under_turn, probes.rotation()),
        "reflection": partial(_under_turn, probes.reflection()),
    }
    claims = []
    for name, measure in measurements.items():
        value = _worst(measure(potential, case) for case in cases)
        claimed = name in potential.symmetries
        what = "change of energy and forces"
        claims.append(_claim(name, what, value, "relative", EXACT, claimed))
    return claims


def _under_translation(potential: Potential, case: Case) -> Tensor:
    found = _evaluate(potential, probes.moved(case.system))
    return _change(found, case.found)


def _under_permutation(potential: Potential, case: Case) -> Tensor:
    system, order = probes.shuffled(case.system)
    found = _evaluate(potential, system)
    return _change(found._replace(forces=found.forces[order.argsort()]), case.found)


def _under_turn(q: Tensor, potential: Potential, case: Case) -> Tensor:
    found = _evaluate(potential, probes.turned(case.system, q))
    return _change(found._replace(forces=found.forces @ q.T), case.found)


def _change(found: Evaluation, expected: Evaluation) -> Tensor:
    """Relative change of energy or forces, whichever is larger, ().

    The energy is measured in the sum of the atomic ones, so that it may be zero.
    """
    energy = (found.energy - expected.energy).abs()[0]
    energy = energy / expected.energies.abs().sum().clamp_min(SMALL_ENERGY)
    forces = (found.forces - expected.forces).abs().max() / _force_scale(expected)
    return torch.maximum(energy, forces)


def _force_scale(found: Evaluation) -> Tensor:
    """The largest force, or the largest atomic energy per Å, () eV/Å.

    Where forces cancel, as in a perfect crystal, they are no measure of rounding.
    """
    largest = torch.maximum(found.forces.abs().max(), found.energies.abs().max())
    return largest.clamp_min(SMALL_FORCE)


def _derivatives(potential: ParametricPotential, cases: Sequence[Case]) -> list[Claim]:
    """Forces and stress against central differences of the energy."""
    force = _worst(_force_error(potential, case) for case in cases)
    stress = _worst(_stress_error(potential, case) for case in cases)
    return [
        _claim("force", "F + dE/dx, of the largest", force, "relative", DIFFERENCE),
        _claim("stress", "V σ - dE/dε, of the largest", stress, "relative", DIFFERENCE),
    ]


def _force_error(potential: Potential, case: Case) -> Tensor:
    """On up to six atoms."""
    system, forces = case.system, case.found.forces
    affordable = max(1, min(6, int(DIFFERENCES_WORK / (12.0 * case.work))))
    atoms = torch.randperm(len(forces), generator=torch.Generator().manual_seed(0))[:affordable]
    paths = [
        partial(probes.displaced, system, atom, axis)
        for atom in atoms.tolist()
        for axis in range(3)
    ]
    scale = forces.abs().max().clamp_min(SMALL_FORCE)
    return _difference(potential, paths, -forces[atoms].flatten(), scale)


def _stress_error(potential: Potential, case: Case) -> Tensor:
    """Times the volume. A molecule has no stress, but what it is made of, dE/dε."""
    system, found = case.system, case.found
    space = volume(system)[:, None, None]
    virial = torch.where(space > 0.0, found.stress * space, found.virials.sum(0))[0]
    affordable = max(1, int(DIFFERENCES_WORK / (4.0 * case.work)))
    components = [(0, 1), (2, 2), (1, 2), (0, 0), (1, 1), (0, 2), (1, 0), (2, 1), (2, 0)]
    components = components[:affordable]
    paths = [partial(probes.strained, system, a, b) for a, b in components]
    expected = torch.stack([virial[a, b] for a, b in components])
    return _difference(potential, paths, expected, virial.abs().max().clamp_min(SMALL_FORCE))


def _difference(
    potential: Potential,
    paths: Sequence[Callable[[float], System]],
    expected: Tensor,
    scale: Tensor,
) -> Tensor:
    """How far derivatives along paths, (n_paths,), are off, relative to a scale."""
    errors = []
    for step in DIFFERENCE_STEPS:
        errors.append((expected - _slopes(potential, paths, step)).abs().max() / scale)
        if errors[-1] <= DIFFERENCE:
            break
    return torch.stack(errors).min()  # NaN if any is


def _slopes(
    potential: Potential, paths: Sequence[Callable[[float], System]], step: float
) -> Tensor:
    """dE/dh at h = 0 along each path, (n_paths,), by central differences of fourth order."""
    systems = [path(h * step) for path in paths for h in (-2.0, -1.0, 1.0, 2.0)]
    n_atoms = len(systems[0].numbers)
    at_once = max(1, ATOMS_AT_ONCE // n_atoms)
    energies = []
    for first in range(0, len(systems), at_once):
        batch = concatenate(systems[first : first + at_once])
        neighbors = build(batch, potential.cutoff)
        with torch.no_grad():
            energies.append(potential(batch.numbers, pair_vectors(batch, neighbors), neighbors))
    weights = torch.tensor([1.0, -8.0, 8.0, -1.0], dtype=torch.float64) / (12.0 * step)
    # Differences of each atom before the sum over atoms, which would round them.
    return (weights @ torch.cat(energies).view(-1, 4, n_atoms)).sum(1)


def _balance(potential: ParametricPotential, cases: Sequence[Case]) -> list[Claim]:
    """Newton's third law, and no torque on what is free to turn."""
    force, torque = [], []
    for system, found, _ in cases:
        force.append(found.forces.sum(0).abs().max() / _force_scale(found))
        if not bool(system.pbc.any()):
            arm = system.positions - system.positions.mean(0)
            total = torch.linalg.cross(arm, found.forces).sum(0).abs().max()
            longest = arm.norm(dim=1).max().clamp_min(1.0)
            torque.append(total / (longest * _force_scale(found)))
    claimed = "rotation" in potential.symmetries
    return [
        _claim("net force", "sum over all atoms", _worst(force), "relative", EXACT),
        _claim("net torque", "of molecules", _worst(torque), "relative", EXACT, claimed),
    ]


def _extensivity(potential: Potential, cases: Sequence[Case]) -> Claim:
    """Twice the system has twice the energy and the same forces."""
    changes = []
    for system, found, _ in cases:
        twice = found._replace(
            energy=2.0 * found.energy,
            forces=found.forces.repeat(2, 1),
            energies=found.energies.repeat(2),
        )
        doubled = _evaluate(potential, probes.doubled(system, potential.cutoff))
        changes.append(_change(doubled, twice))
    what = "two copies far apart, supercell"
    return _claim("extensivity", what, _worst(changes), "relative", EXACT)


def _cutoff(potential: Potential) -> list[Claim]:
    """What changes as a pair crosses the cutoff, with a third atom near one of the two."""
    cutoff = potential.cutoff
    inside, outside = (
        _evaluate(potential, probes.pairs_at_cutoff(potential.species, cutoff, factor * cutoff))
        for factor in (1.0 - WIDTH, 1.0 + WIDTH)
    )
    energy = _worst([(inside.energy - outside.energy).abs().max()])
    force = _worst([(inside.forces - outside.forces).abs().max()])
    what = f"change over {2.0 * WIDTH * cutoff:.1g} Å"
    return [
        _claim("energy at the cutoff", what, energy, "eV", ENERGY_AT_CUTOFF),
        _claim("force at the cutoff", what, force, "eV/Å", FORCE_AT_CUTOFF),
    ]


def _isolated_atoms(exact: ParametricPotential, single: ParametricPotential) -> Claim:
    """Atoms without neighbors have their reference energies, bit by bit, and no force."""
    errors = []
    for system in probes.isolated_atoms(exact.species, exact.cutoff):
        reference = exact.elements.reference_energies(exact.elements.index(system.numbers))
        for potential in (exact, single):
            found = _evaluate(potential, system)
            errors += [(found.energies - reference).abs().max(), found.forces.abs().max()]
    return _claim(
        "isolated atoms", "E - E0, force", _worst(errors), "eV, eV/Å", 0.0, exact.keeps_atoms
    )


def _degenerate_geometry(exact: ParametricPotential, single: ParametricPotential) -> Claim:
    """Atoms on top of each other and in a line have energies and forces that are numbers."""
    bad = 0.0
    for system in probes.degenerate(exact.species):
        for potential in (exact, single):
            found = _evaluate(potential, system)
            for each in (found.energies, found.forces, found.virials):
                bad += float((~torch.isfinite(each)).sum())
    what = "coincident, collinear: not finite"
    return _claim("degenerate geometry", what, bad, "numbers", 0.0)


def _single_precision(single: ParametricPotential, cases: Sequence[Case]) -> list[Claim]:
    """What is lost in float32."""
    energy, forces = [], []
    for system, expected, _ in cases:
        found = _evaluate(single, system)
        energy.append((found.energy - expected.energy).abs()[0] / len(system.numbers) / meV)
        largest = expected.forces.abs().max().clamp_min(SMALL_FORCE)
        forces.append((found.forces - expected.forces).abs().max() / largest)
    what = "against float64"
    return [
        _claim("float32 energy", what, _worst(energy), "meV/atom", SINGLE_ENERGY),
        _claim("float32 forces", what, _worst(forces), "relative", SINGLE_FORCES),
    ]


def _dynamics(potential: ParametricPotential, case: Case) -> list[Claim]:
    """Energy is conserved: a short run of velocity Verlet at constant energy.

    The drift is the slope of a straight line through the conserved energy; a run that was cut
    short is too short to tell one.
    """
    steps = max(10, min(STEPS, int(DYNAMICS_WORK / case.work)))
    momenta = maxwell_boltzmann(case.system, TEMPERATURE_K * kB, [0])
    dynamics = isolated(potential, velocity_verlet(TIMESTEP_FS * fs), case.system)
    first = start(dynamics, case.system, momenta)
    energies = [first.conserved]

    def observe(snapshot: Snapshot) -> bool:
        energies.append(conserved_energy(snapshot.state))
        return True

    drift = excursion = torch.inf
    try:
        simulate(dynamics, first, steps=steps, every=1, observe=observe)
    except UnstableError:
        pass  # infinite, and so it is said
    else:
        change = (torch.cat(energies) - energies[0]) / (len(case.system.numbers) * meV)
        time = torch.arange(len(change), dtype=torch.float64) * TIMESTEP_FS * fs / ps
        time = time - time.mean()
        drift = float((time @ change / time.square().sum()).abs())
        excursion = float(change.abs().max())
    what = f"{steps} steps of {TIMESTEP_FS} fs at {TEMPERATURE_K:g} K"
    return [
        _claim("energy drift", what, drift, "meV/atom/ps", DRIFT, claimed=steps == STEPS),
        _claim("energy excursion", what, excursion, "meV/atom", EXCURSION),
    ]
