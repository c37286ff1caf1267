"""Build a bank of tags, such as the words of a page: a vocabulary, and its words as labels beside each shard.

    python -m tools.build_tag_bank --shards 'shards/pages/*.tar' --tags words.jsonl --output banks/ocr --labels 100 \\
        --min-count 5

`--tags` is a JSONL file, a line a sample: {"id": ..., "tags": [...]}. The id (also named `sample_id` or `record_id`) is the key of
the sample in its shard, or SHARD#KEY where keys repeat; tags (also named `gt`) are words or numbers. A tag becomes a class if at
least --min-count samples have it; the most frequent is class 0. Writes

    <shard>.tar.labels.npy       beside each shard: int64 [n, --labels]. Of more tags a random subset, drawn by --seed and the key
                                 of the sample; of fewer, all, and -1. A sample without tags is all -1: training ignores it.
    OUTPUT/vocabulary.json       {"tags": [[tag, samples that have it], ...]} in the order of the classes
    OUTPUT/report.json           how many samples have how many tags, and what had no place

`heads.*.bank.num_classes` of a run is the number of classes that this prints. `--vocabulary` labels further shards by one that
exists.

Exit code: 0 done; 2 nothing labelled, because of a wrong argument or unusable data.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from megatron_ovenc.data.shards import ShardSet
from tools.arguments import positive
from tools.bank.labels import check_unlabelled, write_file, write_labels

IDS, TAGS = ("id", "sample_id", "record_id"), ("tags", "gt")
_TWICE = -1
"""Stands for the number of a sample whose key is another's too."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    console = Console(stderr=True)
    try:
        shards = ShardSet.open(options.shards)
        check_unlabelled(shards, options.overwrite_labels)
        numbers = sample_numbers(shards)
        if options.vocabulary:
            vocabulary = _read_vocabulary(options.vocabulary)
        else:
            vocabulary = count_tags(options.tags, numbers, options.min_count)
        classes = {tag: place for place, tag in enumerate(vocabulary)}
        labels, facts = label(options.tags, numbers, len(shards), classes, options.labels, options.seed)
        options.output.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"tags": list(vocabulary.items())}, ensure_ascii=False)
        write_file(options.output / "vocabulary.json", content.encode())
        write_labels(shards, labels)
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    report = {"samples": len(shards), "classes": len(classes), "labels_per_sample": options.labels, **facts}
    write_file(options.output / "report.json", json.dumps(report, indent=2).encode())
    console.print_json(data=report)
    return 0


def sample_numbers(shards: ShardSet) -> dict[str, int]:
    """Number of each sample by SHARD#KEY, and by KEY where that is one sample's alone."""
    numbers: dict[str, int] = {}
    first = 0
    for shard in shards.shards:
        for row, key in enumerate(shards.keys(shard)):
            numbers[f"{shard.path}#{key}"] = first + row
            numbers[key] = _TWICE if key in numbers else first + row
        first += shard.length
    return numbers


def read_records(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Id and different tags of every line, in the order of their first appearance.

    Raises:
        ValueError: a line is no such record; names the line.
    """
    if not path.is_file():
        raise ValueError(f"--tags {path}: there is no such file")
    with path.open("rb") as file:
        for place, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                name, tags = _field(record, IDS), _field(record, TAGS)
                if not isinstance(tags, list) or not all(isinstance(tag, str | int) for tag in tags):
                    raise ValueError(f"its tags are {tags!r}, not a list of words or numbers")
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f'{path}, line {place}: {error}; give {{"id": key of the sample, "tags": [...]}}'
                ) from error
            # Nothing, or blanks, is no word.
            yield str(name), [tag for tag in dict.fromkeys(map(str, tags)) if tag.strip()]


def _field(record: Any, names: Sequence[str]) -> Any:
    found = [name for name in names if isinstance(record, dict) and name in record]
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} of the fields {', '.join(names)}, not one")
    return record[found[0]]


def count_tags(path: Path, numbers: Mapping[str, int], min_count: int) -> dict[str, int]:
    """Samples that have each tag that at least `min_count` have; most frequent first, then by the tag.

    Raises:
        ValueError: no tag is left.
    """
    counts: Counter[str] = Counter()
    for name, tags in read_records(path):
        if name in numbers:
            counts.update(tags)
    kept = sorted((tag for tag, count in counts.items() if count >= min_count), key=lambda tag: (-counts[tag], tag))
    if not kept:
        raise ValueError(
            f"{path} has {len(counts)} tags of samples in the shards, none in --min-count = {min_count} of them; lower it, or "
            f"check that ids are keys of the shards' samples, such as {next(iter(numbers), 'none')!r}"
        )
    return {tag: counts[tag] for tag in kept}


def label(
    path: Path, numbers: Mapping[str, int], samples: int, classes: Mapping[str, int], width: int, seed: int
) -> tuple[np.ndarray, dict[str, int]]:
    """Labels int64 [samples, width] and what to report of them.

    Raises:
        ValueError: an id names two samples, or two records one sample.
    """
    labels = np.full((samples, width), -1, np.int64)
    seen = np.zeros(samples, bool)
    strangers = thinned = dropped = 0
    for name, tags in read_records(path):
        number = numbers.get(name)
        if number is None:
            strangers += 1
            continue
        if number == _TWICE:
            raise ValueError(f"{path}: id {name!r} is the key of more than one sample; give SHARD#KEY")
        if seen[number]:
            raise ValueError(f"{path}: more than one line for sample {name!r}; join them into one")
        seen[number] = True
        found = np.array([classes[tag] for tag in tags if tag in classes], np.int64)
        dropped += len(tags) - len(found)
        if len(found) > width:
            thinned += 1
            # The key without its shard, so that packing the samples anew changes nothing.
            rng = np.random.default_rng([seed, zlib.crc32(name.rpartition("#")[2].encode())])
            found = rng.choice(found, width, replace=False)
        labels[number, : len(found)] = found
    return labels, {
        "samples_without_record": int(samples - seen.sum()),
        "samples_without_label": int((labels == -1).all(axis=1).sum()),
        "samples_with_a_subset_of_their_tags": thinned,
        "tags_outside_vocabulary": dropped,
        "records_without_sample": strangers,
    }


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        vocabulary = {str(tag): int(count) for tag, count in json.loads(path.read_text(encoding="utf-8"))["tags"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--vocabulary {path} is not one that this tool wrote: {error!r}") from error
    return vocabulary


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.build_tag_bank", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", nargs="+", required=True, metavar="PATTERN", help="tar shards")
    parser.add_argument("--tags", type=Path, required=True, help="JSONL, a line a sample")
    parser.add_argument("--output", type=Path, required=True, help="directory for vocabulary and report")
    parser.add_argument("--labels", type=positive, default=100, metavar="L", help="most tags that a sample keeps")
    parser.add_argument("--min-count", type=positive, default=1, help="samples that a class must have")
    parser.add_argument("--vocabulary", type=Path, help="take the classes from this file instead of counting")
    parser.add_argument("--seed", type=int, default=0, help="of the subsets; not negative")
    parser.add_argument("--overwrite-labels", action="store_true", help="replace labels that shards have already")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
