"""UCF101, its first of three splits: 101 actions.

    ROOT/UCF-101/<class>/<clip>.avi
    ROOT/ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt

classInd.txt reads `1 ApplyEyeMakeup`, the lists `ApplyEyeMakeup/<clip>.avi` (and, of the training list, the number again).
"""

from __future__ import annotations

from pathlib import Path

from eval.datasets.types import Dataset, Sample, Split, find, looked_up, numbered, read_lines

_FILES: dict[Split, str] = {"train": "trainlist01.txt", "val": "testlist01.txt"}


def read(root: Path, split: Split) -> Dataset:
    """The clips of a split; `val` is the publisher's test set."""
    lists, videos = find(root, "ucfTrainTestlist"), find(root, "UCF-101", "videos")
    classes = tuple(line.split()[-1] for line in read_lines(lists / "classInd.txt"))
    numbers, source = numbered(classes), lists / _FILES[split]
    samples = []
    for line in read_lines(source):
        name = line.split()[0]
        samples.append(Sample(path=videos / name, labels=(looked_up(numbers, name.partition("/")[0], source),)))
    return Dataset(classes=classes, samples=tuple(samples))
