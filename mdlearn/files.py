"""Writing without leaving half of anything behind."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from mdlearn.errors import OutputError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that at every moment the old one or the new one is whole.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); needs {len(content) / 1e6:.1f} MB of"
            " space and a folder that you may write to"
        ) from error


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raises OutputError if an output is already there and was not asked to be replaced."""
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path}: already exists; choose another --output, or replace it with --overwrite"
        )


def make_run_folder(path: Path, *, overwrite: bool, contents: Collection[str]) -> None:
    """Makes an empty folder for the outputs of a run, in place of an older one if so asked.

    Args:
        path: the folder.
        overwrite: remove an older run.
        contents: names that a run leaves there; a folder with any other is not removed.

    Raises:
        OutputError: the folder exists, is not one of a run, or cannot be made.
    """
    refuse_existing(path, overwrite=overwrite)
    present = {each.name for each in path.iterdir()} if path.is_dir() else set()
    strange = sorted(present.difference(contents))[:3]
    if strange:
        raise OutputError(
            f"{path}: not overwritten, because it holds what no run of mdlearn made"
            f" ({', '.join(strange)}); choose another --output, or move these away"
        )
    try:
        if path.is_dir():
            shutil.rmtree(path)
        path.mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be made ({error.strerror}); choose another --output"
        ) from error


def sha256(path: Path) -> str:
    """The hash of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
