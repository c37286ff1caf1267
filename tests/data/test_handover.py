"""Objects arrive as they were, in shared memory or without it, and nothing stays behind."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ovenc.data.errors import DataError
from megatron_ovenc.data.handover import PIECE, Channel, Message
from tests.data.heavy import exhaust


def counted(shape: Any, dtype: Any = np.int32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


ITEMS = {
    "small": [counted(3), "text", None],
    "a clip": [counted((2048, 588), np.uint8), counted((2048, 3)), counted(8, np.int64), "clips.tar#7"],
    "odd sizes": [counted(70_001, np.uint8), counted((11, 3)), counted(1, np.int64), counted(99_999, np.int16)],
    "empty arrays": [counted((0, 588), np.uint8), counted(50_000), counted((0, 3))],
    "views": [counted((400, 300))[::2], counted((300, 400)).T, read_only(counted(30_000)), np.array(5)],
    "no arrays": ["x" * 300_000, b"y" * 300_000],
    "as large as a datagram": [b"x" * (PIECE - len(pickle.dumps([b"x" * 300], 5)) + 300)],
}


def same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(
        type(a) is type(b) and (a.dtype == b.dtype and np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b)
        for a, b in zip(left, right, strict=True)
    )


def received(channel: Channel) -> Any:
    while True:
        assert wait([channel], timeout=20), "nothing comes"
        if (item := channel.receive()) is not None:
            return item


@contextmanager
def child_that(act: Callable[[Channel], None]):
    """A process that does something with its end, and then waits for its own; yields our end and its pid."""
    ours, theirs = Channel.pair()
    if (pid := os.fork()) == 0:
        try:
            ours.close()
            act(Channel(theirs))
            signal.pause()
        finally:
            os._exit(1)
    theirs.close()
    try:
        yield ours, pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ours.close()


def memory_files() -> int:
    return sum("/memfd:" in line for line in Path("/proc/self/maps").read_text().splitlines())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ITEMS)
def test_what_arrives_is_what_was_sent(name: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError(errno.ENOSPC, "no memory")

    if not shared:
        monkeypatch.setattr("os.memfd_create", refuse)
    message = Message.of(ITEMS[name])
    ours, theirs = Channel.pair()
    troubles: list[OSError | None] = []
    thread = threading.Thread(target=lambda: troubles.extend(Channel(theirs).send(message) for _ in range(2)))
    thread.start()
    items = [received(ours) for _ in range(2)]
    thread.join()
    large = message.nbytes > PIECE
    assert large == (name not in ("small", "as large as a datagram"))
    assert memory_files() == 2 * (large and shared and name != "no arrays")
    assert all((trouble is None) == (shared or not large) for trouble in troubles)
    for item in items:
        assert same(item, ITEMS[name])
        assert all(part.flags.aligned for part in item if isinstance(part, np.ndarray))
    ours.close()


def test_arrays_lie_in_the_map_and_writing_to_them_reaches_nobody() -> None:
    ours, theirs = Channel.pair()
    sent = counted(50_000)
    Channel(theirs).send(Message.of(sent))
    got = received(ours)
    assert memory_files() == 1
    got[0] = 7
    assert sent[0] == 0
    del got
    assert memory_files() == 0


def test_samples_leave_neither_descriptors_nor_maps() -> None:
    def send(channel: Channel) -> None:
        for number in range(300):
            channel.send(Message.of([counted(20_000 + number), number]))

    with child_that(send) as (channel, _):
        gc.collect()  # files that other tests have left in cycles
        before, kept = descriptors(), []
        for number in range(300):
            item = received(channel)
            assert item[1] == number
            kept = [*kept[-15:], item]
            assert descriptors() == before
            assert memory_files() == len(kept)
        assert same(kept[0], [counted(20_284), 284])
        del item, kept
        assert memory_files() == 0


@pytest.mark.parametrize("unread", [0, 1, 2])
@pytest.mark.parametrize("name", ["small", "a clip"])
def test_what_was_handed_over_outlives_its_sender(name: str, unread: int) -> None:
    def send(channel: Channel) -> None:
        channel.send(Message.of(ITEMS[name]))
        channel.send(Message.of(ITEMS[name]))

    with child_that(send) as (channel, pid):
        assert same(received(channel), ITEMS[name])
        assert wait([channel], timeout=20)
        for _ in range(unread):
            channel.send(Message.of("what the other end never reads"))
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert same(received(channel), ITEMS[name])
        with pytest.raises(EOFError):
            received(channel)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_sender_that_ends_or_stops_within_a_message_holds_nobody_up(number: signal.Signals) -> None:
    def send(channel: Channel) -> None:
        exhaust(resource.RLIMIT_FSIZE)
        channel.send(Message.of(counted(2_000_000)))  # more than the socket holds

    with child_that(send) as (channel, pid):
        assert wait([channel], timeout=20)
        assert channel.receive() is None
        os.kill(pid, number)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        pieces = iter(channel.receive, "a whole message")
        with pytest.raises(EOFError if number == signal.SIGKILL else BlockingIOError):
            assert set(pieces) == {None}


@pytest.mark.parametrize("limit", [resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE])
def test_a_sender_without_memory_files_sends_all_the_same(limit: int) -> None:
    def send(channel: Channel) -> None:
        exhaust(limit)
        trouble = channel.send(Message.of(ITEMS["a clip"]))
        channel.send(Message.of(trouble and trouble.errno))

    with child_that(send) as (channel, _):
        assert same(received(channel), ITEMS["a clip"])
        assert memory_files() == 0
        assert received(channel) == {resource.RLIMIT_FSIZE: errno.EFBIG, resource.RLIMIT_NOFILE: errno.EMFILE}[limit]


def test_a_user_with_too_many_descriptors_under_way_sends_all_the_same() -> None:
    def send(channel: Channel) -> None:
        if os.getuid() == 0:
            os.setresuid(65534, 65534, 65534)  # the system lets root have any number of them under way
        exhaust(resource.RLIMIT_NOFILE, left=1)
        number, trouble = 0, None
        while trouble is None:
            trouble = channel.send(Message.of([counted(20_000), number]))
            number += 1
        channel.send(Message.of([trouble.errno]))
        os.write(done, b".")

    sent, done = os.pipe()
    with child_that(send) as (channel, _):
        os.read(sent, 1)
        items = [received(channel)]
        while len(items[-1]) == 2:
            items.append(received(channel))
        assert items.pop() == [errno.ETOOMANYREFS]
        assert len(items) > 3
        assert all(same(item, [counted(20_000), number]) for number, item in enumerate(items))
    os.close(sent)
    os.close(done)


def test_a_receiver_without_descriptors_says_what_to_raise() -> None:
    ours, theirs = Channel.pair()
    Channel(theirs).send(Message.of(counted(50_000)))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    exhaust(resource.RLIMIT_NOFILE)
    try:
        with pytest.raises(DataError, match="ulimit -n"):
            ours.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
