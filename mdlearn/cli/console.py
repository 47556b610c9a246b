"""Progress on stderr, only on a terminal; results on stdout."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.text import Text

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Line:
    """A line that is written over and over, and is not there when nobody watches."""

    def __init__(self) -> None:
        self._live = Live(console=err, refresh_per_second=8, transient=True)

    def __enter__(self) -> Line:
        if err.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if err.is_terminal:
            self._live.stop()

    def show(self, text: str) -> None:
        """Replaces the line."""
        if err.is_terminal:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"))


class Interruption:
    """Whether somebody asked to stop, and with which signal."""

    received = 0
    at_once = False
    """Whether the first signal, too, ends the program at once: there is nothing yet to be saved."""


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turns the first SIGINT or SIGTERM into a request; the second ends the program at once."""
    interruption = Interruption()

    def remember(number: int, frame: FrameType | None) -> None:
        if interruption.received or interruption.at_once:
            print("mdlearn: interrupted", file=sys.stderr)
            sys.exit(128 + number)
        interruption.received = number

    previous = {each: signal.signal(each, remember) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def counted(count: int, what: str) -> str:
    """A number of things: 1 epoch, 2 epochs."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def hms(seconds: float) -> str:
    """Seconds as people write them: 42 s, 3:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def human_size(size: float) -> str:
    """A size as people write it: 3.2 kB, 1.6 MB, 20 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000.0:
            return f"{size:.3g} {unit}"
        size /= 1000.0
    return f"{size:,.3g} TB" if size < 1000.0 else f"{size:,.0f} TB"
