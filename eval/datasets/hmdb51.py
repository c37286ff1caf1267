"""HMDB51, its first of three splits: 51 actions, a text file a class.

    ROOT/videos/<class>/<clip>.avi          or  ROOT/hmdb51_org/<class>/
    ROOT/testTrainMulti_7030_splits/<class>_test_split1.txt

A line reads `<clip>.avi 1`: 1 is for training, 2 for testing, 0 in neither.
"""

from __future__ import annotations

from pathlib import Path

from eval.datasets.types import Dataset, Sample, Split, find, read_lines

_MARKS: dict[Split, str] = {"train": "1", "val": "2"}
_SUFFIX = "_test_split1"


def read(root: Path, split: Split) -> Dataset:
    """The clips of a split; `val` is the publisher's test set."""
    videos = find(root, "videos", "hmdb51_org")
    lists = sorted(find(root, "testTrainMulti_7030_splits", "splits").glob(f"*{_SUFFIX}.txt"))
    if not lists:
        raise ValueError(f"{root} has no testTrainMulti_7030_splits/<class>{_SUFFIX}.txt")
    classes = tuple(path.stem.removesuffix(_SUFFIX) for path in lists)
    samples = [
        Sample(path=videos / classes[label] / name, labels=(label,))
        for label, path in enumerate(lists)
        for name, _, mark in (line.rpartition(" ") for line in read_lines(path))
        if mark == _MARKS[split]
    ]
    return Dataset(classes=classes, samples=tuple(samples))
