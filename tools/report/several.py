"""The page of several runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.report.charts import Line, lines
from tools.report.html import Figure, figures, page, section, table
from tools.report.run import Run
from tools.report.summary import summary


def comparison_page(runs: Sequence[Run]) -> str:
    """HTML of two or more runs: numbers, the settings in which they differ, curves."""
    names = unique_names(runs)
    summaries = [{"state": run.state, **summary(run)} for run in runs]
    keys = list(dict.fromkeys(key for facts in summaries for key in facts))
    numbers = [(key, *(facts.get(key, "") for facts in summaries)) for key in keys]
    parts = [
        f"<h1>{len(runs)} runs</h1>",
        section("Numbers", table(("", *names), numbers)),
        section("Settings that differ", table(("", *names), differences(runs))),
        section("Loss", figures(_overlay(runs, names, "loss/", wide=True))),
        section(
            "Speed",
            figures(
                [
                    *_overlay(runs, names, "samples_per_s"),
                    *_overlay(runs, names, "mfu", percent=True),
                    *_overlay(runs, names, "data_wait", percent=True),
                ]
            ),
        ),
    ]
    return page(", ".join(names), "".join(parts))


def unique_names(runs: Sequence[Run]) -> list[str]:
    """Short names, or whole paths where short ones are alike."""
    short = [run.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


def differences(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Dotted keys whose values are not the same in all runs, with each run's value."""
    settings = [flat(run.config) for run in runs]
    keys = dict.fromkeys(key for setting in settings for key in setting)
    rows = [(key, *(setting.get(key, "") for setting in settings)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """Values of a nested mapping by dotted key; entries of a list that have a name go by it."""
    if isinstance(tree, Mapping):
        pairs = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and all(isinstance(item, Mapping) for item in tree):
        pairs = [(str(item.get("name", i)), item) for i, item in enumerate(tree)]
    else:
        return {prefix: str(tree)}
    return {
        key: text for name, value in pairs for key, text in flat(value, f"{prefix}.{name}" if prefix else name).items()
    }


def _overlay(
    runs: Sequence[Run], names: Sequence[str], prefix: str, wide: bool = False, percent: bool = False
) -> list[Figure]:
    """A chart a metric, a line a run."""
    found = []
    for metric in dict.fromkeys(name for run in runs for name in run.columns(prefix)):
        curves = [
            Line(label=name, steps=steps, values=values)
            for name, run in zip(names, runs, strict=True)
            for steps, values in [run.series(metric)]
            if steps
        ]
        size = (11.6, 3.4) if wide else (5.6, 2.3)
        caption = metric.replace("/", " of head ").replace("_per_s", " a second").replace("_", " ")
        found.append(Figure(lines(curves, size=size, percent=percent), "svg+xml", caption, wide))
    return found
