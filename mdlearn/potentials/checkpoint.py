"""Model files: safetensors weights with a JSON header. Nothing in them is ever executed.

The header says what the potential is (settings, species, energies of the isolated atoms) and where
it came from, and holds a few golden structures with the energies, forces and stress that it gave
for them in float64 when it was saved. They are recomputed on loading: a model that loads is the
model that was saved. A model that was trained to its end also carries its physics certificate.

A propagator has a file of the same kind; its golden structures are taken over one stride.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mdlearn.errors import MDLearnError, ModelError
from mdlearn.files import write_atomically
from mdlearn.neighbors import build
from mdlearn.potentials.architectures import make_potential
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import ParametricPotential, Settings
from mdlearn.potentials.propagator import Propagator, PropagatorSettings, propagate
from mdlearn.system import System

FORMAT_VERSION = 2
UNITS = {"energy": "eV", "length": "Å", "stress": "eV/Å³, positive pulls inward"}
DAMAGE = (LookupError, AttributeError, TypeError, ValueError, ArithmeticError, RuntimeError)
"""What a header raises that is JSON, but not ours."""
OTHER_KINDS = {
    "potential": (
        "a potential, and a propagator was expected: make one with `mdlearn train --propagator"
        " TRAJECTORY`, or leave out --integrator learned"
    ),
    "propagator": (
        "a propagator, which moves atoms and knows neither energies nor forces: `mdlearn simulate"
        " --integrator learned` takes it; a potential was expected, of `mdlearn train FRAMES`"
    ),
}
"""What to say of a file that holds a model of another kind than was asked for."""
GOLDEN_TOLERANCE = 1e-9
"""Relative to the largest number compared; float64 leaves about 1e-13."""


Verdict = Literal["holds", "does not hold", "reported only"]


class Claim(NamedTuple):
    """One line of a physics certificate: a promise, and how well it was found to be kept."""

    name: str
    what: str
    """What was measured."""
    value: float
    """The largest violation that was found; NaN or infinite where there was no number."""
    unit: str
    limit: float
    """The largest violation with which the claim holds."""
    verdict: Verdict


class Model(NamedTuple):
    """A network and what its file says of it."""

    network: ParametricPotential
    provenance: dict[str, Any]
    """Where it came from: data, labels, configuration, errors, versions."""
    path: Path
    golden: tuple[System, ...]
    """Structures of the kind that it was trained on."""
    certificate: tuple[Claim, ...] | None
    """None for a model whose training never ended."""


class PropagatorModel(NamedTuple):
    """A propagator and what its file says of it."""

    network: Propagator
    provenance: dict[str, Any]
    """Where it came from: trajectory, configuration, errors, versions."""
    path: Path


def save_model(
    path: Path,
    network: ParametricPotential,
    provenance: Mapping[str, Any],
    golden: Sequence[System],
) -> None:
    """Writes a model file, whole or not at all.

    Args:
        path: the file; by custom it ends in `.safetensors`.
        network: with weights in float32 or float64; they are stored as they are.
        provenance: where the model came from; anything that JSON can hold.
        golden: structures for the self-test on loading.

    Raises:
        OutputError: the file cannot be written.
    """
    header, weights = _begin("potential", network, network.settings, provenance)
    header["reference_energies"] = {str(z): e for z, e in network.elements.energies().items()}
    header["units"] = UNITS
    exact = _make_network(header, weights, torch.float64)
    header["golden"] = [_describe(exact, system) for system in golden]
    _write(path, header, weights)


def save_propagator(
    path: Path,
    propagator: Propagator,
    provenance: Mapping[str, Any],
    golden: Sequence[tuple[System, Tensor]],
) -> None:
    """Writes the file of a propagator, whole or not at all.

    Args:
        path: the file; by custom it ends in `.safetensors`.
        propagator: with weights in float32 or float64; they are stored as they are.
        provenance: where it came from; anything that JSON can hold.
        golden: structures with momenta for the self-test on loading.

    Raises:
        OutputError: the file cannot be written.
    """
    header, weights = _begin("propagator", propagator, propagator.settings, provenance)
    exact = _make_propagator(header, weights, torch.float64)
    header["golden"] = [_describe_stride(exact, *each) for each in golden]
    _write(path, header, weights)


def add_certificate(path: Path, certificate: Sequence[Claim]) -> None:
    """Writes a physics certificate into a model file, in place of an older one.

    Raises:
        ModelError: the file is not a model.
        OutputError: the file cannot be written.
    """
    header, weights = _read(path)
    header["certificate"] = claims_to_json(certificate)
    _write(path, header, weights)


def claims_to_json(certificate: Sequence[Claim]) -> list[dict[str, Any]]:
    """A certificate as JSON has it; a value that is no number is null."""
    return [
        each._asdict() | {"value": each.value if math.isfinite(each.value) else None}
        for each in certificate
    ]


def load_model(path: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """Reads a model from its file, or from the run folder that holds one, and tests it.

    Args:
        path: a model file or a run folder.
        dtype: the precision of the network.

    Raises:
        ModelError: no such file, not a model, damaged, made by a newer version, or the network does
            not reproduce its golden structures.
    """
    path, header, weights = _open(path, "potential")
    try:
        exact = _make_network(header, weights, torch.float64)
        golden = tuple(_system(stored) for stored in header["golden"])
        for index, (stored, system) in enumerate(zip(header["golden"], golden, strict=True)):
            _compare(stored, _describe(exact, system), f"{path}, golden structure {index}")
        network = _make_network(header, weights, dtype).eval()
        return Model(network, header["provenance"], path, golden, _certificate(header))
    except ModelError:
        raise
    except (*DAMAGE, MDLearnError) as error:
        raise _unfit(path, error) from error


def load_propagator(path: str | Path, dtype: torch.dtype = torch.float32) -> PropagatorModel:
    """Reads a propagator from its file, or from the run folder that holds one, and tests it.

    Args:
        path: a file or a run folder.
        dtype: the precision of the network; positions and momenta are float64 in any case.

    Raises:
        ModelError: see `load_model`; or the file holds a potential.
    """
    path, header, weights = _open(path, "propagator")
    try:
        exact = _make_propagator(header, weights, torch.float64)
        for index, stored in enumerate(header["golden"]):
            momenta = torch.tensor(stored["momenta"], dtype=torch.float64)
            found = _describe_stride(exact, _system(stored), momenta)
            where = f"{path}, golden structure {index}"
            _compare(stored, found, where, ("displacement", "impulse"))
        propagator = _make_propagator(header, weights, dtype).eval()
        return PropagatorModel(propagator, header["provenance"], path)
    except ModelError:
        raise
    except (*DAMAGE, MDLearnError) as error:
        raise _unfit(path, error) from error


def kind_of(path: str | Path) -> str:
    """Whether a file, or a run folder, holds a `potential` or a `propagator`.

    Raises:
        ModelError: no such file, or not a model.
    """
    return str(_read(_file_of(path))[0].get("kind", "potential"))


def _file_of(path: str | Path) -> Path:
    """The file of a model, given itself or its run folder."""
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise ModelError(
            f"{path}: no such model; expected a file made by `mdlearn train` or its folder"
        )
    return path


def _open(path: str | Path, kind: str) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """The path of a model file, and its header and weights, if they are whole and of a kind."""
    path = _file_of(path)
    header, weights = _read(path)
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        older = isinstance(version, int) and version < FORMAT_VERSION
        remedy = "train again" if older else "upgrade with `pip install -U mdlearn`"
        raise ModelError(
            f"{path}: model format {version}; this version of mdlearn reads {FORMAT_VERSION}:"
            f" {remedy}"
        )
    if header.get("weights_sha256") != _hash(weights):
        raise ModelError(
            f"{path}: damaged: the weights ({path.stat().st_size} bytes) do not have the hash that"
            " the header names; use a backup or train again"
        )
    found = header.get("kind", "potential")  # older files are potentials and do not say so
    if found != kind:
        raise ModelError(f"{path}: {OTHER_KINDS.get(found, f'a model of the kind {found}')}")
    return path, header, weights


def _unfit(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path}: damaged: header and weights do not fit together"
        f" ({type(error).__name__}: {error}); use a backup or train again"
    )


def _begin(
    kind: str,
    network: ParametricPotential | Propagator,
    settings: Settings | PropagatorSettings,
    provenance: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header of any kind of model, so far, and the weights."""
    weights = {
        name: each.detach().cpu().contiguous() for name, each in network.state_dict().items()
    }
    header = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "weights_sha256": _hash(weights),
        "settings": settings._asdict(),
        "species": list(network.species),
        "provenance": dict(provenance),
    }
    return header, weights


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and weights of a model file."""
    size = path.stat().st_size
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["mdlearn"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        with path.open("rb") as file:
            first = file.read(2)
        pickled = first == b"PK" or first[:1] == b"\x80"
        why = (
            "a pickle, which can run any code and is never loaded"
            if pickled
            else "truncated, damaged or of another kind"
        )
        raise ModelError(
            f"{path}: not a model of mdlearn ({size} bytes; {why}); expected the model.safetensors"
            " of a run of `mdlearn train`"
        ) from error
    return header, weights


def _write(path: Path, header: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes a model file, whole or not at all."""
    write_atomically(path, save(dict(weights), metadata={"mdlearn": json.dumps(header)}))


