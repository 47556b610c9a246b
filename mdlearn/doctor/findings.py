"""Findings, how they are named, and which of them nobody should train with."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Literal, NamedTuple

from mdlearn.errors import UsageError

Severity = Literal["refuse", "warn", "note"]

SHOWN = 5
FINDINGS = (
    "bad-frames",
    "missing-energy",
    "missing-forces",
    "unusual-keys",
    "zero-energy",
    "constant-energy",
    "zero-forces",
    "energy-units",
    "forces-units",
    "stress-units",
    "energy-forces-units",
    "position-units",
    "forces-sign",
    "stress-sign",
    "stress-order",
    "net-force",
    "net-torque",
    "conflicting-duplicates",
    "across-splits",
    "duplicate-frames",
    "energy-outliers",
    "large-forces",
    "force-outliers",
    "short-distances",
    "split-offset",
    "new-elements",
    "unrelated-energies",
    "asymmetric-stress",
    "near-duplicates",
    "correlated-frames",
    "composition-rank",
    "mixed-periodicity",
    "single-atoms",
    "constraints",
    "two-energies",
    "missing-stress",
)
"""The names of all that there is to find."""


class Finding(NamedTuple):
    """One thing that is worth knowing of a set of frames."""

    name: str
    """For people and for --accept, as in `duplicate-frames`."""
    severity: Severity
    """refuse: would poison a model or its errors; warn: look at it; note: good to know."""
    message: str
    fix: str
    """What to do."""
    frames: tuple[str, ...] = ()
    """The first five that it is about."""
    total: int = 0
    """How many it is about; zero if about the set as a whole."""


def about(
    name: str, severity: Severity, message: str, fix: str, frames: Sequence[str] = ()
) -> Finding:
    """A finding about some frames, of which it names the first five."""
    return Finding(name, severity, message, fix, tuple(frames[:SHOWN]), len(frames))


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first."""
    return sorted(findings, key=lambda each: ("refuse", "warn", "note").index(each.severity))


def require_findings(names: Sequence[str]) -> None:
    """Turns away names that somebody accepts and that no finding has.

    Raises:
        UsageError: names the nearest one that a finding has.
    """
    for name in names:
        if name not in FINDINGS:
            near = get_close_matches(name, FINDINGS, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"expected {', '.join(FINDINGS)}"
            raise UsageError(f"--accept: no finding is named '{name}'; {hint}")


def refused(findings: Sequence[Finding], accepted: Sequence[str] = ()) -> list[Finding]:
    """The findings that nobody should train with, less those that somebody accepts by name."""
    return [each for each in findings if each.severity == "refuse" and each.name not in accepted]
