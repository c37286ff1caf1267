"""Features in blocks of a few samples, in memory or on disk.

On disk, a block is three files of `CACHE/<hash>/`: NNNNNN.tokens.npy, NNNNNN.pooled.npy and, written last, NNNNNN.json with lengths
and failures. Files appear complete or not at all.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.ranks import Ranks

BLOCK = 32
"""Samples of a block: the smallest share of the work that a rank can have."""
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
"""Where Linux tells what memory is left, and what a container may use."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Block:
    """n samples of V clips each."""

    pooled: np.ndarray
    """float32 [n, V, D]."""
    lengths: np.ndarray
    """int64 [n, V], 0 = unanswered."""
    failures: dict[int, str]
    """Why, by row."""
    tokens: np.ndarray | None = None
    """float16 [n, V, L, D], where they are kept."""


class BlockStore:
    """Blocks by number; of those on disk, only what is asked for is read."""

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: where blocks are kept; None keeps them in memory.
        """
        self._folder = folder
        self._blocks: dict[int, Block] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def holds(self, number: int, with_tokens: bool) -> bool:
        """Whether a block is there."""
        if self._folder is None:
            return number in self._blocks
        return self._path(number, "json").exists() and (not with_tokens or self._path(number, "tokens.npy").exists())

    def put(self, number: int, block: Block) -> None:
        """Keep a block."""
        if self._folder is None:
            self._blocks[number] = block
            return
        if block.tokens is not None:
            _write(self._path(number, "tokens.npy"), _npy(block.tokens))
        _write(self._path(number, "pooled.npy"), _npy(block.pooled))
        facts = {"lengths": block.lengths.tolist(), "failures": block.failures}
        _write(self._path(number, "json"), json.dumps(facts).encode())

    def facts(self, number: int) -> Block:
        """A block without its tokens."""
        if self._folder is None:
            return replace(self._blocks[number], tokens=None)
        facts = json.loads(self._path(number, "json").read_text())
        return Block(
            pooled=np.load(self._path(number, "pooled.npy")),
            lengths=np.array(facts["lengths"], np.int64),
            failures={int(row): reason for row, reason in facts["failures"].items()},
        )

    def tokens(self, number: int) -> np.ndarray:
        """float16 [n, V, L, D] of a block that holds them, memory-mapped if it is on disk."""
        if self._folder is None:
            kept = self._blocks[number].tokens
            assert kept is not None, "extracted without tokens"
            return kept
        # Opened anew each time: a data set has more blocks than a process may have open files.
        return np.load(self._path(number, "tokens.npy"), mmap_mode="r")

    def _path(self, number: int, suffix: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{number:06d}.{suffix}"


def check_room(needed: int, cache: Path | None, ranks: Ranks) -> None:
    """Refuse, before anything is decoded, tokens that will not fit: on the cache's disk, or in memory without one.

    What counts is what all ranks together put in one place. Collective, so that all refuse.

    Args:
        needed: bytes of this rank's tokens, at most.
        cache: where they will be kept.
        ranks: who shares the work.

    Raises:
        ValueError: there is less room than that.
    """
    if cache is None:
        together = _in_one_memory(needed, ranks)
        room, place = available_memory(), "memory available on this machine is"
    else:
        together = _on_one_disk(needed, cache, ranks)
        room, place = shutil.disk_usage(cache).free, f"--cache {cache} has room for"
    complaint = None
    if together > room:
        complaint = (
            f"the tokens of this data set take up to {together / 2**30:.1f} GiB, but {place} {room / 2**30:.1f} GiB; "
            "give --cache on a larger disk, fewer --tokens or --clips, or more machines"
        )
    if complaints := [each for each in ranks.gather(complaint) if each is not None]:
        raise ValueError(complaints[0])


def available_memory() -> int:
    """Bytes that can be taken without swapping, on this machine or in this container."""
    kibibytes = re.search(r"^MemAvailable:\s+(\d+) kB", _text(MEMINFO), re.MULTILINE)
    room = int(kibibytes[1]) * 1024 if kibibytes else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _text(CGROUP).strip()
    return min(room, int(limit)) if limit.isdigit() else room


def _text(path: Path) -> str:
    """Empty where there is no such file."""
    return path.read_text() if path.exists() else ""


def _in_one_memory(needed: int, ranks: Ranks) -> int:
    """Bytes of all ranks of this host."""
    here = socket.gethostname()
    return sum(theirs for host, theirs in ranks.gather((here, needed)) if host == here)


def _on_one_disk(needed: int, cache: Path, ranks: Ranks) -> int:
    """Bytes of all ranks that see this rank's files in `cache`: it may be storage of all hosts, or of each its own."""
    cache.mkdir(parents=True, exist_ok=True)
    marks = [cache / f"{rank}.here" for rank in range(ranks.world)]
    marks[ranks.rank].touch()
    everyone = ranks.gather(needed)  # from here on all marks are there
    together = sum(theirs for theirs, mark in zip(everyone, marks, strict=True) if mark.exists())
    ranks.gather(None)  # from here on nobody looks for them
    marks[ranks.rank].unlink()
    return together


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
