"""The results as Markdown tables and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.motion.results import Result, by_seed
from benchmarks.motion.scenes import CLASSES, DIRECTIONS, FRAMES, SPEEDS
from benchmarks.motion.selectors import BUDGETS, PATCHES, SELECTORS

_PANELS = {
    "overall": ("axis and speed", 100 / len(CLASSES)),
    "direction": ("axis alone", 100 / len(DIRECTIONS)),
    "speed": ("speed alone", 100 / len(SPEEDS)),
}
"""Measure -> title and chance."""


def tables(results: Sequence[Result]) -> list[str]:
    """Markdown lines: top-1 by selector and budget, the difference of codec and uniform frames, and what it is made of."""
    lines = ["Top-1 in percent on held-out clips, mean ± standard deviation over seeds:", ""]
    lines += _table(results, "overall")
    lines += ["", "Codec minus uniform frames of the same seed, in points:", "", *_differences(results)]
    for measure, text in (
        ("direction", f"Axis alone (chance {100 / len(DIRECTIONS):.0f} %)"),
        ("speed", f"Speed alone (chance {100 / len(SPEEDS):.0f} %)"),
        ("still", "Both, clips of a still camera"),
        ("panning", "Both, clips of a panning camera"),
    ):
        lines += ["", f"{text}:", "", *_table(results, measure)]
    return lines


def plot(results: Sequence[Result], path: Path) -> None:
    """PNG: accuracy over the budget, one panel a question."""
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(12, 3.8), dpi=90, sharex=True)
    shares = [_share(budget) for budget in BUDGETS]
    for panel, (measure, (title, chance)) in zip(axes, _PANELS.items(), strict=True):
        for selector in SELECTORS:
            values = [by_seed(results, selector, budget, measure) for budget in BUDGETS]
            means = [value.mean() if len(value) else np.nan for value in values]
            spreads = [value.std() if len(value) else np.nan for value in values]
            panel.errorbar(shares, means, spreads, marker="o", markersize=4, capsize=3, label=selector)
        panel.axhline(chance, color="0.6", linestyle=":", label="chance")
        panel.set_title(title)
        panel.set_xscale("log", base=2)
        panel.set_xticks(shares, [f"{share:.3g}" for share in shares])
        panel.set_xlabel("patches shown, %")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("top-1, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=len(SELECTORS) + 1, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path)
    plt.close(figure)


def _share(budget: int) -> float:
    return 100 * budget / (FRAMES * PATCHES)


def _header(first: str) -> list[str]:
    shares = " | ".join(f"{_share(budget):.3g} %" for budget in BUDGETS)
    return [f"| {first} | {shares} |", "|---|" + "---|" * len(BUDGETS)]


def _table(results: Sequence[Result], measure: str) -> list[str]:
    rows = {name: [by_seed(results, name, budget, measure) for budget in BUDGETS] for name in SELECTORS}
    return _header("patches") + [f"| {name} | {' | '.join(map(_spread, row))} |" for name, row in rows.items()]


def _differences(results: Sequence[Result]) -> list[str]:
    row = []
    for budget in BUDGETS:
        codec, uniform = (by_seed(results, name, budget, "overall") for name in ("codec", "uniform frames"))
        row.append(codec - uniform if len(codec) == len(uniform) else np.empty(0))
    signed = [f"{value.mean():+.1f} ± {value.std():.1f}" if len(value) else "not run" for value in row]
    return [*_header(""), f"| codec - uniform | {' | '.join(signed)} |"]


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ± {values.std():.1f}" if len(values) else "not run"
