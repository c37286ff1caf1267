"""What stays on every host while an attempt runs there, and leaves no process behind. Started by `launch.submit`.

    python -m launch.guard --job 20260101-120000-ab12.1 --grace 300

It obeys lines on its standard input and answers with lines of JSON:

    beat      the submitting host is alive
    stop      SIGTERM to the ranks: they write a checkpoint and end
    clean     end all that is left of the attempt, SIGTERM and then SIGKILL; tell what was left; exit

Silence for LEASE_S seconds, or the end of the input, means that the submitting host is gone: the guard stops the ranks, gives
them --grace seconds for their checkpoint, and cleans. So ranks outlive neither a killed launcher nor a cut network for long.
At its end it removes the file named by --remove: the environment of the ranks, in which secrets may be.
Processes are known by OVENC_JOB in their environment, which children inherit, whatever started them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from launch.envfile import JOB_VARIABLE

LEASE_S = 120.0
"""Seconds of silence after which the submitting host counts as gone."""
CLEAN_S = 10.0
"""Seconds between SIGTERM and SIGKILL for what is left of an attempt that has ended."""
_LOOK_S = 2.0


def environment_of(pid: int) -> dict[bytes, bytes]:
    """Variables that a process was started with; none when it is gone, a zombie, or another user's."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return {name: value for name, equals, value in (entry.partition(b"=") for entry in entries) if equals}


class JobProcesses:
    """Processes on this host that carry an attempt's mark."""

    def __init__(self, attempt: str) -> None:
        self._attempt = attempt.encode()
        self._job = attempt.rpartition(".")[0].encode() + b"."

    def all(self) -> list[psutil.Process]:
        """Every process of the attempt."""
        return self._marked(self._attempt.__eq__)

    def of_earlier_attempts(self) -> list[psutil.Process]:
        """What other attempts of the same job have left: a host that was cut off comes back with them."""
        return self._marked(lambda mark: mark.startswith(self._job) and mark != self._attempt)

    def ranks(self) -> list[psutil.Process]:
        """The ranks: they have a rank and their parents have none. (Decoding workers inherit one.)"""
        marked = self.all()
        ranked = {process.pid for process in marked if b"RANK" in environment_of(process.pid)}
        return [process for process in marked if process.pid in ranked and _parent(process) not in ranked]

    @staticmethod
    def _marked(belongs: Callable[[bytes], bool]) -> list[psutil.Process]:
        found = []
        for pid in psutil.pids():
            mark = environment_of(pid).get(JOB_VARIABLE.encode())
            if mark is not None and pid != os.getpid() and belongs(mark):
                try:
                    found.append(psutil.Process(pid))
                except psutil.NoSuchProcess:
                    continue
        return found


def lines(file: int, lease_s: float, look_s: float) -> Iterator[str]:
    """Whole lines that come through a pipe, "" after `look_s` seconds without any; ends with the pipe or `lease_s` of silence."""
    selector = selectors.DefaultSelector()
    selector.register(file, selectors.EVENT_READ)
    heard, rest = time.monotonic(), b""
    while time.monotonic() - heard < lease_s:
        if not selector.select(look_s):
            yield ""
            continue
        chunk = os.read(file, 4096)
        if not chunk:
            return
        heard = time.monotonic()
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def end(find: Callable[[], list[psutil.Process]], patience_s: float) -> list[str]:
    """SIGTERM what `find()` finds, and SIGKILL what is still there after `patience_s`.

    Returns:
        The command lines of what was found.
    """
    found: dict[int, str] = {}
    deadline = time.monotonic() + patience_s
    signalled: set[int] = set()
    while alive := find():
        for process in alive:
            found.setdefault(process.pid, _describe(process))
        late = time.monotonic() > deadline
        _signal([p for p in alive if late or p.pid not in signalled], signal.SIGKILL if late else signal.SIGTERM)
        signalled |= {process.pid for process in alive}
        if time.monotonic() > deadline + CLEAN_S:
            break  # in uninterruptible sleep: nobody can end it
        time.sleep(0.1)
    return list(found.values())


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())}"[:160]
    except psutil.Error:
        return str(process.pid)


class Guard:
    """One attempt's guard on this host."""

    def __init__(self, attempt: str, grace_s: float, remove: Path | None = None) -> None:
        self._processes = JobProcesses(attempt)
        self._grace_s = grace_s
        self._remove = remove
        self._stopped: set[int] = set()
        self._ranks = -1

    def run(self) -> None:
        """Obey the submitting host until it says `clean` or is gone."""
        self._say(earlier=end(self._processes.of_earlier_attempts, CLEAN_S))
        stopping = False
        for word in lines(sys.stdin.fileno(), LEASE_S, _LOOK_S):
            stopping |= word == "stop"
            if stopping:
                self._stop_ranks()
            self._tell_ranks()
            if word == "clean":
                break
        else:
            deadline = time.monotonic() + self._grace_s
            while self._processes.ranks() and time.monotonic() < deadline:
                self._stop_ranks()
                time.sleep(_LOOK_S)
        self._say(left=end(self._processes.all, CLEAN_S))
        if self._remove is not None:
            with contextlib.suppress(OSError):  # another host's guard was faster
                self._remove.unlink()

    def _stop_ranks(self) -> None:
        """SIGTERM, once, to every rank: also to those that start only now."""
        ranks = [process for process in self._processes.ranks() if process.pid not in self._stopped]
        _signal(ranks, signal.SIGTERM)
        self._stopped |= {process.pid for process in ranks}

    def _tell_ranks(self) -> None:
        ranks = len(self._processes.ranks())
        if ranks != self._ranks:
            self._ranks = ranks
            self._say(ranks=ranks)

    @staticmethod
    def _say(**facts: object) -> None:
        try:
            print(json.dumps(facts), flush=True)
        except OSError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  nobody listens any more; the work goes on


def main() -> None:
    """Guard one attempt on this host."""
    parser = argparse.ArgumentParser(description="Watch over one attempt of a job on this host.")
    parser.add_argument("--job", required=True, help="mark of the attempt, <job>.<attempt>")
    parser.add_argument(
        "--grace", type=float, default=300, help="seconds for a checkpoint when the submitting host is gone"
    )
    parser.add_argument("--remove", type=Path, help="file to remove when the attempt has ended")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a guard ends with its attempt
    Guard(options.job, options.grace, options.remove).run()


if __name__ == "__main__":
    main()
