"""What an evaluation leaves behind: a JSON file that tells what was measured on what, and a table for a person."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from eval.datasets import Dataset
from eval.features import Features
from eval.scores import Scores

if TYPE_CHECKING:
    # Processes that decode clips import the command's module; they have no use for torch.
    from eval.encoder import FrozenEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table: the scores of a classification, or one number."""

    name: str
    scores: Scores | None = None
    percent: float | None = None

    def as_json(self) -> dict[str, object]:
        """Percentages and the counts behind them."""
        assert self.scores is not None
        return {"top1": self.scores.top1, "top5": self.scores.top5, **asdict(self.scores)}


def describe(
    options: argparse.Namespace,
    encoder: FrozenEncoder,
    splits: tuple[Dataset, Dataset],
    train: Features,
    val: Features,
) -> dict[str, object]:
    """What was measured: model, data set, counts, view and versions; `options` is every option as it was used."""
    import torch
    import transformers

    return {
        "model": str(options.model),
        "model_type": encoder.kind,
        "model_fingerprint": encoder.fingerprint,
        "format": options.format,
        "view": "image" if splits[0].kind == "image" else options.view,
        "size": encoder.image_size if options.size is None else options.size,
        "tokens_per_clip": int(val.lengths.max(initial=0)),
        "clips_per_sample": options.clips,
        "classes": len(train.classes),
        "chance": _chance(val),
        **_counts("train", "train_skipped", splits[0], train),
        **_counts("val", "val_unanswered", splits[1], val),
        "options": {name: _plain(value) for name, value in vars(options).items()},
        "ranks": train.ranks.world,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _chance(val: Features) -> float:
    """Percent that a guess scores: top-1, or the mean average precision of a random order, which is the share of positives."""
    if val.labels.ndim == 1:
        return 100 / len(val.classes)
    return 100 * float(val.labels[:, val.labels.any(axis=0)].mean())


def _counts(split: str, failed: str, dataset: Dataset, features: Features) -> dict[str, object]:
    missing = set(dataset.missing)
    lost = sum(sample.path in missing for sample in dataset.samples)
    total, failures = len(dataset.samples), len(features.failures)
    return {
        f"{split}_clips": total,
        f"{split}_counts": {"total": total, "seen": total - failures, "missing": lost, "bad": failures - lost},
        failed: [asdict(failure) for failure in features.failures],
    }


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, content: object) -> None:
    """All or nothing, even if the call is interrupted."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def check_writable(output: Path, cache: Path | None) -> None:
    """Raises ValueError where a result or features could not be written at the end."""
    for flag, given, directory in (("--output", output, output.parent), ("--cache", cache, cache)):
        if directory is None:
            continue
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{flag} {given}: the directory cannot be made: {error.strerror}") from error
        if not os.access(directory, os.W_OK):
            raise ValueError(f"{flag} {given} cannot be written; name a writable directory")
    if output.is_dir():
        raise ValueError(f"--output {output} is a directory; name a JSON file")


def table(title: str, rows: Sequence[Row], report: dict[str, object]) -> Table:
    """The rows, under what they are of."""
    found = Table(
        title=f"{title}, {report['view']}, {report['tokens_per_clip']} tokens a clip",
        caption=f"{report['val_clips']} held-out samples, {report['classes']} classes, chance {report['chance']:.1f} %",
    )
    found.add_column("")
    if not all(row.scores for row in rows):
        found.add_column("%", justify="right")
        for row in rows:
            found.add_row(row.name, f"{row.percent:.2f}")
        return found
    several = any(row.scores and row.scores.mean_ap is not None for row in rows)
    for column in (*(["mAP %"] if several else []), "top-1 %", "top-5 %", "unanswered"):
        found.add_column(column, justify="right")
    for row in rows:
        scores = row.scores
        assert scores is not None
        average = [] if scores.mean_ap is None else [f"{scores.mean_ap:.2f}"]
        found.add_row(row.name, *average, f"{scores.top1:.2f}", f"{scores.top5:.2f}", str(scores.unanswered))
    return found
