"""The codec room on the command line.

    python -m codec inspect clip.mp4                       a table of its frames: type, bytes, motion, residual, bits
    python -m codec analyze clips/ shard.tar --processes 8 sidecars: the saliency training needs, without the bitstream
    python -m codec select clip.mp4 -o positions.npy       the patches that selection takes, and a summary
    python -m codec render clip.mp4 -o clip.gif            what selection sees, in panels
    python -m codec bench                                  speed of reading signals; with --saliency, how well it finds motion

Exits with 2 and one line on bad input, and with 3 if `analyze` had to leave clips out.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from codec import analyze
from codec.inspect import summarise, table
from codec.render import FOUR, Panel, render, share_of
from codec.saliency import PRESETS
from codec.select import Policy, select
from codec.sidecar import Sidecar, analyse, loads

_LEFT_OUT = 3
_errors = Console(stderr=True)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"codec: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("codec: stopped; what is finished stays, and the same call goes on from there", file=sys.stderr)
        return 130


def _inspect(options: argparse.Namespace) -> int:
    clip = summarise(options.clip)
    if options.json:
        print(json.dumps(clip.as_json(options.groups), indent=1))
    else:
        Console().print(table(clip, options.groups))
    return 0


def _analyze(options: argparse.Namespace) -> int:
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise ValueError(f"-o {options.output} is a file; name a directory")
    if options.processes < 1:
        raise ValueError(f"--processes {options.processes} must be at least 1")
    tasks = analyze.find_tasks(options.inputs, options.output)
    settings = analyze.Settings(grid=options.grid, virtual_frames=options.frames, config=PRESETS[options.saliency])
    counts: Counter[str] = Counter()
    failed: list[analyze.Result] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors) as progress:
        shown = progress.add_task("analyze", total=len(tasks))
        for result in analyze.run(tasks, settings, options.processes):
            counts[result.outcome] += 1
            if result.outcome == "failed":
                failed.append(result)
            progress.advance(shown)
    failed.sort(key=lambda result: result.task.name)
    if options.failures is not None:
        lines = [json.dumps({"clip": result.task.name, "reason": result.reason}) + "\n" for result in failed]
        options.failures.write_text("".join(lines))
    for result in failed:
        print(f"failed: {result.task.name}: {result.reason}", file=sys.stderr)
    print(f"{counts['done']} made, {counts['skipped']} already there, {counts['failed']} failed")
    return _LEFT_OUT if failed else 0


def _select(options: argparse.Namespace) -> int:
    sidecar = _sidecar(options)
    maps = sidecar.saliency
    budget = options.budget if isinstance(options.budget, int) else share_of(options.budget, maps.size)
    limits = {"block": options.block, "floor": options.floor, "cap": options.cap}
    positions = select(maps, budget, options.policy, frame_types=sidecar.frame_types, **limits)
    per_frame = np.bincount(positions[:, 0], minlength=len(maps))
    summary: dict[str, Any] = {
        "clip": options.clip,
        "source_codec": sidecar.source_codec,
        "estimated": sidecar.estimated,
        "grid": list(maps.shape[1:]),
        "patches": maps.size,
        "selected": budget,
        "share": budget / maps.size,
        "policy": options.policy,
        **limits,
        "is_static": sidecar.is_static,
        "frame_indices": sidecar.frame_indices.tolist(),
        "frame_types": sidecar.frame_types,
        "selected_per_frame": per_frame.tolist(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    np.save(options.output, positions)
    options.output.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    whole = int((per_frame == maps[0].size).sum())
    print(
        f"{budget} of {maps.size} patches ({budget / maps.size:.1%}) of {len(maps)} frames, {whole} of them whole, "
        f"{int((per_frame == 0).sum())} not shown"
    )
    return 0


def _sidecar(options: argparse.Namespace) -> Sidecar:
    path = Path(options.clip)
    if path.suffix == analyze.SUFFIX:
        return loads(path.read_bytes(), name=options.clip)
    return analyse(options.clip, options.grid, virtual_frames=options.frames, config=PRESETS[options.saliency])


def _render(options: argparse.Namespace) -> int:
    container = options.output.suffix.removeprefix(".").lower()
    if container not in ("gif", "mp4"):
        raise ValueError(f"{options.output} must end in .gif or .mp4")
    if options.output.exists() and options.output.samefile(options.clip):
        raise ValueError(f"-o {options.output} is the clip itself; choose another name")
    data = render(
        options.clip,
        budget=options.budget,
        policy=options.policy,
        shown=options.panel or FOUR,
        config=PRESETS[options.saliency],
        grid=options.grid,
        virtual_frames=options.frames,
        container=container,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(data)
    return 0


def _bench(options: argparse.Namespace) -> int:
    # Imported here: it brings encoders and child processes that no other command needs.
    from codec.bench import report

    if missing := [clip for clip in options.clips if not clip.is_file()]:
        raise ValueError(f"{missing[0]}: there is no such file")
    lines = (
        report.usefulness(options.seeds, _errors)
        if options.saliency
        else report.speed(options.clips, options.peers, _errors)
    )
    print("\n".join(lines))
    if options.output is not None:
        report.write(options.output, "usefulness" if options.saliency else "speed", lines)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m codec", description="What a video's encoder already knows, as tokens."
    )
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Any, purpose: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=purpose, description=purpose)
        made.set_defaults(run=run)
        return made

    inspecting = command("inspect", _inspect, "print a table of the clip's frames")
    inspecting.add_argument("clip")
    inspecting.add_argument("--json", action="store_true", help="print JSON instead")
    inspecting.add_argument("--groups", type=int, help="also mark about so many adaptive groups of pictures")
    analyzing = command("analyze", _analyze, "write sidecars of clips: files, folders, tar shards")
    analyzing.add_argument("inputs", nargs="+", type=Path)
    analyzing.add_argument(
        "-o", "--output", type=Path, help="directory of the sidecars; by default each lies beside its clip"
    )
    analyzing.add_argument("--processes", type=int, default=1)
    analyzing.add_argument("--failures", type=Path, help="JSONL file that lists the clips left out and why")
    selecting = command("select", _select, "write positions (t, row, col) as .npy, and a summary as .json")
    selecting.add_argument(
        "clip", help="a clip, or its .saliency sidecar (which has its own grid, frames and saliency)"
    )
    selecting.add_argument("--block", type=int, default=1, help="side of the blocks of patches that compete as one")
    selecting.add_argument("--floor", type=int, default=0, help="patches that every frame gets at least")
    selecting.add_argument("--cap", type=int, help="patches that a frame gets at most, unless taken whole")
    rendering = command("render", _render, "make a GIF or MP4 of what selection sees")
    rendering.add_argument("clip")
    rendering.add_argument(
        "--panel", action="append", choices=get_args(Panel), help="one of the panels (may be repeated); by default four"
    )
    for some in (selecting, rendering):
        some.add_argument("-o", "--output", type=Path, required=True)
        some.add_argument(
            "--budget", type=_budget, default=0.125, help="patches: 2048, or a share: 12.5%% (the default)"
        )
        some.add_argument(
            "--policy", choices=get_args(Policy), default="keep", help="I frames: whole, first only, or none"
        )
    for some in (analyzing, selecting, rendering):
        some.add_argument("--saliency", choices=list(PRESETS), default="default", help="how signals become saliency")
        some.add_argument("--grid", type=_grid, help="ROWSxCOLS of patches; default: about 256, at the clip's aspect")
        some.add_argument("--frames", type=int, default=64, help="most frames to sample (default 64)")
    benching = command("bench", _bench, "measure speed and memory, or with --saliency usefulness")
    benching.add_argument(
        "clips", nargs="*", type=Path, help="clips to read; by default one rendered for it in H.264 and HEVC"
    )
    benching.add_argument("--saliency", action="store_true", help="recall of moving objects on rendered scenes instead")
    benching.add_argument("--seeds", type=int, default=3, help="(--saliency) how many times every scene is drawn")
    benching.add_argument(
        "--peers", type=Path, default=Path(".cache/peers"), help="where the peers' environment is made"
    )
    benching.add_argument(
        "--output", type=Path, help="Markdown file whose section is replaced, such as benchmarks/codec.md"
    )
    return parser


def _budget(text: str) -> int | float:
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else int(text)


def _grid(text: str) -> tuple[int, int]:
    rows, cols = text.split("x")
    return int(rows), int(cols)


# argparse names a bad value's type by these.
_budget.__name__, _grid.__name__ = "budget", "grid"

if __name__ == "__main__":
    sys.exit(main())
