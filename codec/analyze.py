"""Sidecars for many clips: files, folders or tar shards, on several processes.

A sidecar is written beside its clip (clip.mp4 -> clip.saliency; those of shard.tar go into the folder shard/), or under one
directory, where paths below a given folder are kept. What is done and still matches its clip is skipped; what cannot be
read is listed and does not stop the rest.
"""

import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

import numpy as np

from codec.processes import process_pool
from codec.saliency import SaliencyConfig, patch_grid
from codec.sample import frame_indices
from codec.sidecar import Sidecar, analyse, dumps, loads
from codec.types import CLIP_EXTENSIONS, CodecError

SUFFIX = ".saliency"
CLIP_SUFFIXES = tuple(f".{extension}" for extension in CLIP_EXTENSIONS)
Outcome: TypeAlias = Literal["done", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One clip and where its sidecar goes."""

    name: str
    path: Path
    """The clip's file, or the tar that holds it."""
    offset: int
    size: int | None
    """Bytes of the clip within a tar; None for a file of its own."""
    output: Path

    def read(self) -> bytes:
        """The clip."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            content = file.read() if self.size is None else file.read(self.size)
        if self.size is not None and len(content) < self.size:
            raise CodecError(f"{self.name}: the tar is cut off: {len(content)} of {self.size} bytes are there")
        return content


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How sidecars are made."""

    grid: tuple[int, int] | None
    """(rows, cols), or None for the clip's own aspect."""
    virtual_frames: int
    config: SaliencyConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What became of a task."""

    task: Task
    outcome: Outcome
    reason: str = ""
    """Why it failed."""


def find_tasks(inputs: Sequence[Path], directory: Path | None) -> list[Task]:
    """The clips of files, folders (searched to the bottom) and tar shards, sorted by name.

    Raises:
        ValueError: nothing there, no clip in it, a damaged tar, or two clips whose sidecars would be one file.
    """
    tasks = [task for path in inputs for task in _tasks_of(path, directory)]
    if not tasks:
        raise ValueError(
            f"there is no clip in {', '.join(map(str, inputs))}: names must end in {', '.join(CLIP_SUFFIXES)}"
        )
    seen: dict[Path, Task] = {}
    for task in tasks:
        other = seen.setdefault(task.output, task)
        if other is not task:
            raise ValueError(
                f"{other.name} and {task.name} would both have their sidecar in {task.output}: "
                + ("name it once" if other.name == task.name else "rename one, or analyse them apart with another -o")
            )
    return sorted(tasks, key=lambda task: task.name)


def run(tasks: Sequence[Task], settings: Settings, processes: int) -> Iterator[Result]:
    """Do the tasks, in whatever order they finish. A clip that kills its process counts as failed."""
    left = {task.name: task for task in tasks}
    try:
        pool = process_pool(processes)
        try:
            futures: list[Future[Result]] = [pool.submit(do, task, settings) for task in tasks]
            for future in as_completed(futures):
                result = future.result()
                del left[result.task.name]
                yield result
        finally:
            # Whoever stops early waits for the clips at hand, not for all that were asked for.
            pool.shutdown(cancel_futures=True)
    except BrokenProcessPool:
        # Which one it was is not known: one at a time, it will show.
        for task in left.values():
            try:
                with process_pool(1) as pool:
                    yield pool.submit(do, task, settings).result()
            except BrokenProcessPool:
                yield Result(task=task, outcome="failed", reason="it kills the process that reads it")


def do(task: Task, settings: Settings) -> Result:
    """Make one sidecar, unless the one that is there will do. It appears complete or not at all."""
    try:
        content = task.read()
        if _is_done(task, content, settings):
            return Result(task=task, outcome="skipped")
        sidecar = analyse(
            content, settings.grid, virtual_frames=settings.virtual_frames, config=settings.config, name=task.name
        )
        task.output.parent.mkdir(parents=True, exist_ok=True)
        partial = task.output.with_name(f"{task.output.name}.{os.getpid()}.tmp")
        partial.write_bytes(dumps(sidecar))
        partial.replace(task.output)
    except (CodecError, OSError) as error:
        return Result(task=task, outcome="failed", reason=str(error))
    return Result(task=task, outcome="done")


def _is_done(task: Task, content: bytes, settings: Settings) -> bool:
    """Whether the sidecar that is there was made from this content with these settings."""
    try:
        found = loads(task.output.read_bytes(), name=str(task.output))
        found.verify(content, name=task.name)
    except (CodecError, FileNotFoundError):
        return False
    return _fits(found, settings)


def _fits(sidecar: Sidecar, settings: Settings) -> bool:
    grid = settings.grid or patch_grid(sidecar.height, sidecar.width)
    # Of a clip with two virtual frames or more the last frame is always among them.
    frames = frame_indices(len(sidecar.clip_types), settings.virtual_frames)
    same_frames = np.array_equal(sidecar.frame_indices, frames)
    return same_frames and sidecar.saliency.shape[1:] == grid and sidecar.config == settings.config


def _tasks_of(path: Path, directory: Path | None) -> Iterator[Task]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in CLIP_SUFFIXES and file.is_file():
                inner = file.relative_to(path) if directory else file
                yield _file_task(file, (directory or Path()) / inner)
    elif path.suffix == ".tar":
        yield from _members(path, (directory / path.stem) if directory else path.with_suffix(""))
    else:
        # A missing file is a task too: it fails alone, under its name.
        yield _file_task(path, directory / path.name if directory else path)


def _file_task(path: Path, clip: Path) -> Task:
    return Task(name=str(path), path=path, offset=0, size=None, output=clip.with_suffix(SUFFIX))


def _members(path: Path, folder: Path) -> Iterator[Task]:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                inner = PurePosixPath(member.name)
                if not member.isfile() or inner.suffix.lower() not in CLIP_SUFFIXES:
                    continue
                if inner.is_absolute() or ".." in inner.parts:
                    raise ValueError(
                        f"{path}: the member {member.name} leads out of the shard's folder: repack the shard"
                    )
                yield Task(
                    name=f"{path}:{member.name}",
                    path=path,
                    offset=member.offset_data,
                    size=member.size,
                    output=(folder / inner).with_suffix(SUFFIX),
                )
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path}: not a readable uncompressed tar: {error}") from error
