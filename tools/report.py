"""A run as a page: loss curves and the banks' health from metrics.jsonl, the banks in two dimensions, a table of facts, pictures.

python -m tools.report --run output/demo/run --output report.html [--facts summary.json] [--picture selected.gif]
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tools.bank_picture import heads, picture

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "img{max-width:100%}table{border-collapse:collapse}td,th{padding:.25rem 1rem .25rem 0;text-align:left;"
    "border-bottom:1px solid #ddd}figcaption{color:#666}"
)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Records of a run's metrics.jsonl, one a step; where a resumed run repeats a step, the later record counts.

    Raises:
        ValueError: there is no such file, or nothing in it.
    """
    path = run / "metrics.jsonl"
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break  # the run was killed as it wrote, or is writing
            raise ValueError(f"{path}, line {number}, is damaged: {error}") from error
    if not records:
        raise ValueError(f"{path} is empty: the run took no step")
    by_step = {record["step"]: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def loss_curve(records: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: the loss of every head over steps, each step faint and a running mean strong."""
    figure, axes = plt.subplots(figsize=(8, 4), dpi=110)
    steps = [record["step"] for record in records]
    for key in (key for key in records[-1] if key.startswith("loss/")):
        values = [record[key] if record[key] is not None else float("nan") for record in records]
        width = max(1, len(values) // 20)
        smooth = [sum(values[max(0, i - width + 1) : i + 1]) / min(width, i + 1) for i in range(len(values))]
        (line,) = axes.plot(steps, smooth, label=key.removeprefix("loss/"))
        axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def bank_curves(records: Sequence[Mapping[str, Any]], head: str) -> bytes:
    """PNG: what the looks at a head's bank found, one small chart a number."""
    prefix = f"bank/{head}/"
    names = [key for key in dict.fromkeys(key for record in records for key in record) if key.startswith(prefix)]
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(11, 4.2), dpi=110, squeeze=False)
    for panel, name in zip(axes.flat, names, strict=False):
        seen = [(record["step"], record[name]) for record in records if record.get(name) is not None]
        panel.plot(*zip(*seen, strict=True), marker="o", markersize=2.5, linewidth=1)
        panel.set_title(name.removeprefix(prefix).replace("_", " "), fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(names) :]:
        panel.axis("off")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def bank_figures(run: Path, records: Sequence[Mapping[str, Any]]) -> list[tuple[bytes, str, str]]:
    """Pictures of every bank that the run looked at: data, kind and caption.

    Raises:
        ValueError: a snapshot is damaged.
    """
    figures = []
    for head in heads(run):
        if any(key.startswith(f"bank/{head}/") for record in records for key in record):
            figures.append((bank_curves(records, head), "png", f"Bank {head}: what the looks at it found, over steps"))
        caption = f"Bank {head}: a batch (dots) and the centres it names (crosses) on the centres' two principal axes"
        figures.append((picture(run, head), "png", caption))
    return figures


def page(
    title: str,
    records: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    pictures: Sequence[Path],
    banks: Sequence[tuple[bytes, str, str]] = (),
) -> str:
    """The report as one self-contained HTML text."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in facts.items()}
    rows = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in shown.items())
    figures = [(loss_curve(records), "png", "Loss of each head"), *banks]
    figures += [(path.read_bytes(), path.suffix.lstrip("."), path.stem.replace("_", " ")) for path in pictures]
    images = "".join(
        f'<figure><img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for data, kind, caption in figures
    )
    table = f"<table>{rows}</table>" if rows else ""
    heading = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{heading}</title><style>{_STYLE}</style>'
        f"<h1>{heading}</h1>{table}{images}</html>\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write a run's report.")
    parser.add_argument("--run", required=True, type=Path, help="run directory")
    parser.add_argument("--output", required=True, type=Path, help="HTML file to write")
    parser.add_argument("--facts", type=Path, help="JSON object shown as a table")
    parser.add_argument("--picture", type=Path, action="append", default=[], help="PNG or GIF to show; repeatable")
    options = parser.parse_args(argv)
    try:
        facts = json.loads(options.facts.read_text()) if options.facts else {}
        if not isinstance(facts, dict):
            raise ValueError(f"--facts {options.facts} holds no JSON object")
        if other := [path for path in options.picture if path.suffix.lower() not in (".png", ".gif")]:
            raise ValueError(f"--picture {other[0]} is neither .png nor .gif")
        records = read_metrics(options.run)
        banks = bank_figures(options.run, records)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(page(str(options.run), records, facts, options.picture, banks))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
