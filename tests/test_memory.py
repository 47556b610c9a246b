"""Memory that runs out: a batch is computed in parts, or a message says why and what to do."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import ase.io
import pytest
import torch
from checks import Run, crystal, random_potential
from torch import Tensor

from mdlearn.atoms import Frame, read_frames, to_system
from mdlearn.cli.memory import estimate_memory as estimate_evaluation
from mdlearn.errors import ResourceError
from mdlearn.neighbors import LOOPED_SKIN, Neighbors, build
from mdlearn.potentials.evaluate import Evaluable, Frozen, evaluate
from mdlearn.potentials.frozen import freeze
from mdlearn.potentials.frozen_network import FrozenNetwork
from mdlearn.potentials.frozen_pairs import FrozenPairs, FrozenSum
from mdlearn.potentials.network import Settings
from mdlearn.potentials.schnet import SchNet
from mdlearn.training.dataset import Example, concatenate, make_example
from mdlearn.training.loop import Training, fit
from mdlearn.training.loss import Weights
from mdlearn.training.schedule import Schedule
from mdlearn.training.statistics import find_species, fit_reference_energies
from mdlearn.training.step import MOST_PARTS, estimate_memory

HOST = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory:"
    " you tried to allocate 8000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Greedy(SchNet):
    """A network that has no memory for more than some atoms."""

    room = 1000
    error: Exception = GPU

    def interaction(
        self, index: Tensor, r: Tensor, distance: Tensor, neighbors: Neighbors
    ) -> Tensor:
        if len(index) > self.room:
            raise self.error
        return super().interaction(index, r, distance, neighbors)


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return list(read_frames(str(files("mdlearn.data") / "ethanol.xyz"))[0][:14])


def begin(frames: list[Frame], room: int, error: Exception = GPU) -> Training:
    """A training in steps of seven frames of nine atoms."""
    torch.manual_seed(0)
    energies = fit_reference_energies(frames, []).energies
    settings = Settings("schnet", 4.0, 6, 1, 6, average_neighbors=8.0, scale=1.0)
    network = Greedy(find_species(frames), energies, settings).double()
    network.room, network.error = room, error
    schedule = Schedule(2, 0.0, 2, 7, 1e-2, 0.9, 7)
    return Training(network, Weights(1.0, 1.0, 1.0), schedule)


def examples_of(frames: list[Frame]) -> list[Example]:
    return [make_example(frame, 4.0) for frame in frames]


@pytest.mark.parametrize("error", [HOST, GPU, MemoryError()], ids=["host", "gpu", "python"])
@pytest.mark.parametrize(("room", "parts"), [(40, 2), (20, 4), (9, 8)])
def test_parts_learn_what_the_whole_does(
    frames: list[Frame], error: Exception, room: int, parts: int
) -> None:
    examples = examples_of(frames)
    whole, cut = begin(frames, 1000), begin(frames, room, error)
    for training in (whole, cut):
        assert len(list(fit(training, examples, examples[:2], most_parts=MOST_PARTS))) == 2
    assert (whole.parts, cut.parts) == (1, parts)
    for one, other in zip(whole.parameters, cut.parameters, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)
    assert cut.history[-1].loss == pytest.approx(whole.history[-1].loss, rel=1e-9)


@pytest.mark.parametrize(
    ("room", "most_parts", "said"),
    [
        (40, 1, r"a batch of 7 frames and 63 atoms needs at least \S+ GB; go on with .*--auto-ba"),
        (40, 1, "--batch-atoms 31"),
        (20, 2, r"a part \(of 2\) of a batch of 7 frames"),
        (8, 8, r"not even .*ethanol.xyz:\d+, a frame of 9 atoms, fits"),
    ],
)
def test_says_what_is_needed_and_what_to_do(
    frames: list[Frame], room: int, most_parts: int, said: str
) -> None:
    with pytest.raises(ResourceError, match=said) as raised:
        list(fit(begin(frames, room), examples_of(frames), [], most_parts=most_parts))
    assert raised.value.exit_code == 7


def test_other_errors_are_no_lack_of_memory(frames: list[Frame]) -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(fit(begin(frames, 0, RuntimeError("shapes do not match")), examples_of(frames), []))


def test_estimate_counts_what_is_kept(frames: list[Frame]) -> None:
    """What a step keeps grows with the batch, and is no less than the features of all pairs."""
    examples = examples_of(frames)
    network = begin(frames, 1000).network
    one, seven = (estimate_memory(network, concatenate(examples[:n])) for n in (1, 7))
    assert one is not None
    assert seven is not None
    weights = sum(each.numel() * each.element_size() for each in network.parameters())
    assert seven - weights == pytest.approx(7 * (one - weights), rel=0.1)
    assert one > examples[0].neighbors.j.numel() * 6 * 8


@pytest.mark.parametrize(
    "name", ["equivariant", "schnet", "painn", "lennard-jones", "equivariant+zbl"]
)
@pytest.mark.parametrize("times", [2, 4, 6])
def test_room_for_a_frozen_evaluation_is_known_before(name: str, times: int) -> None:
    """Exactly where arrays belong to atoms and slots; rows may be shorter than they could be."""
    frozen, system = freeze(random_potential(name)), to_system(crystal().repeat(times))
    assert isinstance(frozen, Frozen)
    neighbors = build(system, frozen.cutoff, 0.5)
    evaluate(frozen, system, neighbors)
    parts = frozen.summands if isinstance(frozen, FrozenSum) else [frozen]
    for part in parts:
        room = part.workspace(*neighbors.j.shape)
        if isinstance(part, FrozenNetwork):
            assert part.work is not None
            *shared, _ = part.work  # the scratch is one for a thread
            assert room == sum(each.nbytes for each in shared)
        if isinstance(part, FrozenPairs):
            assert part.rows is not None
            rows = part.rows.first, part.rows.last, part.rows.near
            used = sum(each.nbytes for each in (*rows, part.shares))
            assert 0.5 * room < used <= room
    assert frozen.workspace(*neighbors.j.shape) == sum(
        part.workspace(*neighbors.j.shape) for part in parts
    )


@pytest.mark.parametrize("name", ["equivariant", "schnet", "painn"])
def test_a_small_system_tells_what_a_large_one_needs(name: str) -> None:
    potential = random_potential(name)
    small, large = (to_system(crystal().repeat(times)) for times in (1, (4, 4, 5)))
    lists = build(large, potential.cutoff, 0.5)
    told = estimate_evaluation(potential, [small], lists)
    assert told == pytest.approx(estimate_evaluation(potential, [large], lists), rel=0.1)
    assert told > lists.j.numel() * 8 * potential.settings.features


def test_memory_is_asked_for_the_lists_that_dynamics_has(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    reaches = []

    def ask(
        name: str,
        potential: Evaluable,
        golden: Any,
        neighbors: Neighbors,
        *others: Any,
        **more: Any,
    ) -> Evaluable:
        reaches.append(float(neighbors.reach) - potential.cutoff)
        return potential

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mdlearn.cli.simulate.within_memory", ask)
    ase.io.write("solid.xyz", crystal())
    start = ["simulate", model_path, "solid.xyz", "--steps", 1, "--output", "t.h5"]
    assert run(*start)[0] == 0
    assert run("simulate", "--resume", "t.h5", "--steps", 2)[0] == 0
    assert reaches == pytest.approx([LOOPED_SKIN, LOOPED_SKIN])


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    ase.io.write("frames.xyz", ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), ":8"))
    plain = SchNet.interaction

    def greedy(self: SchNet, index: Tensor, *others: Tensor) -> Tensor:
        if self.training and len(index) > 30:
            raise GPU
        return plain(self, index, *others)

    monkeypatch.setattr(SchNet, "interaction", greedy)
    train = ["train", "frames.xyz", "--model", "schnet", "--features", "4", "--epochs", "1"]
    code, _, err = run(*train)
    assert code == 7
    assert err.splitlines()[-1].startswith("mdlearn: out of memory: a batch of 7 frames")
    code, _, err = run("train", "--resume", "frames-run", "--auto-batch")
    assert code == 0
    assert "memory      ran out; batches are computed in 4 parts" in err