def _certificate(header: Mapping[str, Any]) -> tuple[Claim, ...] | None:
    """The certificate in a header, if there is one."""
    if "certificate" not in header:
        return None
    claims = []
    for stored in header["certificate"]:
        value = math.nan if stored["value"] is None else float(stored["value"])
        claim = Claim(**stored)._replace(value=value, limit=float(stored["limit"]))
        if claim.verdict not in get_args(Verdict):
            raise ValueError(f"the verdict '{claim.verdict}'")
        claims.append(claim)
    return tuple(claims)


def _hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bytes of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()


def _make_network(
    header: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> ParametricPotential:
    energies = {int(z): energy for z, energy in header["reference_energies"].items()}
    settings = Settings(**header["settings"])
    settings = settings._replace(
        closest=tuple((a, b, d) for a, b, d in settings.closest),
        largest_forces=tuple((z, force) for z, force in settings.largest_forces),
        neighbor_counts=tuple((z, few, many) for z, few, many in settings.neighbor_counts),
    )
    network = make_potential(tuple(header["species"]), energies, settings).to(dtype)
    network.load_state_dict(weights)
    return network


def _make_propagator(
    header: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> Propagator:
    settings = PropagatorSettings(**header["settings"])
    settings = settings._replace(closest=tuple((a, b, d) for a, b, d in settings.closest))
    propagator = Propagator(tuple(header["species"]), settings).to(dtype)
    propagator.load_state_dict(weights)
    return propagator


def _system(stored: Mapping[str, Any]) -> System:
    numbers = torch.tensor(stored["numbers"])
    # Older files have no masses. A nucleus has about two units of mass for each proton.
    masses = stored.get("masses", [2.0 * z for z in stored["numbers"]])
    return System(
        torch.tensor(stored["positions"], dtype=torch.float64),
        numbers,
        torch.tensor(masses, dtype=torch.float64),
        torch.tensor(stored["cell"], dtype=torch.float64)[None],
        torch.tensor(stored["pbc"])[None],
        torch.zeros(len(numbers), dtype=torch.int64),
        torch.zeros(1, dtype=torch.float64),
    )


def _describe(network: ParametricPotential, system: System) -> dict[str, Any]:
    """One golden structure: geometry, and what the network says of it."""
    evaluation = evaluate(network, system, build(system, network.cutoff))
    periodic = bool(system.pbc.all())
    return _geometry(system) | {
        "energy": evaluation.energy.tolist(),
        "forces": evaluation.forces.tolist(),
        "stress": evaluation.stress[0].tolist() if periodic else None,
    }


def _describe_stride(propagator: Propagator, system: System, momenta: Tensor) -> dict[str, Any]:
    """One golden structure of a propagator: geometry, momenta, and what a stride brings."""
    neighbors = build(system, propagator.cutoff)
    with torch.no_grad():
        displacement, impulse = propagate(propagator, system, momenta, neighbors)
    return _geometry(system) | {
        "momenta": momenta.tolist(),
        "displacement": displacement.tolist(),
        "impulse": impulse.tolist(),
    }


def _geometry(system: System) -> dict[str, Any]:
    return {
        "numbers": system.numbers.tolist(),
        "positions": system.positions.tolist(),
        "masses": system.masses.tolist(),
        "cell": system.cell[0].tolist(),
        "pbc": system.pbc[0].tolist(),
    }


def _compare(
    stored: Mapping[str, Any],
    recomputed: Mapping[str, Any],
    where: str,
    quantities: Sequence[str] = ("energy", "forces", "stress"),
) -> None:
    for quantity in quantities:
        if stored[quantity] is None:
            continue
        expected = torch.tensor(stored[quantity], dtype=torch.float64)
        found = torch.tensor(recomputed[quantity], dtype=torch.float64)
        error = float((found - expected).abs().max())
        # `not <=` so that NaN is a difference.
        if not error <= GOLDEN_TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ModelError(
                f"{where}: {quantity} differs by {error:.2g} from what the model gave when it was"
                " saved; the file is damaged: use a backup or train again"
            )
