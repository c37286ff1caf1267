"""How a run is asked to stop, and what it raises when it cannot go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

STOP_FILE = "STOP"
"""Name of the file in the run directory that stops the run, for those who can write a file but send no signal."""


class TrainingError(RuntimeError):
    """The run cannot go on; the last good state has been saved."""


class StopRequests:
    """Notes SIGTERM and SIGUSR1 while entered, however often they come, and looks for the stop file.

    Nothing stops half-way: the loop asks `received` once a step, and all ranks agree on the answer. A signal that comes while a
    checkpoint is written, before the first step or in a wait for data is therefore obeyed at the next of these places.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.file: Path | None = None
        """Where the stop file would lie; None on ranks that do not look."""
        self._signalled = False
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    @property
    def received(self) -> bool:
        """Whether this rank knows of a request."""
        return self._signalled or (self.file is not None and os.path.exists(self.file))

    def obeyed(self) -> None:
        """Take the stop file away, so that the next start does not stop at once."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def __enter__(self) -> StopRequests:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
