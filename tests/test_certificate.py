"""The certificate: sound potentials hold in every row, broken ones fail in theirs and no other.

A potential that depends on absolute positions cannot be written: it is only ever shown pair
vectors. So nothing here breaks translation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import (
    REFERENCE_ENERGIES,
    SPECIES,
    crystal,
    molecule,
    random_network,
    random_schnet,
    slab,
)
from test_checkpoint import edit
from torch import Tensor

from mdlearn import certificate, probes
from mdlearn.atoms import to_system
from mdlearn.certificate import certify, failures
from mdlearn.errors import ModelError
from mdlearn.neighbors import Neighbors, build, pair_vectors
from mdlearn.potentials.checkpoint import (
    Claim,
    add_certificate,
    claims_to_json,
    load_model,
    save_model,
)
from mdlearn.potentials.composition import Composition
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import EUCLIDEAN, ParametricPotential
from mdlearn.potentials.pairs import envelope
from mdlearn.potentials.schnet import SchNet
from mdlearn.system import Evaluation, System

SOFT = 1e-3
"""eV. With a scale of 1 a random equivariant network has forces of 100 eV/Å, and no dynamics."""

Extra = Callable[[Tensor, Tensor, Tensor, Neighbors, float], Tensor]
"""(ranks of elements, r, distance, neighbors, cutoff) -> what it adds to the atomic energies."""


@pytest.fixture(autouse=True)
def _short_dynamics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "STEPS", 60)


def both(network: ParametricPotential) -> tuple[ParametricPotential, ParametricPotential]:
    """The network in float64, and built anew in float32."""
    single = type(network)(SPECIES, REFERENCE_ENERGIES, network.settings).float()
    single.load_state_dict(network.state_dict())
    single.symmetries = network.symmetries
    return network, single


def measure(
    network: ParametricPotential, structures: Sequence[System] | None = None
) -> dict[str, Claim]:
    """The certificate of a network by the names of its rows, measured on a molecule as well."""
    structures = [to_system(molecule())] if structures is None else structures
    return {claim.name: claim for claim in certify(*both(network), structures)}


def broken(claims: dict[str, Claim]) -> set[str]:
    return {name for name, claim in claims.items() if claim.verdict == "does not hold"}


def reported(claims: dict[str, Claim]) -> set[str]:
    return {name for name, claim in claims.items() if claim.verdict == "reported only"}


def with_extra(extra: Extra) -> ParametricPotential:
    """A random SchNet that adds something to the energies of atoms."""

    class Altered(SchNet):
        def interaction(
            self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
        ) -> Tensor:
            energy = super().interaction(index, r, distance, neighbors)
            return energy + extra(index, r, distance, neighbors, self.cutoff)

    network = random_schnet()
    altered = Altered(SPECIES, REFERENCE_ENERGIES, network.settings).double()
    altered.load_state_dict(network.state_dict())
    return altered


def sees_x(index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float) -> Tensor:
    return 0.01 * (r[..., 0].square() * envelope(distance, c)).sum(1)


def chiral(index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float) -> Tensor:
    smooth = envelope(distance, c)[..., None]
    u, v, w = (
        (r * smooth * weight[..., None]).sum(1)
        for weight in (torch.ones_like(distance), distance, distance.square())
    )
    return 0.01 * (torch.linalg.cross(u, v) * w).sum(1)


def sees_order(
    index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float
) -> Tensor:
    before = neighbors.j < torch.arange(len(index))[:, None]
    return 0.01 * (before * envelope(distance, c)).sum(1).square()


def sees_size(index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float) -> Tensor:
    return 1e-4 * len(index) * envelope(distance, c).sum(1)


def energy_jumps(
    index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float
) -> Tensor:
    return 1e-5 * (distance < c).sum(1)


def force_jumps(
    index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float
) -> Tensor:
    return 0.01 * (c - distance).clamp_min(0.0).sum(1)


def slope_of_force_jumps(
    index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float
) -> Tensor:
    return 0.01 * (c - distance).clamp_min(0.0).square().sum(1)


def atom_is_off(
    index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float
) -> Tensor:
    return torch.full_like(distance[:, 0], 1e-3)


def forgets_a_derivative(
    index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float
) -> Tensor:
    return 1e-4 * (distance.detach() * envelope(distance, c)).sum(1)


def infinite_slope(
    index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float
) -> Tensor:
    return 0.01 * (r.square().sum(-1).sqrt() * envelope(distance, c)).sum(1)


def loses_digits(
    index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float
) -> Tensor:
    return (0.1 if r.dtype == torch.float32 else 0.0) * envelope(distance, c).sum(1)


def rough(index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float) -> Tensor:
    return 0.2 * (torch.sin(150.0 * distance) * envelope(distance, c)).sum(1)


def stiff(index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float) -> Tensor:
    return 1e-3 * (torch.sin(4e3 * distance) * envelope(distance, c)).sum(1)


FAULTS: dict[Extra, set[str]] = {
    # What is not invariant under rotation also feels a torque.
    sees_x: {"rotation", "reflection", "net torque"},
    chiral: {"reflection"},
    # In a supercell half of the images of an atom come later in the order than they did.
    sees_order: {"permutation", "extensivity"},
    # Finite differences are taken in batches, which are larger than the system.
    sees_size: {"extensivity", "force", "stress"},
    energy_jumps: {"energy at the cutoff"},
    force_jumps: {"force at the cutoff"},
    slope_of_force_jumps: {"force at the cutoff"},
    atom_is_off: {"isolated atoms"},
    forgets_a_derivative: {"force", "stress"},
    infinite_slope: {"degenerate geometry"},
    loses_digits: {"float32 energy", "float32 forces"},
    rough: {"energy drift", "energy excursion"},
}


@pytest.mark.parametrize("make", [molecule, crystal, slab])
@pytest.mark.parametrize("kind", [SchNet, Equivariant])
def test_sound_networks_hold_in_every_row(
    kind: type[SchNet | Equivariant], make: Callable[[], Any]
) -> None:
    claims = measure(random_network(kind, scale=SOFT), [to_system(make())])
    assert len(claims) == 17
    assert not broken(claims), failures(claims.values())
    assert not reported(claims)
    assert claims["force"].value > 0.0
    assert claims["energy excursion"].value > 1e-9


@pytest.mark.parametrize("extra", FAULTS, ids=lambda each: each.__name__)
def test_broken_potentials_fail_where_they_are_broken(extra: Extra) -> None:
    assert broken(measure(with_extra(extra))) == FAULTS[extra]


def test_stiffness_is_no_wrong_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes within the first step of a difference is measured by a smaller one."""
    network = with_extra(stiff)
    assert not {"force", "stress"} & broken(measure(network, []))
    first = certificate.DIFFERENCE_STEPS[:1]
    monkeypatch.setattr(certificate, "DIFFERENCE_STEPS", first)
    assert {"force", "stress"} <= broken(measure(network, []))


