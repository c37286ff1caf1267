"""Render the demo's data: a ball that is shaken, swung or turned over photographs under a panning camera, and photographs.

    python -m tools.demo_data --output data --clips 320 --images 320 --seed 0 --workers 2

    data/clips/{train,probe,val}/<motion>/00000.mp4      32 frames of 112 x 112 at 30 fps, H.264 and HEVC in turn, GOP 16
    data/images/{train,probe,val}/<photograph>/00000.jpg

A clip's class is how its ball moves relative to the background. Ball, background, pan, speed and place are drawn alike for every
class, so a still frame without blur does not tell it. The shutter is open all the time, as in dim light: motion also leaves
streaks. Backgrounds are grey, the ball is the one thing in colour: a laptop's training of a few minutes has no time for more.
The photographs come with scikit-image; nothing is downloaded.
The same seed draws the same frames, some of which x264 encodes a little differently from run to run; train, probe and val are
different draws.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image, ImageDraw
from rich.progress import track

from codec.processes import process_pool
from megatron_ovenc.data.order import generator

MOTIONS = ("across", "upright", "falling", "rising", "circling", "pulsing", "turning", "resting")
"""Shaken along the rows, the columns, either diagonal; swung in a circle; blown up and let down; turned to and fro; left alone."""
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

FRAMES = 32
"""Of a clip, unless told otherwise."""
SIDE = 112
"""Of a clip, pixels."""
IMAGE_SIDE = 160
FRAME_RATE = 30
PROBE_SHARE, VAL_SHARE = 2 / 15, 0.2
"""Of the clips: few with labels, for probes, and those that are held out. The rest is for training, which reads no class."""
_BALL_SIDE = 36
_PAN = 0.35
"""Pixels a frame that the camera moves at most along either axis."""
_EXPOSURES = 5
"""Instants that a frame is the mean of."""

_ENCODERS = {
    "libx264": {"preset": "veryfast", "crf": "20", "x264-params": "keyint=16:min-keyint=16:scenecut=0:bframes=0:ref=1"},
    "libx265": {
        "preset": "superfast",
        "crf": "20",
        "x265-params": "keyint=16:min-keyint=16:scenecut=0:bframes=0:ref=1:pools=none:frame-threads=1:log-level=none",
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where the ball is at one instant, relative to where it rests: pixels to the right and down, size, degrees turned."""

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    angle: float = 0.0


def render(output: Path, *, clips: int, images: int, seed: int, workers: int, frames: int = FRAMES) -> None:
    """Write both data sets, classes in turn.

    Args:
        output: created if missing; files that are there are written anew.
        clips: number of clips of all splits.
        images: number of images, likewise.
        seed: of everything that is drawn.
        workers: processes.
        frames: of a clip.
    """
    jobs = [
        *_jobs(output / "clips", clips, MOTIONS, ".mp4", seed),
        *_jobs(output / "images", images, PHOTOGRAPHS, ".jpg", seed),
    ]
    for directory in {path.parent for path, *_ in jobs}:
        directory.mkdir(parents=True, exist_ok=True)
    with process_pool(workers) as pool:
        one = partial(_render_one, frames=frames)
        for _ in track(pool.map(one, jobs, chunksize=4), "rendering", total=len(jobs)):
            pass


def _jobs(folder: Path, count: int, classes: Sequence[str], suffix: str, seed: int) -> Iterator[tuple[Path, int, int]]:
    """Path, class number and seed of every file."""
    probe, val = round(count * PROBE_SHARE), round(count * VAL_SHARE)
    for split, size in (("train", count - probe - val), ("probe", probe), ("val", val)):
        for number in range(size):
            label, turn = number % len(classes), number // len(classes)
            yield folder / split / classes[label] / f"{turn:05d}{suffix}", label, seed


def _render_one(job: tuple[Path, int, int], frames: int) -> None:
    path, label, seed = job
    rng = generator("demo", seed, *path.parts[-4:])
    if path.suffix == ".jpg":
        crop(PHOTOGRAPHS[label], IMAGE_SIDE, rng).save(path, quality=90)
    else:
        # Within a class every other clip is HEVC, so that the codec says nothing about the class.
        encoder = tuple(_ENCODERS)[int(path.stem) % len(_ENCODERS)]
        encode(path, draw_clip(MOTIONS[label], rng, frames), encoder)


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


