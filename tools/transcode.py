"""Re-encode clips small, with key frames where they are wanted, so that training decodes what it uses and no more.

    python -m tools.transcode --input films/ --output clips/ --size 256 --gop 16 --crf 20 --workers 16
    python -m tools.transcode --input list.csv --output clips/ --encoder hevc_nvenc --workers 4

`--input` is a folder, searched through, or a .csv or .jsonl list as tools.make_shards takes them. The output holds the same folders
with an .mp4 for each clip, without sound, and for a list the list of what was made, with its labels:
    transcode.json   the settings, with which alone the folder can be continued
    failed.jsonl     {"path", "reason"} of clips that could not be read to their end or not be encoded; absent if there are none

The short side becomes `--size` pixels unless it is smaller; every frame is kept, at the clip's average rate. A clip appears in the
output when its frames have been counted, so the call may be killed at any moment: repeated, it skips what is whole and newer than
its source.

Exit code: 0 all clips are there; 1 some failed, and are named; 2 nothing done, because of a wrong argument or list; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import av
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import codec
from megatron_ovenc.data.dataset import VIDEO_EXTENSIONS
from tools.arguments import positive
from tools.encode import ENCODERS, Encoding, encode
from tools.files import write_whole
from tools.inputs import Item, read_inputs
from tools.processes import map_isolated

EXIT_FAILED, EXIT_WRONG_ARGUMENTS, EXIT_INTERRUPTED = 1, 2, 130
MANIFEST, FAILURES = "transcode.json", "failed.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One clip and where it goes."""

    item: Item
    target: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What became of a job."""

    job: Job
    skipped: bool = False
    """It was there already."""
    failure: str | None = None
    """Why the clip is not there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    encoding = Encoding(
        encoder=options.encoder, size=options.size, gop=options.gop, crf=options.crf, preset=options.preset
    )
    try:
        items, _ = _read(options.input)
        jobs = plan(items, options.input, options.output)
        encoding.probe()
        _claim(options.output, encoding)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return EXIT_WRONG_ARGUMENTS
    results = transcode(jobs, encoding, workers=options.workers, console=console)
    _write_list(options.input, options.output, results)
    failed = [result for result in results if result.failure is not None]
    _write_failures(options.output / FAILURES, failed)
    for result in failed:
        console.print(f"failed {result.job.item.path}: {result.failure}", markup=False)
    skipped = sum(result.skipped for result in results)
    made = len(results) - skipped - len(failed)
    console.print(f"{options.output}: {made} made, {skipped} there already, {len(failed)} failed", markup=False)
    return EXIT_FAILED if failed else 0


def plan(items: Sequence[Item], source: Path, output: Path) -> list[Job]:
    """Where each clip goes.

    Raises:
        ValueError: no clips, or two that would become one file, or one that would overwrite itself.
    """
    if not items:
        raise ValueError(f"--input {source} names no clip; folders are searched for .{', .'.join(VIDEO_EXTENSIONS)}")
    # Lists may name files anywhere: then the folder that all of them share is the root.
    root = (source if source.is_dir() else source.parent).absolute()
    paths = [Path(os.path.normpath(item.path.absolute())) for item in items]
    if not all(path.is_relative_to(root) for path in paths):
        root = Path(os.path.commonpath([path.parent for path in paths]))
    jobs: dict[Path, Job] = {}
    for item, path in zip(items, paths, strict=True):
        target = output / path.relative_to(root).with_suffix(".mp4")
        if target in jobs:
            raise ValueError(
                f"{jobs[target].item.path} and {path} would both become {target}; rename or drop one of them"
            )
        if target.exists() and target.samefile(path):
            raise ValueError(f"--output would overwrite the clip {path}; choose another folder")
        jobs[target] = Job(item=item, target=target)
    return list(jobs.values())


