"""Codec selection, uniform frames and three more ways to spend a budget of patches, on motion that appearance does not tell.

    OMP_NUM_THREADS=1 python -m benchmarks.motion --write

Renders and encodes clips, lets every selector choose its patches, trains the same encoder on each choice, budget and seed, and
prints tables. What is finished lies under --output; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import av
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.machine import machine
from benchmarks.motion.clips import PROGRESS, ClipSet
from benchmarks.motion.page import plot, tables
from benchmarks.motion.results import Cell, Result, ResultFile, Settings
from benchmarks.motion.selectors import SELECTORS
from benchmarks.motion.training import Recipe, train
from codec.bench.report import write
from codec.bench.speed import ffmpeg_version
from tools.solo import solo_topology

PAGE = Path("benchmarks/motion.md")


def measure(file: ResultFile, training: ClipSet, held_out: ClipSet, settings: Settings, seeds: int) -> None:
    """Train what is not trained yet; a seed is completed before the next begins."""
    cells = [Cell(selector=selector, seed=seed) for seed, selector in itertools.product(range(seeds), SELECTORS)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=PROGRESS) as progress, solo_topology() as topology:
        trainings = progress.add_task("trainings", total=len(cells))
        steps = progress.add_task("steps", total=settings.recipe.steps)
        for cell in cells:
            if not file.has(cell):
                progress.reset(steps, description=f"{cell.selector}, seed {cell.seed}")
                begin = time.process_time()
                accuracy = train(
                    training.views(cell.selector),
                    held_out.views(cell.selector),
                    settings.recipe,
                    seed=cell.seed,
                    topology=topology,
                    on_step=lambda: progress.advance(steps),
                )
                file.add(Result(cell=cell, accuracy=accuracy, seconds=time.process_time() - begin))
            progress.advance(trainings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.motion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/motion"), help="clips and results")
    parser.add_argument("--train-clips", type=int, default=1008)
    parser.add_argument("--val-clips", type=int, default=264)
    parser.add_argument("--steps", type=int, default=2400, help="optimizer steps of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="that render and encode clips")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {PAGE} and the plot beside it")
    options = parser.parse_args(arguments)
    settings = Settings(
        recipe=Recipe(steps=options.steps), train_clips=options.train_clips, val_clips=options.val_clips
    )
    try:
        file = ResultFile(options.output / "results.jsonl", settings)
        training = ClipSet(options.output / "train.safetensors", "train", options.train_clips, options.processes)
        held_out = ClipSet(options.output / "val.safetensors", "val", options.val_clips, options.processes)
    except ValueError as error:
        print(f"motion: {error}", file=sys.stderr)
        return 2
    measure(file, training, held_out, settings, options.seeds)
    minutes = sum(result.seconds for result in file.results) / 60
    kept = held_out.kept_by_rlt()
    lines = [
        f"`python -m benchmarks.motion --write` on {machine()}, PyAV {av.__version__}, libavcodec {ffmpeg_version()}: "
        f"{options.seeds} seeds, {options.steps} steps, {minutes:.0f} minutes of one core for all trainings.",
        "",
        *tables(file.results),
        "",
        "Without a budget, run-length tokenisation would keep "
        + " and ".join(f"{100 * share:.1f} % of the patches ({camera} camera)" for camera, share in kept.items())
        + " of the held-out clips.",
    ]
    print("\n".join(lines))
    if options.write:
        plot(file.results, PAGE.with_suffix(".png"))
        write(PAGE, "results", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
