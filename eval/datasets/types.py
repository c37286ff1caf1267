"""What a labelled data set is, and reading the files that publishers describe theirs with."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

Split: TypeAlias = Literal["train", "val"]
"""Which part of a data set: what a probe learns from, or what it is judged on."""
Kind: TypeAlias = Literal["video", "image"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One picture, clip, or segment of a longer video, and what it shows."""

    path: Path
    """The file; it need not be there: see `Dataset.missing`."""
    labels: tuple[int, ...]
    """Indices into the data set's classes: exactly one, unless the data set is `multi_label`."""
    seconds: tuple[float, float] | None = None
    """Begin and end of the segment; None is the whole file."""

    @property
    def name(self) -> str:
        """For a person."""
        return str(self.path) if self.seconds is None else f"{self.path} [{self.seconds[0]:g} s, {self.seconds[1]:g} s)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Samples in a fixed order, the same on every machine that holds the same files."""

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    kind: Kind = "video"
    multi_label: bool = False
    """Whether a sample may show any number of classes; then mean average precision is the score."""

    @property
    def missing(self) -> tuple[Path, ...]:
        """Files that the annotations name and the disk lacks, sorted."""
        return tuple(sorted(path for path in {sample.path for sample in self.samples} if not path.is_file()))


def find(root: Path, *candidates: str) -> Path:
    """The first of the relative paths `candidates` that exists below `root`.

    Raises:
        ValueError: none does.
    """
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise ValueError(
        f"{root} has neither {' nor '.join(candidates)}; unpack the data set there as its publisher packed it"
    )


def read_json(path: Path) -> Any:
    """Raises ValueError where the file is unreadable or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


def read_table(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file whose first line names its columns.

    Raises:
        ValueError: unreadable, or without one of `columns`.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}, only {', '.join(reader.fieldnames or ('nothing',))}")
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines that are not empty. Raises ValueError where the file is unreadable."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error


def numbered(names: Sequence[str]) -> Mapping[str, int]:
    """Class numbers by name."""
    return {name: number for number, name in enumerate(names)}


def looked_up(classes: Mapping[str, int], name: str, source: Path) -> int:
    """The number of a class. Raises ValueError where `source` names one that is not among the classes."""
    if name not in classes:
        raise ValueError(f"{source} names the class {name!r}, which is not among the {len(classes)} of the data set")
    return classes[name]


def number(text: Any, classes: int, source: Path) -> int:
    """A class number as an annotation file gives it. Raises ValueError where it is none, or outside [0, classes)."""
    try:
        value = int(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} has the label {text!r}, which is no number") from error
    if not 0 <= value < classes:
        raise ValueError(f"{source} has the label {value}, outside [0, {classes})")
    return value


def entries(items: Any, path: Path, *keys: str) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON list. Raises ValueError where it is no such list, or one lacks a key."""
    if not isinstance(items, list):
        raise ValueError(f"{path} holds a {type(items).__name__} where a list of annotations was expected")
    for place, item in enumerate(items):
        missing = [key for key in keys if not isinstance(item, dict) or key not in item]
        if missing:
            raise ValueError(f"{path}: annotation {place} has no {missing[0]!r}")
        yield item
