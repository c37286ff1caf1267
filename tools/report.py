"""A run as a page: loss curves from metrics.jsonl, a table of facts, pictures.

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
        records = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
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


def page(title: str, records: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """The report as one self-contained HTML text."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in facts.items()}
    rows = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in shown.items())
    figures = [(loss_curve(records), "png", "Loss of each head")]
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
        options.output.write_text(page(str(options.run), read_metrics(options.run), facts, options.picture))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
