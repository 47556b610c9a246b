"""A model as the start of another training."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from checks import Run, random_network
from hypothesis import given
from hypothesis import strategies as st

from mdlearn.atoms import Frame, read_frames, to_system
from mdlearn.errors import ModelError, UsageError
from mdlearn.neighbors import build
from mdlearn.potentials.architectures import ARCHITECTURES
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.evaluate import evaluate
from mdlearn.training.dataset import make_example
from mdlearn.training.finetune import adapt, freeze

LEARNERS = ("unconstrained", "schnet", "egnn", "painn", "equivariant")
"""Networks that see geometry."""


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return list(read_frames(str(files("mdlearn.data") / "ethanol.xyz"))[0][:8])


def with_silicon(frames: list[Frame]) -> list[Frame]:
    """The frames with a silicon atom in place of the first carbon atom."""
    changed = []
    for frame in frames:
        numbers = frame.system.numbers.clone()
        numbers[0] = 14
        changed.append(frame._replace(system=frame.system._replace(numbers=numbers)))
    return changed


@pytest.mark.parametrize("name", LEARNERS)
def test_old_elements_are_what_they_were(name: str, frames: list[Frame]) -> None:
    """A new element changes no energy difference and no force where there is none of it."""
    old = random_network(ARCHITECTURES[name])
    examples = [make_example(frame, old.cutoff) for frame in with_silicon(frames)]
    assert 14 not in old.species
    grown = adapt(old, examples, [], [], [], [])
    assert set(grown.species) == {*old.species, 14}
    system = frames[0].system
    shift = [grown.elements.energies()[z] - e for z, e in old.elements.energies().items()]
    neighbors = build(system, old.cutoff)
    before, after = (evaluate(each, system, neighbors) for each in (old, grown))
    torch.testing.assert_close(after.forces, before.forces, rtol=1e-12, atol=1e-12)
    per_element = dict(zip(old.species, shift, strict=True))
    moved = torch.tensor([per_element[z] for z in system.numbers.tolist()], dtype=torch.float64)
    torch.testing.assert_close(after.energies - before.energies, moved, rtol=0.0, atol=1e-9)


def test_energies_of_atoms_move_to_the_new_zero(frames: list[Frame]) -> None:
    old = random_network(ARCHITECTURES["equivariant"])
    examples = [make_example(frame, old.cutoff) for frame in frames]
    network = adapt(old, examples, [], [], [], [])
    errors = [
        float(evaluate(network, each.system, each.neighbors).energy - each.labels.energy)
        for each in examples
    ]
    assert abs(np.mean(errors)) < 1e-8
    before = evaluate(old, examples[0].system, examples[0].neighbors)
    assert abs(float(before.energy - examples[0].labels.energy)) > 1.0


def test_isolated_atoms_have_the_last_word(frames: list[Frame]) -> None:
    isolated = list(read_frames(str(files("mdlearn.data") / "ethanol_isolated_atoms.xyz"))[0])
    old = random_network(ARCHITECTURES["schnet"])
    network = adapt(old, [make_example(each, old.cutoff) for each in frames], isolated, [], [], [])
    energies = network.elements.energies()
    for frame in isolated:
        assert energies[int(frame.system.numbers[0])] == float(frame.labels.energy)


def test_classical_potentials_take_up_no_elements(frames: list[Frame]) -> None:
    from checks import random_potential

    old = random_potential("lennard-jones")
    examples = [make_example(frame, old.cutoff) for frame in with_silicon(frames)]
    with pytest.raises(ModelError, match="cannot take up new elements"):
        adapt(old, examples, [], [], [], [])


@given(st.sampled_from(["products.0", "energy_head", "messages.0.radial", "products"]))
def test_freezing_is_by_name(name: str) -> None:
    network = random_network(ARCHITECTURES["equivariant"])
    count = freeze(network, [name])
    frozen = {key for key, each in network.named_parameters() if not each.requires_grad}
    assert frozen == {key for key, _ in network.named_parameters() if key.startswith(f"{name}.")}
    assert count == sum(p.numel() for p in network.parameters() if not p.requires_grad) > 0


def test_freezing_what_is_not_there_names_what_is() -> None:
    network = random_network(ARCHITECTURES["schnet"])
    with pytest.raises(UsageError, match=r"no 'product' in this network.*energy_head"):
        freeze(network, ["product"])
    names = [name for name, _ in network.named_parameters()]
    with pytest.raises(UsageError, match="nothing is left to train"):
        freeze(network, names)


def test_fine_tuning_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Another zero of energy, a scaled surface, and a table that says what happened to both."""
    monkeypatch.chdir(tmp_path)
    atoms = ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), ":40")
    ase.io.write("old.xyz", atoms)
    for each in atoms:
        each.calc.results["energy"] = 1.1 * each.calc.results["energy"] + 5.0
        each.calc.results.pop("free_energy", None)
        each.calc.results["forces"] = 1.1 * each.calc.results["forces"]
    ase.io.write("new.xyz", atoms)
    train = ["--features", "8", "--epochs", "60", "--patience", "60"]
    assert run("train", "old.xyz", *train, "--output", "old")[0] == 0
    code, out, err = run(
        "train", "new.xyz", "--from", "old", "--freeze", "products.0", "--epochs", "30",
        "--output", "tuned",
    )  # fmt: skip
    assert code == 0
    assert "start       the weights of old" in err
    assert "frozen)" in err
    rows = {line[:26].strip(): line[26:].split() for line in out.splitlines()}
    before, after = rows["validation, before"], rows["validation"]
    assert float(after[0]) < 0.1 * float(before[0])  # meV
    assert float(after[2]) < float(before[2])  # meV/Å
    assert rows["its own validation, before"] != rows["its own validation, now"]
    one, other = (dict(load_model(name).network.named_parameters()) for name in ("old", "tuned"))
    for name, parameter in one.items():
        assert torch.equal(parameter, other[name]) == name.startswith("products.0.")
    code, _, err = run("train", "new.xyz", "--from", "old", "--model", "schnet")
    assert code == 2
    assert "--model: comes from the model that --from names" in err
    code, _, err = run("train", "new.xyz", "--freeze", "products.0")
    assert code == 2
    system = to_system(atoms[0])
    assert evaluate(load_model("tuned").network, system, build(system, 5.0)).forces.isfinite().all()