def test_every_row_but_translation_and_net_force_has_a_fault_that_breaks_it() -> None:
    """Translation cannot be broken behind the contract; the net force is broken below."""
    rows = set(measure(random_schnet()))
    assert rows - set().union(*FAULTS.values()) == {"translation", "net force"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda found: found._replace(forces=1.001 * found.forces), {"force"}),
        (lambda found: found._replace(stress=-found.stress), {"stress"}),
        (
            lambda found: found._replace(forces=found.forces + torch.tensor([0.01, 0.0, 0.0])),
            {"rotation", "reflection", "force", "net force", "isolated atoms"},
        ),
    ],
    ids=["scaled forces", "sign of the stress", "wind"],
)
def test_wrong_derivatives_are_found(
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Evaluation], Evaluation],
    expected: set[str],
) -> None:
    monkeypatch.setattr(certificate, "evaluate", lambda *arguments: change(evaluate(*arguments)))
    assert broken(measure(random_schnet())) == expected


def test_what_is_not_claimed_is_reported_with_its_size() -> None:
    network = with_extra(sees_x)
    network.symmetries = EUCLIDEAN - {"rotation", "reflection"}
    claims = measure(network)
    assert not broken(claims)
    assert reported(claims) == {"rotation", "reflection", "net torque"}
    assert all(claims[name].value > 1e-4 for name in reported(claims))


