"""Tokens that will not fit are refused by all ranks, for what they put together in one place."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from unittest.mock import patch

import pytest

from eval import blocks
from eval.blocks import available_memory, check_room
from eval.ranks import Ranks
from megatron_ovenc.parallel.topology import Topology
from tests.rank_pool import RankPool

NEEDED = 40
"""Bytes of each of two ranks."""


def refusal(topology: Topology, cache: Path | None, room: int, apart: bool) -> str:
    """What check_room says where so much room is left; `apart`, the ranks are on hosts of their own."""
    place = cache / str(topology.rank) if cache and apart else cache
    host = f"host{topology.rank}" if apart else "host"
    usage = namedtuple("usage", "free")(room)
    with (
        patch.object(blocks, "available_memory", lambda: room),
        patch.object(shutil, "disk_usage", lambda path: usage),
        patch.object(blocks.socket, "gethostname", lambda: host),
    ):
        try:
            # The last rank alone is short of room where they are apart.
            check_room(NEEDED * (1 + topology.rank * apart), place, Ranks.of(topology))
        except ValueError as error:
            return str(error)
    assert not place or not list(place.iterdir())
    return ""


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_ranks_put_in_one_place_counts_together(rank_pool: RankPool, tmp_path: Path, on_disk: bool) -> None:
    cache = tmp_path / "cache" if on_disk else None
    assert rank_pool.run(refusal, world=2, args=(cache, 2 * NEEDED, False)) == ["", ""]
    assert rank_pool.run(refusal, world=2, args=(cache, 2 * NEEDED, True)) == ["", ""]
    for room, apart in ((2 * NEEDED - 1, False), (2 * NEEDED - 1, True)):
        found = rank_pool.run(refusal, world=2, args=(cache, room, apart))
        assert found[0] == found[1]
        assert "give --cache on a larger disk" in found[0]


def test_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       24731708 kB\nMemAvailable:   1000 kB\n")
    monkeypatch.setattr(blocks, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(blocks, "CGROUP", tmp_path / "memory.max")
    assert available_memory() == 1_024_000
    for limit, room in (("max", 1_024_000), ("1000000", 1_000_000), ("9999999", 1_024_000)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert available_memory() == room
    monkeypatch.setattr(blocks, "MEMINFO", tmp_path / "absent")
    assert available_memory() == 9_999_999
