"""The codec room on the command line.

    python -m codec info clip.mp4                          a table of its frames: type, bytes, motion, residual
    python -m codec render clip.mp4 -o clip.gif            the patches that selection lights up
    python -m codec sidecar clip.mp4 -o clip.saliency      the saliency training needs, without the bitstream

Exits with 2 and one line on bad input.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from codec.camera import Camera
from codec.render import render
from codec.saliency import SaliencyConfig, patch_grid
from codec.select import Policy
from codec.sidecar import analyse, dumps
from codec.signals import signals
from codec.source import luma, open_clip, pictures


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        with console.status(f"reading {options.clip}"):
            options.run(options)
    except (ValueError, OSError) as error:
        print(f"codec: {error}", file=sys.stderr)
        return 2
    return 0


def _info(options: argparse.Namespace) -> None:
    table = Table("frame", "time", "type", "key", "bytes", "motion px", "residual", title=options.clip)
    for frame in signals(options.clip):
        table.add_row(
            str(frame.index),
            "" if frame.time is None else f"{frame.time:.3f}",
            frame.type,
            "yes" if frame.key_frame else "",
            str(frame.frame_bytes),
            f"{np.linalg.norm(frame.motion, axis=-1).mean():.2f}",
            f"{frame.residual.mean():.2f}",
        )
    how = "estimated from pixels" if frame.estimated else "read from the bitstream"
    table.caption = f"{frame.width} x {frame.height}; means over the picture, {how}"
    Console().print(table)


def _render(options: argparse.Namespace) -> None:
    data = render(
        options.clip,
        budget=options.budget,
        policy=options.policy,
        config=SaliencyConfig(camera=options.camera),
        grid=options.grid,
        virtual_frames=options.frames,
    )
    options.output.write_bytes(data)


def _sidecar(options: argparse.Namespace) -> None:
    grid = options.grid or _own_grid(options.clip)
    config = SaliencyConfig(camera=options.camera)
    options.output.write_bytes(dumps(analyse(options.clip, grid, virtual_frames=options.frames, config=config)))


def _own_grid(path: str) -> tuple[int, int]:
    """The default patch grid at a clip's own aspect."""
    with open_clip(path) as clip:
        return patch_grid(*luma(next(pictures(clip)).frame).shape)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m codec", description="What a video's encoder already knows, as tokens."
    )
    commands = parser.add_subparsers(required=True)
    info = commands.add_parser("info", help="print a table of the clip's frames")
    info.set_defaults(run=_info)
    picture = commands.add_parser("render", help="make a GIF of the selected patches")
    picture.set_defaults(run=_render)
    picture.add_argument(
        "--budget", type=_budget, default=0.125, help="patches: 2048, or a share: 12.5%% (the default)"
    )
    picture.add_argument(
        "--policy", choices=get_args(Policy), default="keep", help="I frames: whole, first only, or none"
    )
    sidecar = commands.add_parser("sidecar", help="write the clip's saliency")
    sidecar.set_defaults(run=_sidecar)
    for command in (info, picture, sidecar):
        command.add_argument("clip")
    for command in (picture, sidecar):
        command.add_argument("-o", "--output", type=Path, required=True)
        command.add_argument("--camera", choices=get_args(Camera), default="none", help="camera motion to subtract")
        command.add_argument(
            "--grid", type=_grid, help="ROWSxCOLS of patches; default: about 256, at the clip's aspect"
        )
        command.add_argument("--frames", type=int, default=64, help="most frames to sample (default 64)")
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
