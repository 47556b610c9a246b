"""The trajectory file: what comes back, who else can read it, and what survives."""

from __future__ import annotations

import errno
import functools
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import ase.units
import h5py
import numpy as np
import pytest

from mdlearn import h5md, lock
from mdlearn import writer as writing
from mdlearn.ase_io import h5md_format
from mdlearn.errors import DataError, MDLearnError, OutputError
from mdlearn.h5md import Particles
from mdlearn.trajectory import Trajectory
from mdlearn.writer import TrajectoryWriter

NUMBERS = np.array([8, 1, 1, 6])
MASSES = np.array([15.999, 1.008, 2.014, 12.011])
OBSERVABLES = {"potential_energy": "eV", "temperature": "K", "drift": ""}
PROVENANCE = {"seed": 2**62, "model": "Å/é.safetensors", "dt": 0.1 + 0.2, "empty": "", "ok": True}


def frame(i):
    """Frame i of the trajectory that every test writes, as `append` takes it."""
    rng = np.random.default_rng(i)
    draw = rng.normal(size=(3, 4, 3))
    return {
        "step": 10 * i,
        "time_fs": 0.1 * i,
        "positions": draw[0],
        "velocities": draw[1] * 1e-2,
        "forces": draw[2],
        "cell": np.diag([11.0, 12.0, 13.0]) + 0.01 * rng.normal(size=(3, 3)),
        "observables": {"potential_energy": -1.5 * i, "temperature": 300.0 + i, "drift": 1e-9 * i},
    }


known_frame = functools.cache(frame)


def state(n):
    """The restart state that belongs to n frames."""
    draw = np.random.default_rng(1000 + n).normal(size=(2, 4, 3))
    return {"momenta": draw[0], "reference": draw[1].astype(np.float32), "frames": np.int64(n)}


def create(path, **changes):
    observables = changes.pop("observables", OBSERVABLES)
    arguments = {
        "particles": [Particles(NUMBERS, MASSES, [True, False, True], observables)],
        "provenance": PROVENANCE,
        "restart": state(0),
    }
    return TrajectoryWriter.create(path, **(arguments | changes))


def write(writer, start, stop, every=1):
    for i in range(start, stop):
        writer.append(**frame(i))
        if (i + 1) % every == 0 or i + 1 == stop:
            writer.commit(state(i + 1))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


@pytest.fixture
def finished(path):
    with create(path) as writer:
        write(writer, 0, 7, every=3)
    return path


@pytest.mark.parametrize("written", [False, True])
def test_several_readers_of_one_process_read_the_same(path, written):
    """HDF5 2.0 gives other frames where a handle was refreshed and another one is left."""
    writer, last = create(path), 1500
    write(writer, 0, last + 1, every=500)
    if not written:
        writer.close()
    with Trajectory(path) as reader:
        expected = reader.atoms(last)
        for _ in range(3):
            with Trajectory(path) as another:
                assert another.times_fs[last] == expected.info["time_fs"]
                found = another.atoms(last)
            assert found.info == expected.info
            assert np.array_equal(found.positions, expected.positions)
        assert reader.atoms(last).info == expected.info
    if written:
        write(writer, last + 1, last + 3)
        writer.close()
        with Trajectory(path) as reader:
            assert len(reader) == last + 3


def assert_holds(path, at_least=0, at_most=10**9):
    """All committed frames and the restart state are what was written; returns their number."""
    with Trajectory(path) as found:
        n = len(found)
        assert at_least <= n <= at_most
        expected = [known_frame(i) for i in range(n)]
        np.testing.assert_array_equal(found.steps, [f["step"] for f in expected])
        np.testing.assert_array_equal(found.times_fs, [f["time_fs"] for f in expected])
        for name in OBSERVABLES:
            values = [f["observables"][name] for f in expected]
            np.testing.assert_array_equal(found.observable(name), values)
        for name, read in [("positions", found.positions), ("forces", found.forces)]:
            values = np.array([f[name] for f in expected]).reshape(-1, 4, 3)
            np.testing.assert_allclose(read(slice(None)), values, rtol=1e-12)
        values = np.array([f["velocities"] for f in expected]).reshape(-1, 4, 3)
        np.testing.assert_allclose(found.velocities(slice(None)), values, rtol=1e-12)
        values = np.array([f["cell"] for f in expected]).reshape(-1, 3, 3)
        np.testing.assert_array_equal(found.cells(slice(None)), values)
        assert_same_state(found.restart(), state(n))
    return n


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes(), name


