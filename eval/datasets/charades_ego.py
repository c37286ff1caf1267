"""Charades-Ego, first-person videos: 157 activities, several a video, so the score is mean average precision.

    ROOT/CharadesEgo_v1_480/<id>.mp4            or  ROOT/CharadesEgo_v1/
    ROOT/CharadesEgo/CharadesEgo_v1_{train,test}_only1st.csv, Charades_v1_classes.txt        or directly in ROOT

A row's `actions` reads `c092 11.90 21.20;c147 0.00 12.60`: class, begin and end in seconds.
"""

from __future__ import annotations

from pathlib import Path

from eval.datasets.types import Dataset, Sample, Split, find, looked_up, numbered, read_lines, read_table

_FILES: dict[Split, str] = {"train": "CharadesEgo_v1_train_only1st.csv", "val": "CharadesEgo_v1_test_only1st.csv"}


def read(root: Path, split: Split) -> Dataset:
    """The first-person videos of a split with all activities that each shows; `val` is the publisher's test set."""
    lines = [line.partition(" ") for line in read_lines(_file(root, "Charades_v1_classes.txt"))]
    codes = numbered([code for code, _, _ in lines])
    videos = find(root, "CharadesEgo_v1_480", "CharadesEgo_v1")
    annotations = _file(root, _FILES[split])
    samples = []
    for row in read_table(annotations, "id", "actions"):
        shown = {action.split()[0] for action in row["actions"].split(";") if action.strip()}
        labels = tuple(sorted(looked_up(codes, code, annotations) for code in shown))
        samples.append(Sample(path=videos / f"{row['id']}.mp4", labels=labels))
    return Dataset(classes=tuple(name for _, _, name in lines), samples=tuple(samples), multi_label=True)


def _file(root: Path, name: str) -> Path:
    return find(root, f"CharadesEgo/{name}", name)
