"""Checkpoints: complete or absent, checksummed, readable by any layout.

    <run_dir>/checkpoints/
    |-- step_00001000/
    |   |-- .metadata, __0_0.distcp, ...   tensors, by torch.distributed.checkpoint
    |   |-- state.json                     step, position in the data, optimizer counts
    |   |-- config.yaml                    the resolved configuration
    |   `-- manifest.json                  size and SHA-256 of every other file, written last
    `-- step_00002000.tmp/                 being written; renamed when complete, never read

A rank writes its own rectangles and hashes its own files. Asynchronous saves copy to host memory first and then run in one
background thread with a process group of their own, so that they never meet the training's collectives.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from megatron_ovenc.config import CheckpointConfig
from megatron_ovenc.parallel.rectangle import Rectangle
from megatron_ovenc.train.checkpoint_reader import CheckpointError, SafeReader

MANIFEST = "manifest.json"
PARTIAL = "step_*.tmp"
"""Pattern of directories of saves that are under way, or have not ended."""
OPTIONAL = (".uses",)
"""Ends of names of tensors that older checkpoints do not hold and that may start anew."""
_NAME = re.compile(r"step_(\d{8})")


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in a directory, ascending."""
    if not directory.is_dir():
        return []
    matches = ((path, _NAME.fullmatch(path.name)) for path in directory.iterdir())
    return sorted(int(match[1]) for path, match in matches if match and (path / MANIFEST).is_file())


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return directory / f"step_{step:08d}"


