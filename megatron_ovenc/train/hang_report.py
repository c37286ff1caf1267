"""What ranks report when a job makes no progress, and what follows from their reports."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

SHOWN = 8
"""Ranks that a message names before it counts the rest."""


class HangReport(NamedTuple):
    """What one rank was doing."""

    rank: int
    phase: str
    step: int
    """Steps taken before this one."""
    number: int
    """Phases that it has begun: the rank with the fewest is behind."""
    seconds: float
    """How long it has been in the phase."""
    where: str
    """Innermost Python frame of its training thread."""
    waits: bool
    """Whether that frame is a collective's."""

    @classmethod
    def of(cls, rank: int, phase: str, step: int, number: int, seconds: float, frame: FrameType) -> HangReport:
        """The report of a rank whose training thread is in `frame`."""
        path = Path(frame.f_code.co_filename)
        where = f"{path.name}:{frame.f_lineno} in {frame.f_code.co_name}"
        return cls(rank, phase, step, number, round(seconds, 1), where, "distributed" in path.parts)


def explain(reports: Mapping[int, HangReport], hosts: Sequence[str]) -> tuple[str, int]:
    """A sentence about which rank holds the others up, and that rank (0 if none stands out).

    Args:
        reports: by rank, of those who could report; at least one.
        hosts: of all ranks.
    """
    silent = [rank for rank in range(len(hosts)) if rank not in reports]
    fewest = min(report.number for report in reports.values())
    behind = [rank for rank, report in reports.items() if report.number == fewest]
    busy = [rank for rank, report in reports.items() if not report.waits]
    if silent:
        what = "is" if len(silent) == 1 else "are"
        why = f"{what} silent: stopped or dead, or the host or its way to the shared files is gone"
        return f"{_names(silent, hosts)} {why}; {_rest(reports, silent)}", silent[0]
    for suspects in (behind, busy):
        if 0 < len(suspects) < len(reports) or len(reports) == 1:
            report = reports[suspects[0] if suspects else 0]
            have = "has" if len(suspects) < 2 else "have"
            doing = (
                f"{have} been in '{report.phase}' of step {report.step + 1} for {report.seconds:.0f} s ({report.where})"
            )
            rest = _rest(reports, suspects)
            return f"{_names(suspects or [0], hosts)} {doing}" + (f"; {rest}" if rest else ""), report.rank
    among = ", ".join(sorted(set(hosts)))
    return f"no rank stands out: {_rest(reports, [])}; is the network between their hosts ({among}) up?", 0


def _names(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    groups = [
        f"{_count(list(group), 'rank')} (host {host})" for host, group in itertools.groupby(ranks, hosts.__getitem__)
    ]
    return ", ".join(groups[:SHOWN]) + (f" and more on {len(groups) - SHOWN} hosts" if groups[SHOWN:] else "")


def _count(ranks: Sequence[int], noun: str) -> str:
    shown = ", ".join(map(str, ranks[:SHOWN])) + (f" and {len(ranks) - SHOWN} more" if ranks[SHOWN:] else "")
    return f"{noun}{'s' if ranks[1:] else ''} {shown}"


def _rest(reports: Mapping[int, HangReport], suspects: Iterable[int]) -> str:
    """What the others are doing, the most frequent first."""
    places = Counter((r.phase, r.step + 1) for rank, r in reports.items() if rank not in set(suspects))
    told = [f"{number} in '{phase}' of step {step}" for (phase, step), number in places.most_common(3)]
    return ("the others wait: " if suspects else "all wait: ") + ", ".join(told) if told else ""
