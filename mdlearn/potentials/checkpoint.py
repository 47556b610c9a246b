"""Potentials in model files, and the certificates that they carry; see `model_file`.

The header also has the energies of the isolated atoms; golden structures have the energies, forces
and stress that the potential gave for them. A model that was trained to its end also carries its
physics certificate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mdlearn.errors import MDLearnError, ModelError
from mdlearn.neighbors import build
from mdlearn.potentials import model_file
from mdlearn.potentials.architectures import make_potential
from mdlearn.potentials.evaluate import evaluate
from mdlearn.potentials.network import ParametricPotential, Settings
from mdlearn.system import System

UNITS = {"energy": "eV", "length": "Å", "stress": "eV/Å³, positive pulls inward"}

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
    header, weights = model_file.begin("potential", network, network.settings, provenance)
    header["reference_energies"] = {str(z): e for z, e in network.elements.energies().items()}
    header["units"] = UNITS
    exact = _make_network(header, weights, torch.float64)
    header["golden"] = [_describe(exact, system) for system in golden]
    model_file.write(path, header, weights)


def add_certificate(path: Path, certificate: Sequence[Claim]) -> None:
    """Writes a physics certificate into a model file, in place of an older one.

    Raises:
        ModelError: the file is not a model.
        OutputError: the file cannot be written.
    """
    header, weights = model_file.read(path)
    header["certificate"] = claims_to_json(certificate)
    model_file.write(path, header, weights)


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
    path, header, weights = model_file.load(path, "potential")
    try:
        exact = _make_network(header, weights, torch.float64)
        golden = tuple(model_file.system_of(stored) for stored in header["golden"])
        for index, (stored, system) in enumerate(zip(header["golden"], golden, strict=True)):
            model_file.compare(
                stored, _describe(exact, system), f"{path}, golden structure {index}"
            )
        network = _make_network(header, weights, dtype).eval()
        return Model(network, header["provenance"], path, golden, _certificate(header))
    except ModelError:
        raise
    except (*model_file.DAMAGE, MDLearnError) as error:
        raise model_file.unfit(path, error) from error


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


def _describe(network: ParametricPotential, system: System) -> dict[str, Any]:
    """One golden structure: geometry, and what the network says of it."""
    evaluation = evaluate(network, system, build(system, network.cutoff))
    periodic = bool(system.pbc.all())
    return model_file.geometry(system) | {
        "energy": evaluation.energy.tolist(),
        "forces": evaluation.forces.tolist(),
        "stress": evaluation.stress[0].tolist() if periodic else None,
    }
