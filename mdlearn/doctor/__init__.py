"""The doctor of the data: what would poison a model, found before it is trained.

`examine` looks at checked frames; `diagnosis` also at how their files hold them. Each finding has a
name by which a person accepts it, and says which frames it is about and what to do. All of them
think about one `survey` of the frames, and each kind has its file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mdlearn.atoms import Frame
from mdlearn.doctor.duplicates import judge_duplicates, judge_trajectories
from mdlearn.doctor.findings import FINDINGS, Finding, in_order, refused, require_findings
from mdlearn.doctor.labels import judge_energies, judge_forces, judge_zero_forces
from mdlearn.doctor.structures import judge_compositions, judge_distances
from mdlearn.doctor.survey import Survey, survey
from mdlearn.doctor.units import judge_units
from mdlearn.labels import Keys

__all__ = ["FINDINGS", "Finding", "examine", "judge", "refused", "require_findings"]


def examine(splits: Mapping[str, Sequence[Frame]], keys: Keys) -> list[Finding]:
    """Looks for everything that checked frames can say about themselves.

    Args:
        splits: frames by the name of their part, as in train, valid and test; the first is the one
            to train on.
        keys: which key fed each label; a label without one is not looked at.

    Returns:
        Findings, the worst first.
    """
    return judge(survey(splits), splits, keys)


def judge(seen: Survey, splits: Mapping[str, Sequence[Frame]], keys: Keys) -> list[Finding]:
    """The findings of a survey: `examine` for those who have made the survey themselves."""
    if not seen.names:
        return []
    found = [
        *judge_compositions(seen),
        *judge_energies(seen),
        *judge_duplicates(seen, splits),
        *judge_distances(seen),
        *judge_trajectories(seen),
    ]
    if keys.forces:
        found += [*judge_forces(seen), *judge_zero_forces(seen, splits)]
    for part, frames in splits.items():
        found += judge_units(part, frames, seen, keys)
    return in_order(found)
