"""Decoding processes that cannot take the run down: one that dies or hangs is replaced, and so is the sample it was stuck on.

Why not torch's DataLoader: a worker's death surfaces in its SIGCHLD handler, which raises wherever the training loop happens to
be; after a time-out it can neither say which sample was stuck nor go on without starting all workers anew.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import wait

from megatron_ovenc.data.dataset import Exhausted, Fetched, HeadDataset
from megatron_ovenc.data.errors import DataError
from megatron_ovenc.data.handover import Channel, Message
from megatron_ovenc.data.worker import Failure, Ready, Taken, Task, Tried, Unshared

START_TIMEOUT_S = 120.0
"""Seconds that a fresh interpreter has for importing NumPy and PyAV, perhaps from a slow network disk."""

END_TIMEOUT_S = 5.0
"""Seconds that a process has to end when it is killed or has closed its socket. One that waits in the kernel, as for a network
disk that is away, does not."""

START_ATTEMPTS = 3
"""Times that a process may fail to start before this is taken for more than an accident."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    channel: Channel
    started: float
    attempt: int = 1
    """Which try this is to start a process in this place."""
    ready: bool = False
    tasks: deque[Task] = field(default_factory=deque)
    """Not yet answered, in order; the process is at the first."""
    sent: int = 0
    """How many of the tasks the process has been given."""
    taken: int = 0
    """How many of its answers have been got."""
    told: int = 0
    """How many of these it knows of."""
    suspects: int = 0
    """First tasks of which one may have killed the process before: they are given singly, to find out which."""


