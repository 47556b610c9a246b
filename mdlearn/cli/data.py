"""`mdlearn data`: check, convert, split and pack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

import click
from ase.data import chemical_symbols
from pydantic import Field, model_validator
from rich.table import Table
from rich.text import Text

from mdlearn.cli.console import Line, out
from mdlearn.cli.options import verb
from mdlearn.config import Config
from mdlearn.conversion import Units, convert, split
from mdlearn.doctor import Finding, refused, require_findings
from mdlearn.doctor.diagnosis import Diagnosis, diagnose
from mdlearn.doctor.yardsticks import UNITS_OF_ENERGY, UNITS_OF_FORCES, UNITS_OF_STRESS
from mdlearn.errors import DataError
from mdlearn.labels import VOIGT, Wanted
from mdlearn.packing import pack

COLORS = {"refuse": "bold red", "warn": "yellow", "note": "cyan"}


class Labelled(Config):
    """Which keys feed the labels; the same options on all verbs that read frames."""

    energy_key: str | None = Field(None, description="key of the energy")
    forces_key: str | None = Field(None, description="key of the forces")
    stress_key: str | None = Field(None, description="key of the stress")
    dipole_key: str | None = Field(None, description="key of the dipole")
    energy_only: bool = Field(False, description="accept frames without forces")

    @property
    def wanted(self) -> Wanted:
        """The keys as the reader takes them."""
        keys = (self.energy_key, self.forces_key, self.stress_key, self.dipole_key)
        return Wanted(*keys, self.energy_only)


class CheckConfig(Labelled):
    """Options of `mdlearn data check`."""

    files: tuple[Path, ...] = Field(min_length=1, description="labelled frames; train first")
    accept: tuple[str, ...] = Field((), description="findings to let pass, by name; repeatable")
    json_: bool = Field(False, alias="json", description="print JSON")


class ConvertConfig(Labelled):
    """Options of `mdlearn data convert`."""

    source: Path = Field(description="frames in any format that ASE reads, or packed")
    target: Path = Field(description="extended XYZ to write")
    energy_unit: str = Field("eV", description=f"of the input: eV, {', '.join(UNITS_OF_ENERGY)}")
    forces_unit: str = Field(
        "eV/Å", description=f"of the input: eV/Å, {', '.join(UNITS_OF_FORCES)}"
    )
    stress_unit: str = Field(
        "eV/Å³", description=f"of the input: eV/Å³, {', '.join(UNITS_OF_STRESS)}, eV (a virial)"
    )
    stress_order: str = Field(
        ",".join(VOIGT),
        description="of the input; xx,yy,zz,xy,yz,xz if VASP's six numbers were copied as they are",
    )
    flip_forces: bool = Field(False, description="the input has gradients: change the sign")
    flip_stress: bool = Field(False, description="the input has pressures: change the sign")
    skip_bad: bool = Field(False, description="leave out frames that fail a check")
    overwrite: bool = Field(False, description="replace an output that exists")


class SplitConfig(Labelled):
    """Options of `mdlearn data split`."""

    file: Path = Field(description="labelled frames")
    train: float = Field(0.8, ge=0, le=1, description="share of the frames to train on")
    valid: float = Field(0.1, ge=0, le=1, description="share to validate on")
    test: float = Field(0.1, ge=0, le=1, description="share to test on")
    seed: int = Field(0, ge=0, description="of the dealing")
    output: Path | None = Field(
        None, description="first part of the names [default: that of FILE, here]"
    )
    skip_bad: bool = Field(False, description="leave out frames that fail a check")
    overwrite: bool = Field(False, description="replace outputs that exist")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.valid + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"--train, --valid and --test must add up to 1 (found {total:g})")
        return self


class PackConfig(Labelled):
    """Options of `mdlearn data pack`."""

    files: tuple[Path, ...] = Field(min_length=1, description="labelled frames")
    output: Path | None = Field(None, description="file to write [default: name of FILES + '.h5']")
    skip_bad: bool = Field(False, description="leave out frames that fail a check")
    overwrite: bool = Field(False, description="replace an output that exists")


def _check(config: CheckConfig) -> int:
    """Examines and prints; raises if there is something that was not accepted."""
    require_findings(config.accept)
    with Line() as line:
        line.show("examining")
        diagnosis = diagnose(config.files, config.wanted)
    bad = refused(diagnosis.findings, config.accept)
    if config.json_:
        print(json.dumps(_to_json(diagnosis, config.accept), ensure_ascii=False))
    else:
        _show(diagnosis, config.accept)
    if bad:
        names = list(dict.fromkeys(each.name for each in bad))
        accept = " ".join(f"--accept {name}" for name in names)
        raise DataError(
            f"{', '.join(names)}: would poison a model; repair the frames, or accept with {accept}"
        )
    return 0


def _to_json(diagnosis: Diagnosis, accepted: tuple[str, ...]) -> dict[str, object]:
    return {
        "keys": diagnosis.keys and diagnosis.keys._asdict(),
        "frames": diagnosis.frames,
        "compositions": diagnosis.compositions,
        "shortest_distances_A": {
            "-".join(chemical_symbols[z] for z in pair): round(distance, 4)
            for pair, distance in diagnosis.shortest.items()
        },
        "findings": [
            each._asdict() | {"accepted": each.name in accepted} for each in diagnosis.findings
        ],
        "refused": sorted({each.name for each in refused(diagnosis.findings, accepted)}),
    }


def _show(diagnosis: Diagnosis, accepted: tuple[str, ...]) -> None:
    """The diagnosis for people."""
    for name, count in diagnosis.frames.items():
        formulas = diagnosis.compositions[name]
        some = [f"{n} {formula}" for formula, n in list(formulas.items())[:4]]
        more = [f"{len(formulas) - 4} more formulas"] if len(formulas) > 4 else []
        out.print(f"frames      {name}: {count} ({', '.join(some + more)})")
    if diagnosis.keys is not None:
        named = diagnosis.keys._asdict().items()
        out.print("labels      " + ", ".join(f"{n} from '{key}'" for n, key in named if key))
    shortest = [
        f"{chemical_symbols[a]}-{chemical_symbols[b]} {d:.3g}"
        for (a, b), d in diagnosis.shortest.items()
    ]
    if shortest:
        more = [f"and {len(shortest) - 10} more pairs"] if len(shortest) > 10 else []
        out.print(f"shortest    {', '.join(shortest[:10] + more)} Å")
    if not diagnosis.findings:
        out.print(Text("nothing to complain about", style="green"))
        return
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    rows.add_column("finding")
    rows.add_column("frames", justify="right")
    rows.add_column("what was found, and what to do", overflow="fold")
    for each in diagnosis.findings:
        verdict = "accepted" if each.name in accepted else each.severity
        label = Text.assemble((verdict, COLORS.get(verdict, "dim")), "\n", each.name)
        rows.add_row(label, str(each.total or ""), _words(each))
    out.print()
    out.print(rows)


def _words(finding: Finding) -> Text:
    text = Text.assemble(finding.message, "\n", ("→ " + finding.fix, "bold"))
    if finding.frames:
        more = ", ..." if finding.total > len(finding.frames) else ""
        text.append(f"\n{', '.join(finding.frames)}{more}", "dim")
    return text


def _convert(config: ConvertConfig) -> int:
    units = Units.parse(
        config.energy_unit,
        config.forces_unit,
        config.stress_unit,
        stress_order=config.stress_order,
        flip_forces=config.flip_forces,
        flip_stress=config.flip_stress,
    )
    keys, count, skipped = convert(
        config.source,
        config.target,
        config.wanted,
        units,
        skip_bad=config.skip_bad,
        overwrite=config.overwrite,
    )
    labels = ", ".join(f"{label} from '{key}'" for label, key in keys._asdict().items() if key)
    out.print(f"labels      {labels}")
    out.print(f"frames      {count} in {config.target}{_left_out(skipped)}")
    return 0


def _split(config: SplitConfig) -> int:
    parts = split(
        config.file,
        config.output or Path(config.file.name.split(".")[0]),
        {"train": config.train, "valid": config.valid, "test": config.test},
        config.wanted,
        seed=config.seed,
        skip_bad=config.skip_bad,
        overwrite=config.overwrite,
    )
    for path, count in parts.items():
        out.print(f"frames      {count} in {path}")
    return 0


def _pack(config: PackConfig) -> int:
    output = config.output or Path(f"{config.files[0].name.split('.')[0]}.h5")
    with Line() as line:
        line.show(f"packing into {output}")
        packed = pack(
            config.files,
            output,
            config.wanted,
            skip_bad=config.skip_bad,
            overwrite=config.overwrite,
        )
    labels = ", ".join(f"{name} from '{key}'" for name, key in packed.keys._asdict().items() if key)
    out.print(f"labels      {labels}")
    out.print(
        f"frames      {packed.frames:,} of {packed.atoms:,} atoms in {output}"
        f" ({output.stat().st_size / 1e6:.1f} MB){_left_out(packed.skipped)}"
    )
    return 0


def _left_out(skipped: tuple[str, ...]) -> str:
    return f"; {len(skipped)} left out, the first: {skipped[0]}" if skipped else ""


def _repeatable(command: click.Command, *fields: str) -> click.Command:
    """Lets arguments and options of a verb be given several times."""
    for parameter in command.params:
        if parameter.name in fields:
            if isinstance(parameter, click.Option):
                parameter.multiple = True
            else:
                parameter.nargs = -1
    return command


VERBS: list[click.Command] = [
    _repeatable(
        verb(
            "check",
            CheckConfig,
            ["files"],
            _check,
            """Examine labelled frames for what would poison a model. Several FILES are splits,
            the one to train on first.

            Exit code 3 if there is a finding to refuse that is not accepted by its name.

            \b
            Examples:
              mdlearn data check frames.xyz
              mdlearn data check train.xyz test.xyz --accept across-splits
            """,
        ),
        "files",
        "accept",
    ),
    verb(
        "convert",
        ConvertConfig,
        ["source", "target"],
        _convert,
        """Write the frames of SOURCE as extended XYZ to TARGET, in eV and Å, under the keys energy,
        forces, stress and dipole.

        \b
        Example:
          mdlearn data convert old.xyz new.xyz --energy-unit kcal/mol --forces-unit kcal/mol/Å
        """,
    ),
    verb(
        "split",
        SplitConfig,
        ["file"],
        _split,
        """Deal the frames of FILE into three files at random; frames that are nearly the same go to
        one side.

        \b
        Example:
          mdlearn data split frames.xyz --train 0.8 --valid 0.1 --test 0.1
        """,
    ),
    _repeatable(
        verb(
            "pack",
            PackConfig,
            ["files"],
            _pack,
            """Pack the frames of FILES into one HDF5 file, checked once and read in flat memory.

            \b
            Example:
              mdlearn data pack a.xyz b.xyz --output frames.h5
            """,
        ),
        "files",
    ),
]

command = click.Group(
    "data",
    {each.name: each for each in VERBS if each.name},
    help="Check, convert, split and pack labelled frames.",
)
