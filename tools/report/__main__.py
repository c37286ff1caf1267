"""A run as one HTML file that needs no other: loss, speed, restarts, checkpoints, stragglers, what went wrong, banks.

    python -m tools.report output/run                       # -> output/run/report.html, also while it runs or after a crash
    python -m tools.report output/a output/b -o ab.html     # several: their curves together, and the settings that differ

Reads what a run leaves in its directory (docs/seeing.md); needs matplotlib (the extra `report`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.report.html import Figure
from tools.report.run import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = arguments(argv)
    try:
        # Here: without matplotlib even --help would fail.
        from tools.report.one import run_page
        from tools.report.several import comparison_page
    except ModuleNotFoundError as error:
        print(
            f"error: the report needs {error.name}, which is not installed; `pip install matplotlib`", file=sys.stderr
        )
        return 2
    try:
        facts = json.loads(options.facts.read_text()) if options.facts else {}
        if not isinstance(facts, dict):
            raise ValueError(f"--facts {options.facts} holds no JSON object")
        runs = [Run(path) for path in options.run]
        pictures = [Figure(p.read_bytes(), p.suffix[1:].lower(), p.stem.replace("_", " ")) for p in options.picture]
        text = run_page(runs[0], facts, pictures) if len(runs) == 1 else comparison_page(runs)
        output: Path = options.output or options.run[0] / "report.html"
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {output}")
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="tools.report", description="Show one run, or several beside each other.")
    parser.add_argument("run", nargs="+", type=Path, help="run directory")
    parser.add_argument("-o", "--output", type=Path, help="HTML file (default: report.html in the run directory)")
    parser.add_argument("--facts", type=Path, help="JSON object shown as a table; of one run")
    parser.add_argument(
        "--picture", type=Path, action="append", default=[], help="PNG or GIF to show; repeatable, of one run"
    )
    options = parser.parse_args(argv)
    if len(options.run) > 1 and (options.facts or options.picture):
        parser.error("--facts and --picture belong to one run; give one run directory")
    if len(options.run) > 1 and not options.output:
        parser.error("give --output for a page of several runs")
    if other := [path for path in options.picture if path.suffix.lower() not in (".png", ".gif")]:
        parser.error(f"--picture {other[0]} is neither .png nor .gif")
    return options


if __name__ == "__main__":
    sys.exit(main())