class WorkerPool:
    """Worker processes that load positions of one data set ahead of their use."""

    def __init__(
        self,
        dataset: HeadDataset,
        *,
        workers: int,
        prefetch: int,
        timeout_s: float,
        prefetch_bytes: float = math.inf,
    ) -> None:
        """Start the processes.

        Args:
            dataset: copied to each.
            workers: number of processes, >= 1.
            prefetch: positions that each may hold, loaded or not, before they are asked for.
            timeout_s: seconds that `get` waits for one sample before it is given up.
            prefetch_bytes: of samples loaded and not yet got, from which on nothing more is loaded. Each process has an even
                share and at least one sample, so that all together hold less than this and a sample a process.
        """
        # In memory rather than down the socket: what a process that hangs at its start never reads must not block us.
        self._dataset = os.memfd_create("head-dataset")
        with open(self._dataset, "wb", closefd=False) as file:
            pickle.dump((dataset, prefetch_bytes / workers), file)
        self._prefetch = prefetch
        self._timeout_s = timeout_s
        self._done: dict[int, tuple[_Worker, Fetched | Exhausted]] = {}
        self._unshared = False
        self._workers = [self._start() for _ in range(workers)]

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that run now."""
        return tuple(worker.process.pid for worker in self._workers)

    @property
    def capacity(self) -> int:
        """Positions that may be submitted and not yet got."""
        return len(self._workers) * self._prefetch

    def submit(self, position: int) -> None:
        """Have a position loaded; each must be got, in the order submitted."""
        worker = min(self._workers, key=lambda worker: len(worker.tasks))
        worker.tasks.append(Task(position))
        self._feed(worker)

    def get(self, position: int) -> Fetched | Exhausted:
        """Wait for a submitted position.

        Waiting ends: a sample that does not come in time is given up with its process, and so is one whose process died on it
        twice; both are replaced as bad samples are.

        Raises:
            DataError: a process cannot be started.
            RuntimeError: a process fails in a way that another sample does not help against, with its traceback.
        """
        asked = time.monotonic()
        while position not in self._done:
            worker = next(w for w in self._workers if w.tasks and w.tasks[0].position == position)
            since, limit = (asked, self._timeout_s) if worker.ready else (worker.started, START_TIMEOUT_S)
            left = since + limit - time.monotonic()
            self._feed(worker)
            descriptors = {w.channel.fileno(): w for w in self._workers}
            arrived = wait(list(descriptors), timeout=max(0.0, left))
            for descriptor in arrived:
                sender = descriptors[descriptor]  # type: ignore[index]
                if self._receive(sender) and sender is worker:
                    asked = time.monotonic()
            if not arrived and left <= 0:
                if not worker.ready:
                    raise DataError(
                        f"a decoding process did not start within {START_TIMEOUT_S:g} s; see stderr for its output"
                    )
                self._give_up(worker, f"it took longer than {self._timeout_s:g} s to load (data.sample_timeout_s)")
                asked = time.monotonic()
        worker, fetched = self._done.pop(position)
        worker.taken += 1
        self._feed(worker)
        return fetched

    def close(self) -> None:
        """End all processes at once."""
        for worker in self._workers:
            _stop(worker)
        self._workers.clear()
        os.close(self._dataset)

    def _receive(self, worker: _Worker) -> bool:
        """Take one message, or notice the end of the process. True when the worker's clock starts anew."""
        try:
            message = worker.channel.receive()
        except (EOFError, OSError) as error:
            self._bury(worker, error)
            return True
        match message:
            case None:
                return False  # more of it is on the way
            case Unshared(reason=reason):
                self._tell_unshared(reason)
                return False
            case Ready():
                worker.ready = True
                return True
            case Tried(reasons=reasons):
                worker.tasks[0] = Task(worker.tasks[0].position, reasons)
                return True
            case Failure(traceback=text):
                raise RuntimeError(f"loading failed, and not because of a sample:\n{text}")
        self._done[worker.tasks.popleft().position] = worker, message
        worker.sent -= 1
        worker.suspects = max(0, worker.suspects - 1)
        self._feed(worker)
        return False

    def _bury(self, worker: _Worker, error: EOFError | OSError) -> None:
        """Replace a process that died or cannot be heard. The first time, its samples get another chance, one by one."""
        try:
            code = worker.process.wait(END_TIMEOUT_S)
            end = f"signal {-code}" if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            end = f"killed, for its socket fails: {error or 'closed'}"
        if not worker.ready:
            self._start_again(worker, f"ended before it was ready ({end})")
        elif worker.suspects and worker.sent:
            self._give_up(worker, f"the process decoding it died twice ({end})")
        else:
            logger.warning("a decoding process died (%s); its %d samples are loaded again", end, len(worker.tasks))
            self._restart(worker, suspects=worker.suspects or worker.sent)

    def _give_up(self, worker: _Worker, reason: str) -> None:
        """Replace a process, and the sample that it is at."""
        stuck = worker.tasks[0]
        logger.warning("the sample at position %d is given up: %s", stuck.position, reason)
        worker.tasks[0] = Task(stuck.position, (*stuck.reasons, reason))
        self._restart(worker, suspects=max(0, worker.suspects - 1))

    def _start_again(self, worker: _Worker, what: str) -> None:
        if worker.attempt == START_ATTEMPTS:
            raise DataError(f"a decoding process {what}, {START_ATTEMPTS} times in a row; see stderr for its output")
        logger.warning("a decoding process %s; it is started again", what)
        self._restart(worker, suspects=worker.suspects, attempt=worker.attempt + 1)

    def _restart(self, worker: _Worker, *, suspects: int, attempt: int = 1) -> None:
        _stop(worker)
        fresh = self._start()
        fresh.tasks, fresh.suspects, fresh.attempt = worker.tasks, suspects, attempt
        self._workers[self._workers.index(worker)] = fresh
        self._feed(fresh)

    def _start(self) -> _Worker:
        ours, theirs = Channel.pair()
        # The worker finds what we find, whatever made us find it; its libraries need no threads of their own.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "megatron_ovenc.data.worker", str(theirs.fileno())]
        process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=self._dataset)
        theirs.close()
        return _Worker(process=process, channel=ours, started=time.monotonic())

    def _feed(self, worker: _Worker) -> None:
        """Tell the process what was got from it, and give it the tasks that it may have."""
        if worker.told < worker.taken and _sent(worker, Taken(worker.taken)):
            worker.told = worker.taken
        limit = 1 if worker.suspects else self._prefetch
        while worker.sent < min(limit, len(worker.tasks)) and _sent(worker, worker.tasks[worker.sent]):
            worker.sent += 1

    def _tell_unshared(self, reason: str) -> None:
        if not self._unshared:
            logger.warning(
                "samples come from decoding processes without shared memory, which is slower: %s; look at `ulimit -a` and the "
                "memory of this host or container; this is said once",
                reason,
            )
        self._unshared = True


def _sent(worker: _Worker, message: Task | Taken) -> bool:
    try:
        worker.channel.send(Message.of(message))
    except OSError:
        # It is dead, or has not read for so long that its socket is full; `get` finds out which, and tries again.
        return False
    return True


def _stop(worker: _Worker) -> None:
    worker.channel.close()
    worker.process.kill()
    try:
        worker.process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        logger.warning("decoding process %d does not end when killed; it is left behind", worker.process.pid)
