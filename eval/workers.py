"""Work on samples in processes: results in order, bad samples as values, never more in memory than is being waited for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

from codec.processes import process_pool
from megatron_ovenc.data.errors import BadSample

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Samples a process that are worked on or wait to be taken."""


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], workers: int, start: Callable[[int], Executor] = process_pool
) -> Iterator[R | BadSample]:
    """`function` of every item, in the order of the items.

    Args:
        function: picklable if `workers` > 1; a `BadSample` that it raises is yielded in the place of its result.
        items: picklable too; taken only as far ahead as there is work for the processes.
        workers: processes (fresh interpreters: no locks or devices are inherited); 1 works in this one.
        start: from a number of workers to what runs them, where processes are not wanted.

    Raises:
        BrokenProcessPool: a process was killed, by a lack of memory for instance.
    """
    if workers <= 1:
        for item in items:
            yield _attempt(function, item)
        return
    upcoming = iter(items)
    pool = start(workers)
    try:
        waiting: deque[Future[R | BadSample]] = deque()
        for item in islice(upcoming, AHEAD * workers):
            waiting.append(pool.submit(_attempt, function, item))
        while waiting:
            result = waiting.popleft().result()
            for item in islice(upcoming, 1):
                waiting.append(pool.submit(_attempt, function, item))
            yield result
    finally:
        # A caller that stops early does not wait for what it will not take.
        pool.shutdown(cancel_futures=True)


def _attempt(function: Callable[[T], R], item: T) -> R | BadSample:
    try:
        return function(item)
    except BadSample as error:
        return error