def manifest(path: Path) -> dict[str, dict[str, Any]]:
    """What a checkpoint's manifest says of each of its files, by name: `bytes` and `sha256`.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        files: dict[str, dict[str, Any]] = json.loads((path / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read: {error}") from error
    return files


def file_damage(file: Path, facts: Mapping[str, Any], content: bool = True) -> list[str]:
    """What is wrong with a file, given what the manifest says of it; `content` reads it, too."""
    if not file.is_file():
        return [f"{file} is missing"]
    if file.stat().st_size != facts["bytes"]:
        return [f"{file} has {file.stat().st_size} bytes instead of {facts['bytes']}"]
    if content and _sha256(file) != facts["sha256"]:
        return [f"{file} has other content than was written"]
    return []


def damage(path: Path, rank: int = 0, world_size: int = 1) -> list[str]:
    """What is wrong with this rank's share of a checkpoint's files; empty when they are as they were written."""
    try:
        files = sorted(manifest(path).items())[rank::world_size]
    except CheckpointError as error:
        return [str(error)]
    return [problem for name, facts in files for problem in file_damage(path / name, facts)]


def read_scalars(path: Path) -> dict[str, Any]:
    """The plain numbers of a checkpoint."""
    return json.loads((path / "state.json").read_text())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checkpointer:
    """Saves and loads a run's checkpoints. Every method is collective: all ranks call it, in the same order."""

    def __init__(self, directory: Path, config: CheckpointConfig, config_text: str, timeout_s: float = 1800.0) -> None:
        self.directory = directory
        self.config = config
        self.config_text = config_text
        # All ranks; nothing but checkpoints travels on it.
        self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if config.asynchronous else None
        self._pending: Future[None] | None = None
        self._facts: dict[str, float] = {}

    def save(self, tensors: Mapping[str, Rectangle], scalars: Mapping[str, Any]) -> None:
        """Write the checkpoint of `scalars["step"]`; in the background if asynchronous, after waiting for the one before."""
        begun = time.monotonic()
        self.wait()
        staged = {name: tensor.staged() if self._thread else tensor for name, tensor in tensors.items()}
        if self._thread is None:
            self._write(staged, dict(scalars), begun)
        else:
            self._pending = self._thread.submit(self._write, staged, dict(scalars), time.monotonic())
        self._stall_s = time.monotonic() - begun

    def wait(self) -> None:
        """Wait for a save under way; raises what went wrong with it."""
        if self._pending is not None:
            try:
                self._pending.result()
            finally:
                self._pending = None

    @property
    def busy(self) -> bool:
        """Whether a save is under way in the background. Not collective."""
        return self._pending is not None and not self._pending.done()

    def failed(self) -> BaseException | None:
        """What went wrong with a save in the background, without waiting for one that is under way. Not collective."""
        return self._pending.exception() if self._pending is not None and self._pending.done() else None

    def take_facts(self) -> dict[str, float]:
        """Numbers of the save that has ended since this was last asked; empty if none has. Not collective.

        Returns:
            `step`; `stall_s`, seconds that training stood still for it; `write_s`, seconds until it was on disk; `bytes` on disk.
        """
        facts, self._facts = self._facts, {}
        return facts | {"stall_s": self._stall_s} if facts else {}

    def close(self) -> None:
        """Finish what is being written."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def load(self, path: Path, tensors: dict[str, Rectangle]) -> dict[str, Any]:
        """Read a checkpoint into the tensors' own memory; returns its scalars.

        Raises:
            CheckpointError: a file is damaged or a tensor does not fit.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        found: list[list[str]] = [[] for _ in range(world)]
        dist.all_gather_object(found, damage(path, rank, world), group=self._group)  # each rank checked its share
        if problems := [problem for part in found for problem in part]:
            raise CheckpointError("; ".join(problems))
        held = SafeReader(path).read_metadata().state_dict_metadata
        missing = sorted(name for name in tensors if name not in held and not name.endswith(OPTIONAL))
        if missing:
            raise CheckpointError(
                f"{path} is of a run with other settings: it does not hold {', '.join(missing[:3])}"
                + (f" and {len(missing) - 3} more" if missing[3:] else "")
            )
        tensors = {name: tensor for name, tensor in tensors.items() if name in held}
        try:
            dcp.load(dict(tensors), storage_reader=SafeReader(path), process_group=self._group)
        except dcp.api.CheckpointException as error:
            raise CheckpointError(f"{path} does not hold this run's tensors: {error}") from error
        return read_scalars(path)

    def _write(self, tensors: dict[str, Rectangle], scalars: dict[str, Any], begun: float) -> None:
        final = checkpoint_path(self.directory, scalars["step"])
        partial = final.with_suffix(".tmp")
        rank = dist.get_rank()
        self._together(lambda: self._make_room(partial) if rank == 0 else None)
        try:
            files = self._fill(partial, tensors, scalars, rank)
            self._together(lambda: self._publish(partial, final, files) if rank == 0 else None)
        except CheckpointError:
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)  # a full disk is left as full as it was
            raise
        size = sum(fact["bytes"] for fact in files.values())
        self._facts = {"step": scalars["step"], "write_s": time.monotonic() - begun, "bytes": size}

    def _fill(
        self, partial: Path, tensors: dict[str, Rectangle], scalars: dict[str, Any], rank: int
    ) -> dict[str, dict[str, Any]]:
        """Write everything but the manifest; returns what that says of every file."""
        try:
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(partial), process_group=self._group)
        except dcp.api.CheckpointException as error:
            # Raised on every rank, with all ranks' failures; not an Exception by inheritance. torch's writer hides a full disk
            # behind an error of its own, so the room that is left is told.
            told = "; ".join(f"rank {r}: {type(e).__name__}: {e}".strip() for r, (e, _) in error.failures.items())
            free = shutil.disk_usage(self.directory).free / 2**20
            raise CheckpointError(
                f"{partial} could not be written: {told} (room left there: {free:,.0f} MiB)"
            ) from error
        facts = self._together(lambda: self._record(partial, scalars, rank))
        return {name: fact for part in facts for name, fact in part.items()}

    def _make_room(self, partial: Path) -> None:
        """An empty directory; what earlier saves left unfinished goes, or a full disk would stay full."""
        for leftover in self.directory.glob(PARTIAL):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)

    def _together(self, action: Callable[[], Any]) -> list[Any]:
        """Do something on every rank; results in rank order. If it fails on any rank, CheckpointError on all of them."""
        result, failure = None, None
        try:
            result = action()
        except OSError as error:
            failure = f"rank {dist.get_rank()}: {error}"
        gathered: list[tuple[Any, str | None]] = [(None, None)] * dist.get_world_size()
        dist.all_gather_object(gathered, (result, failure), group=self._group)  # over all ranks: none may wait alone
        if failures := [text for _, text in gathered if text]:
            raise CheckpointError("; ".join(failures))
        return [value for value, _ in gathered]

    def _record(self, partial: Path, scalars: dict[str, Any], rank: int) -> dict[str, Any]:
        """Size and hash of the files this rank answers for: those DCP named after it, and on rank 0 those of all."""
        if rank == 0:
            (partial / "state.json").write_text(json.dumps(scalars, indent=1))
            (partial / "config.yaml").write_text(self.config_text)
        mine = [f for f in partial.iterdir() if f.name.startswith(f"__{rank}_") or (rank == 0 and f.name[:2] != "__")]
        return {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in mine}

    def _publish(self, partial: Path, final: Path, files: dict[str, Any]) -> None:
        if hidden := [name for name in files if not (partial / name).is_file()]:
            raise OSError(
                f"rank 0 does not see {hidden[:3]} in {partial}: run_dir must be one directory, shared by all hosts"
            )
        manifest = partial / MANIFEST
        manifest.write_text(json.dumps({"format": 1, "files": files}, indent=1, sort_keys=True))
        for path in (*partial.iterdir(), partial):
            _sync(path)
        _put_in_place(partial, final)
        self._prune(final)

    def _prune(self, newest: Path) -> None:
        """Remove old checkpoints, but never younger ones: an abandoned run may have left later steps behind.

        What cannot be removed stays; the checkpoint that made it old is no worse for that.
        """
        keep_last, keep_every = self.config.keep_last, self.config.keep_every
        elders = [s for s in checkpoint_steps(self.directory) if checkpoint_path(self.directory, s) <= newest]
        for step in elders[:-keep_last] if keep_last else ():
            if not keep_every or step % keep_every:
                old = checkpoint_path(self.directory, step)
                try:
                    (old / MANIFEST).unlink()  # first: half a checkpoint must not pass for a whole one
                    shutil.rmtree(old)
                except OSError as error:
                    print(f"the old checkpoint {old} cannot be removed: {error}", file=sys.stderr, flush=True)


def finish_publishing(directory: Path) -> None:
    """Put in place what a job that was killed between completing a save and giving it its name has left."""
    for partial in directory.glob(PARTIAL):
        final = partial.with_suffix("")
        if _NAME.fullmatch(final.name) and (partial / MANIFEST).is_file() and not damage(partial):
            _put_in_place(partial, final)


def _put_in_place(partial: Path, final: Path) -> None:
    """Publish a complete save. One of an abandoned run that has its name is put aside first and removed last: removing takes long
    enough to be interrupted."""
    replaced = final.with_suffix(".old.tmp") if final.exists() else None
    if replaced is not None:
        final.rename(replaced)
    partial.rename(final)
    _sync(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have a file or directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
