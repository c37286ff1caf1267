"""Labelled data sets on disk, by the layout that their publishers chose; each module shows the one it reads.

A new layout is one module with a function `(root, split) -> Dataset` and one line in `OFFICIAL`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from eval.datasets import (
    charades_ego,
    diving48,
    epic_kitchens,
    hmdb51,
    kinetics,
    perception_test,
    something_something,
    ucf101,
)
from eval.datasets.folder import read_folder, read_folders, read_lists
from eval.datasets.types import Dataset, Kind, Sample, Split

OFFICIAL: Mapping[str, Callable[[Path, Split], Dataset]] = {
    "ssv2": something_something.read,
    "diving48": diving48.read,
    "perception_test": perception_test.read,
    "charades_ego": charades_ego.read,
    "epic_verb": epic_kitchens.read_verbs,
    "epic_noun": epic_kitchens.read_nouns,
    "k400": kinetics.read,
    "hmdb51": hmdb51.read,
    "ucf101": ucf101.read,
}
"""Readers of published data sets by the name that `--format` takes; each reads from `--root`."""
FORMATS = ("folder", "images", "list", *OFFICIAL)
"""All values of `--format`."""

__all__ = ["FORMATS", "OFFICIAL", "Dataset", "Kind", "Sample", "Split", "read_folder", "read_folders", "read_splits"]


def read_splits(
    format: str, *, root: Path | None = None, train: Path | None = None, val: Path | None = None
) -> tuple[Dataset, Dataset]:
    """Read what a probe learns from and what it is judged on.

    Args:
        format: one of FORMATS.
        root: of a published data set, or of the files that lists name.
        train, val: folders of classes, or lists.

    Raises:
        ValueError: a place that the format needs is not given, or is not as the format has it.
    """
    if format in OFFICIAL:
        if root is None or train is not None or val is not None:
            raise ValueError(
                f"--format {format} reads the published data set in --root; give that, without --train and --val"
            )
        parts = OFFICIAL[format](root, "train"), OFFICIAL[format](root, "val")
        if not all(part.samples for part in parts):
            raise ValueError(f"{root}: the annotations of {format} name no sample for training or none for validation")
        return parts
    if train is None or val is None:
        raise ValueError(f"--format {format} needs --train and --val")
    match format:
        case "folder":
            return read_folders(train, val)
        case "images":
            return read_folders(train, val, "image")
        case "list":
            return read_lists(train, val, root or Path("."))
        case _:
            raise ValueError(f"--format is {format!r}; choose one of {', '.join(FORMATS)}")
