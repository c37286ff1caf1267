"""What the cases measure, and the page that shows it."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One row of the table."""

    case: str
    """What was done to the run."""
    noticed_s: float | None
    """Seconds from the fault to the first line about it; none where nothing is to be said."""
    ended_s: float | None
    """Seconds from the fault to the end of the command, with all its processes; none where the run goes on."""
    code: int
    """Exit code of the command."""
    said: str
    """The line that was printed."""
    lost: int
    """Steps that had to be taken again."""
    difference: float
    """Largest relative difference of any loss of any step to the undisturbed run, after resuming."""
    left: int
    """Processes that outlived the command, on both hosts."""


@dataclass(slots=True)
class FaultTable:
    """Collects the rows of a session."""

    rows: list[Fault] = field(default_factory=list)

    def add(self, row: Fault) -> None:
        self.rows.append(row)

    def write(self, path: Path) -> None:
        path.write_text("".join(f"{row}\n" for row in self.rows))
