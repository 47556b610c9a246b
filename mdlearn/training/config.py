"""What can be said about a training run."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mdlearn.config import PRECISION, Config, parse_duration, typed

Minutes = Annotated[
    float,
    BeforeValidator(lambda text: parse_duration(text, {"s": 1 / 60, "min": 1.0, "h": 60.0})),
]

MODELS = (
    "composition",
    "unconstrained",
    "schnet",
    "egnn",
    "painn",
    "equivariant",
    "lennard-jones",
    "morse",
    "zbl",
)
"""The names of `potentials.architectures`, without the weight of importing them."""
WITHOUT_PARAMETERS = {"zbl"}
"""Those that only make sense as a part of a sum."""
Femtoseconds = Annotated[
    float,
    BeforeValidator(lambda text: parse_duration(text, {"fs": 1.0})),
]
LONGEST_STRIDE_FS = 20.0
FOR_PROPAGATORS = {
    "propagator",
    "stride_fs",
    "output",
    "overwrite",
    "valid_fraction",
    "size",
    "cutoff_A",
    "features",
    "interactions",
    "radial",
    "budget_min",
    "epochs",
    "batch_atoms",
    "batch_size",
    "learning_rate",
    "ema",
    "seed",
    "device",
    "precision",
}
"""Options that mean something for a propagator, too."""
ATOMS_PER_BATCH = 110
"""About so many see enough of the surface for a step, and not more than is worth one."""


def _check_model(name: str) -> str:
    unknown = [each for each in name.split("+") if each not in MODELS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], MODELS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"expected one of {', '.join(MODELS)}, or several joined by '+'{hint}")
    if WITHOUT_PARAMETERS.issuperset(name.split("+")):
        raise ValueError("there is nothing to train in it; add a network, as in equivariant+zbl")
    return name


Model = Annotated[str, AfterValidator(_check_model)]


class TrainConfig(Config):
    """Options of `mdlearn train`."""

    frames: Path | None = Field(
        None, description="labelled structures: extended XYZ or anything ASE reads"
    )
    propagator: Path | None = Field(
        None,
        description="instead of FRAMES, a trajectory of `mdlearn simulate`: train a network that"
        " takes its atoms over --stride at once",
    )
    stride_fs: Femtoseconds | None = Field(
        None,
        gt=0,
        le=LONGEST_STRIDE_FS,
        alias="stride",
        description="time that a propagator takes atoms over, as in 4fs: a multiple of what is"
        f" between two frames, {LONGEST_STRIDE_FS:g} fs at most",
    )
    resume: Path | None = Field(
        None, description="go on with the training in this run folder, to the same end"
    )
    from_: Path | None = Field(
        None, alias="from", description="model to start from, instead of random weights"
    )
    freeze: str | None = Field(
        None, description="parts of the network to leave as they are, joined by commas"
    )
    accept: str | None = Field(
        None, description="findings of `mdlearn data check` to train in spite of, joined by commas"
    )
    valid: Path | None = Field(
        None, description="frames to validate on; dealt from FRAMES if absent"
    )
    test: Path | None = Field(None, description="frames to report errors on at the end")
    isolated_atoms: Path | None = Field(
        None, description="single-atom frames with their energies; least squares without"
    )
    output: Path | None = Field(None, description="run folder [default: name of FRAMES + '-run']")
    overwrite: bool = Field(False, description="replace an output that exists")

    energy_key: str | None = Field(
        None, description="key of the energy in eV [default: as ASE reads it]"
    )
    forces_key: str | None = Field(None, description="key of the forces in eV/Å")
    stress_key: str | None = Field(
        None, description="key of the stress in eV/Å³, positive pulls inward"
    )
    dipole_key: str | None = Field(None, description="key of the dipole in e Å, about the origin")
    energy_only: bool = Field(False, description="accept frames without forces")
    skip_bad: bool = Field(
        False, description="leave out frames that fail a check, instead of stopping"
    )
    valid_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of FRAMES to validate on when --valid is absent"
    )

    model: Model = Field(
        "equivariant", description=f"one of {', '.join(MODELS)}; or a sum, as in equivariant+zbl"
    )
    size: Literal["small", "medium", "large"] = Field("medium", description="of the network")
    cutoff_A: float | None = Field(  # noqa: N815
        None,
        gt=0.5,
        le=20,
        alias="cutoff",
        description="how far atoms see, Å [default: 5.0, or what suits looser and denser solids]",
    )
    features: int | None = Field(None, ge=1, description="width of the network, instead of --size")
    interactions: int | None = Field(None, ge=1, description="interaction blocks, likewise")
    radial: int | None = Field(None, ge=2, description="radial functions, likewise")
    parity: Literal["o3", "so3"] = Field(
        "o3", description="so3: a network that can tell mirror images apart"
    )

    budget_min: Minutes = Field(
        "20min",
        gt=0,
        alias="budget",
        validate_default=True,
        description="how long to train, as in 90s, 30min, 2h",
    )
    epochs: int | None = Field(
        None, ge=1, description="passes over the frames, instead of --budget"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after so many epochs without progress [default: never]",
    )
    batch_atoms: int = Field(ATOMS_PER_BATCH, ge=1, description="atoms per step, about")
    batch_size: int | None = Field(
        None, ge=1, description="frames per step, instead of --batch-atoms"
    )
    auto_batch: bool = Field(
        False, description="compute batches in 2, 4 or 8 parts where memory runs out"
    )
    learning_rate: float | None = Field(
        None, gt=0, description="largest step size of the optimizer [default: the network's own]"
    )
    loss: Literal["huber", "mse", "mae"] = Field(
        "huber", description="how errors count: absolute but for small ones, squared, or absolute"
    )
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the running average of the weights")
    energy_weight: float = Field(
        1.0, ge=0, description="weight of the energy per atom in the loss, at first"
    )
    forces_weight: float = Field(
        1.0, ge=0, description="weight of the force components in the loss"
    )
    stress_weight: float = Field(1.0, ge=0, description="weight of the virial per atom in the loss")

    dipole_weight: float = Field(
        1.0, ge=0, description="weight of the dipole in the loss; 0: a model without dipoles"
    )

    tensorboard: bool = Field(False, description="write the metrics for TensorBoard, too")
    seed: int = Field(0, ge=0, description="of initial weights, split and order of frames")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    precision: Literal["mixed", "float64"] = Field("mixed", description=PRECISION)

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        given, fields = self.model_fields_set, type(self).model_fields
        if self.propagator:
            if self.stride_fs is None:
                raise ValueError("--propagator: expected --stride as well, as in --stride 4fs")
            changed = {each for each in given if getattr(self, each) != fields[each].default}
            if others := changed - FOR_PROPAGATORS:
                name = min(others)
                found = "FRAMES" if name == "frames" else f"--{typed(TrainConfig, name)}"
                raise ValueError(f"{found}: means nothing with --propagator; leave it out")
            return self
        if self.stride_fs:
            raise ValueError("--stride: only with --propagator TRAJECTORY")
        if self.frames is None and self.resume is None:
            raise ValueError("expected FRAMES, as in: mdlearn train ethanol.xyz --budget 10min")
        if self.resume and (others := given - {"resume", "device", "auto_batch", "overwrite"}):
            raise ValueError(
                f"--{typed(TrainConfig, min(others))}: a resumed training keeps its settings;"
                " only --device and --auto-batch can be given with --resume"
            )
        of_model = {"model", "size", "cutoff_A", "features", "interactions", "radial", "parity"}
        changed = {name for name in of_model if getattr(self, name) != fields[name].default}
        if self.from_ and changed:
            raise ValueError(
                f"--{typed(TrainConfig, min(changed))}: comes from the model that --from names;"
                " leave it out"
            )
        if self.freeze and not self.from_:
            raise ValueError("--freeze: there is nothing to keep without --from")
        return self

    @model_validator(mode="after")
    def _parity_fits(self) -> Self:
        if self.parity == "so3" and "equivariant" not in self.model.split("+"):
            raise ValueError(
                f"--parity so3: only the model equivariant can tell mirror images apart, and"
                f" {self.model} was asked for; leave out --parity, or --model"
            )
        return self
