"""Something-Something v2: 174 templates such as `Holding [something] next to [something]`; JSON lists of clips.

ROOT/20bn-something-something-v2/<id>.webm
ROOT/labels/{labels,train,validation}.json      or  ROOT/something-something-v2-{labels,train,validation}.json
"""

from __future__ import annotations

from pathlib import Path

from eval.datasets.types import Dataset, Sample, Split, entries, find, looked_up, number, read_json

_FILES: dict[Split, str] = {"train": "train", "val": "validation"}


def read(root: Path, split: Split) -> Dataset:
    """The clips of a split; the publisher's test set has no labels, so `val` is what is judged."""
    listed = _file(root, "labels")
    numbers = read_json(listed)
    if not isinstance(numbers, dict):
        raise ValueError(f"{listed} must be an object of class numbers by template")
    by_name = {name: number(value, len(numbers), listed) for name, value in numbers.items()}
    classes = tuple(sorted(by_name, key=by_name.__getitem__))
    videos = find(root, "20bn-something-something-v2", "videos")
    annotations = _file(root, _FILES[split])
    samples = []
    for clip in entries(read_json(annotations), annotations, "id", "template"):
        # The list of classes has the templates without their brackets.
        template = str(clip["template"]).replace("[", "").replace("]", "")
        samples.append(Sample(path=videos / f"{clip['id']}.webm", labels=(looked_up(by_name, template, annotations),)))
    return Dataset(classes=classes, samples=tuple(samples))


def _file(root: Path, name: str) -> Path:
    return find(root, f"labels/{name}.json", f"something-something-v2-{name}.json")
