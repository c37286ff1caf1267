"""What the commands of this room have in common: options, features, and the report they end with.

Exit codes: 0 measured; 3 measured, but some samples are missing or could not be read; 2 wrong arguments or data; 1 a rank that the
others wait for is gone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console

from eval.datasets import FORMATS, Dataset, read_splits
from eval.features import Features, extract
from eval.options_file import with_options_file
from eval.ranks import Ranks, SilentRank, joined
from eval.report import Row, check_writable, describe, table, write_json
from eval.views import CodecPatches, Picture, SampleView, UniformFrames

if TYPE_CHECKING:
    # Imported no earlier than they are needed: the processes that decode clips import the command's module too.
    import torch

    from eval.encoder import FrozenEncoder

EXIT_UNREADABLE = 3

__all__ = ["EXIT_UNREADABLE", "Build", "Measure", "Row", "choose_view", "parser", "run"]

Measure: TypeAlias = Callable[[Features, Features, "torch.device"], tuple[dict[str, object], list[Row]]]
"""Training and validation features, and where to compute -> what goes into the JSON, and the lines of the table."""
Build: TypeAlias = Callable[[argparse.Namespace], Measure]
"""Options -> what to measure; raises ValueError where an option cannot be used, before any clip is decoded."""


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of the options that say which encoder sees what of which samples.

    Args:
        module: `eval.<command>`.
        description: the command's documentation.
    """
    found = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--config", type=Path, help="YAML file of these options; those on the command line win")
    found.add_argument("--model", type=Path, required=True, help="Hugging Face directory of the encoder")
    found.add_argument("--output", type=Path, required=True, help="JSON file for the result")
    data = found.add_argument_group("data")
    data.add_argument("--format", choices=FORMATS, default="folder", help="layout of the data set")
    data.add_argument("--train", type=Path, help="training samples (--format folder, images, list)")
    data.add_argument("--val", type=Path, help="held-out samples (the same)")
    data.add_argument("--root", type=Path, help="directory of a published data set, or of the files that lists name")
    data.add_argument(
        "--max-bad-share",
        type=float,
        default=0.05,
        help="share of a split that may be missing or unreadable, in [0, 1)",
    )
    shown = found.add_argument_group("what the encoder sees")
    shown.add_argument("--view", choices=("frames", "codec"), default="frames", help="what of a clip is shown")
    shown.add_argument("--tokens", type=int, default=2048, help="most tokens of a clip")
    shown.add_argument(
        "--frames", type=int, help="whole frames of a clip (--view frames); default: as many as --tokens buy"
    )
    shown.add_argument("--i-frames", choices=("keep", "anchor", "free"), default="keep", help="(--view codec)")
    shown.add_argument("--clips", type=int, default=1, help="equal parts of a video that are seen one by one")
    shown.add_argument("--size", type=int, help="side of a frame in pixels; default: the model's image_size")
    work = found.add_argument_group("work")
    work.add_argument("--batch-size", type=int, default=8, help="samples of a forward pass of the encoder")
    work.add_argument("--workers", type=int, default=1, help="decoding processes a rank")
    work.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    work.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the encoder's matrix work")
    work.add_argument("--cache", type=Path, help="directory of features, reused by calls on the same model and samples")
    work.add_argument("--local_rank", type=int, help="accepted because deepspeed passes it; LOCAL_RANK counts")
    return found


def run(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, title: str, build: Build, *, keep_tokens: bool
) -> int:
    """Extract features, measure, report; returns the exit code.

    Args:
        parser: from `parser`, with the command's own options added.
        arguments: the command line; None is the process's.
        title: of the table.
        build: from options to what is measured.
        keep_tokens: whether that needs tokens, or pooled embeddings alone.
    """
    console = Console(stderr=True)
    begin = time.monotonic()
    try:
        options = parser.parse_args(with_options_file(parser, sys.argv[1:] if arguments is None else list(arguments)))
        measure = build(options)
        check_writable(options.output, options.cache)
        _check_numbers(options)
        splits = read_splits(options.format, root=options.root, train=options.train, val=options.val)
        with joined(options.device) as (ranks, device):
            speaker = console if ranks.is_main else Console(quiet=True)
            for dataset, name in zip(splits, ("training", "held-out"), strict=True):
                _check_missing(dataset, name, options.max_bad_share, speaker)
            encoder, train, val = extract_splits(options, splits, speaker, ranks, device, keep_tokens)
            found, rows = measure(train, val, device)
            if ranks.is_main:
                report = describe(options, encoder, splits, train, val) | {"seconds": time.monotonic() - begin} | found
                write_json(options.output, report)
                console.print(table(title, rows, report))
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except SilentRank as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    # One rank tells: launchers end all ranks when one returns anything but 0, and the main one may still be writing.
    return EXIT_UNREADABLE if ranks.is_main and (train.failures or val.failures) else 0


