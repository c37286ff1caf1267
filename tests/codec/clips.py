"""Small clips with known motion, encoded on the spot by FFmpeg's encoders."""

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

P_ONLY = {"x264-params": "bframes=0:ref=1:weightp=0:keyint=1000:scenecut=0:mbtree=0"}
FLAT_B = {"x264-params": "bframes=2:b-adapt=0:b-pyramid=none:ref=1:weightp=0:weightb=0:keyint=1000:scenecut=0"}
PYRAMID = {"x264-params": "bframes=3:b-adapt=0:b-pyramid=normal:ref=1:weightp=0:weightb=0:keyint=1000:scenecut=0"}


def encode(
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container: str = "mp4",
    pixel_format: str = "yuv420p",
) -> bytes:
    """Encode grey frames [H, W] (uint8; even sizes) and return the file. MP4 files have their index in front."""
    # Moving the index to the front reads the file again, which a buffer in memory does not allow.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        muxing = {"movflags": "+faststart"} if container == "mp4" else {}
        with av.open(str(path), "w", format=container, options=muxing) as output:
            stream = output.add_stream(codec, rate=25, options=options or {})
            assert isinstance(stream, VideoStream)
            stream.height, stream.width = frames[0].shape
            stream.pix_fmt = pixel_format
            stream.time_base = Fraction(1, 25)
            for pts, grey in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(grey, format="gray").reformat(format=pixel_format)
                frame.pts = pts
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path.read_bytes()


def trimmed(clip: bytes, hidden: int, count: int) -> bytes:
    """An MP4 whose edit list hides its first frames, as lossless cutters make it."""
    at = clip.index(b"elst")
    duration, start = (int.from_bytes(clip[at + place : at + place + 4], "big") for place in (12, 16))
    edit = (duration * (count - hidden) // count).to_bytes(4, "big") + (start + 12800 * hidden // 25).to_bytes(4, "big")
    return clip[: at + 12] + edit + clip[at + 20 :]


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random texture: uint8 [H, W], contrast enough to match blocks, no detail finer than a few pixels."""
    noise = np.random.default_rng(seed).standard_normal((height, width))
    for axis in (0, 1):
        for _ in range(3):
            noise = (np.roll(noise, 1, axis) + 2 * noise + np.roll(noise, -1, axis)) / 4
    return (128 + 45 * noise / noise.std()).clip(20, 235).astype(np.uint8)


def moving_square(
    count: int,
    size: tuple[int, int],
    velocity: tuple[int, int],
    side: int = 32,
    start: tuple[int, int] = (16, 16),
    textured_floor: bool = False,
) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """A textured square moving by `velocity` = (x, y) pixels a frame over a still floor; also its (x, y) corner per frame."""
    square = texture(side, side, seed=1)
    floor = texture(*size, seed=9) if textured_floor else np.full(size, 128, np.uint8)
    corners = [(start[0] + t * velocity[0], start[1] + t * velocity[1]) for t in range(count)]
    frames = []
    for x, y in corners:
        frame = floor.copy()
        frame[y : y + side, x : x + side] = square
        frames.append(frame)
    return frames, corners


def panning(count: int, size: tuple[int, int], velocity: tuple[float, float], seed: int = 0) -> list[np.ndarray]:
    """A texture that wraps around, shifted by `velocity` = (x, y) pixels a frame, exactly also by parts of a pixel."""
    spectrum = np.fft.fft2(texture(*size, seed=seed))
    turns = np.fft.fftfreq(size[0])[:, None] * velocity[1] + np.fft.fftfreq(size[1]) * velocity[0]
    shifted = (np.fft.ifft2(spectrum * np.exp(-2j * np.pi * turns * t)).real for t in range(count))
    return [frame.round().clip(0, 255).astype(np.uint8) for frame in shifted]
