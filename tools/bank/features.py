"""Features of the samples of many shards on disk, resumable by shard.

OUTPUT/features.npy      float16 [samples, F], unit vectors; a bad sample's row is zero
OUTPUT/features.jsonl    first line: what the features are of; then a line a finished shard, naming its bad samples
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from eval.workers import ordered_map
from megatron_ovenc.data.dataset import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage.base import Shard
from tools.bank.spaces import FeatureSpace, Kind

MATRIX, PROGRESS = "features.npy", "features.jsonl"
OPEN_SHARDS = 8
"""Shards that a decoding process keeps open."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FeatureStore:
    """The features of all samples, complete."""

    matrix: np.ndarray
    """float16 [N, F], memory-mapped; sample numbers as in the ShardSet."""
    bad: dict[int, str]
    """Number of each bad sample, and why it has no features."""

    @property
    def good(self) -> np.ndarray:
        """int64, ascending: samples that have features."""
        return np.setdiff1d(np.arange(len(self.matrix)), np.array(sorted(self.bad), np.int64))


def extract(
    shards: ShardSet,
    kind: Kind,
    space: FeatureSpace,
    folder: Path,
    *,
    workers: int,
    batch_size: int,
    console: Console | None = None,
) -> FeatureStore:
    """Compute the features that are not there yet.

    Args:
        shards: N samples.
        kind: what they are.
        space: what is computed of them.
        folder: where features are kept; created if missing.
        workers: decoding processes; 1 decodes in this one.
        batch_size: samples that `space.finish` gets at a time.
        console: where progress is shown.

    Raises:
        ValueError: the folder was begun with other shards or another space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finished = _finished(folder, shards, kind, space)
    matrix = np.lib.format.open_memmap(folder / MATRIX, "r+")
    pending = [shard for shard in shards.shards if shard.path not in finished]
    items = ((shard, row) for shard in pending for row in range(shard.length))
    prepared = ordered_map(partial(_prepare, kind=kind, space_prepare=space.prepare), items, workers)
    firsts = _first_numbers(shards)
    with Progress(console=console, disable=console is None) as progress:
        task = progress.add_task("features", total=len(shards))
        progress.advance(task, len(shards) - sum(shard.length for shard in pending))
        for shard in pending:
            bad: dict[int, str] = {}
            for start in range(0, shard.length, batch_size):
                batch = list(islice(prepared, min(batch_size, shard.length - start)))
                vectors, reasons = _vectors(batch, space)
                first = firsts[shard.path] + start
                matrix[first : first + len(batch)] = vectors
                bad |= {start + row: reason for row, reason in reasons.items()}
                progress.advance(task, len(batch))
            # The line vouches for the rows, so they come first.
            matrix.flush()
            _append(folder / PROGRESS, {"shard": shard.path, "bad": bad})
            finished[shard.path] = bad
    return FeatureStore(
        matrix=matrix,
        bad={firsts[path] + row: reason for path, reasons in finished.items() for row, reason in reasons.items()},
    )


def _prepare(item: tuple[Shard, int], kind: Kind, space_prepare: Any) -> Any:
    """Read and decode one sample, in a decoding process."""
    shard, row = item
    members = _open(shard).read(row).members
    extensions = IMAGE_EXTENSIONS if kind == "image" else VIDEO_EXTENSIONS
    content = next((members[extension] for extension in extensions if extension in members), None)
    if content is None:
        raise BadSample(f"it has none of .{', .'.join(extensions)}, only .{', .'.join(members) or 'nothing'}")
    return space_prepare(content)


@lru_cache(OPEN_SHARDS)
def _open(shard: Shard) -> ShardSet:
    return ShardSet([shard])


def _vectors(batch: list[Any], space: FeatureSpace) -> tuple[np.ndarray, dict[int, str]]:
    """Unit vectors float32 [B, F] of prepared samples, zero for bad ones, and why those are bad."""
    vectors = np.zeros((len(batch), space.width), np.float32)
    bad = {row: str(sample) for row, sample in enumerate(batch) if isinstance(sample, BadSample)}
    rows = [row for row in range(len(batch)) if row not in bad]
    if rows:
        found = np.asarray(space.finish([batch[row] for row in rows]), np.float32)
        norms = np.linalg.norm(found, axis=1)
        for row, vector, norm in zip(rows, found, norms, strict=True):
            if np.isfinite(norm) and norm > 0:
                vectors[row] = vector / norm
            else:
                bad[row] = "its features are zero or not finite"
    return vectors, bad


def _finished(folder: Path, shards: ShardSet, kind: Kind, space: FeatureSpace) -> dict[str, dict[int, str]]:
    """Bad samples (row, reason) of every shard that an earlier call finished; begins the progress file if there is none."""
    claim = {
        "features": space.identity,
        "kind": kind,
        "width": space.width,
        "shards": [[shard.path, shard.length, shards.checksum(shard)] for shard in shards.shards],
    }
    shape = (len(shards), space.width)
    lines = _progress(folder / PROGRESS)
    if not lines:
        np.lib.format.open_memmap(folder / MATRIX, "w+", np.float16, shape).flush()
        _append(folder / PROGRESS, claim)
        return {}
    changed = [key for key, value in claim.items() if lines[0].get(key) != value]
    if changed:
        raise ValueError(
            f"{folder} holds features of other {' and '.join(changed)} than this call's; choose another --output, or delete "
            f"{folder / PROGRESS} to compute them anew"
        )
    path = folder / MATRIX
    if not path.exists() or np.load(path, mmap_mode="r").shape != shape:
        raise ValueError(
            f"{path} is missing or of another size; delete {folder / PROGRESS} to compute the features anew"
        )
    return {line["shard"]: {int(row): reason for row, reason in line["bad"].items()} for line in lines[1:]}


def _progress(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file; a last one that was not written to its end is cut off."""
    content = path.read_text(encoding="utf-8") if path.exists() else ""
    complete = content[: content.rfind("\n") + 1]
    if complete != content:
        path.write_text(complete, encoding="utf-8")
    return [json.loads(line) for line in complete.splitlines()]


def _append(path: Path, content: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _first_numbers(shards: ShardSet) -> dict[str, int]:
    """Number of the first sample of each shard."""
    ends = np.cumsum([shard.length for shard in shards.shards])
    return {shard.path: int(end) - shard.length for shard, end in zip(shards.shards, ends, strict=True)}
