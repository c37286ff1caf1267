"""Lists of input files with labels: a folder of classes, a CSV file or a JSONL file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

_KEYS = ("path", "labels", "visidx")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One input file."""

    path: Path
    labels: tuple[int, ...]
    """Concept ids, none of them negative; empty where there are none."""


def read_inputs(source: Path, extensions: Sequence[str]) -> tuple[list[Item], list[str]]:
    """Find the files to use.

    Args:
        source: a folder, .csv or .jsonl file.
        extensions: of the files that count in a folder; lists are taken as they are.

    Returns:
        The files in a fixed order, and the class names where labels are folders (else none).

    Raises:
        ValueError: no such input, or a line of a list that cannot be understood.
    """
    if source.is_dir():
        return _read_folder(source, {f".{extension}" for extension in extensions})
    if not source.is_file():
        raise ValueError(f"--input {source} does not exist")
    match source.suffix.lower():
        case ".csv":
            return _read_csv(source), []
        case ".jsonl":
            return _read_jsonl(source), []
    raise ValueError(f"--input {source} is neither a folder nor a .csv or .jsonl file")


def _read_folder(folder: Path, suffixes: set[str]) -> tuple[list[Item], list[str]]:
    loose = _files(folder.glob("*"), suffixes)
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if loose and classes:
        raise ValueError(
            f"--input {folder} holds both files ({loose[0].name}, ...) and class folders ({classes[0]}, ...)"
        )
    items = [Item(path=path, labels=()) for path in loose]
    for label, name in enumerate(classes):
        items += [Item(path=path, labels=(label,)) for path in _files((folder / name).rglob("*"), suffixes)]
    return items, classes


def _files(paths: Iterable[Path], suffixes: set[str]) -> list[Path]:
    named = (path for path in paths if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(path for path in named if path.is_file())


def _read_csv(source: Path) -> list[Item]:
    with source.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a mark before the first line
        rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    return [
        Item(path=source.parent / row[0], labels=_labels([text for text in row[1:] if text.strip()], source, number))
        for number, row in rows
    ]


def _read_jsonl(source: Path) -> list[Item]:
    items = []
    for number, line in enumerate(source.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if misspelt := [key for key in entry if key not in _KEYS and get_close_matches(key, _KEYS)]:
                raise KeyError(f"{misspelt[0]!r} is no key, {get_close_matches(misspelt[0], _KEYS)[0]!r} is")
            path, labels = entry["path"], entry.get("labels", [])
            items.append(Item(path=source.parent / path, labels=_labels(labels, source, number)))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{source}, line {number}: expected {{"path": ..., "labels": [...]}}: {error!r}'
            ) from error
    return items


def _labels(values: Sequence[object], source: Path, line: int) -> tuple[int, ...]:
    try:
        labels = tuple(int(str(value)) for value in values)
    except ValueError:
        raise ValueError(f"{source}, line {line}: labels must be whole numbers, not {list(values)}") from None
    if min(labels, default=0) < 0:
        raise ValueError(f"{source}, line {line}: labels must not be negative; leave them out where there are none")
    return labels