def test_chiral_network_reports_reflection() -> None:
    claims = measure(random_network(Equivariant, scale=SOFT, parity="so3"))
    assert not broken(claims)
    assert reported(claims) == {"reflection"}
    assert claims["reflection"].value > 1e-3


def test_composition_does_not_claim_isolated_atoms() -> None:
    settings = random_schnet().settings._replace(architecture="composition")
    network = Composition(SPECIES, REFERENCE_ENERGIES, settings).double()
    with torch.no_grad():
        network.shift.copy_(torch.tensor([-2.0, -7.0, -5.0]))
    claims = measure(network)
    assert not broken(claims)
    assert reported(claims) == {"isolated atoms"}
    assert claims["isolated atoms"].value == pytest.approx(7.0)


def test_what_is_no_number_does_not_hold() -> None:
    """A certificate is a report: whatever a potential does, there is one."""

    def nothing(
        index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors, c: float
    ) -> Tensor:
        return torch.nan * envelope(distance, c).sum(1)

    claims = measure(with_extra(nothing))
    assert broken(claims) == set(claims)
    assert all(not math.isfinite(claims[name].value) for name in ("force", "energy drift"))
    assert "rotation (nan, limit 1e-10)" in failures(claims.values())


def test_explosion_does_not_hold() -> None:
    claims = measure(random_network(Equivariant, scale=100.0))
    assert broken(claims) == {"energy drift", "energy excursion"}
    assert claims["energy excursion"].value == math.inf


def test_large_structures_are_measured_less(monkeypatch: pytest.MonkeyPatch) -> None:
    structures = [to_system(molecule()), to_system(molecule("CH4"))]
    seen: list[int] = []

    def count(potential: ParametricPotential, system: System, neighbors: Neighbors) -> Evaluation:
        seen.append(len(system.numbers))
        return evaluate(potential, system, neighbors)

    monkeypatch.setattr(certificate, "evaluate", count)
    measure(random_schnet(), structures)
    assert seen.count(5) > 1
    for name in ("STRUCTURES_WORK", "DIFFERENCES_WORK", "DYNAMICS_WORK"):
        monkeypatch.setattr(certificate, name, 1.0)
    small = len(seen)
    claims = measure(random_schnet(), structures)
    assert 5 not in seen[small:]
    assert not broken(claims)
    assert reported(claims) == {"energy drift"}
    assert claims["energy drift"].what == "10 steps of 0.5 fs at 300 K"


def test_without_structures_there_is_no_dynamics() -> None:
    claims = measure(random_schnet(), [])
    assert not broken(claims)
    assert len(claims) == 15
    assert "energy drift" not in claims


def test_certificate_is_always_the_same() -> None:
    assert measure(random_schnet()) == measure(random_schnet())


