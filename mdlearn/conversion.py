"""Frames from one file into others: standard keys, eV and Å, extended XYZ."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray

from mdlearn.atoms import Frame, iterate_atoms, make_frame
from mdlearn.doctor.duplicates import NEARLY_SAME, SAME
from mdlearn.doctor.fingerprints import close_pairs, fingerprints, groups, kind_of
from mdlearn.doctor.yardsticks import UNITS_OF_ENERGY, UNITS_OF_FORCES, UNITS_OF_STRESS
from mdlearn.errors import DataError, OutputError, UsageError
from mdlearn.files import refuse_existing
from mdlearn.labels import SIX, VOIGT, Keys, Wanted, find_keys
from mdlearn.packed import is_packed, open_packed


class Units(NamedTuple):
    """What labels are multiplied by to be in eV, eV/Å and eV/Å³, and where stresses have what."""

    energy: float = 1.0
    forces: float = 1.0
    stress: float = 1.0
    virial: bool = False
    """The stress is one times the volume, in eV."""
    order: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Where the components xx, yy, zz, yz, xz and xy of the stress are read."""

    @classmethod
    def parse(
        cls,
        energy: str,
        forces: str,
        stress: str,
        *,
        stress_order: str = ",".join(VOIGT),
        flip_forces: bool = False,
        flip_stress: bool = False,
    ) -> Self:
        """Reads the names of units, and of the components of a stress.

        Raises:
            UsageError: an unknown unit, or other than six components.
        """

        def factor(label: str, name: str, units: Mapping[str, float], own: str) -> float:
            known = {_plain(each): 1.0 / size for each, size in units.items()} | {_plain(own): 1.0}
            if _plain(name) not in known:
                raise UsageError(
                    f"--{label}-unit: expected {own}, {', '.join(units)} (found {name!r})"
                )
            return known[_plain(name)]

        components = ["".join(sorted(each)) for each in stress_order.split(",")]
        if sorted(components) != sorted(VOIGT):
            raise UsageError(
                f"--stress-order: expected {','.join(VOIGT)} in the order in which they stand in"
                f" the file (found {stress_order!r})"
            )
        virial = _plain(stress) == "ev"
        size = 1.0 if virial else factor("stress", stress, UNITS_OF_STRESS, "eV/Å³")
        return cls(
            factor("energy", energy, UNITS_OF_ENERGY, "eV"),
            factor("forces", forces, UNITS_OF_FORCES, "eV/Å") * (-1.0 if flip_forces else 1.0),
            size * (-1.0 if flip_stress else 1.0),
            virial,
            tuple(components.index(each) for each in VOIGT),
        )


def _plain(unit: str) -> str:
    """A unit without what people type differently: kcal/(mol Å), kcal/mol/Angstrom."""
    for old, new in (
        ("angstrom", "a"),
        ("å", "a"),
        ("hartree", "ha"),
        ("³", "3"),
        ("(mol ", "mol/"),
    ):
        unit = unit.lower().replace(old, new)
    return unit.translate({ord(each): None for each in " ()^"})


