"""The page of one run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from tools.report.banks import bank_figures
from tools.report.charts import Line, clock, lines
from tools.report.html import Figure, figures, page, section, table, tiles
from tools.report.run import Run
from tools.report.summary import duration, ranges, size, summary

SHOWN = 20
"""Rows of a list that may be long."""


def run_page(run: Run, facts: Mapping[str, Any], pictures: Sequence[Figure]) -> str:
    """HTML of a run.

    Args:
        run: any, also one that has taken no step.
        facts: shown as a table of names and values.
        pictures: shown at the end.

    Raises:
        ValueError: a snapshot of a bank is damaged.
    """
    shown = [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in facts.items()]
    parts = [
        _heading(run),
        tiles(summary(run)),
        section("Results", table((), shown)),
        section("Training", figures(_training(run)) or "<p>The run has taken no step yet.</p>"),
        section("Speed", figures(_speed(run))),
        section(
            "Starts",
            table(("started", "from step", "to step", "where", "steps lost", "then waited"), _starts(run)),
        ),
        section("Checkpoints", figures(_saves(run)) + table(("step", "size", "files"), _checkpoints(run))),
        section(
            "Stragglers",
            figures(_stragglers(run)) + table(("rank", "slowest in", "by a factor of up to"), _slowest(run)),
        ),
        section("Steps not taken", _skipped(run)),
        section("Bad samples", table(("reason", "samples", "for instance"), _bad_samples(run))),
        section("Banks", figures(bank_figures(run))),
        section("Pictures", figures(pictures)),
    ]
    return page(run.name, "".join(parts))


def _heading(run: Run) -> str:
    detail = str(run.status.get("detail") or "")
    if run.state != run.status["status"]:
        detail = f"exit_status.json says running, but nothing was written for {duration(run.silent_s)}."
    return (
        f'<h1>{escape(run.name)}</h1><span class="state {run.state.split()[-1]}">{escape(run.state)}</span>'
        f'<p class="path">{escape(str(run.path.resolve()))}, seen {time.strftime("%Y-%m-%d %H:%M")}</p>'
        + (f'<p class="detail">{escape(detail)}</p>' if detail else "")
    )


def _chart(run: Run, caption: str, names: Sequence[str], wide: bool = False, **how: Any) -> list[Figure]:
    """A chart of those metrics that the run has; nothing where it has none."""
    curves = [
        Line(label=name.partition("/")[2] or name, steps=s, values=v)
        for name in names
        for s, v in [run.series(name)]
        if s
    ]
    if not curves:
        return []
    restarts = [attempt.first for attempt in run.attempts[1:]]
    return [Figure(lines(curves, restarts=restarts, **how), "svg+xml", caption, wide)]


def _training(run: Run) -> list[Figure]:
    return [
        *_chart(run, "Loss of each head; dashed: a restart", run.columns("loss/"), wide=True, size=(11.6, 3.4)),
        *_chart(run, "Gradient norm before clipping", run.columns("grad_norm/"), scale="log"),
        *_chart(run, "Learning rate", ["lr"], smooth=False),
    ]


def _speed(run: Run) -> list[Figure]:
    utilisation = "mfu" if run.columns("mfu") else "tflops"
    captions = {"mfu": "MFU: share of the devices' peak", "tflops": "TFLOP/s of the encoder, all ranks"}
    spans = [
        ([record["time"] for record in part], [record["step"] for record in part])
        for part in ([r for r in run.lines if _within(r, a.started, a.ended)] for a in run.attempts)
        if part
    ]
    return [
        *_chart(run, "Samples a second", ["samples_per_s"]),
        *_chart(run, captions[utilisation], [utilisation], percent=utilisation == "mfu"),
        *_chart(run, "Share of a step spent waiting for data", ["data_wait"], percent=True),
        *_chart(run, "Peak memory of rank 0, GiB", ["memory_gib"], smooth=False),
        *_chart(run, "Device seconds by phase", run.columns("time/"), smooth=False),
        *([Figure(clock(spans), "svg+xml", "Steps over time; red: nothing ran")] if spans else []),
    ]


def _within(record: Mapping[str, Any], begin: float | None, end: float | None) -> bool:
    return begin is not None and end is not None and begin <= record.get("time", 0.0) <= end


def _starts(run: Run) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for attempt, following in pairwise([*run.attempts, None]):
        assert attempt is not None
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.started)) if attempt.started else ""
        known = following is not None and following.started is not None and attempt.ended is not None
        waited = duration(following.started - attempt.ended) if known else ""  # type: ignore[union-attr, operator]
        rows.append((at, str(attempt.first), str(attempt.last), attempt.layout, str(attempt.repeated or ""), waited))
    return rows


def _saves(run: Run) -> list[Figure]:
    return _chart(
        run,
        "Seconds of a save: training stood still (stall_s), until it was on disk (write_s)",
        [name for name in run.columns("checkpoint/") if name.endswith("_s")],
        smooth=False,
    )


def _checkpoints(run: Run) -> list[tuple[str, ...]]:
    return [(str(c.step), size(c.bytes), str(c.files)) for c in run.checkpoints[-SHOWN:]]


def _stragglers(run: Run) -> list[Figure]:
    return _chart(run, "Slowest rank's own time over the median rank's", ["straggler/ratio"])


def _slowest(run: Run) -> list[tuple[str, ...]]:
    """Ranks by how often they were the slowest."""
    told = [record for record in run.records if record.get("straggler/rank") is not None]
    times = Counter(record["straggler/rank"] for record in told)
    return [
        (
            str(rank),
            f"{count / len(told):.0%} of steps",
            f"{max(record['straggler/ratio'] for record in told if record['straggler/rank'] == rank):.2f}",
        )
        for rank, count in times.most_common(5)
    ]


def _skipped(run: Run) -> str:
    steps = [record["step"] for record in run.records if record.get("skipped")]
    named = [
        (str(bad["step"]), str(bad.get("reason", "")), ", ".join(map(str, bad.get("ranks", []))), _sample_names(bad))
        for bad in run.bad_steps[:SHOWN]
    ]
    words = f"<p>{len(steps)}: {escape(ranges(steps))}</p>" if steps else ""
    return words + table(("step", "reason", "ranks", "samples"), named)


def _sample_names(bad: Mapping[str, Any]) -> str:
    samples = [name for names in bad.get("samples", {}).values() for name in names]
    return ", ".join(samples[:4]) + (f" and {len(samples) - 4} more" if len(samples) > 4 else "")


def _bad_samples(run: Run) -> list[tuple[str, ...]]:
    """Reasons by how often they came."""
    reasons = Counter(record["reason"] for record in run.bad_samples)
    examples = {record["reason"]: record["sample_id"] for record in reversed(run.bad_samples)}
    return [(reason, str(count), examples[reason]) for reason, count in reasons.most_common(SHOWN)]
