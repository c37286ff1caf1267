"""Diving48, cleaned labels (V2): 48 dives told apart by take-off, somersaults, twists and position.

ROOT/rgb/<vid_name>.mp4
ROOT/Diving48_vocab.json   ROOT/Diving48_V2_{train,test}.json
"""

from __future__ import annotations

from pathlib import Path

from eval.datasets.types import Dataset, Sample, Split, entries, find, number, read_json

_FILES: dict[Split, str] = {"train": "Diving48_V2_train.json", "val": "Diving48_V2_test.json"}


def read(root: Path, split: Split) -> Dataset:
    """The clips of a split; `val` is the publisher's test set."""
    vocabulary = find(root, "Diving48_vocab.json", "annotations/Diving48_vocab.json")
    words = read_json(vocabulary)
    if not isinstance(words, list):
        raise ValueError(f"{vocabulary} must be a list of dives")
    classes = tuple(" ".join(dive) if isinstance(dive, list) else str(dive) for dive in words)
    videos = find(root, "rgb", "videos")
    annotations = find(root, _FILES[split], f"annotations/{_FILES[split]}")
    samples = [
        Sample(path=videos / f"{clip['vid_name']}.mp4", labels=(number(clip["label"], len(classes), annotations),))
        for clip in entries(read_json(annotations), annotations, "vid_name", "label")
    ]
    return Dataset(classes=classes, samples=tuple(samples))