def transcode(jobs: Sequence[Job], encoding: Encoding, *, workers: int, console: Console) -> list[Done]:
    """Make the clips that are not there yet, each in one of `workers` processes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    results = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("transcoding", total=len(jobs))
        work = partial(_transcode, encoding=encoding)
        for result in map_isolated(work, jobs, workers=workers, crashed=_crashed):
            results.append(result)
            progress.advance(task)
    return results


def _transcode(job: Job, encoding: Encoding) -> Done:
    try:
        if _whole(job):
            return Done(job=job, skipped=True)
        job.target.parent.mkdir(parents=True, exist_ok=True)
        encode(job.item.path, job.target, encoding)
    except (OSError, ValueError, av.error.FFmpegError) as error:
        return Done(job=job, failure=str(error))
    return Done(job=job)


def _crashed(job: Job) -> Done:
    return Done(job=job, failure="it kills the process that decodes it")


def _whole(job: Job) -> bool:
    """Whether the output is newer than its source and has all of its frames; decodes both."""
    try:
        if job.target.stat().st_mtime < job.item.path.stat().st_mtime:
            return False
        return codec.frame_count(job.target) == codec.frame_count(job.item.path)
    except (OSError, codec.CodecError):
        return False


def _read(source: Path) -> tuple[list[Item], list[str]]:
    if not source.is_dir():
        return read_inputs(source, VIDEO_EXTENSIONS)
    suffixes = {f".{extension}" for extension in VIDEO_EXTENSIONS}
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return [Item(path=path, labels=()) for path in found], []


def _claim(output: Path, encoding: Encoding) -> None:
    """Make sure that all clips of a folder are made alike."""
    manifest, claim = output / MANIFEST, asdict(encoding)
    if not manifest.exists():
        output.mkdir(parents=True, exist_ok=True)
        write_whole(manifest, json.dumps(claim, indent=2).encode())
        return
    before = json.loads(manifest.read_text())
    changed = [f"--{key} {before.get(key)}, not {claim[key]}" for key in claim if before.get(key) != claim[key]]
    if changed:
        raise ValueError(f"{output} was begun with {', '.join(changed)}; repeat that call, or choose another --output")


def _write_list(source: Path, output: Path, results: Sequence[Done]) -> None:
    if source.is_dir():
        return
    rows = [(r.job.target.relative_to(output).as_posix(), r.job.item.labels) for r in results if r.failure is None]
    text = io.StringIO()
    if source.suffix.lower() == ".csv":
        csv.writer(text, lineterminator="\n").writerows([path, *labels] for path, labels in rows)
    else:
        text.writelines(json.dumps({"path": path, "labels": list(labels)}) + "\n" for path, labels in rows)
    write_whole(output / source.name, text.getvalue().encode())


def _write_failures(path: Path, failed: Sequence[Done]) -> None:
    lines = [json.dumps({"path": str(one.job.item.path), "reason": one.failure}) + "\n" for one in failed]
    if lines:
        write_whole(path, "".join(lines).encode())
    else:
        path.unlink(missing_ok=True)


def _interrupt(number: int, frame: object) -> None:
    """End at once: what is being encoded is worth nothing, and the processes end with this one."""
    print("\ninterrupted; the same call goes on from here", file=sys.stderr, flush=True)
    os._exit(EXIT_INTERRUPTED)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.transcode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="folder, .csv or .jsonl")
    parser.add_argument("--output", type=Path, required=True, help="directory for the clips")
    parser.add_argument("--encoder", choices=tuple(ENCODERS), default="x264")
    parser.add_argument("--size", type=positive, default=256, metavar="N", help="short side in pixels, at most")
    parser.add_argument(
        "--gop", type=positive, default=16, metavar="N", help="a key frame every N frames, and nowhere else"
    )
    parser.add_argument("--crf", type=int, default=20, help="quality: lower is better and larger (NVENC: -cq)")
    parser.add_argument("--preset", default=None, help="of the encoder; by default medium, or p5 with NVENC")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _interrupt)
    sys.exit(main())