def child_writes(path):
    """Goes on for ever, a commit every frame or two, and says after each what is committed."""
    writer = TrajectoryWriter.reopen(path) if os.path.exists(path) else create(path)
    for i in range(writer.committed, 100_000):
        writer.append(**frame(i))
        if i % 3:
            writer.commit(state(i + 1))
            print(writer.committed, flush=True)


def child_fills_the_disk(path, limit):
    writer = create(path)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
    try:
        write(writer, 0, 5000, every=5)
    except OutputError as error:
        print(writer.committed, error, flush=True)
    writer.close()  # does nothing any more
    with pytest.raises(MDLearnError, match="closed"):
        writer.commit(state(0))


def start(*arguments):
    command = [sys.executable, "-W", "error", __file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_was_written_comes_back(finished):
    assert assert_holds(finished) == 7
    with Trajectory(finished) as found:
        np.testing.assert_array_equal(found.numbers, NUMBERS)
        np.testing.assert_array_equal(found.masses, MASSES)
        assert found.pbc.tolist() == [True, False, True]
        assert found.provenance == PROVENANCE
        assert {name: type(value) for name, value in found.provenance.items()} == {
            name: type(value) for name, value in PROVENANCE.items()
        }
        assert set(found.observable_names) == set(OBSERVABLES)
        assert {n: found.observable_unit(n) for n in OBSERVABLES} == OBSERVABLES


@pytest.mark.parametrize(
    "selection",
    [0, -1, np.int64(3), slice(2, 5), slice(None, None, -1), slice(6, 0, -2), slice(5, 2)],
)
def test_selections_are_those_of_a_list(finished, selection):
    expected = np.array([frame(i)["positions"] for i in range(7)])[selection]
    with Trajectory(finished) as found:
        np.testing.assert_array_equal(found.positions(selection), expected)


def test_what_is_not_there_is_refused(finished):
    with Trajectory(finished) as found:
        for index in (7, -8):
            with pytest.raises(IndexError):
                found.positions(index)
        with pytest.raises(DataError, match="'pressure', found only"):
            found.observable("pressure")


def test_the_file_is_in_its_own_units(finished):
    with h5py.File(finished) as file:
        particles, expected = file["particles/all"], frame(4)
        assert particles["velocity/value"].attrs["unit"] == "Angstrom fs-1"
        assert particles["force/value"].attrs["unit"] == "kJ mol-1 Angstrom-1"
        np.testing.assert_allclose(
            particles["velocity/value"][4], expected["velocities"] * ase.units.fs, rtol=1e-12
        )
        np.testing.assert_allclose(
            particles["force/value"][4],
            expected["forces"] / (ase.units.kJ / ase.units.mol),
            rtol=1e-12,
        )
        assert file["h5md"].attrs["version"].tolist() == [1, 1]
        assert file["h5md/creator"].attrs["name"] == "mdlearn"
        assert particles["box"].attrs["boundary"].tolist() == ["periodic", "none", "periodic"]
        for group in ("observables/temperature", "particles/all/box/edges"):
            assert file[group]["time"] == particles["position/time"]


def test_single_precision_on_disk(path):
    with create(path, dtype=np.float32) as writer:
        write(writer, 0, 2)
    with h5py.File(path) as file:
        assert file["particles/all/force/value"].dtype == np.float32
    with Trajectory(path) as found:
        assert found.forces(1).dtype == np.float64
        np.testing.assert_allclose(found.forces(1), frame(1)["forces"], rtol=1e-6)


def test_restart_state_is_kept_bit_by_bit(path):
    payload = np.array([0x7FF8000000000ABC, 0x8000000000000000, 1], np.uint64)
    restart = {
        "odd": payload.view(np.float64),
        "counter": np.uint64(2**64 - 1),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 3)),
    }
    restart = {name: np.asarray(array) for name, array in restart.items()}
    blank = {name: np.zeros_like(array) for name, array in restart.items()}
    with create(path, restart=blank) as writer:
        for expected in (restart, blank, restart):
            writer.commit(expected)  # without a frame
            with Trajectory(path) as found:
                assert_same_state(found.restart(), expected)
                assert len(found) == 0


