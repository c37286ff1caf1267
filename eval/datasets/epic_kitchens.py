"""EPIC-KITCHENS-100: action segments of long first-person videos, their verb (97) or their noun (300).

ROOT/EPIC-KITCHENS/<participant>/videos/<video>.MP4     or  ROOT/<participant>/videos/
ROOT/epic-kitchens-100-annotations/EPIC_100_{train,validation}.csv, EPIC_100_{verb,noun}_classes.csv     or directly in ROOT
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from eval.datasets.types import Dataset, Sample, Split, find, number, read_table

_FILES: dict[Split, str] = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv"}


def read_verbs(root: Path, split: Split) -> Dataset:
    """The segments of a split, labelled by verb."""
    return _read(root, split, "verb")


def read_nouns(root: Path, split: Split) -> Dataset:
    """The segments of a split, labelled by noun."""
    return _read(root, split, "noun")


def _read(root: Path, split: Split, word: Literal["verb", "noun"]) -> Dataset:
    listed = _file(root, f"EPIC_100_{word}_classes.csv")
    keys = {int(row["id"]): row["key"] for row in read_table(listed, "id", "key")}
    classes = tuple(keys[index] for index in sorted(keys))
    if sorted(keys) != list(range(len(keys))):
        raise ValueError(f"{listed} must number its classes 0, 1, 2, ...")
    videos = find(root, "EPIC-KITCHENS", ".")
    annotations = _file(root, _FILES[split])
    columns = ("participant_id", "video_id", "start_timestamp", "stop_timestamp", f"{word}_class")
    samples = [
        Sample(
            path=videos / row["participant_id"] / "videos" / f"{row['video_id']}.MP4",
            labels=(number(row[f"{word}_class"], len(classes), annotations),),
            seconds=(_seconds(row["start_timestamp"], annotations), _seconds(row["stop_timestamp"], annotations)),
        )
        for row in read_table(annotations, *columns)
    ]
    return Dataset(classes=classes, samples=tuple(samples))


def _seconds(stamp: str, source: Path) -> float:
    """Of `hh:mm:ss.ss`."""
    try:
        hours, minutes, seconds = stamp.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError as error:
        raise ValueError(f"{source} has the time {stamp!r}, which is not hh:mm:ss.ss") from error


def _file(root: Path, name: str) -> Path:
    return find(root, f"epic-kitchens-100-annotations/{name}", name)
