"""Model files: the same bits back, or an error that names the file."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import (
    REFERENCE_ENERGIES,
    SPECIES,
    SYSTEMS,
    crystal,
    evaluate_atoms,
    every_system,
    molecule,
    random_schnet,
    slab,
)

from mdlearn.atoms import to_system
from mdlearn.errors import ModelError, OutputError
from mdlearn.potentials.checkpoint import load_model, save_model

PROVENANCE = {"data": "Å/é.xyz", "errors": {"forces_meV_per_A": 12.5}, "seed": 2**62}


def edit(path: Path, change: Callable[[dict[str, Any]], None], target: Path) -> Path:
    """Rewrites the JSON header inside of a model file; the weights stay."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    outer = json.loads(content[8 : 8 + length])
    inner = json.loads(outer["__metadata__"]["mdlearn"])
    change(inner)
    outer["__metadata__"]["mdlearn"] = json.dumps(inner)
    header = json.dumps(outer).encode()
    header += b" " * (-len(header) % 8)
    target.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    return target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    network = random_schnet().to(dtype)
    path = tmp_path / "model.safetensors"
    save_model(path, network, PROVENANCE, [to_system(make()) for make in SYSTEMS.values()])
    model = load_model(path, dtype)
    assert model.path == path
    assert model.provenance == PROVENANCE
    assert model.network.settings == network.settings
    assert model.network.species == SPECIES
    assert model.network.elements.energies() == REFERENCE_ENERGIES
    weights = model.network.state_dict()
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(each, weights[name]) for name, each in network.state_dict().items())
    assert not model.network.training
    for make in (molecule, crystal):
        found, expected = (evaluate_atoms(each, make()) for each in (model.network, network))
        assert torch.equal(found.forces, expected.forces)
        assert torch.equal(found.energies, expected.energies)


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name, random_schnet(), PROVENANCE, [to_system(crystal())])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_run_folder_stands_for_its_model(model_path: Path) -> None:
    assert load_model(model_path.parent).path == model_path
    assert load_model(str(model_path)).path == model_path


def test_golden_structures_are_what_the_network_says(model_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    edit(model_path, lambda header: seen.extend(header["golden"]), model_path.with_name("copy"))
    network = load_model(model_path, torch.float64).network
    for golden, make in zip(seen, (molecule, crystal), strict=True):
        expected = evaluate_atoms(network, make())
        assert golden["energy"] == expected.energy.tolist()
        np.testing.assert_allclose(golden["forces"], expected.forces, rtol=0.0, atol=1e-14)
        assert (golden["stress"] is None) == (make is molecule)


@every_system
def test_every_kind_of_golden_structure_loads(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, random_schnet(), {}, [to_system(SYSTEMS[name]())])
    load_model(path)


def test_truncated_file_is_an_error(model_path: Path, tmp_path: Path) -> None:
    content = model_path.read_bytes()
    path = tmp_path / "cut.safetensors"
    rng = np.random.default_rng(0)
    lengths = [0, 1, 7, 8, 9, len(content) - 1, *rng.integers(10, len(content), 25)]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"cut\.safetensors"):
            load_model(path)


def test_flipped_bit_is_an_error_or_harmless(model_path: Path, tmp_path: Path) -> None:
    """Never another error, and never a model that answers otherwise than the one saved."""
    content = model_path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    path = tmp_path / "flipped.safetensors"
    expected = evaluate_atoms(load_model(model_path, torch.float64).network, crystal())
    rng = np.random.default_rng(1)
    places = [*rng.integers(0, 8, 6), *rng.integers(8, 8 + length, 60)]
    places += [*rng.integers(8 + length, len(content), 30)]
    errors: list[str] = []
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            network = load_model(path, torch.float64).network
        except ModelError as error:
            errors.append(str(error))
        else:
            found = evaluate_atoms(network, crystal())
            assert abs(found.energy - expected.energy) < 1e-5
            assert (found.forces - expected.forces).abs().max() < 1e-7
    assert len(errors) > len(places) // 2
    assert all(str(path) in error for error in errors)


