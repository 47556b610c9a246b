"""Steps that are recorded are the steps that they were; on a CPU without a graph of them."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from checks import crystal, molecule, random_network
from test_loss import example
from test_simulate import INTEGRATORS, every_ensemble, potential

from mdlearn import recorded, steps
from mdlearn.atoms import to_system
from mdlearn.graph import tensors_of
from mdlearn.guards import make_limits, shares
from mdlearn.integrators import csvr
from mdlearn.launched import launched
from mdlearn.momenta import maxwell_boltzmann
from mdlearn.neighbors import WORN, build, moved_since_build
from mdlearn.potentials import frozen_cuda
from mdlearn.potentials.egnn import EGNN
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.evaluate import Evaluable, Frozen, evaluate
from mdlearn.potentials.frozen import freeze
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.painn import PaiNN
from mdlearn.potentials.schnet import SchNet
from mdlearn.recorded import RecordedSteps
from mdlearn.simulate import (
    Dynamics,
    Snapshot,
    _list,
    _steps_ahead,
    piecewise_linear,
    piecewise_linear_each,
    simulate,
    start,
)
from mdlearn.system import System, concatenate
from mdlearn.training import dataset
from mdlearn.training import recorded as gradients
from mdlearn.training.dataset import Example, to
from mdlearn.training.loss import Weights, count_labels
from mdlearn.training.recorded import Recordings, gradient_of
from mdlearn.units import GPa, kB

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _few_atoms_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter finds the largest of numbers one by one, also of those that are not there."""
    if DEVICE == "cpu":
        monkeypatch.setattr(frozen_cuda, "ATOMS", 16)


def chosen() -> Evaluable:
    """What is recorded on a GPU is frozen; elsewhere anything will do."""
    if DEVICE == "cpu":
        return potential()
    return freeze(random_network(Equivariant, scale=0.1).to(DEVICE))


def dynamics_of(ensemble: str, evaluable: Evaluable, system: System) -> Dynamics:
    """At a temperature and a pressure that rise, one atom held, and with all guards."""
    kT = piecewise_linear([(0, 600.0 * kB), (100, 700.0 * kB)], system)
    pressure = piecewise_linear([(0, 1.0 * GPa), (100, 3.0 * GPa)], system)
    seeds = list(range(len(system.charge)))
    mobile = torch.ones_like(system.masses)[:, None]
    if ensemble in ("nve", "langevin"):
        mobile[-1] = 0.0
    closest = [(1, 6, 0.4), (6, 8, 0.6), (6, 6, 0.7), (1, 8, 0.4)]
    forces = [(1, 1e4), (6, 1e4), (8, 1e4)]
    limits = make_limits(closest, forces, torch.full_like(system.charge, torch.inf))
    limits = limits._replace(drift=torch.inf)
    integrator = INTEGRATORS[ensemble]
    return Dynamics(evaluable, integrator, kT, pressure, seeds, mobile, limits)


def hot_start(dynamics: Dynamics, system: System) -> Snapshot:
    momenta = maxwell_boltzmann(system, 900.0 * kB, dynamics.seeds, dynamics.mobile)
    return start(dynamics, system, momenta)


