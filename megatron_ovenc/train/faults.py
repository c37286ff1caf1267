"""What may go wrong or be asked of a run from outside, and how all ranks come to agree on it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

EXIT_STOPPED = 75
"""Exit code of a run that was told to stop and can be continued (EX_TEMPFAIL: a scheduler may requeue it)."""


class TrainingError(RuntimeError):
    """The run cannot go on; the last good state has been saved."""


class StopSignals:
    """Notes SIGTERM and SIGUSR1 while entered; the loop asks `received` once a step, so that nothing stops half-way."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = False
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> StopSignals:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def write_exit_status(run_dir: Path, status: str, step: int, rank: int = 0, detail: str = "") -> None:
    """Leave `exit_status.json`: launchers lose exit codes (DeepSpeed's reports death by a signal as success).

    `job` is the attempt that `launch.submit` started (None without it), so that an older file is not taken for this run's.
    """
    job = os.environ.get("OVENC_JOB")
    text = json.dumps({"status": status, "step": step, "rank": rank, "detail": detail, "job": job})
    partial = run_dir / f"exit_status.json.{rank}.tmp"
    partial.write_text(text)
    partial.rename(run_dir / "exit_status.json")