def draw_clip(motion: str, rng: np.random.Generator, frames: int = FRAMES) -> Iterator[Image.Image]:
    """The frames of one clip."""
    margin = math.ceil(_PAN * frames)
    background = crop(PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))], SIDE + 2 * margin, rng).convert("L")
    ball, middle = _ball(), SIDE / 2 + rng.uniform(-18, 18, size=2)
    amplitude, period, phase = rng.uniform(9, 14), rng.uniform(6, 9), rng.uniform(0, 2 * math.pi)
    pan = rng.uniform(-_PAN, _PAN, size=2)
    for frame in range(frames):
        # The camera is over the background's middle half-way through the clip.
        camera_x, camera_y = pan * (frame - (frames - 1) / 2)
        behind = background.transform(
            (SIDE, SIDE),
            Image.Transform.AFFINE,
            (1, 0, margin + camera_x, 0, 1, margin + camera_y),
            Image.Resampling.BILINEAR,
        ).convert("RGB")
        light = np.zeros((SIDE, SIDE, 3), np.float32)
        for exposure in range(_EXPOSURES):
            turns = (frame + exposure / _EXPOSURES) / period
            at = _placement(motion, amplitude, phase + 2 * math.pi * turns)
            picture = behind.copy()
            _paste(picture, ball, middle[0] + at.x - camera_x, middle[1] + at.y - camera_y, at)
            light += np.asarray(picture)
        yield Image.fromarray(np.rint(light / _EXPOSURES).astype(np.uint8))


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


def _placement(motion: str, amplitude: float, phase: float) -> Placement:
    """The ball at a phase of its swing, in radians. y points down."""
    swing, cross = math.sin(phase), math.cos(phase)
    match motion:
        case "across":
            return Placement(x=amplitude * swing)
        case "upright":
            return Placement(y=amplitude * swing)
        case "falling":
            return Placement(x=amplitude * swing / math.sqrt(2), y=amplitude * swing / math.sqrt(2))
        case "rising":
            return Placement(x=amplitude * swing / math.sqrt(2), y=-amplitude * swing / math.sqrt(2))
        case "circling":
            return Placement(x=amplitude * cross, y=amplitude * swing)
        case "pulsing":
            return Placement(scale=1 + 0.35 * swing)
        case "turning":
            return Placement(angle=50 * swing)
    return Placement()


@cache
def _ball() -> Image.Image:
    """A beach ball at twice its size, on nothing: RGBA."""
    side = 2 * _BALL_SIDE
    picture, mask = Image.new("RGBA", (side, side), (255, 0, 60, 255)), Image.new("L", (side, side))
    box = (1, 1, side - 2, side - 2)
    for start in range(0, 360, 90):
        ImageDraw.Draw(picture).pieslice(box, start, start + 45, fill=(255, 255, 0, 255))
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    picture.putalpha(mask)
    return picture


def _paste(picture: Image.Image, ball: Image.Image, x: float, y: float, at: Placement) -> None:
    """Draw the ball with its centre at (x, y) in pixels, as large and as far turned as `at` says."""
    zoom = ball.width / (_BALL_SIDE * at.scale)
    cos, sin = zoom * math.cos(math.radians(at.angle)), zoom * math.sin(math.radians(at.angle))
    # Only the square around the ball is drawn: that of the circle through its corners.
    reach = math.ceil(_BALL_SIDE * at.scale / math.sqrt(2)) + 1
    left, top = round(x) - reach, round(y) - reach
    x, y, half = x - left, y - top, ball.width / 2
    # Maps a pixel of that square to one of the ball: a turn and a zoom about the two centres.
    back = (cos, sin, half - cos * x - sin * y, -sin, cos, half + sin * x - cos * y)
    layer = ball.transform((2 * reach, 2 * reach), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    picture.paste(layer, (left, top), layer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to write to")
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames of a clip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args(arguments)
    render(
        options.output,
        clips=options.clips,
        images=options.images,
        seed=options.seed,
        workers=options.workers,
        frames=options.frames,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
