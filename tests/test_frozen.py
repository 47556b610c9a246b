"""Frozen potentials: the loops give what the network and its derivative give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ase
import numba
import numpy as np
import pytest
import torch
from checks import (
    REFERENCE_ENERGIES,
    SPECIES,
    crystal,
    molecule,
    random_network,
    random_potential,
    slab,
    tiny,
)

from mdlearn.atoms import to_system
from mdlearn.cli.ensembles import SimulateConfig, make_dynamics
from mdlearn.integrators import velocity_verlet
from mdlearn.lanes import LINE
from mdlearn.momenta import maxwell_boltzmann
from mdlearn.neighbors import LOOPED_ATOMS, LOOPED_SKIN, PAIRWISE_SKIN, SKIN, WIDE_SKIN, build
from mdlearn.potentials import beforehand
from mdlearn.potentials.architectures import ARCHITECTURES, make_potential
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.evaluate import MANY_PAIRS, Frozen, choose_threads, evaluate
from mdlearn.potentials.frozen import AGREEMENT, disagreement, fastest, freeze
from mdlearn.potentials.frozen_network import BLOCK, MANY_ATOMS, FrozenNetwork, width_of
from mdlearn.potentials.frozen_tables import shares_of
from mdlearn.potentials.kernels import spline
from mdlearn.potentials.kernels.pairwise import PIECE
from mdlearn.potentials.network import Network, ParametricPotential, Settings
from mdlearn.potentials.painn import PaiNN
from mdlearn.potentials.schnet import SchNet
from mdlearn.potentials.threads import FEW_PAIRS
from mdlearn.simulate import isolated, simulate, start
from mdlearn.system import Evaluation, System, concatenate
from mdlearn.units import fs, kB
from mdlearn.words import forms_of, kind_of


def assert_same(ours: Evaluation, theirs: Evaluation, tolerance: float) -> None:
    """All that does not depend on how virials are shared out."""
    assert (ours.energies - theirs.energies).abs().max() < tolerance
    assert (ours.energy - theirs.energy).abs().max() < tolerance * len(ours.energies)
    assert (ours.forces - theirs.forces).abs().max() < tolerance
    assert torch.equal(ours.stress.isnan(), theirs.stress.isnan())
    assert (ours.stress - theirs.stress).nan_to_num().abs().max() < tolerance


def both(
    network: ParametricPotential, system: System, skin: float = 0.0
) -> tuple[Evaluation, Evaluation]:
    frozen = freeze(network)
    assert isinstance(frozen, Frozen)
    neighbors = build(system, network.cutoff, skin)
    return evaluate(frozen, system, neighbors), evaluate(network, system, neighbors)


NETWORKS = {"equivariant": 1e-11, "schnet": 1e-10, "painn": 1e-10}
"""What has loops, and how well it agrees in float64; filters in tables have errors of their own."""
each_network = pytest.mark.parametrize("name", NETWORKS)


def sized(name: str, features: int, layers: int, radial: int) -> ParametricPotential:
    """A random network of some size, in float64."""
    torch.manual_seed(3)
    settings = Settings(name, 3.5, features, layers, radial, 8.0, 0.7)
    network = make_potential(SPECIES, REFERENCE_ENERGIES, settings).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


STRUCTURES = {
    "molecule": molecule(),
    "crystal": crystal(),
    "slab": slab(),
    "tiny": tiny(),
    "atom": ase.Atoms("O"),
    "pair": ase.Atoms("CO", [[0.0, 0.0, 0.0], [0.3, -0.9, 0.7]]),
    "along an axis": ase.Atoms("HOH", [[0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
}


@each_network
@pytest.mark.parametrize("structure", STRUCTURES)
def test_loops_give_what_the_network_gives(name: str, structure: str) -> None:
    network = random_potential(name, closest=((1, 6, 1.2), (8, 8, 2.9)))
    assert_same(*both(network, to_system(STRUCTURES[structure]), skin=0.4), NETWORKS[name])


@each_network
@pytest.mark.parametrize(
    ("features", "layers", "radial"), [(16, 1, 8), (24, 2, 7), (32, 2, 12), (48, 3, 16)]
)
def test_loops_take_networks_of_any_size(
    name: str, features: int, layers: int, radial: int
) -> None:
    network = sized(name, features, layers, radial)
    system = concatenate([to_system(each) for each in (molecule("CH3OH"), crystal())])
    assert_same(*both(network, system), 10.0 * NETWORKS[name])


@pytest.mark.parametrize(("layers", "radial"), [(1, 33), (2, 40)])
def test_painn_may_have_more_radial_functions_than_lanes(layers: int, radial: int) -> None:
    network = sized("painn", 16, layers, radial)
    assert_same(*both(network, to_system(crystal())), 10.0 * NETWORKS["painn"])


@each_network
def test_a_batch_is_its_systems(name: str) -> None:
    network = random_potential(name)
    systems = [to_system(each) for each in (molecule(), crystal(), molecule("CH4"), slab())]
    together, _ = both(network, concatenate(systems))
    alone = [both(network, each)[0] for each in systems]
    assert (together.forces - torch.cat([each.forces for each in alone])).abs().max() < 1e-12
    assert (together.energy - torch.cat([each.energy for each in alone])).abs().max() < 1e-11


def test_bits_of_the_default_network_do_not_depend_on_company() -> None:
    network = sized("equivariant", 48, 2, 12).float()
    systems = [to_system(each) for each in (molecule(), crystal(), molecule("CH4"), slab())]
    together, _ = both(network, concatenate(systems))
    alone = [both(network, each)[0] for each in systems]
    assert torch.equal(together.forces, torch.cat([each.forces for each in alone]))
    assert torch.equal(together.energies, torch.cat([each.energies for each in alone]))


@each_network
def test_single_precision_is_as_good_as_the_network_in_it(name: str) -> None:
    exact = sized(name, 32, 2, 12)
    single = sized(name, 32, 2, 12).float()
    system = to_system(crystal())
    frozen, eager = both(single, system)
    truth = both(exact, system)[1].forces
    assert (frozen.forces - eager.forces).abs().max() < 1e-5
    assert (frozen.forces - truth).abs().max() < 3.0 * (eager.forces - truth).abs().max()
    assert frozen.energies.dtype == frozen.forces.dtype == torch.float64


def test_blocks_give_two_threads_as_little_as_they_can() -> None:
    def most(n_atoms: int, width: int) -> int:
        """Atoms of the thread that has more of them."""
        blocks = -(-n_atoms // width)
        return min(-(-blocks // 2) * width, n_atoms)

    for n_atoms in range(1, 1000):
        width = width_of(n_atoms)
        assert width % 2 == 0
        assert width <= BLOCK
        assert (n_atoms <= width) == (n_atoms <= BLOCK)
        assert most(n_atoms, width) <= most(n_atoms, BLOCK)
    # Two, four and six molecules of nine atoms.
    assert [most(9 * count, width_of(9 * count)) for count in (2, 4, 6)] == [10, 20, 28]


@pytest.mark.parametrize("architecture", [SchNet, PaiNN])
def test_one_atom_of_a_pair_looks_after_it(architecture: type[Network]) -> None:
    """Also where an atom sees its own images; and no atom has all the work."""
    frozen = freeze(random_network(architecture))
    assert isinstance(frozen, FrozenNetwork)
    for atoms in (crystal().repeat((2, 2, 2)), tiny()):
        system = to_system(atoms)
        neighbors = build(system, frozen.cutoff, 0.5)
        evaluate(frozen, system, neighbors)
        work, looked_after = frozen.work, set()
        for n in range(len(work.own)):
            for slot in work.slots[n, : work.own[n]].tolist():
                here = n * work.slots.shape[1] + slot
                looked_after.add(frozenset((here, int(neighbors.reverse[n, slot]))))
        assert 2 * len(looked_after) == 2 * work.own.sum() == work.within.sum()
        assert work.own.max() < 0.8 * work.within.max()
    itself = neighbors.j == torch.arange(2)[:, None]
    assert (itself & neighbors.valid).any()


def test_every_share_of_every_bundle_comes_with_one_block() -> None:
    tasks_of: Any = spline.tasks_of  # which Python cannot call as it is compiled
    share_of: Any = spline.share_of
    tasks_of, share_of = tasks_of.py_func, share_of.py_func
    for blocks, bundles in ((1, 1), (2, 1), (2, 4), (12, 4), (7, 3), (96, 2)):
        shares = shares_of(16 * blocks)
        work = SimpleNamespace(shares=np.zeros((shares, bundles, 0)))
        done = [range(*tasks_of(block, blocks, work)) for block in range(blocks)]
        assert [task for each in done for task in each] == list(range(shares * bundles))
        halves = [sum(map(len, done[: blocks // 2])), sum(map(len, done[blocks // 2 :]))]
        assert blocks % 2 or halves[0] == halves[1]
    for n_atoms in (1, 3, 192, 1000):
        shares = shares_of(n_atoms)
        work = SimpleNamespace(shares=np.zeros((shares, 3, 0)), own=np.zeros(n_atoms))
        for bundle in (0, 2):
            parts = [share_of(shares * bundle + share, work) for share in range(shares)]
            assert [each[:2] for each in parts] == [(bundle, share) for share in range(shares)]
            atoms = [n for each in parts for n in range(*each[2:])]
            assert atoms == list(range(n_atoms))


@each_network
def test_lanes_do_not_lie_across_lines_of_the_cache(name: str) -> None:
    frozen, system = freeze(random_potential(name).float()), to_system(crystal())
    assert isinstance(frozen, FrozenNetwork)
    evaluate(frozen, system, build(system, frozen.cutoff, 0.5))
    scratches = [each.value.scratch for each in frozen.rooms.values()]
    single = [
        each
        for given in (frozen.weights, frozen.work, *scratches)
        for each in given
        if isinstance(each, np.ndarray) and each.dtype == np.float32
    ]
    assert len(single) > 20
    assert all(each.ctypes.data % LINE == 0 for each in single)


def test_narrow_gaussians_have_knots_enough() -> None:
    """Filters of small networks are so smooth that the fewest knots would do."""
    for precision, tolerance in AGREEMENT.items():
        network = sized("schnet", 32, 2, 50).to(precision)
        frozen, eager = both(network, to_system(molecule()))
        largest = eager.forces.abs().max().clamp_min(1.0)
        assert (frozen.forces - eager.forces).abs().max() < tolerance * largest


@each_network
def test_threads_do_not_change_a_bit(name: str) -> None:
    network = random_potential(name).float()
    system = to_system(crystal().repeat((2, 2, 3)))
    one, _ = both(network, system)
    torch.set_num_threads(2)
    two, _ = both(network, system)
    assert torch.equal(one.forces, two.forces)
    assert torch.equal(one.energies, two.energies)
    assert torch.equal(one.virials, two.virials)


def test_lists_are_as_wide_as_what_is_beyond_the_cutoff_is_cheap() -> None:
    small, large = to_system(crystal()), to_system(crystal().repeat(4))
    assert len(large.numbers) == LOOPED_ATOMS

    def skin(name: str, system: System, *, frozen: bool) -> float:
        network = random_potential(name)
        potential = freeze(network) if frozen else network
        return make_dynamics(SimulateConfig(ensemble="nve"), network, potential, system).skin

    for name in ("schnet", "schnet+zbl"):
        assert skin(name, small, frozen=True) == LOOPED_SKIN
        assert skin(name, concatenate([small] * 65), frozen=True) == LOOPED_SKIN
        assert skin(name, concatenate([small, large]), frozen=True) == SKIN
        assert skin(name, to_system(molecule()), frozen=True) == WIDE_SKIN
        assert skin(name, small, frozen=False) == SKIN
    for system in (small, large):
        assert skin("morse", system, frozen=True) == PAIRWISE_SKIN


@each_network
def test_threads_are_measured_or_all(name: str) -> None:
    network, system = random_potential(name).float(), to_system(crystal())
    frozen, neighbors = freeze(network), build(system, network.cutoff)
    assert isinstance(frozen, Frozen)
    torch.set_num_threads(2)
    choose_threads(frozen, system, neighbors, 0.0)
    assert len(frozen.team) in {1, 2}
    assert torch.get_num_threads() == 1  # those of torch would be in the way
    many = concatenate([system] * (MANY_PAIRS // neighbors.j.numel() + 1))
    choose_threads(frozen, many, build(many, network.cutoff), 0.0)
    assert len(frozen.team) == 2
    torch.set_num_threads(2)
    choose_threads(network, system, neighbors, FEW_PAIRS + 1.0)
    assert torch.get_num_threads() == 2
    choose_threads(network, system, neighbors, FEW_PAIRS)
    assert torch.get_num_threads() == 1


@each_network
def test_a_workspace_forgets(name: str) -> None:
    network = random_potential(name)
    frozen = freeze(network)
    systems = [to_system(each) for each in (molecule(), molecule(seed=1), crystal())]
    listed = [build(each, network.cutoff, 0.3) for each in systems]
    first = evaluate(frozen, systems[0], listed[0])
    kept = [each.clone() for each in first]
    for system, neighbors in zip(systems, listed, strict=True):
        fresh = evaluate(freeze(network), system, neighbors)
        assert torch.equal(evaluate(frozen, system, neighbors).forces, fresh.forces)
    again = evaluate(frozen, systems[0], listed[0])
    for new, old, saved in zip(again, first, kept, strict=True):
        assert torch.equal(new.nan_to_num(), saved.nan_to_num())
        assert torch.equal(old.nan_to_num(), saved.nan_to_num())  # a result is nobody's workspace


@each_network
def test_nothing_that_is_no_number_is_lost(name: str) -> None:
    network = random_potential(name)
    system = to_system(molecule())
    neighbors = build(system, network.cutoff)
    positions = system.positions.clone()
    positions[3, 1] = torch.nan
    found = evaluate(freeze(network), system._replace(positions=positions), neighbors)
    assert found.energy.isnan().all()
    assert found.forces[3].isnan().all()


@each_network
def test_an_isolated_atom_has_its_energy_exactly(name: str) -> None:
    atoms = ase.Atoms("O"), ase.Atoms("CO", [[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    for network in (random_potential(name), random_potential(name).float()):
        for system in map(to_system, atoms):
            found = evaluate(freeze(network), system, build(system, network.cutoff))
            expected = [REFERENCE_ENERGIES[int(z)] for z in system.numbers]
            assert found.energies.tolist() == expected
            assert not found.forces.any()


@each_network
def test_coincident_atoms_have_finite_forces(name: str) -> None:
    network = random_potential(name)
    atoms = ase.Atoms("CO", np.zeros((2, 3)))
    assert both(network, to_system(atoms))[0].forces.isfinite().all()


def test_what_has_no_loops_stays_itself() -> None:
    looped = {*NETWORKS, "lennard-jones", "morse", "zbl"}
    for name in [*ARCHITECTURES, "egnn+zbl", "equivariant+equivariant"]:
        potential = random_potential(name)
        assert (freeze(potential) is potential) == (name not in looped)
    chiral = random_network(Equivariant, parity="so3")
    assert freeze(chiral) is chiral


@each_network
def test_disagreement_is_told(name: str) -> None:
    network = random_potential(name)
    frozen = freeze(network)
    system = to_system(molecule())
    assert disagreement(frozen, network, system) == ""
    assert isinstance(network, Network)
    with torch.no_grad():
        network.energy_head.linear.weight.mul_(1.001)
    assert "off by" in disagreement(frozen, network, system)
    with torch.no_grad():
        network.energy_head.linear.weight.fill_(torch.nan)
    assert "nan" in disagreement(frozen, network, system)


@each_network
def test_dynamics_conserves_energy_and_follows_the_network(name: str) -> None:
    network = random_potential(name)
    system = to_system(molecule())
    momenta = maxwell_boltzmann(system, 300.0 * kB, [0])
    ends = []
    for potential in (freeze(network), network):
        dynamics = isolated(potential, velocity_verlet(0.2 * fs), system)
        first = start(dynamics, system, momenta)
        last = simulate(dynamics, first, steps=50, every=50, observe=lambda snapshot: True)
        ends.append(last.state.system.positions)
    assert (ends[0] - ends[1]).abs().max() < 10.0 * NETWORKS[name]


class TestPairs:
    """Functions of distances, alone and added to others."""

    NAMES = (
        "lennard-jones",
        "morse",
        "zbl",
        "composition+lennard-jones",
        "morse+zbl+lennard-jones",
        "equivariant+zbl",
        "schnet+zbl",
        "painn+morse",
        "zbl+composition+equivariant",
    )

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_loops_give_what_the_potential_gives(self, name: str, structure: str) -> None:
        potential = random_potential(name, closest=((1, 6, 1.2), (8, 8, 2.9)))
        assert_same(*both(potential, to_system(STRUCTURES[structure]), skin=0.4), 1e-10)

    @pytest.mark.parametrize("name", ["lennard-jones", "zbl"])
    def test_atoms_that_are_nearly_one(self, name: str) -> None:
        potential = random_potential(name, closest=((6, 8, 1.2),))
        for distance in (0.0, 0.003, 0.1):
            atoms = ase.Atoms("CO", [[0.0, 0.0, 0.0], [0.0, 0.0, distance]])
            frozen, eager = both(potential, to_system(atoms))
            size = max(1.0, float(eager.forces.abs().max()), float(eager.energy.abs()))
            assert frozen.forces.isfinite().all()
            assert (frozen.forces - eager.forces).abs().max() < 1e-12 * size
            assert (frozen.energy - eager.energy).abs() < 1e-12 * size

    def test_a_batch_is_its_systems(self) -> None:
        potential = random_potential("morse+zbl+lennard-jones")
        systems = [to_system(each) for each in (molecule(), crystal(), tiny(), slab())]
        together, expected = both(potential, concatenate(systems), skin=0.2)
        assert_same(together, expected, 1e-10)
        alone = [both(potential, each, skin=0.2)[0] for each in systems]
        assert torch.equal(together.forces, torch.cat([each.forces for each in alone]))

    def test_a_large_system_is_the_same_in_pieces_and_in_a_batch(self) -> None:
        potential = random_potential("morse+lennard-jones")
        large, small = crystal().repeat(4), molecule()
        assert len(large) >= MANY_ATOMS
        systems = [to_system(each) for each in (small, large, small)]
        together, expected = both(potential, concatenate(systems), skin=0.2)
        assert_same(together, expected, 1e-10)
        alone = [both(potential, each, skin=0.2)[0] for each in systems]
        torch.set_num_threads(3)
        shared, _ = both(potential, concatenate(systems), skin=0.2)
        for label in ("energies", "forces", "virials"):
            parts = torch.cat([getattr(each, label) for each in alone])
            assert torch.equal(getattr(together, label), parts)
            assert torch.equal(getattr(shared, label), parts)

    def test_rows_that_are_looked_at_piece_by_piece(self) -> None:
        potential = random_potential("lennard-jones", cutoff=11.0)
        system = to_system(ase.build.bulk("C", "fcc", 3.7, cubic=True))
        neighbors = build(system, potential.cutoff, 0.5)
        assert neighbors.valid.sum(1).max() > 3 * PIECE / 2
        assert_same(*both(potential, system, skin=0.5), 1e-9)

    def test_single_precision_is_computed_in_double(self) -> None:
        potential = random_potential("lennard-jones").float()
        frozen, eager = both(potential, to_system(crystal()))
        exact = both(potential.double(), to_system(crystal()))[1]
        error, rounding = ((each.forces - exact.forces).abs().max() for each in (frozen, eager))
        assert error < rounding < 1e-5
        assert disagreement(freeze(potential.float()), potential, to_system(molecule())) == ""

    def test_threads_do_not_change_a_bit(self) -> None:
        potential = random_potential("lennard-jones+zbl")
        system = to_system(crystal().repeat((2, 2, 3)))
        one, _ = both(potential, system)
        torch.set_num_threads(2)
        two, _ = both(potential, system)
        for ours, theirs in zip(one, two, strict=True):
            assert torch.equal(ours, theirs)

    def test_rows_follow_the_list_and_not_the_positions(self) -> None:
        potential = random_potential("lennard-jones")
        frozen = freeze(potential)
        systems = [to_system(crystal(seed=seed)) for seed in (0, 1)]
        listed = [build(each, potential.cutoff, 0.8) for each in systems]
        for system in systems:
            for neighbors in listed:
                expected = evaluate(potential, system, neighbors)
                assert_same(evaluate(frozen, system, neighbors), expected, 1e-10)

    def test_nothing_that_is_no_number_is_lost(self) -> None:
        for name in ("lennard-jones", "morse", "zbl"):
            potential = random_potential(name)
            system = to_system(molecule())
            neighbors = build(system, potential.cutoff)
            positions = system.positions.clone()
            positions[3, 1] = torch.nan
            found = evaluate(freeze(potential), system._replace(positions=positions), neighbors)
            assert found.energy.isnan().all()
            assert found.forces[3].isnan().all()

    def test_what_is_no_number_stays_in_its_system(self) -> None:
        potential = random_potential("lennard-jones")
        system = to_system(crystal())
        batch = concatenate([system, system, system])
        neighbors = build(batch, potential.cutoff)
        frozen = freeze(potential)
        sound = evaluate(frozen, batch, neighbors)
        positions = batch.positions.clone()
        positions[9, 1] = torch.nan
        found = evaluate(frozen, batch._replace(positions=positions), neighbors)
        assert found.energy[1].isnan()
        for part in (slice(0, 8), slice(16, 24)):
            assert torch.equal(found.forces[part], sound.forces[part])
            assert torch.equal(found.energies[part], sound.energies[part])


def test_without_a_compiler_there_is_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Evaluation:
        raise RuntimeError("no such processor")

    monkeypatch.setattr(FrozenNetwork, "evaluate", fail)
    network = random_potential("schnet")
    found, why = fastest(network, [to_system(molecule())])
    assert found is network
    assert why == "no loops can be compiled (RuntimeError: no such processor)"


def test_a_mistake_in_the_loops_is_not_taken_for_a_missing_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> Evaluation:
        raise IndexError("too far")

    monkeypatch.setattr(FrozenNetwork, "evaluate", fail)
    with pytest.raises(IndexError, match="too far"):
        fastest(random_potential("schnet"), [to_system(molecule())])


@pytest.mark.parametrize("architecture", ["schnet", "painn", "equivariant"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_loops_are_given_what_their_layouts_declare(
    architecture: str, precision: torch.dtype
) -> None:
    """So another process can compile them that knows nothing but the layouts."""
    network = random_network(ARCHITECTURES[architecture]).to(precision)
    ours = freeze(network)
    assert isinstance(ours, FrozenNetwork)
    assert ours.loops.backward is beforehand.FUNCTIONS[architecture]
    system = to_system(crystal())
    neighbors = build(system, network.cutoff, 0.5)
    inputs, work = ours.look(system, neighbors).value, ours.room(ours.weights, *neighbors.j.shape)
    known = [kind_of(each) for each in (inputs, ours.weights, work)]
    for loop in (ours.loops.forward, ours.loops.backward):
        declared = forms_of(loop, str(precision).removeprefix("torch."))
        assert declared == [numba.int64, numba.int64, *known]


def test_how_tensors_lie_in_memory_does_not_matter() -> None:
    """Loops read them where they are, and nobody looks at each step."""
    frozen = freeze(random_potential("schnet"))
    system = to_system(crystal())
    neighbors = build(system, frozen.cutoff, 0.5)
    expected = evaluate(frozen, system, neighbors)
    turned = {name: getattr(system, name).mT.contiguous().mT for name in ("positions", "cell")}
    assert not turned["positions"].is_contiguous()
    for other in (frozen, freeze(random_potential("schnet"))):
        found = evaluate(other, system._replace(**turned), neighbors)
        assert torch.equal(found.forces, expected.forces)
