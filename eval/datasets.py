"""Labelled clips on disk, by the layout that their publishers chose.

    FOLDER/<class>/**/<clip>.mp4        "folder": a directory a class, its clips at any depth

A new layout is one function `Path -> VideoDataset` and one line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_ovenc.data.dataset import VIDEO_EXTENSIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledClip:
    """One video file and what it shows."""

    path: Path
    label: int
    """Index into the data set's classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoDataset:
    """Clips in a fixed order, the same on every machine that holds the same files."""

    classes: tuple[str, ...]
    clips: tuple[LabelledClip, ...]


def read_folder(folder: Path) -> VideoDataset:
    """The data set in a folder of classes, both sorted by name; directories without clips are no classes.

    Raises:
        ValueError: not a directory, or no clip in any of its sub-directories.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a directory; give a folder that has one sub-folder a class")
    found = {child.name: _clips_below(child) for child in sorted(folder.iterdir()) if child.is_dir()}
    classes = tuple(name for name, paths in found.items() if paths)
    if not classes:
        raise ValueError(
            f"{folder} has no clip in a sub-folder; expected {folder}/<class>/<clip> ending in .{', .'.join(VIDEO_EXTENSIONS)}"
        )
    clips = [LabelledClip(path=path, label=label) for label, name in enumerate(classes) for path in found[name]]
    return VideoDataset(classes=classes, clips=tuple(clips))


FORMATS: Mapping[str, Callable[[Path], VideoDataset]] = {"folder": read_folder}
"""Readers by the name that `--format` takes."""


def read_splits(train: Path, val: Path, format: str = "folder") -> tuple[VideoDataset, VideoDataset]:
    """Read training and validation clips, both labelled in the training set's numbering.

    Raises:
        ValueError: an unknown format, an unreadable folder, or a class that only validation has.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; choose one of {', '.join(FORMATS)}")
    trained, held_out = FORMATS[format](train), FORMATS[format](val)
    unknown = [name for name in held_out.classes if name not in trained.classes]
    if unknown:
        raise ValueError(
            f"{val} has {len(unknown)} classes that {train} lacks, such as {unknown[0]!r}; no probe can learn them: "
            f"check that --train and --val are splits of one data set"
        )
    clips = [replace(clip, label=trained.classes.index(held_out.classes[clip.label])) for clip in held_out.clips]
    return trained, VideoDataset(classes=trained.classes, clips=tuple(clips))


def _clips_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower()[1:] in VIDEO_EXTENSIONS and path.is_file())