def test_buffers_may_be_reused(path):
    with create(path) as writer:
        buffers = frame(0)
        for i in range(3):
            for name in ("positions", "velocities", "forces", "cell"):
                buffers[name][...] = frame(i)[name]
            writer.append(**{**frame(i), **{n: buffers[n] for n in ("positions", "cell")}})
        writer.commit(state(3))
    assert assert_holds(path) == 3


def test_only_committed_frames_exist(path):
    with create(path) as writer:
        write(writer, 0, 3)
        writer.append(**frame(3))
        assert writer.committed == assert_holds(path) == 3
    assert assert_holds(path) == 3
    with h5py.File(path) as file:
        assert all(len(file[name]) == 3 for name in h5md.series(file))


def test_wrong_arrays_are_refused(path):
    with create(path) as writer:
        write(writer, 0, 2)
        with pytest.raises(MDLearnError, match=r"\(5, 3\)"):
            writer.append(**{**frame(2), "forces": np.zeros((5, 3))})
        with pytest.raises(MDLearnError, match="observables"):
            writer.append(**{**frame(2), "observables": {"temperature": 1.0}})
        with pytest.raises(MDLearnError, match="restart state"):
            writer.commit({**state(2), "momenta": np.zeros(3)})
        with pytest.raises(MDLearnError, match="restart state"):
            writer.commit({**state(2), "momenta": np.zeros((4, 3), np.float32)})
        write(writer, 2, 3)
    assert assert_holds(path) == 3
    with pytest.raises(MDLearnError, match="plain name"):
        create(path, observables={"a/b": "eV"}, overwrite=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Reader has no dt:UserWarning")
def test_mdanalysis_reads_it(finished):
    import MDAnalysis
    from ase.cell import Cell

    universe = MDAnalysis.Universe.empty(4, trajectory=True)
    universe.load_new(str(finished), format="H5MD")
    assert len(universe.trajectory) == 7
    for i, moment in enumerate(universe.trajectory):
        expected = frame(i)
        np.testing.assert_allclose(moment.positions, expected["positions"], rtol=1e-6)
        np.testing.assert_allclose(moment.dimensions, Cell(expected["cell"]).cellpar(), rtol=1e-5)
        velocities = expected["velocities"] * 1000 * ase.units.fs  # Å/ps
        np.testing.assert_allclose(moment.velocities, velocities, rtol=1e-5)
        forces = expected["forces"] / (ase.units.kJ / ase.units.mol)
        np.testing.assert_allclose(moment.forces, forces, rtol=1e-5)
        np.testing.assert_allclose(moment.time, expected["time_fs"] / 1000, atol=1e-12)
        assert moment.data["step"] == expected["step"]
        assert moment.data["temperature"] == expected["observables"]["temperature"]
    universe.trajectory.close()


SMALLER = Particles(NUMBERS[:2], MASSES[:2], [False] * 3, {"temperature": "K"})


def create_replicas(path, **changes):
    """Three replicas, of which the second one is smaller and tells less."""
    large = Particles(NUMBERS, MASSES, [True, False, True], OBSERVABLES)
    return create(path, particles=[large, SMALLER, large], **changes)


def replica_frame(i, replica):
    """Frame i of a replica, as `append` takes it."""
    made = frame(100 * replica + i) | {"step": 10 * i, "time_fs": 0.1 * i, "replica": replica}
    if replica == 1:
        made |= {name: made[name][:2] for name in ("positions", "velocities", "forces")}
        made["observables"] = {"temperature": 300.0}
    return made


def write_replicas(writer, start, stop, every=1, last=3):
    """Replica 1 ends at frame `last`."""
    for i in range(start, stop):
        for replica in range(3):
            if replica != 1 or i < last:
                writer.append(**replica_frame(i, replica))
        if (i + 1) % every == 0 or i + 1 == stop:
            writer.commit(state(i + 1))


def assert_holds_replicas(path, last=3):
    """All that was committed of each replica is there; returns the number of frames of the first.

    The frames and the restart state belong together.
    """
    with Trajectory(path) as first:
        n = len(first)
        assert_same_state(first.restart(), state(n))
        assert first.n_replicas == 3
    for replica, count in enumerate((n, min(n, last), n)):
        with Trajectory(path, replica) as found:
            expected = [replica_frame(i, replica) for i in range(count)]
            assert found.steps.tolist() == [each["step"] for each in expected]
            assert set(found.observable_names) == set(OBSERVABLES if replica != 1 else SMALLER[3])
            for name, read in [("positions", found.positions), ("cell", found.cells)]:
                for i in range(count):
                    np.testing.assert_array_equal(read(i), expected[i][name])
            temperatures = [each["observables"]["temperature"] for each in expected]
            assert found.observable("temperature").tolist() == temperatures
    return n


def test_replicas_are_kept_apart(path):
    with create_replicas(path) as writer:
        write_replicas(writer, 0, 7, every=3)
    assert assert_holds_replicas(path) == 7
    with Trajectory(path, 1) as found:
        assert found.numbers.tolist() == [8, 1]
        assert found.pbc.tolist() == [False] * 3
    with h5py.File(path) as file:
        assert list(file["particles"]) == ["replica_000", "replica_001", "replica_002"]
        assert len(file["particles/replica_001/force/value"]) == 3
        assert len(file["observables/replica_002/drift/step"]) == 7
    with pytest.raises(DataError, match="replica from 0 to 2, found 3"):
        Trajectory(path, 3)
    with create_replicas(path, overwrite=True) as writer, pytest.raises(MDLearnError, match="4, 3"):
        writer.append(**replica_frame(0, 0) | {"replica": 1})


def test_every_moment_of_a_commit_of_replicas_is_readable(path, tmp_path, monkeypatch):
    moments = []
    fsync = os.fsync

    def snapshot(descriptor):
        moments.append(shutil.copy(path, tmp_path / f"{len(moments)}.h5"))
        fsync(descriptor)

    with create_replicas(path) as writer:
        monkeypatch.setattr(writing.os, "fsync", snapshot)
        write_replicas(writer, 0, 8, every=2)
        monkeypatch.undo()
    assert [assert_holds_replicas(m) for m in moments] == [2 * ((i + 1) // 2) for i in range(8)]
    for moment in moments[2:7:2]:
        with TrajectoryWriter.reopen(moment) as writer:
            write_replicas(writer, writer.committed, 9)
        assert assert_holds_replicas(moment) == 9


def linked(path, replica, target):
    """One replica as a file of its own without a copy, as the documentation has it."""
    name = f"replica_{replica:03}"
    with h5py.File(target, "w") as one, h5py.File(path) as all_:
        all_.copy("h5md", one)
        for group in ("particles", "observables"):
            one[f"{group}/trajectory"] = h5py.ExternalLink(path.name, f"{group}/{name}")
    return target


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Reader has no dt:UserWarning")
def test_mdanalysis_reads_replicas(path):
    import MDAnalysis

    with create_replicas(path) as writer:
        write_replicas(writer, 0, 7, last=4)
    for replica, file, n_frames in (
        (1, linked(path, 1, path.with_name("one.h5")), 4),
        (2, linked(path, 2, path.with_name("two.h5")), 7),
    ):
        universe = MDAnalysis.Universe.empty(2 if replica == 1 else 4, trajectory=True)
        universe.load_new(str(file), format="H5MD")
        assert len(universe.trajectory) == n_frames
        for i, moment in enumerate(universe.trajectory):
            expected = replica_frame(i, replica)
            np.testing.assert_allclose(moment.positions, expected["positions"], rtol=1e-6)
            assert moment.data["step"] == 10 * i
            temperature = expected["observables"]["temperature"]
            assert moment.data["trajectory/temperature"] == temperature
        universe.trajectory.close()


@pytest.fixture
def ase_io():
    import ase.io.formats

    if "mdlearn-h5md" not in ase.io.formats.ioformats:
        ase.io.formats.define_io_format("mdlearn-h5md", **h5md_format._asdict(), external=True)
    return ase.io


def test_ase_reads_it(finished, ase_io):
    assert ase_io.formats.filetype(str(finished)) == "mdlearn-h5md"
    assert [a.info["step"] for a in ase_io.read(finished, "1::2")] == [10, 30, 50]
    assert [a.info["step"] for a in ase_io.read(finished, "::-3")] == [60, 30, 0]
    assert ase_io.read(finished, 2).info["step"] == 20
    atoms, expected = ase_io.read(finished), frame(6)
    np.testing.assert_array_equal(atoms.numbers, NUMBERS)
    np.testing.assert_array_equal(atoms.get_masses(), MASSES)
    np.testing.assert_array_equal(atoms.positions, expected["positions"])
    np.testing.assert_array_equal(atoms.cell, expected["cell"])
    np.testing.assert_allclose(atoms.get_velocities(), expected["velocities"], rtol=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"], rtol=1e-12)
    assert atoms.get_potential_energy() == -9.0
    assert atoms.pbc.tolist() == [True, False, True]
    assert atoms.info["time_fs"] == pytest.approx(0.6)


def test_ase_reads_replicas(path, ase_io):
    with create_replicas(path) as writer:
        write_replicas(writer, 0, 5, last=2)
    assert [len(ase_io.read(path, ":", replica=i)) for i in range(3)] == [5, 2, 5]
    atoms = ase_io.read(path, replica=1)
    np.testing.assert_array_equal(atoms.positions, replica_frame(1, 1)["positions"])
    assert len(ase_io.read(path)) == 4


def test_frames_without_an_energy(path):
    with create(path, observables={}) as writer:
        writer.append(**{**frame(0), "observables": {}})
        writer.commit(state(1))
    with Trajectory(path) as found:
        assert set(found.atoms(-1).calc.results) == {"forces"}


def test_no_kill_loses_a_committed_frame(path):
    rng = random.Random(1)
    acknowledged = 0
    for _ in range(8):
        child = start("child_writes", path)
        first = child.stdout.readline()
        assert first, child.stderr.read()
        time.sleep(rng.uniform(0, 0.06))
        child.send_signal(signal.SIGKILL)
        lines = [first, *child.communicate()[0].splitlines()]
        acknowledged = max(int(line) for line in lines if line.strip())
        # The commit that was going on may have come through or not, and may hold two frames.
        acknowledged = assert_holds(path, acknowledged, acknowledged + 2)
    with TrajectoryWriter.reopen(path) as writer:
        write(writer, writer.committed, acknowledged + 5)
    assert assert_holds(path) == acknowledged + 5


def test_every_moment_of_a_commit_is_readable(path, tmp_path, monkeypatch):
    moments = []
    fsync = os.fsync

    def snapshot(descriptor):
        moments.append(shutil.copy(path, tmp_path / f"{len(moments)}.h5"))
        fsync(descriptor)

    with create(path) as writer:
        monkeypatch.setattr(writing.os, "fsync", snapshot)
        write(writer, 0, 24, every=2)
        monkeypatch.undo()
    # Before the counter is written, the commit has not happened; after it, it has.
    assert [assert_holds(m) for m in moments] == [2 * ((i + 1) // 2) for i in range(24)]
    for moment in moments[::5]:
        with TrajectoryWriter.reopen(moment) as writer:
            write(writer, writer.committed, 41)
        assert assert_holds(moment) == 41


def test_going_on_equals_never_stopping(path, tmp_path):
    whole = tmp_path / "whole.h5"
    with create(whole) as writer:
        write(writer, 0, 30, every=4)
    create(path).close()
    for stop in (4, 12, 30):
        with TrajectoryWriter.reopen(path) as writer:
            write(writer, writer.committed, stop, every=4)
            writer.append(**frame(99))
    with h5py.File(whole) as expected, h5py.File(path) as found:
        for name in h5md.series(expected):
            np.testing.assert_array_equal(found[name][()], expected[name][()])
    assert assert_holds(path) == 30


class Recorder:
    """A file that notes what HDF5 does to it."""

    def __init__(self, raw):
        self.raw, self.calls = raw, []

    def __getattr__(self, name):
        return getattr(self.raw, name)

    def write(self, data):
        self.calls.append((self.raw.tell(), bytes(data)))
        return self.raw.write(data)

    def truncate(self, size):
        self.calls.append((size, None))
        return self.raw.truncate(size)


def test_a_kill_during_repair_loses_nothing(path, tmp_path, monkeypatch):
    torn = tmp_path / "torn.h5"
    writer = create(path)
    write(writer, 0, 100, every=50)
    with monkeypatch.context() as patch:
        # 1000 frames more are in the file, more than a chunk, but were never acknowledged.
        patch.setattr(writing.os, "fsync", lambda _: shutil.copy(path, torn) and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(writer, 100, 1100, every=1100)
    writer.close()
    assert assert_holds(path) == 100  # an interrupted commit is cut off by `close`
    with h5py.File(path) as file:
        assert len(file["particles/all/position/step"]) == 100
    repaired = shutil.copy(torn, tmp_path / "repaired.h5")
    recorders = []
    real = h5py.File

    def recording(raw, *arguments, **options):
        recorders.append(Recorder(raw))
        return real(recorders[-1], *arguments, **options)

    monkeypatch.setattr(h5md.h5py, "File", recording)
    h5md.repair(repaired)
    monkeypatch.undo()
    image = bytearray(torn.read_bytes())
    assert len(recorders[0].calls) > 5
    for position, data in recorders[0].calls:
        if data is None:
            del image[position:]
            image.extend(bytes(position - len(image)))
        else:
            image[position : position + len(data)] = data
        torn.write_bytes(image)
        assert assert_holds(torn) == 100
    assert image == repaired.read_bytes()


def test_a_mark_left_while_opening_is_no_obstacle(finished, tmp_path):
    marked = tmp_path / "marked.h5"
    with h5py.File(finished, "r+", libver=h5md.LIBVER) as file:
        file.flush()
        shutil.copy(finished, marked)
    with pytest.raises(OSError, match="already open"):
        h5py.File(marked)
    before = marked.read_bytes()
    assert assert_holds(marked) == 7
    assert marked.read_bytes() == before
    TrajectoryWriter.reopen(marked).close()
    h5py.File(marked).close()


def test_reading_while_another_process_writes(path):
    child = start("child_writes", path)
    try:
        assert child.stdout.readline(), child.stderr.read()
        h5py.File(path, swmr=True).close()  # other programs may read along, too
        counts = []
        with Trajectory(path) as found:
            while len(counts) < 25:
                n = len(found)
                last = int(found.restart()["frames"])
                assert n <= last <= len(found)
                np.testing.assert_array_equal(found.steps[:n], 10 * np.arange(n))
                for i in (n - 1, n // 2):
                    np.testing.assert_array_equal(found.positions(i), frame(i)["positions"])
                counts.append(n)
                while select.select([child.stdout], [], [], 0)[0]:
                    acknowledged = int(child.stdout.readline())
                    if acknowledged <= len(found):
                        break
                    pytest.fail("a commit was acknowledged that a reader cannot see")
                time.sleep(0.01)
        assert counts == sorted(counts)
        assert counts[-1] > counts[0] + 10
    finally:
        child.kill()
        child.communicate()
    assert_holds(path, counts[-1])


@pytest.mark.parametrize("limit", [30_000, 120_001, 402_000])
def test_a_full_disk_leaves_what_was_committed(path, limit):
    child = start("child_fills_the_disk", path, limit)
    said, complaints = child.communicate(timeout=20)
    assert child.returncode == 0, complaints
    assert complaints == ""
    committed, message = said.split(" ", 1)
    assert "File too large" in message
    assert f"The {committed} frames committed before are intact" in message
    assert " MB " in message
    assert limit < 400_000 or int(committed) > 0
    assert assert_holds(path) == int(committed)
    with TrajectoryWriter.reopen(path) as writer:
        write(writer, writer.committed, int(committed) + 600, every=100)
    assert assert_holds(path) == int(committed) + 600


def test_two_writers(path):
    with create(path) as writer:
        write(writer, 0, 2)
        for second in (TrajectoryWriter.reopen, lambda p: create(p, overwrite=True)):
            with pytest.raises(OutputError, match=f"process {os.getpid()} on host"):
                second(path)
        write(writer, 2, 3)
    assert assert_holds(path) == 3
    assert os.listdir(path.parent) == [path.name]


def holder(**changes):
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": lock._started(os.getpid())}
    return json.dumps(mine | changes)


def test_the_lock_of_a_dead_process_is_taken_over(finished):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for text in (holder(pid=dead.pid), holder(started="12")):  # gone; its id in use again
        (finished.parent / "run.h5.lock").write_text(text)
        with TrajectoryWriter.reopen(finished):
            assert json.loads((finished.parent / "run.h5.lock").read_text()) == json.loads(holder())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (holder(host="elsewhere"), f"process {os.getpid()} on host elsewhere"),
        (holder(), f"process {os.getpid()} on host {socket.gethostname()}"),
        (holder(pid=1, started=""), "process 1 on host"),
        ("", "unknown"),
        ("[1]", "unknown"),
    ],
    ids=["another machine", "this process", "a process of before", "empty", "no lock"],
)
def test_any_other_lock_is_respected(finished, text, named):
    lock_file = finished.parent / "run.h5.lock"
    lock_file.write_text(text)
    before = finished.read_bytes()
    for attempt in (TrajectoryWriter.reopen, lambda p: create(p, overwrite=True)):
        with pytest.raises(OutputError, match=named) as raised:
            attempt(finished)
        assert str(lock_file) in str(raised.value)
    assert lock_file.read_text() == text
    assert finished.read_bytes() == before


def test_an_existing_file_is_kept_unless_overwriting(finished):
    before = finished.read_bytes()
    with pytest.raises(OutputError, match="existing"):
        create(finished)
    assert finished.read_bytes() == before
    with create(finished, overwrite=True) as writer:
        write(writer, 0, 1)
    assert assert_holds(finished) == 1
    assert os.listdir(finished.parent) == [finished.name]


def test_the_old_file_stays_if_the_new_one_cannot_be_made(finished, monkeypatch):
    before = finished.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5md.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        create(finished, overwrite=True)
    assert finished.read_bytes() == before
    assert os.listdir(finished.parent) == [finished.name]


def test_a_lock_that_cannot_be_written_is_not_left_behind(finished, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock.json, "dumps", full)
    with pytest.raises(OutputError, match="No space left"):
        TrajectoryWriter.reopen(finished)
    assert os.listdir(finished.parent) == [finished.name]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="No such file or directory"):
        create(tmp_path / "nowhere" / "run.h5")


def spoil(path, kind):
    if kind == "missing":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("4\n\nO 0 0 0\n")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "foreign":
        with h5py.File(path, "w") as file:
            file["particles/all/position/value"] = np.zeros((3, 4, 3))
    elif kind == "incomplete":
        with h5py.File(path, "r+") as file:
            del file["particles/all/species"]
    elif kind == "newer":
        with h5py.File(path, "r+") as file:
            file[h5md.OURS].attrs["schema"] = h5md.SCHEMA + 1


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "No such file"),
        ("folder", "Is a directory"),
        ("empty", "file signature not found"),
        ("text", "file signature not found"),
        ("truncated", "truncated file"),
        ("half", "truncated file"),
        ("foreign", "another HDF5 file"),
        ("incomplete", "species"),
        ("newer", "layout version 2. Use a newer mdlearn"),
    ],
)
def test_files_that_are_not_ours(finished, kind, said):
    spoil(finished, kind)
    for attempt in (Trajectory, TrajectoryWriter.reopen):
        with pytest.raises(DataError, match=said) as raised:
            attempt(finished)
        assert str(finished) in str(raised.value)
        assert "heck the path" in str(raised.value) or kind == "newer"
    assert not (finished.parent / "run.h5.lock").exists()


def test_a_part_of_a_file_left_by_a_kill_is_refused(path, tmp_path):
    part = tmp_path / "part.h5"
    with create(path) as writer:
        write(writer, 0, 600, every=300)
        shutil.copy(path, part)
    assert assert_holds(part) == 600
    for size in (part.stat().st_size - 5000, part.stat().st_size // 2):
        os.truncate(part, size)
        for attempt in (Trajectory, TrajectoryWriter.reopen):
            with pytest.raises(DataError, match="copy it again"):
                attempt(part)
        assert part.stat().st_size == size


def test_a_reader_in_the_same_process(finished):
    with Trajectory(finished) as found:
        with pytest.raises(OutputError, match="already open"):
            TrajectoryWriter.reopen(finished)
        with create(finished, overwrite=True) as writer:
            write(writer, 0, 2)
        assert len(found) == 7
    assert assert_holds(finished) == 2


@pytest.mark.parametrize("allowed", ["r", ""])
def test_permissions(finished, monkeypatch, allowed):
    """Refusals made by hand, because root is refused nothing."""
    original = Path.open

    def guarded(path, mode="r", *arguments, **keywords):
        if path == finished and not (allowed and mode == "rb"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, mode, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(OutputError, match=r"Permission denied|permissions"):
        TrajectoryWriter.reopen(finished)
    if not allowed:
        with pytest.raises(OutputError, match="permissions"):
            Trajectory(finished)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
