"""Perception Test: its temporal action segments, each classified by itself (63 actions).

    ROOT/videos/<video_id>.mp4                  or  ROOT/{train,valid}_videos/
    ROOT/all_{train,valid}.json                 or  ROOT/action_localisation_{train,valid}.json

An annotation file maps each video to its kinds of annotation; of those, `action_localisation` is a list of segments with
`label`, `label_id` and `timestamps` in microseconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.datasets.types import Dataset, Sample, Split, entries, find, number, read_json

_FILES: dict[Split, str] = {"train": "train", "val": "valid"}
_LARGEST = 1000
"""A bound on action numbers that no version of the data set comes near."""


def read(root: Path, split: Split) -> Dataset:
    """The segments of a split, classes being numbered by the labels of both."""
    annotations = {part: _annotations(root, name) for part, name in _FILES.items()}
    names: dict[int, str] = {}
    for path, content in annotations.values():
        for segment in _segments(path, content):
            known = names.setdefault(number(segment["label_id"], _LARGEST, path), str(segment["label"]))
            if known != segment["label"]:
                raise ValueError(
                    f"{path} calls the action {segment['label_id']} both {known!r} and {segment['label']!r}"
                )
    # Numbers of actions that occur nowhere are left out, so that every class has a row.
    place = {label: row for row, label in enumerate(sorted(names))}
    path, content = annotations[split]
    videos = find(root, "videos", f"{_FILES[split]}_videos")
    samples = []
    for video in sorted(content):
        for segment in entries(content[video].get("action_localisation", []), path, "label_id", "timestamps"):
            begin, end = (stamp / 1e6 for stamp in segment["timestamps"])
            labels = (place[number(segment["label_id"], _LARGEST, path)],)
            samples.append(Sample(path=videos / f"{video}.mp4", labels=labels, seconds=(begin, end)))
    return Dataset(classes=tuple(names[label] for label in sorted(names)), samples=tuple(samples))


def _annotations(root: Path, name: str) -> tuple[Path, dict[str, Any]]:
    path = find(
        root, f"all_{name}.json", f"action_localisation_{name}.json", f"challenge_action_localisation_{name}.json"
    )
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(video, dict) for video in content.values()):
        raise ValueError(f"{path} must map each video to its annotations")
    return path, content


def _segments(path: Path, content: dict[str, Any]) -> list[Any]:
    return [
        segment
        for video in content.values()
        for segment in entries(video.get("action_localisation", []), path, "label", "label_id", "timestamps")
    ]
