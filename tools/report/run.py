"""What a run directory tells: finished, running, crashed or empty. Old runs lack files; what is not there is not told."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from megatron_ovenc.train.checkpoint import MANIFEST, checkpoint_path, checkpoint_steps

Record = dict[str, Any]
SILENT_S = 600.0
"""A run that calls itself running and has written nothing for so long was probably killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One start of the run."""

    first: int
    """Step that it started from."""
    last: int
    """Last step that it took; `first` if none."""
    started: float | None
    """Seconds since 1970; None in runs that did not note it."""
    ended: float | None
    """When it took its last step."""
    layout: str
    """Ranks and host, as far as noted."""
    repeated: int
    """Steps that the next attempt had to take again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    step: int
    bytes: int
    files: int


class Run:
    """A run directory.

    Raises:
        ValueError: it is none, or metrics.jsonl is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not any((path / name).exists() for name in ("config.yaml", "metrics.jsonl", "exit_status.json")):
            raise ValueError(f"{path} is no run directory: it has no config.yaml, metrics.jsonl or exit_status.json")
        self.lines = read_lines(path / "metrics.jsonl")
        self.records = latest(self.lines)
        self.attempts = _attempts(self.lines, read_lines(path / "attempts.jsonl"))
        self.bad_samples = read_lines(path / "bad_samples.jsonl")
        self.bad_steps = read_lines(path / "bad_steps.jsonl")

    @property
    def name(self) -> str:
        """Last part of the path; the part before it, too, where it is only `run`."""
        parts = self.path.resolve().parts
        return "/".join(parts[-2:]) if parts[-1] == "run" else parts[-1]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as plain values; empty where there is none."""
        try:
            content = yaml.safe_load((self.path / "config.yaml").read_text())
        except (OSError, yaml.YAMLError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def total_steps(self) -> int | None:
        return self.config.get("train", {}).get("steps")

    @cached_property
    def status(self) -> Record:
        """exit_status.json; `unknown` where there is none."""
        try:
            return json.loads((self.path / "exit_status.json").read_text())
        except (OSError, ValueError):
            return {"status": "unknown"}

    @property
    def silent_s(self) -> float:
        """Seconds since the run last wrote metrics."""
        path = self.path / "metrics.jsonl"
        return time.time() - path.stat().st_mtime if path.exists() else 0.0

    @property
    def state(self) -> str:
        """How the run stands, in a word or a few."""
        status = str(self.status["status"])
        return "running, or killed" if status == "running" and self.silent_s > SILENT_S else status

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """Complete ones, oldest first."""
        folder = self.path / "checkpoints"
        found = []
        for step in checkpoint_steps(folder):
            try:
                files = json.loads((checkpoint_path(folder, step) / MANIFEST).read_text())["files"].values()
            except (OSError, ValueError, KeyError):
                continue  # tools.inspect_checkpoint tells what is wrong with it
            found.append(Checkpoint(step=step, bytes=sum(file["bytes"] for file in files), files=len(files)))
        return found

    def columns(self, prefix: str) -> list[str]:
        """Names of metrics that begin so, in the order in which they appeared."""
        return [
            key for key in dict.fromkeys(key for record in self.records for key in record) if key.startswith(prefix)
        ]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric; a value that was not finite is NaN."""
        points = [(r["step"], float("nan") if r[name] is None else r[name]) for r in self.records if name in r]
        return [step for step, _ in points], [value for _, value in points]


def read_lines(path: Path) -> list[Record]:
    """Objects of a JSONL file; none where there is no file. A last line that is not whole is being written, and left out.

    Raises:
        ValueError: the file cannot be read, or a line is damaged.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}, is damaged: {error}") from error
    return records


def latest(lines: Sequence[Record]) -> list[Record]:
    """One record a step, ascending; where a resumed run repeats a step, the later one counts."""
    by_step = {record["step"]: record for record in lines}
    return [by_step[step] for step in sorted(by_step)]


def read_metrics(path: Path) -> list[Record]:
    """Records of a run's metrics.jsonl, one a step.

    Raises:
        ValueError: there is no such file, nothing in it, or a line is damaged.
    """
    if not (records := latest(read_lines(path / "metrics.jsonl"))):
        raise ValueError(f"{path / 'metrics.jsonl'} is missing or empty: the run took no step")
    return records


def _attempts(lines: Sequence[Record], starts: Sequence[Record]) -> list[Attempt]:
    """From the noted starts and the steps between them; where none are noted, a step that goes back is a start."""
    if not starts:
        turns = [i for i, record in enumerate(lines) if i == 0 or record["step"] <= lines[i - 1]["step"]]
        parts = [lines[a:b] for a, b in pairwise([*turns, len(lines)])]
        starts = [{"step": part[0]["step"] - 1} for part in parts]
    else:
        times = [start["time"] for start in starts]
        parts = [
            [record for record in lines if begin <= record.get("time", 0.0) < end]
            for begin, end in pairwise([*times, float("inf")])
        ]
    found = []
    for number, (start, part) in enumerate(zip(starts, parts, strict=True)):
        last = part[-1]["step"] if part else start["step"]
        following = starts[number + 1]["step"] if number + 1 < len(starts) else last
        layout = f"data {start['data']} x tensor {start['tensor']} from {start['host']}" if "host" in start else ""
        found.append(
            Attempt(
                first=start["step"],
                last=last,
                started=start.get("time"),
                ended=part[-1].get("time") if part else None,
                layout=layout,
                repeated=max(0, last - following),
            )
        )
    return found
