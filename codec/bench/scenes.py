"""Rendered scenes whose moving objects are known to the pixel, encoded by real encoders.

A textured floor seen by a camera that stands, pans or zooms; over it, textured discs that move relative to the floor; over
all, sensor noise. The seed changes textures, directions and places.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias, get_args

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

CameraMove: TypeAlias = Literal["static", "pan", "zoom"]
Objects: TypeAlias = Literal["small fast", "large slow"]

HEIGHT, WIDTH, FRAMES = 224, 320, 64
NOISES = (0.0, 4.0)
"""Standard deviations of sensor noise in grey levels."""
ENCODERS = {
    "h264": ("libx264", {"preset": "medium", "crf": "23"}),
    "hevc": ("libx265", {"preset": "medium", "crf": "26", "x265-params": "log-level=none"}),
}
_RADIUS = {"small fast": 11.0, "large slow": 36.0}
_SPEED = {"small fast": 5.0, "large slow": 0.8}
_COUNT = {"small fast": 3, "large slow": 1}
_PAN = 1.6
_ZOOM = 1.004
_FLOOR = 768
_COVERED = 0.25
"""Share of a patch from which an object counts as in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What is rendered."""

    camera: CameraMove
    objects: Objects
    noise: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.camera} camera, {self.objects} objects, noise {self.noise:g}, seed {self.seed}"


def scenes(seeds: int) -> list[Scene]:
    """Every camera with every kind of object, with and without noise, for each seed."""
    return [
        Scene(camera=camera, objects=objects, noise=noise, seed=seed)
        for seed in range(seeds)
        for camera in get_args(CameraMove)
        for objects in get_args(Objects)
        for noise in NOISES
    ]


def render(scene: Scene) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
    """Frames [H, W] and where objects are in them [H, W]."""
    rng = np.random.default_rng([scene.seed, *scene.name.encode()])
    floor = texture(rng, _FLOOR)
    count, radius, speed = _COUNT[scene.objects], _RADIUS[scene.objects], _SPEED[scene.objects]
    skins = [texture(rng, 128) for _ in range(count)]
    angles = rng.uniform(0, 2 * np.pi, count + 1)
    velocities = speed * np.stack([np.cos(angles[1:]), np.sin(angles[1:])], -1)
    places = rng.uniform((radius, radius), (WIDTH - radius, HEIGHT - radius), (count, 2))
    pan = _PAN * np.array([np.cos(angles[0]), np.sin(angles[0])]) if scene.camera == "pan" else np.zeros(2)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    for t in range(FRAMES):
        scale = _ZOOM**-t if scene.camera == "zoom" else 1.0
        centre = _FLOOR / 2 + pan * t
        picture = bilinear(floor, (x - WIDTH / 2) * scale + centre[0], (y - HEIGHT / 2) * scale + centre[1])
        mask = np.zeros((HEIGHT, WIDTH), np.bool_)
        for skin, place in zip(skins, places, strict=True):
            inside = (x - place[0]) ** 2 + (y - place[1]) ** 2 < radius**2
            picture[inside] = bilinear(skin, x[inside] - place[0] + 64, y[inside] - place[1] + 64)
            mask |= inside
        seen = picture + rng.normal(0, scene.noise, picture.shape) if scene.noise else picture
        yield seen.round().clip(0, 255).astype(np.uint8), mask
        places = places + velocities
        # Objects bounce off the edges.
        outside = (places < radius) | (places > np.array([WIDTH, HEIGHT]) - radius)
        velocities = np.where(outside, -velocities, velocities)
        places = places.clip(radius, np.array([WIDTH, HEIGHT]) - radius)


def object_patches(masks: npt.NDArray[np.bool_], grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Patches [T, rows, cols] that an object covers by a quarter or more, from masks [T, H, W] that the grid divides."""
    frames, height, width = masks.shape
    rows, cols = grid
    cover = masks.reshape(frames, rows, height // rows, cols, width // cols).mean(axis=(2, 4))
    return cover >= _COVERED


def texture(rng: np.random.Generator, side: int) -> npt.NDArray[np.float32]:
    """A square of noise with structure at every scale, as surfaces have: amplitude falls as 1 / frequency."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    spectrum = np.fft.fft2(rng.standard_normal((side, side))) / np.maximum(frequency, 4 / side)
    noise = np.fft.ifft2(spectrum).real
    return (rng.uniform(90, 165) + 38 * noise / noise.std()).clip(16, 235).astype(np.float32)


def encode(pictures: Iterator[npt.NDArray[np.uint8]], encoder: str, options: dict[str, str]) -> bytes:
    """Pictures of one size, grey [H, W] or RGB [H, W, 3], as a Matroska file, encoded on one thread.

    x264 does not always give the same file twice (its macroblock tree, with noise and B frames): recall varies by some tenths of a
    percent from run to run.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream(encoder, rate=25, options=options)
        assert isinstance(stream, VideoStream)
        stream.codec_context.thread_count = 1
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 25)
        for t, picture in enumerate(pictures):
            source = av.VideoFrame.from_ndarray(picture, format="gray" if picture.ndim == 2 else "rgb24")
            if t == 0:
                stream.width, stream.height = source.width, source.height
            frame = source.reformat(format="yuv420p")
            frame.pts = t
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> npt.NDArray[np.float32]:
    """Samples of an image [H, W] that wraps around, at any places."""
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    across, down = (x - left).astype(np.float32), (y - top).astype(np.float32)
    height, width = image.shape
    left, top, right, bottom = left % width, top % height, (left + 1) % width, (top + 1) % height
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return upper * (1 - down) + lower * down
