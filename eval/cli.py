"""What the commands of this room have in common: options, features, and the report they end with.

Exit codes: 0 measured; 3 measured, but some clips could not be read; 2 wrong arguments or data.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console
from rich.table import Table

from eval.datasets import FORMATS, VideoDataset, read_splits
from eval.features import Features, extract
from eval.scores import Scores
from eval.views import ClipView, CodecPatches, UniformFrames

if TYPE_CHECKING:
    # Imported no earlier than it is needed: the processes that decode clips import the command's module too.
    from eval.encoder import Encoder

EXIT_UNREADABLE = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the report."""

    name: str
    scores: Scores

    def as_json(self) -> dict[str, object]:
        """Percentages and the counts behind them."""
        return {"top1": self.scores.top1, "top5": self.scores.top5, **asdict(self.scores)}


Measure: TypeAlias = Callable[[Features, Features], tuple[dict[str, object], list[Row]]]
"""Training and validation features -> what goes into the JSON, and the lines of the table."""
Build: TypeAlias = Callable[[argparse.Namespace], Measure]
"""Options -> what to measure; raises ValueError where an option cannot be used, before any clip is decoded."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which encoder sees what of which clips."""
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory of the encoder")
    parser.add_argument("--train", type=Path, required=True, help="training clips")
    parser.add_argument("--val", type=Path, required=True, help="held-out clips")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the result")
    parser.add_argument("--format", choices=tuple(FORMATS), default="folder", help="layout of --train and --val")
    parser.add_argument("--view", choices=("frames", "codec"), default="frames", help="what of a clip is shown")
    parser.add_argument("--frames", type=int, default=8, help="whole frames of a clip (--view frames)")
    parser.add_argument("--tokens", type=int, default=2048, help="patches of a clip (--view codec)")
    parser.add_argument("--i-frames", choices=("keep", "anchor", "free"), default="keep", help="(--view codec)")
    parser.add_argument("--size", type=int, help="side of a frame in pixels; default: the model's image_size")
    parser.add_argument("--batch-size", type=int, default=8, help="clips of a forward pass of the encoder")
    parser.add_argument("--workers", type=int, default=1, help="decoding processes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cache", type=Path, help="directory of features, reused by calls on the same model and clips")


def run(options: argparse.Namespace, title: str, build: Build) -> int:
    """Extract features, measure, report; returns the exit code."""
    console = Console(stderr=True)
    begin = time.monotonic()
    try:
        measure = build(options)
        _check_writable(options.output)
        train, val = extract_splits(options, console)
        found, rows = measure(train, val)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    for failure in (*train.failures, *val.failures):
        console.print(
            f"cannot be read: {failure.path}: {failure.reason}", markup=False, highlight=False, soft_wrap=True
        )
    report = {
        "model": str(options.model),
        "view": options.view,
        "tokens_per_clip": int(val.lengths.max(initial=0)),
        "classes": len(train.classes),
        "chance": 100 / len(train.classes),
        "train_clips": len(train.labels),
        "train_skipped": [asdict(failure) for failure in train.failures],
        "val_clips": len(val.labels),
        "val_unanswered": [asdict(failure) for failure in val.failures],
        "seconds": time.monotonic() - begin,
        **found,
    }
    write_json(options.output, report)
    console.print(_table(title, rows, report))
    return EXIT_UNREADABLE if train.failures or val.failures else 0


def extract_splits(options: argparse.Namespace, console: Console) -> tuple[Features, Features]:
    """Features of the training and of the held-out clips.

    Raises:
        ValueError: an option, a folder or the model cannot be used.
    """
    for name in ("batch_size", "workers"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1")
    datasets = read_splits(options.train, options.val, options.format)
    from eval.encoder import Encoder
    from megatron_ovenc.parallel.device import choose_device

    encoder = Encoder.load(options.model, choose_device(options.device, 0))
    view = _view(options, encoder)

    def features(dataset: VideoDataset, title: str) -> Features:
        return extract(
            encoder,
            view,
            dataset,
            batch_size=options.batch_size,
            workers=options.workers,
            cache=options.cache,
            console=console,
            title=title,
        )

    train, val = features(datasets[0], "training clips"), features(datasets[1], "held-out clips")
    if not train.answered.any():
        raise ValueError(
            f"none of the {len(train.labels)} clips in {options.train} can be read: {train.failures[0].reason}"
        )
    return train, val


def write_json(path: Path, content: object) -> None:
    """All or nothing, even if the call is interrupted."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _view(options: argparse.Namespace, encoder: Encoder) -> ClipView:
    size = encoder.image_size if options.size is None else options.size
    if options.view == "frames":
        return UniformFrames(size=size, patch_size=encoder.patch_size, frames=options.frames)
    return CodecPatches(size=size, patch_size=encoder.patch_size, tokens=options.tokens, i_frames=options.i_frames)


def _check_writable(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {output}: its directory cannot be made: {error.strerror}") from error
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise ValueError(f"--output {output} cannot be written; name a JSON file in a writable directory")


def _table(title: str, rows: Sequence[Row], report: dict[str, object]) -> Table:
    table = Table(
        title=f"{title}, {report['view']}, {report['tokens_per_clip']} tokens a clip",
        caption=f"{report['val_clips']} held-out clips, {report['classes']} classes, chance {report['chance']:.1f} %",
    )
    table.add_column("")
    for column in ("top-1 %", "top-5 %", "unanswered"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row.name, f"{row.scores.top1:.2f}", f"{row.scores.top5:.2f}", str(row.scores.unanswered))
    return table
