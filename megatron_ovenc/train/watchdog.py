"""Ends a job that makes no progress, and says which rank holds it up and where.

The training thread of every rank notes what it does (`Heartbeat`). A thread beside it looks on. Where a rank has not moved on for
`train.hang_timeout_s`, every rank writes what it is doing, with the Python stacks of all its threads, to

    <run_dir>/hangs/<attempt>/rank_00003.txt

and a few seconds later they compare: who is silent, who is behind, who is not waiting in a collective. The verdict goes to stderr
and exit_status.json, and all end with exit code 1. Files, not collectives or the rendezvous' store, carry this: they work while a
collective is stuck, rank 0 is dead or the network between hosts is cut, and cost nothing while all is well. If even the files
hang, or something holds the interpreter's lock, a timer in C (faulthandler) prints the stacks and ends the process.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, NoReturn

import torch.distributed as dist

from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.exit_codes import EXIT_FAILED
from megatron_ovenc.train.exit_status import ExitStatus
from megatron_ovenc.train.hang_report import HangReport, explain

PATIENT = ("start-up", "checkpoint", "bank look", "evaluation", "end")
"""Phases that may take as long as a collective (parallel.timeout_s); so may the first step, which compiles and warms up."""

STDERR = 2
"""Descriptor of the standard error: what sys.stderr has become by then need not have one."""

MOST_GRACE_S = 10.0
"""Seconds, at most, that ranks have to report or to end by themselves before they are judged or ended."""


class Beat(NamedTuple):
    """One note of a rank's training thread."""

    phase: str
    step: int
    """Steps taken before this one."""
    number: int
    """Notes before this one; ranks at the same place of the program have made the same number."""
    since: float
    """time.monotonic() of the note."""
    patient: bool
    """Whether this may take long."""


class Heartbeat:
    """What this rank does, and since when. Its training thread writes, its watchdog reads."""

    def __init__(self) -> None:
        self.last = Beat("start-up", 0, 0, time.monotonic(), True)
        self.saving: Callable[[], bool] = lambda: False
        """Whether a checkpoint is being written in the background."""
        self.slow_steps: set[int] = set()
        """Steps, by the number taken before them, that may take long on any rank: the first, and those that wait for a profile."""
        self._begun = False

    def note(self, phase: str, step: int = 0) -> None:
        """A phase begins."""
        if phase not in PATIENT and not self._begun:
            self._begun = True
            self.slow_steps.add(step)
        patient = phase in PATIENT or step in self.slow_steps
        self.last = Beat(phase, step, self.last.number + 1, time.monotonic(), patient)


class Watchdog:
    """Looks on while entered. When it is left by an error it stays until the process has ended, which it bounds, too.

    Args:
        heartbeat: this rank's.
        run_dir: shared by all hosts.
        status: where the verdict goes, and where failures of other ranks are seen; has joined.
        topology: ranks; made and entered collectively.
        timeout_s: seconds without progress that are a hang (train.hang_timeout_s); 0 never looks.
        patient_s: the same in phases that may take long (parallel.timeout_s).
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        run_dir: Path,
        status: ExitStatus,
        topology: Topology,
        *,
        timeout_s: float,
        patient_s: float,
    ) -> None:
        self._heartbeat, self._status, self._rank = heartbeat, status, topology.rank
        self._timeout_s, self._patient_s = timeout_s, max(timeout_s, patient_s)
        self._grace_s = min(MOST_GRACE_S, timeout_s)
        self._tick_s = min(2.0, timeout_s / 20)
        self._hosts = [""] * topology.world
        dist.all_gather_object(
            self._hosts, socket.gethostname(), group=topology.host_group
        )  # all ranks: where each lives
        self._folder = run_dir / "hangs" / str(status.attempt)
        self._left = threading.Event()

    def __enter__(self) -> Watchdog:
        if self._timeout_s > 0:
            threading.Thread(target=self._look_on, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._left.set()
            faulthandler.cancel_dump_traceback_later()

    def _look_on(self) -> None:
        while not self._left.wait(self._tick_s):
            faulthandler.dump_traceback_later(self._patient_s + 2 * self._grace_s, exit=True, file=STDERR)
            if failure := self._status.failure():
                self._follow(failure)
            elif self._stuck() or self._asked():
                try:
                    self._judge()
                except (OSError, ValueError) as error:
                    self._end(
                        f"HANG, and the ranks cannot compare what they do: {error}. Stacks: {self._print_stacks()}"
                    )

    def _asked(self) -> bool:
        """Whether another rank wants all to report."""
        try:
            return self._folder.exists()
        except OSError:  # a file server that does not answer has ended nothing yet
            return False

    def _stuck(self) -> bool:
        last = self._heartbeat.last
        return time.monotonic() - last.since > (self._patient_s if last.patient else self._timeout_s)

    def _follow(self, failure: str) -> None:
        """Another rank, or this one, has failed: training and clean-up may wait for it without end.

        A checkpoint in the making is given as long as a hang, for its ranks may all be there still.
        """
        noticed = time.monotonic()
        while (waited := time.monotonic() - noticed) < self._grace_s or (
            self._heartbeat.saving() and waited < self._timeout_s
        ):
            if self._left.wait(self._tick_s):
                return
        self._end(f"ended by its watchdog, since the job has failed on {failure}")

    def _judge(self) -> None:
        """Report, wait for the others' reports, compare."""
        reports = {self._rank: self._report()}
        deadline = time.monotonic() + self._grace_s
        while len(reports) < len(self._hosts) and time.monotonic() < deadline:
            with suppress(OSError, ValueError):  # a file that cannot be read this time
                reports |= self._reports()
            time.sleep(self._tick_s)
        verdict, culprit = explain(reports, self._hosts)
        if self._rank == min(reports):
            step = max(report.step for report in reports.values())
            self._status.end("hung", step, verdict, rank=culprit, host=self._hosts[culprit])
            self._end(f"HANG: {verdict}. Stacks of every rank that could write them: {self._folder}")
        time.sleep(
            self._tick_s
        )  # the first process to end makes the launcher end the rest: not before the verdict is written
        self._end(f"ended by its watchdog: {verdict}")

    def _report(self) -> HangReport:
        """Write what this rank does.

        Raises:
            OSError: it cannot be written.
        """
        last = self._heartbeat.last
        main = sys._current_frames()[threading.main_thread().ident or 0]
        report = HangReport.of(self._rank, last.phase, last.step, last.number, time.monotonic() - last.since, main)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank_{self._rank:05d}.txt"
        with path.with_suffix(".tmp").open("w") as file:
            file.write(json.dumps(report._asdict()) + "\n\n")
            file.flush()
            faulthandler.dump_traceback(file)
        os.replace(path.with_suffix(".tmp"), path)
        return report

    @staticmethod
    def _print_stacks() -> str:
        """Every thread's, to the standard error; where they are, in words."""
        faulthandler.dump_traceback(STDERR)
        return "above"

    def _reports(self) -> dict[int, HangReport]:
        """By rank, those written so far."""
        texts = (path.read_text().split("\n", 1)[0] for path in self._folder.glob("rank_*.txt"))
        return {report.rank: report for report in (HangReport(**json.loads(text)) for text in texts)}

    def _end(self, message: str) -> NoReturn:
        try:  # the standard error may be a file on a full disk
            print(f"{time.strftime('%H:%M:%S')} rank {self._rank}: {message}", file=sys.__stderr__, flush=True)
        finally:  # the training thread cannot be interrupted where it waits, and clean-up would wait for it
            os._exit(EXIT_FAILED)
