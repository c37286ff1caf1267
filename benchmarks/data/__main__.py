"""Samples a second, bytes to the device, memory: this project's video path and the naive one, in one run on the same clips.

    python -m benchmarks.data --write            # about five minutes of two cores that have nothing else to do

Each reader runs in a process of its own, on one thread, one after the other, and again in the opposite order; the better of both
counts. decord and torchcodec are measured where they can be imported (`pip install -e .[bench]`; torchcodec also wants FFmpeg's
libraries).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.data.material import Material, prepare
from benchmarks.data.memory import memory
from benchmarks.machine import machine
from codec.bench.report import write

PAGE = Path("benchmarks/data.md")
ROWS = (
    ("decoding alone", "decode", "clips"),
    ("naive, PyAV", "naive PyAV", "clips"),
    ("naive, decord", "naive decord", "clips"),
    ("naive, torchcodec", "naive torchcodec", "clips"),
    ("ours, default modes, with sidecars", "ours", "described"),
    ("ours, default modes, without sidecars", "ours", "plain"),
    ("ours, codec alone, with sidecars", "ours codec", "described"),
    ("ours, codec alone, without sidecars", "ours codec", "plain"),
    ("ours, 1 worker", "loader 1", "described"),
    ("ours, 2 workers", "loader 2", "described"),
)
"""Title, reader, and which folder of the material it reads."""


def measure(reader: str, folder: Path, seconds: float) -> dict[str, float] | str:
    """What a reader's process printed, or the last line of why it failed."""
    command = [sys.executable, "-m", "benchmarks.data.readers", reader, str(folder), str(seconds)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no output"])[-1]
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(material: Material, seconds: float, console: Console) -> list[str]:
    """Markdown lines."""
    found: dict[str, dict[str, float] | str] = {}
    for rows in (ROWS, ROWS[::-1]):
        for title, reader, folder in rows:
            console.print(title)
            one, before = measure(reader, getattr(material, folder), seconds), found.get(title)
            if isinstance(before, dict) and isinstance(one, dict) and one["samples_per_s"] < before["samples_per_s"]:
                continue
            found[title] = one
    naive, decode = found["naive, PyAV"], found["decoding alone"]
    assert isinstance(naive, dict), naive
    assert isinstance(decode, dict), decode
    lines = ["| reader | samples/s | of naive PyAV | of decoding alone | bytes a sample | peak MB |", "|" + "---|" * 6]
    for title, _, _ in ROWS:
        one = found[title]
        if isinstance(one, str):
            lines.append(f"| {title} | not run: {one} | | | | |")
            continue
        speed = one["samples_per_s"]
        lines.append(
            f"| {title} | {speed:.1f} | {speed / naive['samples_per_s']:.2f} | {speed / decode['samples_per_s']:.2f} | "
            f"{one['bytes']:,.0f} | {one['megabytes']:.0f} |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/data_bench"), help="clips and shards")
    parser.add_argument("--seconds", type=float, default=8.0, help="for which each reader reads, at least")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {PAGE}")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    lines = [f"`python -m benchmarks.data --write --seconds {options.seconds:g}` on {machine()}.", ""]
    lines += table(prepare(options.output, console), options.seconds, console)
    console.print("memory over 10,000 samples")
    grown = memory(console)
    lines += ["", "Resident memory of the training process and two workers together:", ""]
    lines += [
        "| samples taken | " + " | ".join(f"{taken:,}" for taken, _ in grown) + " |",
        "|---|" + "---|" * len(grown),
    ]
    lines += ["| MB | " + " | ".join(f"{size:.0f}" for _, size in grown) + " |"]
    print("\n".join(lines))
    if options.write:
        write(PAGE, "throughput", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
