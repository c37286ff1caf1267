"""A clip's patches from a decoding process to a batch: in shared memory, down the socket, and by multiprocessing's Pipe.

    OMP_NUM_THREADS=1 python -m benchmarks.data.handover

A process sends clips of 2048 patches of 588 bytes, with positions and labels; this one takes batches of 16 and packs them, with
pauses as of training steps in between. "Wait" is a sample's part of the time for a batch; the rest is processor time, which other
load on the machine disturbs less. The ways take turns; of each the best batch of all rounds counts, and the best round.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from benchmarks.machine import machine
from megatron_ovenc.data.batch import Sample, pack
from megatron_ovenc.data.handover import Channel, Message

BATCH, BATCHES, ROUNDS, STEP_S = 16, 20, 3, 0.05


def sample() -> Sample:
    """A clip of the default number of tokens."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (2048, 588), np.uint8)
    return Sample(
        patches=patches, positions=np.zeros((2048, 3), np.int32), labels=np.zeros(8, np.int64), sample_id="x#1"
    )


def by_pipe() -> tuple[Callable[[], Any], Callable[[], None]]:
    """(receive, send) of multiprocessing's Pipe."""
    ours, theirs = multiprocessing.Pipe()
    item = sample()
    return ours.recv, lambda: theirs.send(item)


def by_channel() -> tuple[Callable[[], Any], Callable[[], None]]:
    """(receive, send) of this project's channel."""
    ours, end = Channel.pair()
    theirs, item = Channel(end), sample()

    def receive() -> Any:
        while True:
            wait([ours.fileno()])
            if (found := ours.receive()) is not None:
                return found

    def send() -> None:
        theirs.send(Message.of(item))

    return receive, send


def by_socket() -> tuple[Callable[[], Any], Callable[[], None]]:
    """(receive, send) of this project's channel where there is no shared memory."""
    receive, send = by_channel()

    def refuse(name: str) -> int:
        raise OSError(errno.EMFILE, name)

    def send_without() -> None:
        os.memfd_create = refuse  # type: ignore[assignment]
        send()

    return receive, send_without


WAYS = {"shared memory": by_channel, "down the socket, in pieces": by_socket, "multiprocessing.Pipe": by_pipe}


def measure(way: Callable[[], tuple[Callable[[], Any], Callable[[], None]]]) -> tuple[float, float, float]:
    """Microseconds a sample: until a batch of samples that were loaded before is packed, and processor time of both processes."""
    receive, send = way()
    told, tell = multiprocessing.Pipe(duplex=False)
    if (child := os.fork()) == 0:
        for _ in range(BATCH * (BATCHES + 1)):
            send()
        tell.send(time.process_time())
        os._exit(0)
    waits, busy = [], 0.0
    for _ in range(BATCHES + 1):
        time.sleep(STEP_S)  # the process has sent all that it can without being heard
        clock, processor = time.perf_counter(), time.process_time()
        pack([receive() for _ in range(BATCH)])
        waits.append(time.perf_counter() - clock)
        busy += time.process_time() - processor
    theirs = told.recv()
    os.waitpid(child, 0)
    return min(waits) / BATCH * 1e6, busy / len(waits) / BATCH * 1e6, theirs / len(waits) / BATCH * 1e6


def main() -> int:
    """Print a table."""
    found: dict[str, list[tuple[float, float, float]]] = {title: [] for title in WAYS}
    for _ in range(ROUNDS):
        for title, way in WAYS.items():
            found[title].append(measure(way))
    print(f"`OMP_NUM_THREADS=1 python -m benchmarks.data.handover` on {machine()}.\n")
    print("| way | wait | processor, training process | processor, decoding process |")
    print("|---|---|---|---|")
    for title, rounds in found.items():
        print(f"| {title} | " + " | ".join(f"{min(each):,.0f} µs" for each in zip(*rounds, strict=True)) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
