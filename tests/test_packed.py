"""Packed frames are the frames, bit for bit, and no more of them in memory than are looked at."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.resources import files
from itertools import islice
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
import torch
from checks import crystal, slab

from mdlearn import atoms as atoms_module
from mdlearn import packed as packed_module
from mdlearn import packing
from mdlearn.atoms import Frame, read_frames
from mdlearn.errors import DataError, OutputError
from mdlearn.labels import Wanted
from mdlearn.packed import PackedFrames, is_packed
from mdlearn.packing import pack

ANYTHING = Wanted(energy_only=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Molecules, single atoms, and periodic frames with stress and charge."""
    folder = tmp_path_factory.mktemp("frames")
    data = files("mdlearn.data")
    water = ase.io.read(str(data / "water.xyz"), ":4")
    for frame in water:
        frame.info["charge"] = -1.0
    ase.io.write(folder / "water.xyz", water)
    ase.io.write(folder / "ethanol.xyz", ase.io.read(str(data / "ethanol.xyz"), ":20"))
    ase.io.write(folder / "atoms.xyz", ase.io.read(str(data / "water_isolated_atoms.xyz"), ":"))
    return [folder / name for name in ("ethanol.xyz", "atoms.xyz", "water.xyz")]


@pytest.fixture(scope="module")
def packed(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "frames.anything"
    assert pack(sources, path, Wanted()).frames == 26
    return path


def assert_same(one: Frame, other: Frame) -> None:
    assert one.name == other.name
    assert one.config_type == other.config_type
    for a, b in zip((*one.system, *one.labels), (*other.system, *other.labels), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a.nan_to_num(1e300), b.nan_to_num(1e300))


class TestReading:
    def test_frames_are_the_same_bit_by_bit(self, sources: list[Path], tmp_path: Path) -> None:
        for source in (sources[0], sources[2]):
            output = tmp_path / f"{source.stem}.h5"
            pack([source], output, Wanted())
            plain, keys = read_frames(source)
            lazy, same_keys = read_frames(output)
            assert isinstance(lazy, PackedFrames)
            assert keys == same_keys
            for one, other in zip(plain, lazy, strict=True):
                assert_same(one, other)

    def test_a_stress_that_some_have_is_kept_for_none(self, packed: Path) -> None:
        frames, keys = read_frames(packed)
        assert keys.stress is None
        assert frames[-1].labels.stress.isnan().all()
        assert float(frames[-1].system.charge) == -1.0

    def test_single_atoms(self, packed: Path) -> None:
        frame = PackedFrames(packed)[20]
        assert frame.system.numbers.shape == (1,)
        assert frame.labels.forces.tolist() == [[0.0, 0.0, 0.0]]

    def test_indices_and_slices(self, packed: Path) -> None:
        frames = PackedFrames(packed)
        everything = list(frames)
        assert len(frames) == len(everything) == 26
        for chosen in (slice(3, 9), slice(None, None, 5), slice(None, None, -1), slice(9, 3)):
            part = frames[chosen]
            assert isinstance(part, PackedFrames)
            assert [each.name for each in part] == [each.name for each in everything[chosen]]
            assert len(part) == len(everything[chosen])
        assert_same(frames[5:][::2][3], everything[11])
        assert_same(frames[-1], everything[25])
        for some in ([3, 4, 9, 25], [7, 2, 2, 20]):
            assert [e.name for e in frames.select(some)] == [everything[n].name for n in some]
        assert_same(frames[::-1].select([2, 5])[1], everything[20])
        for beyond in (26, -27):
            with pytest.raises(IndexError):
                frames[beyond]

    def test_open_directions_and_missing_labels(self, tmp_path: Path) -> None:
        structures = [slab(), crystal((True, True, True))]
        for each in structures:
            each.info["energy"] = 1.0
        ase.io.write(tmp_path / "frames.xyz", structures)
        pack([tmp_path / "frames.xyz"], tmp_path / "frames.h5", ANYTHING)
        frames, keys = read_frames(tmp_path / "frames.h5", energy_only=True)
        assert keys.forces is None
        assert frames[0].system.pbc.tolist() == [[True, True, False]]
        assert frames[0].labels.forces.isnan().all()
        with h5py.File(tmp_path / "frames.h5", locking=False) as file:
            assert "atoms/forces" not in file

    def test_kinds_of_structures(self, packed: Path, tmp_path: Path) -> None:
        structures = ase.io.read(str(files("mdlearn.data") / "ethanol.xyz"), ":3")
        for each, kind in zip(structures, ("heiß", "", "bulk"), strict=True):
            each.info["config_type"] = kind
        del structures[1].info["config_type"]
        ase.io.write(tmp_path / "frames.xyz", structures)
        pack([tmp_path / "frames.xyz"], tmp_path / "frames.h5", Wanted())
        assert [each.config_type for each in PackedFrames(tmp_path / "frames.h5")] == [
            "heiß",
            "",
            "bulk",
        ]
        old = tmp_path / "old.h5"
        old.write_bytes(packed.read_bytes())
        with h5py.File(old, "r+") as file:
            header = json.loads(file.attrs["mdlearn"])
            file.attrs["mdlearn"] = json.dumps(header | {"version": 1})
            del file["frames/config_type"]
        for one, other in zip(PackedFrames(old), PackedFrames(packed), strict=True):
            assert_same(one, other._replace(config_type=""))

    def test_a_frame_does_not_keep_its_block(
        self, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blocks: list[weakref.ref[np.ndarray]] = []
        part = packed_module._part

        def watched(*arguments: object) -> np.ndarray:
            values = part(*arguments)
            blocks.append(weakref.ref(values))
            return values

        monkeypatch.setattr(packed_module, "_part", watched)
        frame = next(iter(PackedFrames(packed)))
        gc.collect()
        assert len(frame.system.positions) == 9
        assert blocks
        assert not any(each() is not None for each in blocks)


class TestProcesses:
    def test_pickle(self, packed: Path) -> None:
        frames = PackedFrames(packed)[3:]
        assert_same(pickle.loads(pickle.dumps(frames))[2], frames[2])

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_fork(self, packed: Path) -> None:
        frames = PackedFrames(packed)
        names = [each.name for each in frames]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(_name, [(frames, n) for n in range(26)], chunksize=1) == names
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            _OPEN["frames"] = frames
            assert pool.submit(_own_handle).result()
        assert frames[3].name == names[3]


_OPEN: dict[str, PackedFrames] = {}
"""What a forked process finds open."""


def _own_handle() -> bool:
    frames = _OPEN["frames"]
    before = frames._file and frames._file[0]
    frames[0]
    return frames._file is not None and before != os.getpid() == frames._file[0]


def _name(job: tuple[PackedFrames, int]) -> str:
    frames, index = job
    return frames[index].name


class TestPacking:
    def test_says_where_frames_come_from(self, sources: list[Path], packed: Path) -> None:
        frames = PackedFrames(packed)
        assert [name for name, _ in frames.sources] == [str(each) for each in sources]
        assert all(len(digest) == 64 for _, digest in frames.sources)
        with h5py.File(packed, locking=False) as file:
            header = json.loads(file.attrs["mdlearn"])
        assert header["format"] == "mdlearn-frames"
        assert header["version"] == 2
        assert header["keys"]["energy"] == "energy"

    def test_bad_frames_are_refused_or_left_out(self, sources: list[Path], tmp_path: Path) -> None:
        text = sources[0].read_text().splitlines()
        columns = text[2].split()
        text[2] = " ".join(["C", "nan", *columns[2:]])
        bad = tmp_path / "bad.xyz"
        bad.write_text("\n".join(text) + "\n")
        with pytest.raises(DataError, match=r"bad\.xyz:0: atom 0 has the position"):
            pack([bad], tmp_path / "bad.h5", Wanted())
        assert os.listdir(tmp_path) == ["bad.xyz"]
        done = pack([bad], tmp_path / "bad.h5", Wanted(), skip_bad=True)
        assert done.frames == 19
        assert len(done.skipped) == 1
        assert PackedFrames(tmp_path / "bad.h5")[0].name == f"{bad}:1"

    def test_nothing_is_overwritten_unasked(self, sources: list[Path], tmp_path: Path) -> None:
        output = tmp_path / "frames.h5"
        output.write_text("precious")
        with pytest.raises(OutputError, match="already exists"):
            pack(sources[:1], output, Wanted())
        assert output.read_text() == "precious"
        pack(sources[:1], output, Wanted(), overwrite=True)
        assert is_packed(output)

    def test_a_file_is_a_stream(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """However many structures there are, only the last few exist; and blocks are bounded."""
        alive = most = 0

        def gone() -> None:
            nonlocal alive
            alive -= 1

        def structures(_: Path) -> Iterator[ase.Atoms]:
            nonlocal alive, most
            for number in range(300):
                atoms = ase.Atoms("H40", np.arange(120.0).reshape(40, 3))
                atoms.info["energy"] = float(number)
                weakref.finalize(atoms, gone)
                alive += 1
                most = max(most, alive)
                yield atoms

        blocks = []
        read = PackedFrames._read

        def watched(self: PackedFrames, chosen: np.ndarray) -> Iterator[Frame]:
            blocks.append((int(chosen[0]), int(chosen[-1]) + 1))
            return read(self, chosen)

        monkeypatch.setattr(packing, "iterate_atoms", structures)
        for module in (packing, packed_module):
            monkeypatch.setattr(module, "BLOCK_ATOMS", 1000)
        monkeypatch.setattr(PackedFrames, "_read", watched)
        (tmp_path / "many.xyz").touch()
        pack([tmp_path / "many.xyz"], tmp_path / "many.h5", ANYTHING)
        assert most <= 3
        frames = PackedFrames(tmp_path / "many.h5")
        assert [float(each.labels.energy) for each in frames] == list(range(300))
        assert blocks[0] == (0, 25)
        assert [end for _, end in blocks[:-1]] == [first for first, _ in blocks[1:]]

    def test_full_disk(self, sources: list[Path], tmp_path: Path) -> None:
        code = (
            "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
            "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "from mdlearn.cli import main;"
            f"sys.argv = ['mdlearn', 'data', 'pack', {str(sources[0])!r}, '--output', 'full.h5'];"
            "main()"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 6, done.stderr
        assert "full.h5: cannot be written" in done.stderr
        assert not os.listdir(tmp_path)


class TestBadFiles:
    def test_truncated(self, packed: Path, tmp_path: Path) -> None:
        whole = packed.read_bytes()
        for size in (len(whole) // 2, len(whole) - 100):
            (tmp_path / "cut.h5").write_bytes(whole[:size])
            with pytest.raises(DataError, match=r"cut\.h5"):
                read_frames(tmp_path / "cut.h5")

    def test_newer(self, packed: Path, tmp_path: Path) -> None:
        newer = tmp_path / "newer.h5"
        newer.write_bytes(packed.read_bytes())
        with h5py.File(newer, "r+") as file:
            header = json.loads(file.attrs["mdlearn"])
            file.attrs["mdlearn"] = json.dumps(header | {"version": 3})
        with pytest.raises(DataError, match="newer"):
            read_frames(newer)

    def test_other_keys(self, packed: Path) -> None:
        with pytest.raises(DataError, match=r"packed with the energy of 'energy'.*--energy-key"):
            read_frames(packed, energy_key="REF_energy")
        with pytest.raises(DataError, match="packed with no stress"):
            read_frames(packed, stress_key="stress")

    def test_other_hdf5_is_not_packed(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["x"] = 1
        assert not is_packed(tmp_path / "other.h5")
        assert not is_packed(tmp_path / "nowhere.h5")


class TestCompressed:
    @pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
    def test_compressed_files_are_the_same(
        self, sources: list[Path], tmp_path: Path, suffix: str
    ) -> None:
        import bz2
        import gzip
        import lzma

        squeeze = {"gz": gzip, "bz2": bz2, "xz": lzma}[suffix].compress
        path = tmp_path / f"frames.xyz.{suffix}"
        path.write_bytes(squeeze(sources[0].read_bytes()))
        plain, squeezed = read_frames(sources[0])[0], read_frames(path)[0]
        for one, other in zip(plain, squeezed, strict=True):
            assert_same(one._replace(name=""), other._replace(name=""))
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match="cannot be read"):
            read_frames(path)

    def test_structures_come_one_by_one(
        self, sources: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def endless(*_: object) -> Iterator[ase.Atoms]:
            while True:
                yield crystal()

        monkeypatch.setattr(atoms_module.ase.io, "iread", endless)
        assert len(list(islice(atoms_module.iterate_atoms(sources[0]), 5))) == 5
