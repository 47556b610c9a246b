"""What is frozen for a GPU gives what the network gives; on a CPU by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ase
import pytest
import torch
from checks import REFERENCE_ENERGIES, SPECIES, molecule, random_network
from triton.errors import TritonError

from mdlearn.atoms import to_system
from mdlearn.neighbors import build
from mdlearn.potentials import frozen_cuda_equivariant, frozen_cuda_filters
from mdlearn.potentials.architectures import make_potential
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.evaluate import Frozen, evaluate
from mdlearn.potentials.frozen import WITHOUT_TRITON, fastest, freeze
from mdlearn.potentials.frozen_cuda_equivariant import FrozenEquivariantOnGPU
from mdlearn.potentials.frozen_cuda_filters import FrozenFiltersOnGPU
from mdlearn.potentials.kernels.triton_layout import make_workspace
from mdlearn.potentials.network import Network, ParametricPotential, Settings
from mdlearn.potentials.painn import PaiNN
from mdlearn.potentials.schnet import SchNet
from mdlearn.system import Evaluation, System, concatenate, sum_by_system

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CUTOFF = 2.7
TOLERANCES = {"equivariant": 1e-11, "schnet": 1e-10, "painn": 1e-10}
"""Of forces in float64. Tables of filters are as good as `frozen_tables.TOLERANCE`, their slopes
twenty times worse."""


def sized(features: int, layers: int, radial: int) -> Equivariant:
    """The default network, random and of some size, in float64."""
    network = random_of("equivariant", features, layers, radial)
    assert isinstance(network, Equivariant)
    return network


def random_of(name: str, features: int, layers: int, radial: int) -> ParametricPotential:
    """A random network of some size, in float64."""
    torch.manual_seed(3)
    closest = ((1, 8, 1.0), (6, 8, 1.9))
    settings = Settings(name, CUTOFF, features, layers, radial, 4.0, 0.7, closest)
    network = make_potential(SPECIES, REFERENCE_ENERGIES, settings).double().to(DEVICE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return network


def frozen_of(network: ParametricPotential) -> Frozen:
    """Its kernels."""
    if isinstance(network, Equivariant):
        return FrozenEquivariantOnGPU(network)
    assert isinstance(network, SchNet | PaiNN)
    return FrozenFiltersOnGPU(network)


def batch() -> System:
    """A molecule, a crystal in which atoms see images of themselves, and an atom without others."""
    cell = [[2.6, 0.0, 0.0], [0.4, 3.3, 0.0], [0.3, -0.5, 3.6]]
    crystal = ase.Atoms("CO", [[0.1, 0.2, 0.3], [1.2, 1.1, 1.5]], cell=cell, pbc=True)
    parts = [to_system(each) for each in (molecule("H2O"), crystal, ase.Atoms("O"))]
    return System(*(each.to(DEVICE) for each in concatenate(parts)))


def assert_same(found: Evaluation, expected: Evaluation, system: System, tolerance: float) -> None:
    """All but how virials are shared out between the two atoms of a pair.

    The tolerance is a share of the largest force.
    """
    tolerance *= float(expected.forces.abs().max().clamp_min(1.0))
    for label in ("energies", "energy", "forces"):
        assert (getattr(found, label) - getattr(expected, label)).abs().max() < tolerance
    virials = [sum_by_system(each.virials, system) for each in (found, expected)]
    assert (virials[0] - virials[1]).abs().max() < tolerance
    assert torch.equal(found.stress.isnan(), expected.stress.isnan())
    assert (found.stress - expected.stress).nan_to_num().abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TOLERANCES)
def test_kernels_give_what_the_network_gives(name: str, dtype: torch.dtype) -> None:
    network = random_of(name, 16, 2, 4).to(dtype)
    system = batch()
    neighbors = build(system, CUTOFF, 0.4)
    found = evaluate(frozen_of(network), system, neighbors)
    expected = evaluate(network, system, neighbors)
    assert_same(found, expected, system, TOLERANCES[name] if dtype is torch.float64 else 1e-5)
    assert {each.dtype for each in found} == {torch.float64}


def test_an_evaluation_leaves_nothing_behind() -> None:
    network = sized(16, 2, 2).float()
    frozen = FrozenEquivariantOnGPU(network)
    atoms = [molecule("H2O", seed) for seed in (0, 1)]
    systems = [System(*(each.to(DEVICE) for each in to_system(one))) for one in atoms]
    lists = [build(each, CUTOFF) for each in systems]
    first = evaluate(frozen, systems[0], lists[0])
    kept = [each.clone() for each in first]
    found = evaluate(frozen, systems[1], lists[1])
    assert_same(found, evaluate(network, systems[1], lists[1]), systems[1], 1e-5)
    for one, two in zip(first, kept, strict=True):
        assert torch.equal(one.nan_to_num(), two.nan_to_num())  # a result is nobody's workspace
    again = evaluate(frozen, systems[0], lists[0])
    assert frozen.recording is not None
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.nan_to_num(), two.nan_to_num())
    size = lists[0].j.shape
    copy = frozen.recording.neighbors[:4]  # once more for a step
    held = [*make_workspace(frozen.weights, *size), *copy, *copy]
    assert frozen.workspace(*size) == sum(each.nbytes for each in held)


@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize(("features", "layers", "radial"), [(16, 1, 5), (40, 3, 2)])
def test_kernels_take_networks_of_any_size(
    name: str, features: int, layers: int, radial: int
) -> None:
    network = random_of(name, features, layers, radial)
    system = System(*(each.to(DEVICE) for each in to_system(molecule("H2O"))))
    neighbors = build(system, CUTOFF)
    found = evaluate(frozen_of(network), system, neighbors)
    assert_same(found, evaluate(network, system, neighbors), system, TOLERANCES[name])


@pytest.mark.parametrize("name", TOLERANCES)
def test_what_is_no_number_is_neither_lost_nor_spread(name: str) -> None:
    frozen = frozen_of(random_of(name, 16, 2, 2))
    parts = [to_system(molecule("H2O")), to_system(molecule("OH"))]
    system = System(*(each.to(DEVICE) for each in concatenate(parts)))
    neighbors = build(system, CUTOFF)
    sound = evaluate(frozen, system, neighbors)
    positions = system.positions.clone()
    positions[1, 2] = torch.nan
    found = evaluate(frozen, system._replace(positions=positions), neighbors)
    assert found.energy[0].isnan()
    assert found.forces[1].isnan().all()
    assert torch.equal(found.energies[3:], sound.energies[3:])
    assert torch.equal(found.forces[3:], sound.forces[3:])


@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [
        (Equivariant, frozen_cuda_equivariant, "FrozenEquivariantOnGPU"),
        (SchNet, frozen_cuda_filters, "FrozenFiltersOnGPU"),
        (PaiNN, frozen_cuda_filters, "FrozenFiltersOnGPU"),
    ],
)
def test_on_a_gpu_a_network_has_kernels_if_there_is_triton(
    kind: type[Network], module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random_network(kind)
    start = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(kind, "wall", SimpleNamespace(start=start), raising=False)
    made = object()
    monkeypatch.setattr(module, name, lambda network: made)
    assert freeze(network) is made
    assert fastest(network, []) == (made, "")
    for call, lacks in (("version", lambda name: "3.2.1"), ("find_spec", lambda name: None)):
        monkeypatch.setattr(f"mdlearn.potentials.frozen.{call}", lacks)
        assert freeze(network) is network
        assert fastest(network, []) == (network, WITHOUT_TRITON)


def test_a_compiler_takes_the_kernels() -> None:
    """The interpreter takes all of Python. What is run is the front end of the real compiler."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {"look", "expand", "hear", "multiply", "speak", "read", "push"}
    names |= {"approach", "conclude", "add_up", "look_at"}
    names |= {"depart", "arrive", "book", "thermalize"}
    names |= {"expand_back", "hear_back", "multiply_back", "speak_back"}
    assert set(done.stdout.split()) == names


def test_an_error_of_triton_is_one_that_can_be_dealt_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TritonError("out of registers")

    network = sized(16, 1, 4)
    frozen, system = FrozenEquivariantOnGPU(network), batch()
    monkeypatch.setattr(frozen, "record", fail)
    with pytest.raises(RuntimeError, match="out of registers"):
        evaluate(frozen, system, build(system, CUTOFF))
