"""Features in blocks of a few samples, in memory or on disk.

On disk, a block is three files of `CACHE/<hash>/`: NNNNNN.tokens.npy, NNNNNN.pooled.npy and, written last, NNNNNN.json with lengths
and failures. Files appear complete or not at all.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

BLOCK = 32
"""Samples of a block: the smallest share of the work that a rank can have."""


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


def check_room(needed: int, cache: Path | None) -> None:
    """Refuse, before anything is decoded, tokens that will not fit: on the cache's disk, or in memory without one.

    Args:
        needed: bytes of this rank's tokens, at most.
        cache: where they will be kept.

    Raises:
        ValueError: there is less room than that.
    """
    if cache is not None:
        room, place = shutil.disk_usage(_existing(cache)).free, f"--cache {cache} has room for"
    else:
        room, place = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine's memory is"
    if needed > room:
        raise ValueError(
            f"the tokens of this data set take up to {needed / 2**30:.0f} GiB, but {place} {room / 2**30:.0f} GiB; "
            "give --cache on a larger disk, fewer --tokens or --clips, or more ranks"
        )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.absolute().parent)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
