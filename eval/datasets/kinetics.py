"""Kinetics-400: ten-second clips cut from YouTube; many are no longer to be had.

ROOT/{train,val}/<youtube_id>_<start>_<end>.mp4     or in a sub-folder a class, seconds as six digits
ROOT/annotations/{train,val}.csv                    or  ROOT/{train,val}.csv
"""

from __future__ import annotations

from pathlib import Path

from eval.datasets.types import Dataset, Sample, Split, find, looked_up, numbered, read_table

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read(root: Path, split: Split) -> Dataset:
    """The clips of a split; classes are the training list's labels, sorted."""
    classes = sorted({row["label"] for row in read_table(_file(root, "train"), *_COLUMNS)})
    numbers = numbered(classes)
    annotations, videos = _file(root, split), find(root, split)
    samples = []
    for row in read_table(annotations, *_COLUMNS):
        label = looked_up(numbers, row["label"], annotations)
        name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
        sorted_away = videos / row["label"]
        samples.append(Sample(path=(sorted_away if sorted_away.is_dir() else videos) / name, labels=(label,)))
    return Dataset(classes=tuple(classes), samples=tuple(samples))


def _file(root: Path, name: str) -> Path:
    return find(root, f"annotations/{name}.csv", f"{name}.csv")
