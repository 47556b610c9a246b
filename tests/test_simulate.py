"""The driver: blocks, rebuilds and restarts may not be seen in the trajectory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import ase
import numpy as np
import pytest
import torch
from checks import CUTOFF, REFERENCE_ENERGIES, SPECIES, crystal, molecule, random_schnet
from oracles import LennardJones, rebuild_every_step
from torch import Tensor, nn

from mdlearn import simulate as driver
from mdlearn.atoms import to_system
from mdlearn.errors import UnstableError
from mdlearn.integrators import (
    Integrator,
    State,
    Surroundings,
    cell_rescaling,
    conserved_energy,
    csvr,
    kinetic_energy,
    langevin,
    martyna_tobias_klein,
    nose_hoover,
    velocity_verlet,
)
from mdlearn.jit import compiled
from mdlearn.momenta import _philox, maxwell_boltzmann, noise, noise_of_steps
from mdlearn.neighbors import SKIN, build
from mdlearn.potentials.evaluate import evaluate
from mdlearn.simulate import (
    Dynamics,
    Snapshot,
    isolated,
    piecewise_linear,
    restore,
    save,
    simulate,
    start,
)
from mdlearn.system import concatenate
from mdlearn.units import GPa, fs, kB, ps

INTEGRATORS = {
    "nve": velocity_verlet(0.5 * fs),
    "langevin": langevin(0.5 * fs, 10.0 / ps),
    "csvr": csvr(0.5 * fs, 50.0 * fs),
    "nose-hoover": nose_hoover(0.5 * fs, 50.0 * fs),
    "npt": cell_rescaling(0.5 * fs, 50.0 * fs, 200.0 * fs, 0.1 / GPa),
    "npt-flexible": cell_rescaling(0.5 * fs, 50.0 * fs, 200.0 * fs, 0.1 / GPa, flexible=True),
    "mtk": martyna_tobias_klein(0.5 * fs, 50.0 * fs, 200.0 * fs),
}
every_ensemble = pytest.mark.parametrize("ensemble", INTEGRATORS)


def potential() -> LennardJones:
    return LennardJones(SPECIES, REFERENCE_ENERGIES, cutoff=CUTOFF).double()


def dynamics_of(
    integrator: Integrator, network: nn.Module | None = None, seed: int = 3
) -> Dynamics:
    """Of one crystal, at a temperature and a pressure that rise."""
    system = to_system(crystal())
    kT = piecewise_linear([(0, 600.0 * kB), (100, 700.0 * kB)], system)
    pressure = piecewise_linear([(0, 1.0 * GPa), (100, 3.0 * GPa)], system)
    return Dynamics(network or potential(), integrator, kT, pressure, [seed])


def hot_start(integrator: Integrator, network: nn.Module | None = None) -> Snapshot:
    """A crystal so hot that the list must be rebuilt every few steps."""
    system = to_system(crystal())
    momenta = maxwell_boltzmann(system, 900.0 * kB, [5])
    return start(dynamics_of(integrator, network), system, momenta)


def go(
    snapshot: Snapshot,
    integrator: Integrator,
    steps: int,
    *,
    network: nn.Module | None = None,
    every: int = 10,
    seed: int = 3,
    observe: Callable[[Snapshot], bool] = lambda _: True,
) -> Snapshot:
    dynamics = dynamics_of(integrator, network, seed)
    return simulate(dynamics, snapshot, steps=steps, every=every, observe=observe)


def bits(state: State) -> list[bytes]:
    system, momenta, evaluation, bath, variables, freedom, step = state
    tensors = [system.positions, system.cell, momenta, bath, variables, freedom, *evaluation]
    return [each.numpy().tobytes() for each in tensors] + [str(step).encode()]


def count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Counts the calls of a function of the driver."""
    calls: list[int] = []
    original = getattr(driver, name)

    def counted(*arguments: Any, **keywords: Any) -> object:
        calls.append(1)
        return original(*arguments, **keywords)

    monkeypatch.setattr(driver, name, counted)
    return calls


