"""The numbers of a run that are seen first, as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tools.report.run import Run


def summary(run: Run) -> dict[str, str]:
    """By name, in the order of the page. What an empty or old run does not tell is left out."""
    last = str(run.records[-1]["step"]) if run.records else "0"
    facts = {"steps": f"{last} of {run.total_steps}" if run.total_steps else last}
    for name in run.columns("loss/"):
        facts[name.replace("/", " ")] = recent(run, name, ".4g")
    facts |= {
        "samples/s": recent(run, "samples_per_s", ",.1f"),
        "tokens/s": recent(run, "tokens_per_s", ",.0f"),
        "MFU": recent(run, "mfu", ".1%"),
        "data wait": recent(run, "data_wait", ".0%"),
        "memory": recent(run, "memory_gib", ".2f", " GiB"),
        "restarts": str(max(0, len(run.attempts) - 1)),
        "steps repeated": str(sum(attempt.repeated for attempt in run.attempts)),
        "steps skipped": str(sum(int(value) for value in run.series("skipped")[1])),
        "bad samples": str(len(run.bad_samples)),
        "checkpoints": str(len(run.checkpoints)),
        "on disk for them": size(sum(checkpoint.bytes for checkpoint in run.checkpoints)),
    }
    return {name: value for name, value in facts.items() if value}


def recent(run: Run, name: str, form: str, unit: str = "") -> str:
    """Median of the last tenth of a metric, at most 200 steps; empty where there is none."""
    values = [value for value in run.series(name)[1] if math.isfinite(value)]
    if not values:
        return ""
    return format(statistics.median(values[-min(200, max(1, len(values) // 10)) :]), form) + unit


def size(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """A span of time for a person."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def ranges(steps: Sequence[int]) -> str:
    """Steps in words: `3, 7-9`."""
    found: list[list[int]] = []
    for step in sorted(steps):
        if found and step == found[-1][1] + 1:
            found[-1][1] = step
        else:
            found.append([step, step])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
