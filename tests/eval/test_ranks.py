"""Ranks wait for one that is slow as long as it gets on, and name one that does not."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

from torch.distributed import Store

from eval import ranks as module
from eval.ranks import SILENCE_S, Ranks, SilentRank
from megatron_ovenc.parallel.topology import Topology
from tests.rank_pool import RankPool

LOOKS = 6


class Clock:
    """Stands almost as long as a rank may be silent at every look; the slow rank has answered the first looks by then."""

    def __init__(self, store: Store, answered: int) -> None:
        self.store, self.answered, self.looks, self.now = store, answered, 0, 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.looks, self.now = self.looks + 1, self.now + 0.9 * SILENCE_S
        if self.looks <= self.answered:
            self.store.set(f"look {self.looks}", "")
            self.store.get(f"answer {self.looks}")


def meet(topology: Topology, answered: int, comes: bool) -> tuple[str | list[int], int]:
    """Rank 1 makes progress at so many of rank 0's looks, and then comes or does not."""
    ranks, store = Ranks.of(topology), module._store()
    if topology.rank == 1:
        for look in range(1, answered + 1):
            store.get(f"look {look}")
            ranks.progress()
            store.set(f"answer {look}", "")
        return (ranks.gather(1), 0) if comes else ("", 0)
    clock = Clock(store, answered)
    with patch.object(module, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep)):
        try:
            # More patience than this has looks: a rank that comes is not judged by a clock that runs ahead of it.
            with patch.object(module, "SILENCE_S", 1e9 if comes and not answered else SILENCE_S):
                return ranks.gather(0), clock.looks
        except SilentRank as error:
            return str(error), clock.looks


def test_a_slow_rank_is_waited_for_and_a_silent_one_is_named(rank_pool: RankPool) -> None:
    (message, looks), _ = rank_pool.run(meet, world=2, args=(LOOKS, False))
    assert isinstance(message, str)
    assert "rank 1 of 2 has made no progress for 1200 s" in message
    # All of its progress was waited for: far more than SILENCE_S in all.
    assert looks >= LOOKS + 1


def test_ranks_meet(rank_pool: RankPool) -> None:
    for found, _ in rank_pool.run(meet, world=2, args=(0, True)):
        assert found == [0, 1]