def extract_splits(
    options: argparse.Namespace,
    splits: tuple[Dataset, Dataset],
    console: Console,
    ranks: Ranks,
    device: torch.device,
    keep_tokens: bool,
) -> tuple[FrozenEncoder, Features, Features]:
    """The encoder, and features of the training and of the held-out samples.

    Raises:
        ValueError: an option or the model cannot be used, or too many samples cannot be read.
    """
    from eval.encoder import load_encoder

    encoder = load_encoder(options.model, device, options.precision)
    view = choose_view(options, encoder, splits[0])

    def features(dataset: Dataset, name: str) -> Features:
        found = extract(
            encoder,
            view,
            dataset,
            clips=options.clips,
            keep_tokens=keep_tokens,
            batch_size=options.batch_size,
            workers=options.workers,
            cache=options.cache,
            console=console,
            title=f"{name} samples",
            ranks=ranks,
        )
        for failure in found.failures:
            line = f"cannot be read: {failure.path}: {failure.reason}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        _check_share(len(found.failures), len(dataset.samples), f"{name} samples cannot be read", options.max_bad_share)
        return found

    return encoder, features(splits[0], "training"), features(splits[1], "held-out")


def choose_view(options: argparse.Namespace, encoder: FrozenEncoder, dataset: Dataset) -> SampleView:
    """What the options show of a sample: never more tokens than --tokens.

    Raises:
        ValueError: the encoder or the data set cannot be shown so, or the budget does not hold a frame.
    """
    size = encoder.image_size if options.size is None else options.size
    if dataset.kind == "image":
        if options.view == "codec" or options.clips > 1 or options.frames is not None:
            raise ValueError("--view codec, --clips and --frames are for videos, but --format is images")
        view: SampleView = Picture(size=size, patch_size=encoder.patch_size)
        _check_budget(view.max_tokens, options.tokens, "a picture", size)
        return view
    if options.view == "codec":
        if not encoder.takes_positions:
            raise ValueError(
                f"--view codec needs an encoder that takes patches of any place; {encoder.kind} takes whole frames"
            )
        if options.frames is not None:
            raise ValueError("--frames is for --view frames; the codec's patches are counted by --tokens")
        return CodecPatches(size=size, patch_size=encoder.patch_size, tokens=options.tokens, i_frames=options.i_frames)
    one = UniformFrames(size=size, patch_size=encoder.patch_size, frames=1)
    depth = encoder.frames_per_token
    if options.frames is None:
        _check_budget(one.max_tokens, options.tokens, "a frame", size)
        return UniformFrames(size=size, patch_size=encoder.patch_size, frames=options.tokens // one.max_tokens * depth)
    view = UniformFrames(size=size, patch_size=encoder.patch_size, frames=options.frames)
    _check_budget(-(-view.max_tokens // depth), options.tokens, f"{options.frames} frames", size)
    return view


def _check_budget(needed: int, tokens: int, what: str, size: int) -> None:
    if needed > tokens:
        raise ValueError(
            f"{what} of {size} x {size} pixels takes {needed} tokens, more than --tokens {tokens}; raise it, or lower --size"
        )


def _check_numbers(options: argparse.Namespace) -> None:
    for name in ("batch_size", "workers", "clips", "tokens"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1")
    if not 0 <= options.max_bad_share < 1:
        raise ValueError(f"--max-bad-share is {options.max_bad_share:g}; it must lie in [0, 1)")


def _check_missing(dataset: Dataset, name: str, allowed: float, console: Console) -> None:
    """Name the files that are not there; refuse before anything is decoded if they are too many."""
    missing = set(dataset.missing)
    for path in sorted(missing):
        console.print(f"missing: {path}", markup=False, highlight=False, soft_wrap=True)
    lost = sum(sample.path in missing for sample in dataset.samples)
    _check_share(lost, len(dataset.samples), f"{name} samples are missing", allowed)


def _check_share(bad: int, total: int, what: str, allowed: float) -> None:
    if bad > allowed * total:
        raise ValueError(
            f"{bad} of {total} {what}, more than --max-bad-share {allowed:g} allows; look at the list above, or raise it"
        )
