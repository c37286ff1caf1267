"""Render the demo's data: clips of one object moving over a photograph under a panning camera, and crops of photographs.

    python -m tools.demo_data --output data --clips 320 --images 320 --seed 0 --workers 2

    data/clips/{train,val}/<motion>/00000.mp4      64 frames of 112 x 112 at 30 fps, H.264 and HEVC in turn, GOP 16
    data/images/{train,val}/<photograph>/00000.jpg

A clip's class is how its object moves relative to the background. Object, background and pan are drawn alike for every class, so
neither a frame nor the picture's own motion tells it. The photographs come with scikit-image; nothing is downloaded.
The same seed gives the same files; train and val are different draws.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias, cast

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image, ImageDraw
from rich.progress import track

from megatron_ovenc.data.order import generator

MOTIONS = ("left", "right", "up", "down", "clockwise", "counterclockwise", "growing", "shrinking")
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "page",
    "retina",
    "rocket",
)
"""Those of skimage.data that are part of the package rather than downloaded."""

FRAMES = 64
SIDE = 112
"""Of a clip, pixels."""
IMAGE_SIDE = 160
FRAME_RATE = 30
VAL_SHARE = 0.25
_OBJECT_SIDE = 36
_PAN = 0.35
"""Pixels a frame that the camera moves at most along either axis."""
_MARGIN = math.ceil(_PAN * FRAMES)

_ENCODERS = {
    "libx264": {"preset": "veryfast", "crf": "20", "x264-params": "keyint=16:min-keyint=16:scenecut=0:bframes=0:ref=1"},
    "libx265": {
        "preset": "superfast",
        "crf": "20",
        "x265-params": "keyint=16:min-keyint=16:scenecut=0:bframes=0:ref=1:pools=none:frame-threads=1:log-level=none",
    },
}

Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where the object is in one frame: its centre relative to the background, and its size relative to how it was cut out."""

    x: float
    y: float
    scale: float


def render(output: Path, *, clips: int, images: int, seed: int, workers: int) -> None:
    """Write both data sets, classes in turn.

    Args:
        output: created if missing; files that are there are written anew.
        clips: number of clips, a quarter of them for val.
        images: number of images, likewise.
        seed: of everything that is drawn.
        workers: processes.
    """
    jobs = [
        *_jobs(output / "clips", clips, MOTIONS, ".mp4", seed),
        *_jobs(output / "images", images, PHOTOGRAPHS, ".jpg", seed),
    ]
    for directory in {path.parent for path, *_ in jobs}:
        directory.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in track(pool.map(_render_one, jobs, chunksize=4), "rendering", total=len(jobs)):
            pass


def _jobs(folder: Path, count: int, classes: Sequence[str], suffix: str, seed: int) -> Iterator[tuple[Path, int, int]]:
    """Path, class number and seed of every file."""
    val = round(count * VAL_SHARE)
    for split, size in (("train", count - val), ("val", val)):
        for number in range(size):
            label, turn = number % len(classes), number // len(classes)
            yield folder / split / classes[label] / f"{turn:05d}{suffix}", label, seed


def _render_one(job: tuple[Path, int, int]) -> None:
    path, label, seed = job
    rng = generator("demo", seed, *path.parts[-4:])
    if path.suffix == ".jpg":
        crop(PHOTOGRAPHS[label], IMAGE_SIDE, rng).save(path, quality=90)
    else:
        # Within a class every other clip is HEVC, so that the codec says nothing about the class.
        encoder = tuple(_ENCODERS)[int(path.stem) % len(_ENCODERS)]
        encode(path, draw_clip(MOTIONS[label], rng), encoder)


@cache
def photograph(name: str) -> Image.Image:
    """A photograph in RGB."""
    import skimage.data

    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def crop(name: str, side: int, rng: np.random.Generator) -> Image.Image:
    """A random square of a photograph, between half of it and all of it, resized to `side`, flipped in half of the cases."""
    picture = photograph(name)
    size = min(picture.size) * rng.uniform(0.5, 1.0)
    left, top = rng.uniform(0, picture.width - size), rng.uniform(0, picture.height - size)
    square = picture.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + size, top + size))
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else square


