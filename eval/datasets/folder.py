"""Layouts without an annotation format: a directory a class, and plain lists of files.

FOLDER/<class>/**/<clip>.mp4        a directory a class, its files at any depth
relative/path.mp4,17                a line a file: the lists that the reference's probe takes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval.datasets.types import Dataset, Kind, Sample, read_lines
from megatron_ovenc.data.dataset import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

_EXTENSIONS: dict[Kind, tuple[str, ...]] = {"video": VIDEO_EXTENSIONS, "image": IMAGE_EXTENSIONS}


def read_folder(folder: Path, kind: Kind = "video") -> Dataset:
    """The data set in a folder of classes, both sorted by name; directories without samples are no classes, and
    names that begin with a dot do not count.

    Raises:
        ValueError: not a directory, or no sample in any of its sub-directories.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a directory; give a folder that has one sub-folder a class")
    extensions = _EXTENSIONS[kind]
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    found = {child.name: _files_below(child, extensions) for child in children}
    classes = tuple(name for name, paths in found.items() if paths)
    if not classes:
        raise ValueError(
            f"{folder} has no {kind} in a sub-folder; expected {folder}/<class>/<{kind}> ending in .{', .'.join(extensions)}"
        )
    samples = [Sample(path=path, labels=(label,)) for label, name in enumerate(classes) for path in found[name]]
    return Dataset(classes=classes, samples=tuple(samples), kind=kind)


def read_folders(train: Path, val: Path, kind: Kind = "video") -> tuple[Dataset, Dataset]:
    """Two folders of classes, both labelled in the training set's numbering.

    Raises:
        ValueError: an unreadable folder, or a class that only validation has.
    """
    trained, held_out = read_folder(train, kind), read_folder(val, kind)
    unknown = [name for name in held_out.classes if name not in trained.classes]
    if unknown:
        raise ValueError(
            f"{val} has {len(unknown)} classes that {train} lacks, such as {unknown[0]!r}; no probe can learn them: "
            f"check that --train and --val are splits of one data set"
        )
    renumbered = [trained.classes.index(name) for name in held_out.classes]
    samples = [replace(sample, labels=(renumbered[sample.labels[0]],)) for sample in held_out.samples]
    return trained, replace(trained, samples=tuple(samples))


def read_lists(train: Path, val: Path, root: Path) -> tuple[Dataset, Dataset]:
    """Two lists of `path,class number` lines, paths relative to `root`.

    Raises:
        ValueError: a line that is none, or a class number that only validation has.
    """
    pairs = [[_list_entry(line, path) for line in read_lines(path)] for path in (train, val)]
    if not all(pairs):
        raise ValueError(f"{train if not pairs[0] else val} names no file")
    largest = max(label for _, label in pairs[0])
    unknown = sorted({label for _, label in pairs[1]} - {label for _, label in pairs[0]})
    if unknown:
        raise ValueError(f"{val} has the class {unknown[0]}, which {train} lacks; no probe can learn it")
    classes = tuple(str(label) for label in range(largest + 1))
    learned, judged = (_listed(part, root, classes) for part in pairs)
    return learned, judged


def _listed(pairs: Sequence[tuple[str, int]], root: Path, classes: tuple[str, ...]) -> Dataset:
    return Dataset(classes=classes, samples=tuple(Sample(path=root / name, labels=(label,)) for name, label in pairs))


def _list_entry(line: str, source: Path) -> tuple[str, int]:
    name, _, label = line.rpartition("," if "," in line else " ")
    if not name or not label.strip().isdigit():
        raise ValueError(f"{source}: the line {line!r} is not `path,class number`")
    return name.strip(), int(label)


def _files_below(folder: Path, extensions: Sequence[str]) -> list[Path]:
    named = (path for path in folder.rglob("*") if path.suffix.lower()[1:] in extensions)
    return sorted(path for path in named if not path.name.startswith(".") and path.is_file())