class TestProbes:
    def test_random_structures_are_what_they_say(self) -> None:
        for cutoff in (1.0, 3.5, 5.0, 12.0):
            for make in (probes.random_molecule, probes.random_crystal):
                system = make(SPECIES, cutoff)
                assert set(system.numbers.tolist()) == set(SPECIES)
                neighbors = build(system, cutoff)
                distance = pair_vectors(system, neighbors).norm(dim=-1)[neighbors.valid]
                assert distance.min() > 0.2 * min(cutoff, 3.6)
                assert bool(neighbors.valid.any(1).all())
        heights = 1.0 / torch.linalg.inv(system.cell[0]).norm(dim=0)
        assert heights.max() < 12.0

    def test_all_elements_take_part_where_there_is_room(self) -> None:
        assert len(set(probes.random_molecule(range(1, 13), 5.0).numbers.tolist())) == 12
        assert len(probes.random_molecule(range(1, 90), 5.0).numbers) == 12
        assert probes.pairs_at_cutoff(range(1, 90), 5.0, 5.0).cell.shape[0] == probes.PAIRS

    def test_matrices_turn_and_reflect(self) -> None:
        one = torch.eye(3, dtype=torch.float64)
        for q, sign in ((probes.rotation(), 1.0), (probes.reflection(), -1.0)):
            torch.testing.assert_close(q @ q.T, one, rtol=0.0, atol=1e-14)
            assert float(torch.linalg.det(q)) == pytest.approx(sign, rel=1e-14)
            assert float((q.abs() - one).abs().max()) > 0.1

    def test_copies_and_cells(self) -> None:
        for atoms, expected in ((crystal(), crystal() * (2, 1, 1)), (slab(), slab() * (2, 1, 1))):
            found = probes.doubled(to_system(atoms), 3.5)
            torch.testing.assert_close(found.positions, torch.tensor(expected.positions))
            torch.testing.assert_close(found.cell[0], torch.tensor(expected.cell.array))
            assert found.numbers.tolist() == expected.numbers.tolist()
        x = probes.doubled(to_system(molecule()), 3.5).positions
        assert torch.cdist(x[:9], x[9:]).min() > 3.5


class TestFile:
    CLAIMS = (
        Claim("rotation", "change", 1e-15, "relative", 1e-10, "holds"),
        Claim("reflection", "change", 0.5, "relative", 1e-10, "reported only"),
        Claim("energy drift", "200 steps", math.inf, "meV/atom/ps", 5.0, "does not hold"),
    )

    def test_comes_back(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_model(path, random_schnet(), {"seed": 1}, [to_system(molecule())])
        before = load_model(path, torch.float64)
        assert before.certificate is None
        add_certificate(path, self.CLAIMS)
        after = load_model(path, torch.float64)
        assert after.certificate is not None
        assert after.certificate[:2] == self.CLAIMS[:2]
        assert math.isnan(after.certificate[2].value)  # JSON has neither
        assert after.certificate[2].verdict == "does not hold"
        assert after.provenance == before.provenance
        for name, each in before.network.state_dict().items():
            assert torch.equal(after.network.state_dict()[name], each)
        content = path.read_bytes()
        add_certificate(path, self.CLAIMS)
        assert path.read_bytes() == content

    def test_golden_structures_come_back_with_their_masses(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        systems = [to_system(molecule()), to_system(crystal())]
        save_model(path, random_schnet(), {}, systems)
        for found, expected in zip(load_model(path).golden, systems, strict=True):
            for name in ("positions", "numbers", "masses", "cell", "pbc"):
                assert torch.equal(getattr(found, name), getattr(expected, name))

    def test_older_files_load(self, model_path: Path, tmp_path: Path) -> None:
        def age(header: dict[str, Any]) -> None:
            for golden in header["golden"]:
                del golden["masses"]

        model = load_model(edit(model_path, age, tmp_path / "older.safetensors"))
        assert model.certificate is None
        assert model.golden[0].masses.tolist() == (2.0 * model.golden[0].numbers).tolist()

    @pytest.mark.parametrize(
        "damage",
        [
            lambda claims: claims[0].pop("value"),
            lambda claims: claims[0].update(value="small"),
            lambda claims: claims[0].update(limit=None),
            lambda claims: claims[0].update(verdict="perhaps"),
            lambda claims: claims[0].update(surprise=1),
            lambda claims: claims.append(5),
        ],
    )
    def test_damage_is_an_error(
        self, model_path: Path, tmp_path: Path, damage: Callable[[list[Any]], Any]
    ) -> None:
        def change(header: dict[str, Any]) -> None:
            header["certificate"] = claims_to_json(self.CLAIMS)
            damage(header["certificate"])

        path = edit(model_path, change, tmp_path / "odd.safetensors")
        with pytest.raises(ModelError, match=r"odd\.safetensors: damaged"):
            load_model(path)
