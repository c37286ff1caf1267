"""`<run_dir>/exit_status.json`: how an attempt at a run ended, because launchers lose exit codes (DeepSpeed's reports death by a
signal as success).

    {"status": "hung", "step": 119, "rank": 3, "host": "b", "detail": "rank 3 (host b) has been in ...",
     "attempt": "20260101-120000-4711", "job": "$OVENC_JOB or null", "started": 1767225600.0, "written": 1767229200.0}

status    running | finished | stopped | failed | hung | refused (only all ranks together could find that the configuration is
          wrong); `running` where no process is left: killed, before it could say so
step      optimizer steps taken, as far as the writer knows
rank      which rank the status is about, and on which host
attempt   names the start of the job; null if the writer had not yet joined it
started   when the writing process began, in seconds since 1970 by its host's clock
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_ovenc.config import ConfigError

FAILURES = ("failed", "hung", "refused")
"""Statuses by which other ranks end. The first one written counts: what goes wrong afterwards follows from it."""


class ExitStatus:
    """One rank's pen. A failure to write is told and changes nothing else."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self.path, self.rank = run_dir / "exit_status.json", rank
        self.attempt = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}" if rank == 0 else None
        self._started = time.time()

    def begin(self) -> None:
        """Rank 0, before it joins the world: whoever kills this attempt leaves the truth behind."""
        if self.rank == 0:
            self._write("running", 0, "", self.rank, socket.gethostname())

    def join(self, group: dist.ProcessGroup) -> None:
        """Learn from rank 0 which attempt this is. Collective over all ranks."""
        attempt = [self.attempt]
        dist.broadcast_object_list(attempt, src=0, group=group)
        self.attempt = attempt[0]

    def end(
        self, status: str, step: int, detail: str = "", *, rank: int | None = None, host: str | None = None
    ) -> None:
        """Record an end, unless one of this attempt stands already: what a run meets after its end does not undo it.

        Args:
            rank, host: whom it is about, if not this process.
        """
        if self._standing().get("status", "running") == "running":
            self._write(status, step, detail, self.rank if rank is None else rank, host or socket.gethostname())

    def failure(self) -> str | None:
        """The failure of this attempt that stands in the file, its rank and detail; None if there is none."""
        standing = self._standing()
        if standing.get("status") not in FAILURES:
            return None
        return f"rank {standing.get('rank')}: {standing.get('detail')}"

    @contextmanager
    def failures(self, step: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """Record what is raised inside, at once: what is closed afterwards may take long, and disturb other ranks.

        Args:
            step: asked for the steps taken by then.
        """
        try:
            yield
        except BaseException as error:
            status = "refused" if isinstance(error, ConfigError) else "failed"
            self.end(status, step(), f"{type(error).__name__}: {error}")
            raise

    def _standing(self) -> Mapping[str, Any]:
        """What the file says of this attempt."""
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        known = self.attempt is not None and isinstance(content, dict) and content.get("attempt") == self.attempt
        return content if known else {}

    def _write(self, status: str, step: int, detail: str, rank: int, host: str) -> None:
        content = {"status": status, "step": step, "rank": rank, "host": host, "detail": detail}
        content |= {"attempt": self.attempt, "job": os.environ.get("OVENC_JOB")}
        content |= {"started": self._started, "written": time.time()}
        partial = self.path.with_name(f"exit_status.json.{self.rank}.tmp")
        try:
            partial.write_text(json.dumps(content))
            partial.rename(self.path)
        except OSError as error:
            print(f"rank {self.rank}: {self.path} cannot be written ({error}): {status}, {detail}", file=sys.stderr)