def convert(
    source: Path,
    target: Path,
    wanted: Wanted,
    units: Units,
    *,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> tuple[Keys, int, tuple[str, ...]]:
    """Writes the frames of a file as extended XYZ, in flat memory.

    Returns:
        The keys that were used, the number of frames written, and what was wrong with others.

    Raises:
        DataError: see `atoms.read_frames`.
        OutputError: the target exists, or cannot be written.
    """
    refuse_existing(target, overwrite=overwrite)
    keys, stream = _stream(source, wanted)
    skipped: list[str] = []
    with _Outputs([target]) as outputs:
        for make in stream:
            try:
                frame, extra = make()
            except DataError as error:
                if not skip_bad:
                    raise
                skipped.append(str(error))
            else:
                outputs.write(0, to_atoms(frame, units, extra))
        count = outputs.counts[0]
    return keys, count, tuple(skipped)


def split(
    source: Path,
    stem: Path,
    shares: Mapping[str, float],
    wanted: Wanted,
    *,
    seed: int,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> dict[Path, int]:
    """Deals frames into files `STEM-PART.xyz`; frames that are nearly the same stay together.

    Frames of a single atom go to the first part.

    Returns:
        Number of frames by file; parts without a share are not written.

    Raises:
        DataError: see `atoms.read_frames`; or a part would be empty.
        OutputError: a file exists, or cannot be written.
    """
    shares = {part: share for part, share in shares.items() if share > 0.0}
    paths = [stem.with_name(f"{stem.name}-{part}.xyz") for part in shares]
    for path in paths:
        refuse_existing(path, overwrite=overwrite)
    _, stream = _stream(source, wanted)
    frames: list[tuple[Frame, Extra]] = []
    for make in stream:
        try:
            frames.append(make())
        except DataError:
            if not skip_bad:
                raise
    side = deal([frame for frame, _ in frames], list(shares.values()), seed)
    for part, name in enumerate(shares):
        if part not in side:
            raise DataError(
                f"{source}: {len(frames)} frames leave none for --{name}; expected more frames,"
                " fewer duplicates, or a larger share"
            )
    with _Outputs(paths) as outputs:
        for (frame, extra), part in zip(frames, side.tolist(), strict=True):
            outputs.write(part, to_atoms(frame, Units(), extra))
    return dict(zip(paths, outputs.counts, strict=True))


def deal(frames: Sequence[Frame], shares: Sequence[float], seed: int) -> NDArray[np.int64]:
    """Which part each frame goes to: at random, but nearly equal frames together, (n_frames,)."""
    leader = _families(frames)
    single = np.array([len(frame.system.numbers) == 1 for frame in frames])
    families = np.random.default_rng(seed).permutation(np.unique(leader[~single]))
    size = np.bincount(leader, minlength=len(frames))
    side = np.zeros(len(frames), np.int64)
    want = np.array(shares) * np.count_nonzero(~single)
    have = np.zeros(len(shares))
    for family in families.tolist():
        part = int(np.argmax((want - have) / want))  # the part that lacks the largest share
        side[leader == family] = part
        have[part] += size[family]
    side[single] = 0
    return side


def _families(frames: Sequence[Frame]) -> NDArray[np.int64]:
    """The first frame among those that are nearly the same, directly or through others."""
    prints = [fingerprints(frame.system) for frame in frames]
    leader = np.arange(len(frames))

    def first(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = int(leader[index])
        return index

    for ordered, which, tolerance in ((False, 0, SAME), (True, 1, NEARLY_SAME)):
        for members in groups([kind_of(frame.system, ordered=ordered) for frame in frames]):
            one, other, _ = close_pairs(np.array([prints[n][which] for n in members]), tolerance)
            for a, b in zip(members[one].tolist(), members[other].tolist(), strict=True):
                low, high = sorted((first(a), first(b)))
                leader[high] = low
    return np.array([first(index) for index in range(len(frames))])


class Extra(NamedTuple):
    """What a file says of a frame besides the labels."""

    info: dict[str, object]
    velocities: NDArray[np.float64] | None


def _stream(
    source: Path, wanted: Wanted
) -> tuple[Keys, Iterator[Callable[[], tuple[Frame, Extra]]]]:
    """Keys, and for each frame a function that checks it; read once for each of the two."""
    if is_packed(source):
        packed = open_packed(source, wanted)
        return packed.keys, ((lambda f=frame: (f, Extra(_kind(f), None))) for frame in packed)
    named = ((f"{source}:{n}", atoms) for n, atoms in enumerate(iterate_atoms(source)))
    keys = find_keys(named, wanted)

    def check(index: int, atoms: ase.Atoms) -> tuple[Frame, Extra]:
        frame = make_frame(atoms, keys, f"{source}:{index}")
        info = {name: value for name, value in atoms.info.items() if name not in keys}
        return frame, Extra(info, atoms.get_velocities() if atoms.has("momenta") else None)

    return keys, (
        (lambda n=n, atoms=atoms: check(n, atoms)) for n, atoms in enumerate(iterate_atoms(source))
    )


def _kind(frame: Frame) -> dict[str, object]:
    return {"config_type": frame.config_type} if frame.config_type else {}


def to_atoms(frame: Frame, units: Units, extra: Extra) -> ase.Atoms:
    """A frame as ASE has it, with its labels as results of a calculator."""
    system, labels = frame.system, frame.labels
    atoms = ase.Atoms(
        system.numbers.numpy(),
        system.positions.numpy(),
        cell=system.cell[0].numpy(),
        pbc=system.pbc[0].numpy(),
        info=dict(extra.info),
    )
    if not np.allclose(atoms.get_masses(), system.masses.numpy()):
        atoms.set_masses(system.masses.numpy())
    if extra.velocities is not None:
        atoms.set_velocities(extra.velocities)
    results: dict[str, object] = {"energy": float(labels.energy[0]) * units.energy}
    forces, stress, dipole = (each.numpy() for each in labels[1:])
    if np.isfinite(forces).all():
        results["forces"] = forces * units.forces
    if np.isfinite(stress).all():
        scale = units.stress / (atoms.get_volume() if units.virial else 1.0)
        results["stress"] = stress[0][*SIX][[*units.order]] * scale
    if np.isfinite(dipole).all():
        results["dipole"] = dipole[0]
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


class _Outputs:
    """Files of extended XYZ that appear together when all are complete, or not at all."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._partial = [path.with_name(f".{path.name}.{os.getpid()}") for path in paths]
        self._stack = ExitStack()
        self.counts = [0] * len(paths)

    def write(self, part: int, atoms: ase.Atoms) -> None:
        try:
            ase.io.write(self._streams[part], atoms, format="extxyz")
        except OSError as error:
            raise self._failed(error) from error
        self.counts[part] += 1

    def __enter__(self) -> Self:
        try:
            self._streams = [
                self._stack.enter_context(each.open("w", encoding="utf-8"))
                for each in self._partial
            ]
        except OSError as error:
            self._remove()
            raise self._failed(error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._stack.close()
            if kind is None:
                for partial, path in zip(self._partial, self._paths, strict=True):
                    partial.replace(path)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._remove()

    def _remove(self) -> None:
        for each in self._partial:
            each.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._paths[0]}: cannot be written ({error.strerror}); free some space, or choose a"
            " folder that you may write to"
        )