@pytest.mark.parametrize("place", ["weights", "energy", "forces", "stress", "E0", "cutoff"])
def test_silent_change_is_found(model_path: Path, tmp_path: Path, place: str) -> None:
    path = tmp_path / "changed.safetensors"

    def change(header: dict[str, Any]) -> None:
        golden = header["golden"][1]
        if place == "energy":
            golden["energy"][0] += 1e-4
        elif place == "forces":
            golden["forces"][3][1] += 1e-6
        elif place == "stress":
            golden["stress"][1][1] += 1e-6
        elif place == "E0":
            header["reference_energies"]["6"] += 1e-4
        elif place == "cutoff":
            header["settings"]["cutoff"] += 1e-3

    edit(model_path, change, path)
    if place == "weights":
        content = bytearray(path.read_bytes())
        content[-6] ^= 1  # within the last float64, far above its last digits
        path.write_bytes(bytes(content))
    with pytest.raises(ModelError, match=r"changed\.safetensors"):
        load_model(path)


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no golden structures": lambda header: header.pop("golden"),
    "no provenance": lambda header: header.pop("provenance"),
    "no settings": lambda header: header.pop("settings"),
    "unknown architecture": lambda header: header["settings"].update(architecture="ghost"),
    "missing species": lambda header: header.update(species=[1, 6]),
    "species beyond the table": lambda header: header.update(species=[1, 6, 300]),
    "species a number": lambda header: header.update(species=8),
    "energies a list": lambda header: header.update(reference_energies=[]),
    "negative size": lambda header: header["settings"].update(features=-1),
    "wrong size": lambda header: header["settings"].update(features=17),
    "surplus setting": lambda header: header["settings"].update(surprise=1),
    "cutoff zero": lambda header: header["settings"].update(cutoff=0.0),
    "golden without energy": lambda header: header["golden"][0].pop("energy"),
    "golden element beyond the table": lambda header: header["golden"][0].update(
        numbers=[1, 400] * 4 + [1]
    ),
    "golden of wrong shape": lambda header: header["golden"][0].update(forces=[[0.0] * 3]),
    "golden not finite": lambda header: header["golden"][0]["positions"][0].__setitem__(
        0, float("nan")
    ),
    "golden without volume": lambda header: header["golden"][1].update(cell=[[0.0] * 3] * 3),
    "golden a number": lambda header: header.update(golden=[5]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_header_that_makes_no_sense_is_an_error(
    model_path: Path, tmp_path: Path, damage: str
) -> None:
    path = edit(model_path, DAMAGE[damage], tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match=r"odd\.safetensors"):
        load_model(path)


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(1, "train again"), (99, "upgrade"), (None, "upgrade"), ("1", "upgrade")],
)
def test_other_version_is_an_error(
    model_path: Path, tmp_path: Path, version: object, remedy: str
) -> None:
    path = edit(
        model_path, lambda header: header.update(format_version=version), tmp_path / "newer"
    )
    with pytest.raises(ModelError, match=f"newer: model format .* {remedy}"):
        load_model(path)


def test_pickle_is_never_loaded(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (witness,)

    for name, write in {
        "torch.pt": lambda path: torch.save({"trap": Trap()}, path),
        "protocol-2.pkl": lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=2)),
        "protocol-4.pkl": lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=4)),
        "protocol-5.pkl": lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=5)),
    }.items():
        path = tmp_path / name
        write(path)
        with pytest.raises(ModelError, match=rf"{name}: .*pickle"):
            load_model(path)
    assert not witness.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 64, b"H 0 0 0\n", b"\xff" * 4096])
def test_other_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.xyz"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"other\.xyz: not a model"):
        load_model(path)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ModelError, match="no such model") as error:
            load_model(path)
        assert str(path) in str(error.value)
        assert error.value.exit_code == 4


def test_failed_save_leaves_the_old_model_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, random_schnet(), {}, [to_system(slab())])
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mdlearn.files.os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_model(path, random_schnet(seed=1), {}, [to_system(slab())])
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(OutputError, match="absent"):
        save_model(tmp_path / "absent" / "model", random_schnet(), {}, [])
