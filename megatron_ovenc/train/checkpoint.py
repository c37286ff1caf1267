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
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from megatron_ovenc.parallel.rectangle import Rectangle

MANIFEST = "manifest.json"
OPTIONAL = (".uses",)
"""Ends of names of tensors that older checkpoints do not hold and that may start anew."""
_NAME = re.compile(r"step_(\d{8})")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written; the message says which and why."""


_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "float32", "bfloat16", "float16", "float64", "int64", "int32"),
    "pathlib": ("PosixPath", "Path"),
}


class _MetadataUnpickler(pickle.Unpickler):
    """DCP pickles its table of contents. Only what such a table is made of may come out of the file."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _METADATA_CLASSES.get(module, ()):
            raise CheckpointError(
                f"the checkpoint's .metadata names {module}.{name}, which has no place in it; not reading on"
            )
        return super().find_class(module, name)


class SafeReader(dcp.FileSystemReader):
    """DCP's reader, minus the ability of a file to run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        content = (Path(self.path) / ".metadata").read_bytes()
        metadata = _MetadataUnpickler(io.BytesIO(content)).load()
        metadata.storage_meta = dcp.metadata.StorageMeta(load_id=self.load_id)
        return metadata


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in a directory, ascending."""
    if not directory.is_dir():
        return []
    matches = ((path, _NAME.fullmatch(path.name)) for path in directory.iterdir())
    return sorted(int(match[1]) for path, match in matches if match and (path / MANIFEST).is_file())


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return directory / f"step_{step:08d}"


def damage(path: Path, rank: int = 0, world_size: int = 1) -> list[str]:
    """What is wrong with this rank's share of a checkpoint's files; empty when they are as they were written."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return [f"{path / MANIFEST} cannot be read: {error}"]
    problems = []
    for name, facts in sorted(files.items())[rank::world_size]:
        file = path / name
        if not file.is_file():
            problems.append(f"{file} is missing")
        elif file.stat().st_size != facts["bytes"]:
            problems.append(f"{file} has {file.stat().st_size} bytes instead of {facts['bytes']}")
        elif _sha256(file) != facts["sha256"]:
            problems.append(f"{file} has other content than was written")
    return problems


def read_scalars(path: Path) -> dict[str, Any]:
    """The plain numbers of a checkpoint."""
    return json.loads((path / "state.json").read_text())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checkpointer:
    """Saves and loads a run's checkpoints. Every method is collective: all ranks call it, in the same order."""

    def __init__(
        self, directory: Path, keep_last: int, asynchronous: bool, config_text: str, timeout_s: float = 1800.0
    ) -> None:
        self.directory = directory
        self.keep_last = keep_last
        self.config_text = config_text
        # All ranks; nothing but checkpoints travels on it.
        self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if asynchronous else None
        self._pending: Future[None] | None = None

    def save(self, tensors: Mapping[str, Rectangle], scalars: Mapping[str, Any]) -> None:
        """Write the checkpoint of `scalars["step"]`; in the background if asynchronous, after waiting for the one before."""
        self.wait()
        staged = {name: tensor.staged() if self._thread else tensor for name, tensor in tensors.items()}
        if self._thread is None:
            self._write(staged, dict(scalars))
        else:
            self._pending = self._thread.submit(self._write, staged, dict(scalars))

    def wait(self) -> None:
        """Wait for a save under way; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

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

    def _write(self, tensors: dict[str, Rectangle], scalars: dict[str, Any]) -> None:
        final = checkpoint_path(self.directory, scalars["step"])
        partial = final.with_suffix(".tmp")
        rank = dist.get_rank()
        self._together(lambda: self._make_room(partial) if rank == 0 else None)
        try:
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(partial), process_group=self._group)
        except dcp.api.CheckpointException as error:
            # Raised on every rank, with all ranks' failures; not an Exception by inheritance.
            raise CheckpointError(f"{partial} could not be written: {error}") from error
        facts = self._together(lambda: self._record(partial, scalars, rank))
        merged = {name: fact for part in facts for name, fact in part.items()}
        self._together(lambda: self._publish(partial, final, merged) if rank == 0 else None)

    def _make_room(self, partial: Path) -> None:
        """An empty directory; what earlier saves left unfinished goes, or a full disk would stay full."""
        for leftover in self.directory.glob("step_*.tmp"):
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
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        if self.keep_last:
            # Never more than this one's elders: an abandoned run may have left later steps behind.
            elders = [
                step for step in checkpoint_steps(self.directory) if checkpoint_path(self.directory, step) <= final
            ]
            for step in elders[: -self.keep_last]:
                shutil.rmtree(checkpoint_path(self.directory, step))
