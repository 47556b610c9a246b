"""A lock file: one writer per output, and a dead one does not block.

`<path>.lock` names the process that writes `path`. The lock of a process that no longer runs on
this host is taken over; on another host nobody can tell, so a person has to.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mdlearn.errors import OutputError


@contextmanager
def claimed(path: Path) -> Iterator[Path]:
    """Takes the lock of an output and yields the lock file; unlinking that gives the lock back.

    The lock outlives the context, unless what happens inside fails.

    Raises:
        OutputError: A process that runs, or may run, holds it; or the system refused to write.
    """
    lock = path.with_name(f"{path.name}.lock")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
    try:
        try:
            file = lock.open("x")
        except FileExistsError:
            _take_over(path, lock, json.dumps(holder))
        else:
            with _removed_on_failure(lock), file:
                file.write(json.dumps(holder))
    except OSError as error:
        raise OutputError(
            f"{path}: expected to make the lock file {lock}, found: {error.strerror}. Choose a "
            "folder that exists and can be written, on a disk with space left."
        ) from error
    try:
        with _removed_on_failure(lock):
            yield lock
    except OSError as error:
        raise OutputError(
            f"{path}: expected to write here, found: {error.strerror or error}. Check the "
            "permissions and the space on this disk."
        ) from error


@contextmanager
def _removed_on_failure(lock: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        lock.unlink(missing_ok=True)
        raise


def _take_over(path: Path, lock: Path, successor: str) -> None:
    with lock.open("r+") as file:
        # Two processes may find the same stale lock: the second one waits here and then reads the
        # first one's name. Some network disks cannot do this; there the window stays open.
        with suppress(OSError, ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            holder = json.load(file)
            pid, host, started = int(holder["pid"]), str(holder["host"]), holder.get("started")
        except (ValueError, KeyError, TypeError):
            pid, host, started = -1, "unknown", None
        running = _started(pid) if host == socket.gethostname() else ""
        if running is not None and (running == started or not (running and started)):
            raise OutputError(
                f"{path}: expected no other writer, found process {pid} on host {host} ({lock}). "
                "Wait for it or stop it; if it no longer runs, delete the lock file."
            )
        file.seek(0)
        file.truncate()
        file.write(successor)


def _started(pid: int) -> str | None:
    """When a process started, which tells it from a later one of the same id; None if it is gone.

    "" where the system does not say.
    """
    if sys.platform == "win32":
        return ""  # the call below would end the process
    try:
        os.kill(pid, 0)
        # The name in parentheses may hold spaces; the state is the 3rd field, the start the 22nd.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except ProcessLookupError:
        return None
    except OSError:
        return ""
    return None if fields[0] in "ZX" else fields[19]