def draw_clip(motion: str, rng: np.random.Generator) -> Iterator[Image.Image]:
    """The frames of one clip."""
    behind, front = rng.choice(PHOTOGRAPHS, size=2, replace=False)
    background = crop(behind, SIDE + 2 * _MARGIN, rng)
    cutout = _object(front, rng)
    pan = rng.uniform(-_PAN, _PAN, size=2)
    for frame, placement in enumerate(_path(motion, rng)):
        # The camera is over the background's middle half-way through the clip.
        camera_x, camera_y = pan * (frame - (FRAMES - 1) / 2)
        picture = background.transform(
            (SIDE, SIDE),
            Image.Transform.AFFINE,
            (1, 0, _MARGIN + camera_x, 0, 1, _MARGIN + camera_y),
            Image.Resampling.BILINEAR,
        )
        _paste(picture, cutout, placement.x - camera_x, placement.y - camera_y, placement.scale)
        yield picture


def encode(path: Path, frames: Iterator[Image.Image], encoder: str) -> None:
    """Write an mp4. One thread, so that the bytes depend on nothing but the frames."""
    with av.open(str(path), "w") as container:
        stream = cast(VideoStream, container.add_stream(encoder, rate=FRAME_RATE, options=_ENCODERS[encoder]))
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, FRAME_RATE)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = number, Fraction(1, FRAME_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _path(motion: str, rng: np.random.Generator) -> Iterator[Placement]:
    """The object's course relative to the background; all have the same middle and size on average."""
    middle_x, middle_y = SIDE / 2 + rng.uniform(-14, 14, size=2)
    speed = rng.uniform(0.5, 0.9)
    phase = rng.uniform(0, 2 * math.pi)
    sign = -1 if motion in ("left", "up", "counterclockwise", "shrinking") else 1
    for frame in range(FRAMES):
        # From -1/2 to 1/2 over the clip, backwards for the motions that are the others' reverse.
        time = sign * (frame / (FRAMES - 1) - 0.5)
        x, y, scale = middle_x, middle_y, 1.0
        match motion:
            case "left" | "right":
                x += speed * FRAMES * time
            case "up" | "down":
                y += speed * FRAMES * time
            case "clockwise" | "counterclockwise":
                # One turn, half as fast again as the others for a circle one can see. y points down: growing angles turn clockwise.
                radius = 1.5 * speed * FRAMES / (2 * math.pi)
                x += radius * math.cos(phase + 2 * math.pi * time)
                y += radius * math.sin(phase + 2 * math.pi * time)
            case "growing" | "shrinking":
                scale *= 2.0 ** (2 * speed * time)
        yield Placement(x=x, y=y, scale=scale)


def _object(name: str, rng: np.random.Generator) -> Image.Image:
    """A disc, square or diamond cut from a photograph, with a border that keeps it apart from any background: RGBA."""
    side = 2 * _OBJECT_SIDE
    picture = crop(name, side, rng).convert("RGBA")
    mask = Image.new("L", (side, side))
    corners: list[Point] = [(side / 2, 1), (side - 2, side / 2), (side / 2, side - 2), (1, side / 2)]
    colour = tuple(int(value) for value in rng.integers(0, 256, size=3))
    shape = rng.integers(3)
    for canvas, fill, line in ((ImageDraw.Draw(mask), 255, 255), (ImageDraw.Draw(picture), None, colour)):
        if shape == 0:
            canvas.ellipse((1, 1, side - 2, side - 2), fill=fill, outline=line, width=4)
        elif shape == 1:
            canvas.rectangle((8, 8, side - 9, side - 9), fill=fill, outline=line, width=4)
        else:
            canvas.polygon(corners, fill=fill, outline=line, width=4)
    picture.putalpha(mask)
    return picture


def _paste(picture: Image.Image, cutout: Image.Image, x: float, y: float, scale: float) -> None:
    """Draw the cutout, at `scale` times the object's side, with its centre at (x, y) in pixels."""
    zoom = cutout.width / (_OBJECT_SIDE * scale)
    left, top = cutout.width / 2 - zoom * x, cutout.height / 2 - zoom * y
    layer = cutout.transform(
        picture.size, Image.Transform.AFFINE, (zoom, 0, left, 0, zoom, top), Image.Resampling.BILINEAR
    )
    picture.paste(layer, (0, 0), layer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to write to")
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args(arguments)
    render(options.output, clips=options.clips, images=options.images, seed=options.seed, workers=options.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
