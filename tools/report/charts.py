"""Charts of a report, as SVG: one look for all, and never more points than a screen shows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4b5563")
_GREY = "#6b7280"
_POINTS = 400
"""Points of a line; a longer one is averaged."""
plt.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#9ca3af",
        "axes.grid": True,
        "grid.color": "#e5e7eb",
        "axes.axisbelow": True,
        "xtick.color": _GREY,
        "ytick.color": _GREY,
        "legend.frameon": False,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Numbers over optimizer steps."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    """NaN where a value was not finite: a gap."""


def lines(
    curves: Sequence[Line],
    *,
    restarts: Sequence[int] = (),
    size: tuple[float, float] = (5.6, 2.3),
    smooth: bool = True,
    percent: bool = False,
    scale: Literal["linear", "log"] = "linear",
) -> bytes:
    """Curves over steps; restarts as dashed lines.

    Args:
        curves: at least one, not empty.
        restarts: steps from which the run started again.
        size: inches.
        smooth: show a running mean strong, and what it is the mean of faint.
        percent: values are shares.
        scale: of the values' axis.
    """
    figure, axes = plt.subplots(figsize=size)
    for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
        _draw(axes, curve, colour, smooth)
    for step in restarts:
        axes.axvline(step, color=_GREY, linestyle=(0, (4, 3)), linewidth=0.8)
    if len(curves) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, fontsize=9, borderaxespad=0)
    axes.set_yscale(scale)
    if percent:
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.set_xlabel("step", color=_GREY, fontsize=9)
    return svg(figure)


def _draw(axes: Axes, curve: Line, colour: str, smooth: bool) -> None:
    steps, low, middle, high = thin(curve.steps, curve.values)
    if not smooth:
        axes.plot(steps, middle, color=colour, linewidth=1.2, label=curve.label)
        return
    width = max(1, len(middle) // 20)
    axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(steps, middle, color=colour, alpha=0.3, linewidth=0.7)
    axes.plot(steps, running_mean(middle, width), color=colour, linewidth=1.6, label=curve.label)


def thin(steps: Sequence[int], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, lowest, mean and highest value of at most `_POINTS` stretches; a stretch of NaN alone is NaN."""
    count = min(_POINTS, len(values))
    stretches = [part for part in np.array_split(np.asarray(values, float), count) if len(part)]
    ends = [part[-1] for part in np.array_split(np.asarray(steps), count) if len(part)]
    finite = [part[np.isfinite(part)] for part in stretches]
    low, middle, high = (
        np.array([f(part) if len(part) else np.nan for part in finite]) for f in (np.min, np.mean, np.max)
    )
    return np.asarray(ends), low, middle, high


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of each value and its neighbours, `width` in all, without those that are NaN; NaN where all of them are."""
    padded = np.concatenate([np.full(width // 2, np.nan), values, np.full((width - 1) // 2, np.nan)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    finite = np.isfinite(windows)
    count = finite.sum(axis=1)
    return np.where(count > 0, np.where(finite, windows, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)


def clock(spans: Sequence[tuple[Sequence[float], Sequence[int]]]) -> bytes:
    """Steps over hours on the clock, a colour an attempt; what lies between two attempts is lost time.

    Args:
        spans: of each attempt, seconds since 1970 and steps; not empty.
    """
    figure, axes = plt.subplots(figsize=(5.6, 2.3))
    begin = spans[0][0][0]
    for number, (times, steps) in enumerate(spans):
        hours = (np.asarray(times) - begin) / 3600
        axes.plot(hours, steps, color=COLOURS[number % len(COLOURS)], linewidth=1.8)
        if number:
            axes.axvspan((spans[number - 1][0][-1] - begin) / 3600, hours[0], color="#fecaca", linewidth=0)
    axes.set_xlabel("hours since the first start", color=_GREY, fontsize=9)
    return svg(figure)


def small_charts(curves: Sequence[Line]) -> bytes:
    """One small chart a curve, in rows of four."""
    rows = -(-len(curves) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(11.6, 1.7 * rows), squeeze=False)
    for panel, curve in zip(axes.flat, curves, strict=False):
        panel.plot(curve.steps, curve.values, color=COLOURS[0], marker="o", markersize=2, linewidth=1)
        panel.set_title(curve.label, fontsize=9, loc="left", color="#374151")
        panel.tick_params(labelsize=7)
    for panel in axes.flat[len(curves) :]:
        panel.axis("off")
    figure.tight_layout()
    return svg(figure)


def svg(figure: Figure) -> bytes:
    """A figure as SVG; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()
