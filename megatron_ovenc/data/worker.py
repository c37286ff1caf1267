"""A decoding process: `python -m megatron_ovenc.data.worker FD`, started by `pool`, never by hand.

It is a fresh interpreter that imports neither torch nor the training script, so it starts in a moment, stays small, and
inherits no threads, locks or devices. The file on stdin is a pickle: the HeadDataset, and how many bytes of loaded samples the
process may hold. Over the socket FD go `Ready`, then, for each `Task` that comes, `Tried` for each candidate that is bad and one
answer, in order, and `Taken` comes back.
It ends when the socket closes, which the death of the training process does too.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from megatron_ovenc.data.dataset import HeadDataset
from megatron_ovenc.data.handover import Channel, Message


@dataclass(frozen=True, slots=True)
class Task:
    """A position to be loaded."""

    position: int
    reasons: tuple[str, ...] = ()
    """Why the position's first candidates are bad."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The training process has used answers up."""

    count: int
    """Of this process, since it started."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One more candidate of the task at hand is bad."""

    reasons: tuple[str, ...]
    """Of all of them so far."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has started and holds its data set."""


@dataclass(frozen=True, slots=True)
class Unshared:
    """The next answer comes down the socket, which is slower than shared memory."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What no other sample helps against, such as a lack of memory."""

    traceback: str


class Held:
    """Sizes of this process's answers that have not been taken, wherever they are. Answers are taken in order."""

    def __init__(self, limit: float) -> None:
        """
        Args:
            limit: bytes from which on nothing more is loaded; an answer always may be if it is the only one.
        """
        self._limit = limit
        self._sizes: deque[int] = deque()
        self._taken = 0
        self._change = threading.Condition()

    def wait_for_room(self) -> None:
        """Return when another answer may be loaded."""
        with self._change:
            self._change.wait_for(lambda: not self._sizes or sum(self._sizes) < self._limit)

    def add(self, nbytes: int) -> None:
        """An answer has been loaded."""
        with self._change:
            self._sizes.append(nbytes)

    def take(self, count: int) -> None:
        """The first `count` answers of all are gone."""
        with self._change:
            while self._taken < count:
                self._sizes.popleft()
                self._taken += 1
            self._change.notify()


def main(descriptor: int) -> None:
    """Answer until the socket closes."""
    # A launcher that stops a job signals every process of it; when to stop is the training process's decision.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=descriptor))
    # All workers of a pool are given the same open file: a read at a position leaves its shared cursor alone.
    dataset, limit = pickle.loads(os.pread(0, os.fstat(0).st_size, 0))
    channel.send(Message.of(Ready()))
    held = Held(limit)
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
    # Answers wait in a thread of their own, so that decoding runs ahead of a training process that is busy; tasks arrive in
    # another, so that the end of the socket is noticed even while the main thread is stuck in a decoder.
    threading.Thread(target=_receive, args=(channel, tasks, held), daemon=True).start()
    threading.Thread(target=_send, args=(channel, answers), daemon=True).start()
    while True:
        task = tasks.get()
        held.wait_for_room()
        answers.put(_answer(dataset, task, held, lambda reasons: answers.put(Message.of(Tried(reasons)))))


def _answer(dataset: HeadDataset, task: Task, held: Held, tell: Callable[[tuple[str, ...]], None]) -> Message:
    try:
        message = Message.of(dataset.fetch(task.position, task.reasons, tell))
    except Exception:
        # Told to the training process, which raises it.
        message = Message.of(Failure(traceback.format_exc()))
    held.add(message.nbytes)
    return message


def _receive(channel: Channel, tasks: queue.SimpleQueue[Task], held: Held) -> None:
    try:
        while True:
            match channel.receive():
                case Task() as task:
                    tasks.put(task)
                case Taken(count=count):
                    held.take(count)
    except (EOFError, OSError):
        os._exit(0)


def _send(channel: Channel, answers: queue.SimpleQueue[Message]) -> None:
    try:
        while True:
            if trouble := channel.send(answers.get()):
                channel.send(Message.of(Unshared(str(trouble))))
    except OSError:
        os._exit(0)


if __name__ == "__main__":
    # Under its own name: what __main__ defines cannot be unpickled in the training process, whose __main__ is another.
    from megatron_ovenc.data.worker import main as worker_main

    worker_main(int(sys.argv[1]))