@every_ensemble
@pytest.mark.parametrize("count", [1, 2])
def test_a_recording_changes_no_bit(
    ensemble: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [to_system(crystal(seed=seed)) for seed in range(count)]
    system = System(*(each.to(DEVICE) for each in concatenate(parts)))
    dynamics = dynamics_of(ensemble, chosen(), system)
    first = hot_start(dynamics, system)
    ends = []
    for pays in (True, False):
        monkeypatch.setattr(steps, "pays", lambda *_, pays=pays: pays)
        if not pays:
            integrator = launched(dynamics.integrator, first.conserved)
            dynamics = dynamics._replace(integrator=integrator)
        block = steps.Steps(dynamics)
        snapshot = first
        for end in (20, 40):
            snapshot = simulate(
                dynamics, snapshot, steps=end, every=7, observe=lambda _: True, block=block
            )
        assert (block.recorded is not None) == pays
        ends.append(snapshot)
    one, two = (each.state for each in ends)
    moved = (one.system.positions - first.state.system.positions).norm(dim=1).max()
    assert moved > 0.25  # so lists were renewed
    for ours, theirs in zip(tensors_of(one), tensors_of(two), strict=True):
        assert torch.equal(ours, theirs)
    assert one.step == two.step == 40


@pytest.mark.parametrize("block", [8, 512])
@pytest.mark.parametrize("ensemble", ["nve", "langevin", "csvr", "nose-hoover"])
def test_launches_are_the_step_of_the_integrator(
    ensemble: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever system an atom belongs to, and at however many atoms a program looks at a time."""
    monkeypatch.setattr(frozen_cuda, "ATOMS", block)
    parts = [crystal(), molecule(), ase.Atoms("O"), crystal(seed=1), molecule("H2O")]
    system = System(*(each.to(DEVICE) for each in concatenate([to_system(p) for p in parts])))
    kT = piecewise_linear_each([[(0, (400.0 + 50.0 * s) * kB)] for s in range(5)], system)
    dynamics = dynamics_of(ensemble, chosen(), system)._replace(kT=kT)
    first = hot_start(dynamics, system)
    forces = dynamics.forces(first.neighbors)
    ours = theirs = first.state
    integrator = dynamics.integrator
    step = launched(integrator, first.conserved).step
    for surroundings in dynamics.surroundings(ours, 10):
        ours, theirs = (
            step(ours, forces, surroundings),
            integrator.step(theirs, forces, surroundings),
        )
    assert ours.step == theirs.step == 10
    for one, other in zip(tensors_of(ours), tensors_of(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11, equal_nan=True)
    baths = ours.bath.abs() > 1e-4
    assert baths.sum() == (0 if ensemble == "nve" else len(parts) if ensemble == "langevin" else 4)
    assert ours.variables.abs().sum() > 1e-3 or ensemble != "nose-hoover"


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_thermostat_draws_for_as_many_degrees_of_freedom_as_there_are(count: int) -> None:
    """So strong a coupling that a system forgets what it was, and that signs change."""
    parts = [molecule("H2O") for _ in range(count)]
    system = System(*(each.to(DEVICE) for each in concatenate([to_system(p) for p in parts])))
    dynamics = dynamics_of("csvr", chosen(), system)
    first = hot_start(dynamics, system)
    still = first.state.momenta * (system.system != 1)[:, None]  # the second one is at rest
    ours = theirs = first.state._replace(momenta=still)
    forces = dynamics.forces(first.neighbors)
    strong = csvr(0.001, 1e-5)
    step = launched(strong, first.conserved).step
    for surroundings in dynamics.surroundings(ours, 12):
        ours = step(ours, forces, surroundings)
        theirs = strong.step(theirs, forces, surroundings)
        assert torch.equal(ours.momenta.sign(), theirs.momenta.sign())
    torch.testing.assert_close(ours.momenta, theirs.momenta, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours.bath, theirs.bath, rtol=1e-9, atol=1e-11)


def test_a_snapshot_is_not_overwritten_by_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "pays", lambda *_: True)
    system = System(*(each.to(DEVICE) for each in to_system(crystal())))
    dynamics = dynamics_of("nve", chosen(), system)
    seen: list[Snapshot] = []
    first = hot_start(dynamics, system)
    kept = first.state.system.positions.clone()
    simulate(dynamics, first, steps=6, every=2, observe=lambda s: not seen.append(s))
    assert torch.equal(first.state.system.positions, kept)
    assert len({each.state.system.positions.data_ptr() for each in seen}) == 3
    assert not torch.equal(seen[0].state.system.positions, seen[1].state.system.positions)
    for each in seen:
        again = evaluate(dynamics.potential, each.state.system, build(system, 3.5, 1.0))
        assert (again.energy - each.state.evaluation.energy).abs().max() < 1e-9


def test_pairs_to_watch_fill_a_shape_and_trip_as_they_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Filling up with what is there already changes no share, but for how a GPU rounds."""
    system = System(*(each.to(DEVICE) for each in to_system(molecule("H2O"))))
    dynamics = dynamics_of("csvr", chosen(), system)
    limits = make_limits([(1, 8, 1.2), (1, 1, 1.2)], [], torch.full_like(system.charge, torch.inf))
    dynamics = dynamics._replace(limits=limits)
    first = hot_start(dynamics, system)
    shares = []
    for pays in (True, False):
        monkeypatch.setattr(steps, "pays", lambda *_, pays=pays: pays)

        lists = _list(dynamics, system, first.neighbors)
        done = steps.Steps(dynamics).run(first.state, lists, first.conserved, 3)
        shares.append(done.share)
    assert len(lists.watched.n) > 0
    assert shares[0] == pytest.approx(shares[1], rel=1e-13)
    assert shares[1] > 0.0


@pytest.mark.parametrize("limited", [True, False])
def test_one_look_at_a_state_sees_what_two_would(limited: bool) -> None:
    parts = [crystal(), crystal(seed=1), molecule("H2O"), ase.Atoms("O")]
    before = System(*(each.to(DEVICE) for each in concatenate([to_system(p) for p in parts])))
    hot = torch.full_like(before.charge, 0.05)
    near = [(6, 8, 2.0), (6, 6, 2.0), (8, 8, 2.0), (1, 8, 2.0), (1, 1, 2.0)]
    limits = make_limits(near, [(6, 7.0), (8, 3.0)], hot) if limited else None
    dynamics = dynamics_of("csvr", chosen(), before)._replace(limits=limits)
    first = hot_start(dynamics, before)
    lists = _list(dynamics, before, first.neighbors)
    recorded = RecordedSteps(dynamics, first.state, lists, first.conserved)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(before.positions.shape, generator=generator, dtype=torch.float64)
    positions, bath = (
        before.positions + 0.1 * noise.to(DEVICE),
        first.state.bath + 0.3 + before.cell[:, 2, 2],
    )
    cell = before.cell * torch.tensor([[1.01], [0.98], [1.03]], device=DEVICE)
    atom = int(lists.watched.n[0]) if limited else 0
    for lost in (False, True):
        if lost:
            positions[atom] = torch.nan
        system = before._replace(positions=positions, cell=cell)
        state = first.state._replace(system=system, bath=bath)
        found = recorded._look(state)
        moved = moved_since_build(system, lists.neighbors)
        used = shares(state, lists.watched, first.conserved, dynamics.limits)
        torch.testing.assert_close(found[0], moved, rtol=1e-12, atol=1e-14, equal_nan=True)
        assert moved[0] > 0.1 or lost
        if limited:
            torch.testing.assert_close(found[1], used, rtol=1e-12, atol=1e-14, equal_nan=True)
            assert lost or (used[:, 1:3] > 0.0).all()
        else:
            torch.testing.assert_close(found[1][3:], used, rtol=1e-12, atol=1e-14)
            assert not found[1][:3].any()
        there = torch.arange(len(parts), device=DEVICE) == before.system[atom]
        assert torch.equal(found[0].isnan(), there & lost)
        assert torch.equal(found[1][0].isnan(), there & (lost and limited))


def test_only_what_is_frozen_is_recorded_on_a_gpu() -> None:
    system = System(*(each.to(DEVICE) for each in to_system(crystal())))
    dynamics = dynamics_of("nve", chosen(), system)
    state = hot_start(dynamics, system).state
    assert recorded.pays(dynamics, state) == (DEVICE == "cuda")
    assert isinstance(dynamics.potential, Frozen) == (DEVICE == "cuda")


def test_blocks_end_about_where_lists_do() -> None:
    skin = 0.5
    worn = WORN * skin
    assert _steps_ahead(np.array([0.0]), np.array([np.inf]), skin, 32) == 1
    assert _steps_ahead(np.array([0.0]), np.array([0.0]), skin, 32) == 32
    assert _steps_ahead(np.array([0.0]), np.array([worn / 10.5]), skin, 32) == 10
    assert _steps_ahead(np.array([0.0, worn / 2]), np.full(2, worn / 20.5), skin, 32) == 10
    assert _steps_ahead(np.array([worn]), np.array([worn]), skin, 32) == 1


def batch_of(seed: int, repeats: int = 2) -> Example:
    """Molecules that no two seeds give alike, with labels."""
    atoms = molecule()
    atoms.rattle(0.02, seed=seed)
    batch = dataset.concatenate([example(atoms, 0.3)] * repeats)
    return to(batch, torch.device(DEVICE))


@pytest.mark.parametrize("architecture", [SchNet, PaiNN, EGNN, Equivariant])
def test_a_recorded_gradient_is_the_gradient(
    architecture: type[ParametricPotential], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "_pays", lambda _: True)
    network = random_network(architecture, scale=0.1).to(DEVICE)
    parameters = list(network.parameters())
    recordings = Recordings(network, parameters)
    kept = []
    for step, (seed, repeats) in enumerate([(1, 2), (1, 2), (2, 2), (3, 1), (1, 2), (4, 1)]):
        batch = batch_of(seed, repeats)
        if step == 4:  # fewer labels of the same shape
            batch.labels.energy[0] = batch.labels.forces[3] = torch.nan
        weights = Weights(1.0 + step, 10.0, 0.5)
        counts = count_labels(batch)
        found = recordings.gradient(batch, weights, counts)
        expected = gradient_of(network, parameters, batch, weights, counts)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0.0)
        for one, other in zip(found.by_parameters, expected.by_parameters, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                scale = float(other.abs().max())
                assert float((one - other).abs().max()) <= 1e-10 * scale
        kept.append(len(recordings.kept))
        with torch.no_grad():  # a recording sees what a step has made of the parameters
            for each in parameters:
                each += 0.01 * each
    assert kept == [0, 1, 1, 1, 1, 2]


def test_only_small_batches_on_a_gpu_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(0)
    assert gradients._pays(batch) == (DEVICE == "cuda")
    monkeypatch.setattr(gradients, "MANY_PAIRS", batch.neighbors.j.numel() - 1)
    assert not gradients._pays(batch)
