"""A decoding process: `python -m megatron_ovenc.data.worker FD`, started by `pool`, never by hand.

It is a fresh interpreter that imports neither torch nor the training script, so it starts in a moment, stays small, and
inherits no threads, locks or devices. The pickled HeadDataset is the file on stdin. Over the socket FD go `Ready`, then, for
each (position, reasons) pair that comes, one answer, in order. It ends when the socket closes, which the death of the training
process does too.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has started and holds its data set."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A defect of the program, not of a sample."""

    traceback: str


def main(descriptor: int) -> None:
    """Answer until the socket closes."""
    # A launcher that stops a job signals every process of it; when to stop is the training process's decision.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    # All workers of a pool are given the same open file: a read at a position leaves its shared cursor alone.
    dataset = pickle.loads(os.pread(0, os.fstat(0).st_size, 0))
    connection.send(Ready())
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Answers wait in a thread of their own, so that decoding runs ahead of a training process that is busy; tasks arrive in
    # another, so that the end of the socket is noticed even while the main thread is stuck in a decoder.
    for target, box in ((_receive, tasks), (_send, answers)):
        threading.Thread(target=target, args=(connection, box), daemon=True).start()
    while True:
        position, reasons = tasks.get()
        try:
            answer = dataset.fetch(position, reasons)
        except Exception:
            # Told to the training process, which raises it.
            answer = Failure(traceback.format_exc())
        answers.put(answer)


def _receive(connection: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            tasks.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _send(connection: Connection, answers: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            connection.send(answers.get())
    except OSError:
        os._exit(0)


if __name__ == "__main__":
    # Under its own name: what __main__ defines cannot be unpickled in the training process, whose __main__ is another.
    from megatron_ovenc.data.worker import main as worker_main

    worker_main(int(sys.argv[1]))
