"""Work on many files in processes, of which any may be killed by the file that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from codec.processes import process_pool

T = TypeVar("T")
R = TypeVar("R")


def map_isolated(
    work: Callable[[T], R], items: Sequence[T], *, workers: int, crashed: Callable[[T], R], chunk: int = 1
) -> Iterator[R]:
    """`work` of every item, in order, in `workers` processes (one: in this).

    Args:
        crashed: the result of an item that kills its process.
        chunk: items handed to a process at a time.
    """
    if workers == 1:
        yield from map(work, items)
        return
    done = 0
    while done < len(items):
        try:
            with process_pool(workers) as pool:
                for result in pool.map(work, items[done:], chunksize=chunk):
                    yield result
                    done += 1
        except BrokenProcessPool:
            # Which item it was is not told. Those that were next are tried singly, then all processes go on.
            suspects = items[done : done + workers * chunk]
            yield from _singly(work, suspects, crashed)
            done += len(suspects)


def _singly(work: Callable[[T], R], items: Sequence[T], crashed: Callable[[T], R]) -> Iterator[R]:
    begin = 0
    while begin < len(items):
        with process_pool(1) as pool:
            for item in items[begin:]:
                begin += 1
                try:
                    yield pool.submit(work, item).result()
                except BrokenProcessPool:
                    yield crashed(item)
                    break