@every_ensemble
def test_is_the_plain_loop(ensemble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    integrator = INTEGRATORS[ensemble]
    rebuilds = count(monkeypatch, "rebuild")
    first = hot_start(integrator)
    last = go(first, integrator, 120).state

    def draw(step: int) -> Surroundings:
        return dynamics_of(integrator).surroundings(first.state._replace(step=step))[0]

    expected = rebuild_every_step(potential(), integrator, first.state, 120, draw)
    assert len(rebuilds) > 3
    assert last.step == expected.step == 120
    assert (last.system.positions - first.state.system.positions).norm(dim=1).max() > SKIN
    assert (last.system.positions - expected.system.positions).abs().max() < 1e-9
    assert (last.momenta - expected.momenta).abs().max() < 1e-9
    assert abs(conserved_energy(last) - conserved_energy(expected)) < 1e-9


@every_ensemble
def test_blocks_and_outputs_change_no_bit(ensemble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When lists are built depends on the trajectory alone, and so do the bits."""
    integrator = INTEGRATORS[ensemble]
    ends = set()
    for block, every in ((1, 150), (3, 150), (16, 7), (1000, 150)):
        monkeypatch.setitem(driver.BLOCK, "cpu", block)
        rebuilds = count(monkeypatch, "rebuild")
        last = go(hot_start(integrator), integrator, 150, every=every)
        assert len(rebuilds) > 2
        ends.add(tuple(bits(last.state)))
    assert len(ends) == 1


@every_ensemble
@pytest.mark.parametrize("network", ["toy", "schnet"])
def test_split_run_is_the_unbroken_run(
    ensemble: str, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = potential() if network == "toy" else random_schnet(scale=0.5)
    integrator = INTEGRATORS[ensemble]
    rebuilds = count(monkeypatch, "rebuild")
    first = hot_start(integrator, chosen)
    steps = 60 if network == "schnet" else 150
    unbroken = go(first, integrator, steps, network=chosen)
    assert len(rebuilds) > 2
    snapshot = first
    for end in (*range(7, steps, 7), steps):
        snapshot = go(snapshot, integrator, end, network=chosen)
        # Through a file, as a restart goes; elements and masses come from elsewhere.
        file = io.BytesIO()
        np.savez(file, **save(snapshot))
        file.seek(0)
        with np.load(file) as saved:
            snapshot = restore(dynamics_of(integrator, chosen), to_system(crystal(seed=9)), saved)
    assert bits(snapshot.state) == bits(unbroken.state)
    assert torch.equal(snapshot.conserved, unbroken.conserved)
    assert snapshot.neighbors.j.shape == unbroken.neighbors.j.shape


def test_observer_decides_when_to_stop() -> None:
    integrator = INTEGRATORS["nve"]
    seen: list[int] = []

    def observe(snapshot: Snapshot) -> bool:
        seen.append(snapshot.state.step)
        return snapshot.state.step < 45

    last = go(hot_start(integrator), integrator, 100, every=15, observe=observe)
    assert seen == [15, 30, 45]
    assert last.state.step == 45
    assert go(last, integrator, 45).state.step == 45  # nothing left to do


def test_observed_states_are_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written down is the potential at the positions that are written down."""
    integrator = INTEGRATORS["langevin"]
    rebuilds = count(monkeypatch, "rebuild")

    def observe(snapshot: Snapshot) -> bool:
        state = snapshot.state
        fresh = evaluate(potential(), state.system, build(state.system, CUTOFF))
        assert (fresh.forces - state.evaluation.forces).abs().max() < 1e-12
        assert abs(fresh.energy - state.evaluation.energy) < 1e-9
        assert not torch.equal(snapshot.conserved, state.evaluation.energy)
        return True

    go(hot_start(integrator), integrator, 60, every=1, observe=observe)
    assert len(rebuilds) > 2


def test_noise_depends_on_seed_and_step_alone() -> None:
    like = torch.zeros(4, 3, dtype=torch.float64)
    before = torch.get_rng_state()
    first = noise(1, 7, 2, like)
    assert first.shape == (2, 4, 3)
    noise(1, 8, 1, like)
    torch.manual_seed(99)
    assert torch.equal(noise(1, 7, 2, like), first)
    others = [noise(seed, step, 2, like) for seed, step in ((1, 8), (2, 7), (7, 1), (17, 0))]
    assert all((other - first).abs().min() > 0.0 for other in others)
    torch.set_rng_state(before)
    noise(1, 7, 2, like)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's generator is touched
    assert noise(1, 7, 0, like).shape == (0, 4, 3)
    single = noise(1, 7, 2, like.float())
    assert single.dtype == torch.float32
    assert torch.equal(single, first.float())


def test_noise_of_a_batch_is_that_of_each_of_its_systems() -> None:
    sizes, seeds = [3, 1, 4], [5, 2**64 - 1, 5]
    like = torch.zeros(8, 3, dtype=torch.float64)
    found = noise_of_steps(seeds, sizes, range(6, 9), 2, like)
    assert found.shape == (3, 2, 8, 3)
    for step in range(3):
        parts = zip(found[step].split(sizes, 1), seeds, sizes, strict=True)
        for part, seed, size in parts:
            assert torch.equal(part, noise(seed, 6 + step, 2, like[:size]))
    # More atoms do not change the numbers of those before them, and places are not repeated.
    assert torch.equal(found[0, :, :3], found[0, :, 4:7])
    assert len(found[:, :, 3:].unique()) == found[:, :, 3:].numel()


def test_noise_is_normal() -> None:
    """Of 600,000 numbers: their first moments, and how steps, draws and neighbors go together."""
    values = noise_of_steps([3], [100], range(1000), 2, torch.zeros(100, 3, dtype=torch.float64))
    flat = values.flatten()
    for power, expected, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        error = float((flat**power).mean()) - expected
        assert abs(error) < 4.0 * (variance / len(flat)) ** 0.5
    pairs = [
        (values[1:], values[:-1]),
        (values[:, 0], values[:, 1]),
        (flat[1:], flat[:-1]),
        (flat[::2].square(), flat[1::2].square()),
    ]
    for one, other in pairs:
        one, other = one - one.mean(), other - other.mean()
        correlation = float((one * other).mean() / (one.std() * other.std()))
        assert abs(correlation) < 4.0 / one.numel() ** 0.5
    assert float(flat.abs().max()) < 6.5
    share = float((flat < -1.0).double().mean())
    assert abs(share - 0.158655) < 4.0 * (0.1335 / len(flat)) ** 0.5


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_random_words_are_those_published(
    counter: list[int], key: list[int], words: list[int]
) -> None:
    """Known answers of Random123 (`kat_vectors`, philox4x32 10)."""
    found = philox(tuple(map(np.uint64, counter)), tuple(map(np.uint64, key)))
    assert [int(each) for each in found] == words


@compiled(keep=False)
def philox(counter: tuple[np.uint64, ...], key: tuple[np.uint64, ...]) -> tuple[np.uint64, ...]:
    return _philox(counter, key)


def test_too_large_a_step_names_step_and_atom() -> None:
    system = to_system(molecule())
    momenta = torch.zeros_like(system.positions)
    momenta[5, 1] = system.masses[5] * 0.4 / (0.5 * fs)  # 0.4 Å in a single step
    integrator, network = INTEGRATORS["nve"], random_schnet(scale=0.1)
    with pytest.raises(UnstableError, match=r"step 1: atom 5 \(H\) moved 0\.\d\d Å in one step"):
        go(
            start(isolated(network, integrator, system), system, momenta),
            integrator,
            100,
            network=network,
        )


def test_blow_up_is_an_error() -> None:
    integrator = velocity_verlet(40.0 * fs)
    with pytest.raises(UnstableError, match=r"step \d+: .*time step"):
        go(hot_start(integrator), integrator, 1000)


def test_forces_that_are_no_numbers_are_an_error() -> None:
    class Broken(LennardJones):
        def forward(self, numbers: Tensor, r: Tensor, neighbors: Any) -> Tensor:
            energies = super().forward(numbers, r, neighbors)
            return energies * torch.where(numbers == 8, torch.nan, 1.0)

    broken = Broken(SPECIES, REFERENCE_ENERGIES, cutoff=CUTOFF).double()
    integrator = INTEGRATORS["nve"]
    snapshot = hot_start(integrator, broken)
    with pytest.raises(UnstableError, match=r"step 1: atom \d \(\w\) has no finite position"):
        go(snapshot, integrator, 100, network=broken)


class Shifted(LennardJones):
    """Its energy can be moved while it is used, which no force notices."""

    offset = 0.0

    def forward(self, numbers: Tensor, r: Tensor, neighbors: Any) -> Tensor:
        return super().forward(numbers, r, neighbors) + self.offset


@pytest.mark.parametrize(("offset", "stops"), [(0.5, True), (-0.5, True), (0.2, False)])
def test_energy_that_leaves_its_value_is_an_error(offset: float, stops: bool) -> None:
    integrator = INTEGRATORS["nve"]
    network = Shifted(SPECIES, REFERENCE_ENERGIES, cutoff=CUTOFF).double()

    def shift(snapshot: Snapshot) -> bool:
        network.offset = offset if snapshot.state.step >= 20 else 0.0
        return True

    first = hot_start(integrator, network)
    if stops:
        with pytest.raises(UnstableError, match=r"step 21: .*conserved energy.*0\.5 eV per"):
            go(first, integrator, 100, network=network, observe=shift)
    else:
        assert go(first, integrator, 50, network=network, observe=shift).state.step == 50


def test_conserved_energy_is_conserved() -> None:
    for integrator in INTEGRATORS.values():
        first, energies = hot_start(integrator), list[float]()

        def observe(snapshot: Snapshot, energies: list[float] = energies) -> bool:
            energies.append(float(snapshot.state.evaluation.energy))
            return True

        last = go(first, integrator, 300, every=50, observe=observe)
        per_atom = float((conserved_energy(last.state) - last.conserved).abs()) / 8
        assert per_atom < 2e-3
        assert torch.equal(last.conserved, conserved_energy(first.state))
        assert max(energies) - min(energies) > 0.05  # it is not that nothing moves


def test_maxwell_boltzmann() -> None:
    n = 4000
    parts = [
        to_system(ase.Atoms(f"H{n}O{n}")),
        to_system(ase.Atoms("CO")),
        to_system(ase.Atoms("H")),
    ]
    batch = concatenate(parts)
    momenta = maxwell_boltzmann(batch, 0.04, [1, 8, 9])
    for index in range(3):
        assert momenta[batch.system == index].sum(0).abs().max() < 1e-10
    for chosen in (slice(0, n), slice(n, 2 * n)):
        scaled = momenta[chosen].square() / batch.masses[chosen, None]
        assert abs(float(scaled.mean()) / 0.04 - 1.0) < 4.0 * (2.0 / (3 * n)) ** 0.5
    assert torch.equal(momenta, maxwell_boltzmann(batch, 0.04, [1, 8, 9]))
    assert not torch.equal(momenta, maxwell_boltzmann(batch, 0.04, [2, 8, 9]))
    assert maxwell_boltzmann(batch, 0.0, [1, 8, 9]).abs().max() == 0.0
    integrator = INTEGRATORS["nve"]
    state = hot_start(integrator).state
    assert float(kinetic_energy(state)) > 0.1
