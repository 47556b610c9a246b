"""Reference energies, splits and the loop."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from mdlearn.atoms import Frame, read_frames, to_system
from mdlearn.errors import UnstableError
from mdlearn.labels import Keys, Labels, find_labels
from mdlearn.packed import PackedFrames
from mdlearn.packing import PackedWriter
from mdlearn.potentials.network import Network, Settings
from mdlearn.potentials.schnet import SchNet
from mdlearn.training.adam import BETAS, CLIP
from mdlearn.training.dataset import (
    Example,
    Examples,
    concatenate,
    deal,
    make_example,
    split_frames,
)
from mdlearn.training.finetune import adapt
from mdlearn.training.loop import Epoch, Training, fit
from mdlearn.training.loss import Weights, measure
from mdlearn.training.schedule import Schedule
from mdlearn.training.statistics import (
    USUAL_CUTOFF,
    Cutoff,
    average_neighbors,
    choose_cutoff,
    closest_distances,
    find_species,
    fit_reference_energies,
    force_scale,
)
from mdlearn.training.team import ALONE, Team

WEIGHTS = Weights(1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """Some frames of ethanol."""
    return read_frames(str(files("mdlearn.data") / "ethanol.xyz"))[0][:24]


def make_network(frames: list[Frame]) -> Network:
    torch.manual_seed(0)
    settings = Settings("schnet", 4.0, 8, 1, 8, average_neighbors=8.0, scale=force_scale(frames))
    energies = fit_reference_energies(frames, []).energies
    return SchNet(find_species(frames), energies, settings).float()


def run(
    frames: list[Frame], epochs: int, ema: float = 0.9, weights: Weights = WEIGHTS
) -> tuple[Network, Network, list[Epoch]]:
    """Trains on all but four frames; returns network, average and history."""
    examples = [make_example(frame, 4.0) for frame in frames]
    schedule = Schedule(epochs, 0.0, epochs, 5, 1e-2, ema, 0)
    training = Training(make_network(frames), weights, schedule)
    history = list(fit(training, examples[4:], [concatenate(examples[:4])]))
    return training.network, training.averaged, history


def relabel(frame: Frame, energy: float) -> Frame:
    labels = Labels(torch.tensor([energy]), *frame.labels[1:])
    return frame._replace(labels=labels)


class TestReferenceEnergies:
    def test_isolated_atoms_are_taken_as_they_are(self, frames: list[Frame]) -> None:
        isolated = read_frames(str(files("mdlearn.data") / "ethanol_isolated_atoms.xyz"))[0]
        reference = fit_reference_energies(frames, isolated)
        assert reference.source == "isolated atoms"
        for frame in isolated:
            z = int(frame.system.numbers[0])
            assert reference.energies[z] == float(frame.labels.energy)

    def test_least_squares_finds_what_compositions_determine(self, frames: list[Frame]) -> None:
        truth = {1: -13.0, 6: -1030.0, 8: -2040.0}
        system = frames[0].system
        made = []
        for kept in ([0, 1, 2, 3], [0, 2, 3, 4, 5], [1, 2, 6, 7], list(range(9))):
            part = system._replace(
                positions=system.positions[kept],
                numbers=system.numbers[kept],
                masses=system.masses[kept],
                system=system.system[kept],
            )
            energy = sum(truth[z] for z in part.numbers.tolist())
            labels = Labels(
                torch.tensor([energy]),
                part.positions * 0.0,
                torch.zeros(1, 3, 3),
                torch.full((1, 3), torch.nan),
            )
            made.append(Frame("made", part, labels))
        found = fit_reference_energies(made, [])
        assert found.source == "least squares"
        assert found.energies == pytest.approx(truth, abs=1e-4)

    def test_one_composition_is_said_to_determine_one_number(self, frames: list[Frame]) -> None:
        reference = fit_reference_energies(frames, [])
        assert "compositions determine 1 of 3" in reference.source
        mean = np.mean([float(frame.labels.energy) for frame in frames])
        total = sum(reference.energies[z] for z in frames[0].system.numbers.tolist())
        assert total == pytest.approx(mean, abs=1e-8)


class TestCutoff:
    @staticmethod
    def choose(*structures: ase.Atoms) -> Cutoff:
        examples = []
        for atoms in structures:
            atoms.info["energy"] = 0.0
            labels = find_labels(atoms, Keys("energy", None, None, None), "")
            examples.append(make_example(Frame("", to_system(atoms), labels), USUAL_CUTOFF))
        return choose_cutoff(examples)

    @pytest.mark.parametrize(
        ("atoms", "radius"),
        [
            (bulk("Si"), 5.0),
            (bulk("Cu"), 5.2),
            (bulk("NaCl", "rocksalt", a=5.64), 5.7),
            (bulk("Mo"), 5.5),
            (bulk("Pb"), 7.1),
            (bulk("Mg"), 6.4),
            (bulk("Po", "sc", a=3.35), 6.7),
            (bulk("Cs"), 10.0),
            (bulk("C"), 4.6),
        ],
        ids=lambda each: each.get_chemical_formula() if isinstance(each, ase.Atoms) else "",
    )
    def test_of_solids_holds_two_shells_and_not_too_many(
        self, atoms: ase.Atoms, radius: float
    ) -> None:
        found = self.choose(atoms)
        assert found.radius == radius
        distances = neighbor_list("d", atoms, found.radius)
        assert 25 <= len(distances) / len(atoms) <= 70
        first = distances.min()
        assert (distances > 1.1 * first).sum() / len(atoms) >= 6  # of the second shell
        if radius < 5.0:
            assert "would hold" in found.reason
        elif radius > 5.0:
            assert f"twice the {min(first, 5.0):.2f} Å" in found.reason

    def test_of_molecules_and_water_is_the_usual_one(self) -> None:
        for name in ("ethanol", "water"):
            frames = read_frames(str(files("mdlearn.data") / f"{name}.xyz"))[0][:5]
            examples = [make_example(frame, USUAL_CUTOFF) for frame in frames]
            assert choose_cutoff(examples) == (5.0, "the usual radius")
        assert self.choose(molecule("C60"), molecule("CH4")).radius == 5.0

    def test_vacuum_makes_no_difference(self) -> None:
        slab = fcc111("Pb", (2, 2, 4), vacuum=20.0)
        assert self.choose(slab).radius == self.choose(bulk("Pb")).radius
        boxed = molecule("CH3CH2OH", vacuum=15.0)
        boxed.pbc = True
        assert self.choose(boxed).radius == 5.0


class TestData:
    def test_split_deals_every_frame_once(self, frames: list[Frame]) -> None:
        train, valid = split_frames(frames, 0.25, np.random.default_rng(3))
        assert len(valid) == 6
        assert sorted(f.name for f in [*train, *valid]) == sorted(f.name for f in frames)

    @pytest.mark.parametrize("fraction", [0.001, 0.999])
    def test_both_sides_of_a_split_get_a_frame(self, frames: list[Frame], fraction: float) -> None:
        train, valid = split_frames(frames[:2], fraction, np.random.default_rng(0))
        assert len(train) == len(valid) == 1

    def test_batches_hold_every_frame_once(self, frames: list[Frame]) -> None:
        order = np.random.default_rng(0).permutation(len(frames))
        groups = deal(order, np.ones(len(frames), np.int64), 7)
        assert [len(group) for group in groups] == [7, 7, 7, 3]
        assert np.concatenate(groups).tolist() == order.tolist()

    def test_batches_are_filled_with_atoms(self) -> None:
        sizes = np.array([40, 50, 30, 200, 10, 100, 1])
        groups = deal(np.arange(7), sizes, 100)
        assert [group.tolist() for group in groups] == [[0, 1], [2], [3], [4], [5], [6]]

    def test_statistics(self, frames: list[Frame]) -> None:
        forces = np.concatenate([frame.labels.forces.numpy() for frame in frames])
        assert force_scale(frames) == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-12)
        examples = [make_example(frame, 4.0) for frame in frames]
        counts = []
        for frame in frames:
            x = frame.system.positions.numpy()
            distance = np.linalg.norm(x[:, None] - x, axis=2)
            counts.append(((distance < 4.0).sum() - 9) / 9)
        assert average_neighbors(examples) == pytest.approx(np.mean(counts), rel=1e-12)


def in_team(work: Callable[[Team], Any], size: int) -> list[Any]:
    """What each process of a team gets from some work; threads stand in for processes."""
    barrier, slots = threading.Barrier(size), [torch.zeros(0)] * size

    class Member(Team):
        def _together(self, values: torch.Tensor) -> torch.Tensor:
            slots[self.rank] = values.clone()
            barrier.wait()
            everyone = torch.stack(slots)
            barrier.wait()
            return everyone

        def add(self, values: torch.Tensor) -> torch.Tensor:
            return values.copy_(self._together(values).sum(0))

        def lowest(self, values: torch.Tensor) -> torch.Tensor:
            return values.copy_(self._together(values).amin(0))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, [Member(rank, size) for rank in range(size)]))


class TestTeam:
    @pytest.fixture
    def mixed(self, frames: list[Frame]) -> list[Frame]:
        """Frames of two compositions, and of odd number."""
        system = frames[0].system
        part = system._replace(
            positions=system.positions[:5],
            numbers=system.numbers[:5],
            masses=system.masses[:5],
            system=system.system[:5],
        )
        labels = frames[0].labels
        fragment = Frame("part", part, labels._replace(forces=labels.forces[:5]))
        return [*frames[:10], fragment]

    @pytest.mark.parametrize("size", [2, 3])
    def test_finds_what_one_process_does(self, mixed: list[Frame], size: int) -> None:
        def work(team: Team) -> list[float]:
            examples = Examples(mixed, USUAL_CUTOFF, torch.device("cpu"))
            energies = fit_reference_energies(mixed, [], team).energies
            closest = closest_distances(examples, team)
            return [
                *find_species(mixed, team),
                *energies.values(),
                force_scale(mixed, team),
                average_neighbors(examples, team),
                choose_cutoff(examples, team).radius,
                *(number for each in closest for number in each),
            ]

        alone, *others = work(ALONE), *in_team(work, size)
        for each in others:
            assert each == pytest.approx(alone, rel=1e-12)
            assert each == others[0]  # to the bit

    def test_fine_tunes_as_one_process_does(self, mixed: list[Frame]) -> None:
        old = make_network(mixed).double()
        examples = [make_example(each, 4.0) for each in mixed]
        alone, *others = (
            each.elements.energies()
            for each in (
                adapt(old, examples, [], [], [], []),
                *in_team(lambda team: adapt(old, examples, [], [], [], [], team), 2),
            )
        )
        for each in others:
            assert each == pytest.approx(alone, abs=1e-8)

    def test_reads_each_frame_once_in_all(
        self, mixed: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[int] = []
        keys, source = Keys("energy", "forces", None, None), tmp_path / "source"
        source.touch()
        with PackedWriter(tmp_path / "mixed.h5", keys, [source]) as writer:
            for frame in mixed:
                writer.append(frame)
        read_frames_of = PackedFrames._read

        def watched(self: PackedFrames, chosen: NDArray[np.int64]) -> Iterator[Frame]:
            read.extend(chosen.tolist())
            return read_frames_of(self, chosen)

        monkeypatch.setattr(PackedFrames, "_read", watched)
        frames = PackedFrames(tmp_path / "mixed.h5")
        examples = Examples(frames, USUAL_CUTOFF, torch.device("cpu"))
        isolated = read_frames(str(files("mdlearn.data") / "ethanol_isolated_atoms.xyz"))[0]
        for work in (
            lambda team: find_species(frames, team),
            lambda team: fit_reference_energies(frames, isolated, team),
            lambda team: force_scale(frames, team),
            lambda team: average_neighbors(examples, team),
            lambda team: choose_cutoff(examples, team),
            lambda team: closest_distances(examples, team),
        ):
            read.clear()
            in_team(work, 2)
            assert sorted(read) == list(range(len(mixed)))


class TestLoop:
    def test_learns_forces(self, frames: list[Frame]) -> None:
        *_, history = run(frames, 60, weights=Weights(0.0, 1.0, 0.0))
        first, last = history[0].valid, history[-1].valid
        assert last.forces_mae_meV_per_A < 0.7 * first.forces_mae_meV_per_A

    def test_learns_energies(self, frames: list[Frame]) -> None:
        *_, history = run(frames, 150, weights=Weights(1.0, 0.0, 0.0))
        first, last = history[0].valid, history[-1].valid
        assert last.energy_mae_meV < 0.5 * first.energy_mae_meV

    def test_same_seed_same_weights(self, frames: list[Frame]) -> None:
        first, second = (run(frames, 3)[1].state_dict() for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_average_has_no_memory_of_its_graph(self, frames: list[Frame]) -> None:
        _, averaged, _ = run(frames, 2)
        assert all(each.grad_fn is None for each in averaged.parameters())

    def test_average_is_the_exponential_one(self, frames: list[Frame]) -> None:
        """With a rate of zero after the first epoch nothing moves, and the average catches up."""
        network, averaged, _ = run(frames, 1, ema=0.0)
        for one, other in zip(network.parameters(), averaged.parameters(), strict=True):
            torch.testing.assert_close(one.detach(), other, rtol=0.0, atol=1e-7)

    def test_learning_rate_warms_up_and_ends_at_zero(self, frames: list[Frame]) -> None:
        *_, history = run(frames, 12)  # of four steps
        rates = [epoch.learning_rate for epoch in history]
        # An eighth of 48 steps to warm up, and 42 from there to the end.
        expected = [0.5e-2 * (1.0 + math.cos(math.pi * step / 42)) for step in range(1, 42, 4)]
        assert rates == pytest.approx([1e-2 * 4 / 6, *expected], rel=1e-9)

    def test_weights_walk_no_further_in_a_long_run(self) -> None:
        """As steps of a random walk: by the root of their number."""
        schedule = Schedule(1, 0.0, None, None, 1e-2, 0.9, 0, long=2500.0)
        rates = [schedule.highest_rate(total) for total in (100, 2500, 10_000, 1_000_000)]
        assert rates == pytest.approx([1e-2, 1e-2, 5e-3, 5e-4], rel=1e-12)
        assert schedule._replace(long=None).highest_rate(1_000_000) == 1e-2

    def test_a_long_run_has_small_steps(self, frames: list[Frame]) -> None:
        rates = []
        for long in (None, 4.0):
            examples = [make_example(frame, 4.0) for frame in frames]
            schedule = Schedule(16, 0.0, None, 5, 1e-2, 0.9, 0, long=long)
            training = Training(make_network(frames), WEIGHTS, schedule)
            history = list(fit(training, examples[4:], [concatenate(examples[:4])]))
            rates.append([each.learning_rate for each in history])
        steps = 16 * -(-(len(frames) - 4) // 5)
        assert rates[1] == pytest.approx([rate * (4.0 / steps) ** 0.5 for rate in rates[0]])

    def test_budget_ends_the_run_in_time(self, frames: list[Frame]) -> None:
        examples = [make_example(frame, 4.0) for frame in frames]
        schedule = Schedule(None, 3.0, 10_000, 5, 1e-2, 0.9, 0)
        training = Training(make_network(frames), WEIGHTS, schedule)
        history = list(fit(training, examples[4:], [concatenate(examples[:4])]))
        longest = max(b.seconds - a.seconds for a, b in pairwise(history))
        assert history[-1].seconds < 3.0 + 3 * longest
        assert history[-1].epoch == history[-1].epochs > 3
        assert history[-1].learning_rate < 1e-3

    def test_stops_when_nothing_gets_better(self, frames: list[Frame]) -> None:
        examples = [make_example(frame, 4.0) for frame in frames]
        schedule = Schedule(50, 0.0, 3, 5, 0.0, 0.9, 0)  # a learning rate of zero
        training = Training(make_network(frames), WEIGHTS, schedule)
        assert 4 <= len(list(fit(training, examples, [concatenate(examples[:4])]))) <= 8

    def test_loss_that_is_not_a_number_names_the_frames(self, frames: list[Frame]) -> None:
        examples = [make_example(frame, 4.0) for frame in frames]
        examples[7] = make_example(relabel(frames[7], math.inf), 4.0)
        training = Training(make_network(frames), WEIGHTS, Schedule(2, 0.0, 2, 5, 1e-2, 0.9, 0))
        with pytest.raises(UnstableError, match=r"frames in it: .*ethanol\.xyz:7\b"):
            next(fit(training, examples, []))


@pytest.mark.parametrize("size", [0.1, 30.0], ids=["short", "clipped"])
def test_steps_are_those_of_an_optimizer_of_torch(frames: list[Frame], size: float) -> None:
    network = make_network(frames)
    other = copy.deepcopy(network)
    training = Training(network, WEIGHTS, Schedule(1, 0.0, 1, 5, 1e-2, 0.9, 0))
    parameters = list(other.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=BETAS, weight_decay=0.0, fused=True)
    for step in range(5):
        # One of them has no gradient, as what an energy does not depend on.
        for ours, theirs in zip(training.parameters[1:], parameters[1:], strict=True):
            ours.grad = torch.randn_like(ours)
            ours.grad *= size / ours.grad.norm()
            theirs.grad = ours.grad.clone()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        optimizer.step()
        training.advance(torch.zeros(()), 0.01 / (step + 1))
        for ours, theirs in zip(training.parameters, parameters, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_measure_ignores_labels_that_are_not_there(frames: list[Frame]) -> None:
    network = make_network(frames).double()
    examples = [make_example(frame, 4.0) for frame in frames[:3]]
    known = measure(network, examples, WEIGHTS, 1.0)
    silent = examples[2].labels._replace(
        energy=torch.tensor([math.nan]), forces=torch.full((9, 3), math.nan)
    )
    partly = measure(network, [*examples[:2], Example(*examples[2][:2], silent)], WEIGHTS, 1.0)
    of_two = measure(network, examples[:2], WEIGHTS, 1.0)
    assert partly.energy_mae_meV == pytest.approx(of_two.energy_mae_meV, rel=1e-12)
    assert partly.forces_rmse_meV_per_A == pytest.approx(of_two.forces_rmse_meV_per_A, rel=1e-12)
    assert known.forces_rmse_meV_per_A != pytest.approx(of_two.forces_rmse_meV_per_A, rel=1e-6)
    assert math.isnan(known.stress_mae_meV_per_A3)
