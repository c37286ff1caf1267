"""What of a clip an evaluation shows to the encoder: evenly spaced whole frames, or the codec's most salient patches; or a picture.

A view is a frozen description that is called on a file's bytes; it pickles, so that samples are decoded in processes.
Frames are stretched to a square, as in training; of a picture, the centre is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from megatron_ovenc.config.tree import SourceConfig
from megatron_ovenc.data.images import image_pixels
from megatron_ovenc.data.video import frame_pixels, length, open_frames
from megatron_ovenc.data.views import Clip, View, whole

VIRTUAL_FRAMES = 64
"""Length of the time axis that positions live on."""

IFramePolicy: TypeAlias = Literal["keep", "anchor", "free"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformFrames:
    """Whole frames, each from the middle of one of `frames` equal segments of the clip."""

    size: int
    """Side of a frame in pixels; a multiple of the patch size."""
    patch_size: int
    frames: int = 8
    """Frames shown of a clip."""

    def __post_init__(self) -> None:
        _check_grid(self.size, self.patch_size)
        if self.frames < 1:
            raise ValueError(f"--frames is {self.frames}; a clip must show at least 1 frame")

    @property
    def max_tokens(self) -> int:
        """Patches of a clip."""
        return self.frames * (self.size // self.patch_size) ** 2

    def __call__(self, content: bytes, frames: range | None = None) -> View:
        """All patches of the frames, `t` being the frame's place on the virtual time axis.

        Args:
            content: the video file.
            frames: the part of it that is the clip; None is all of it.

        Raises:
            BadSample: the clip is damaged.
        """
        pixels, times = uniform_frames(content, self.frames, self.size, frames)
        return whole_at(pixels, times, self.patch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecPatches:
    """The most salient patches of all (virtual) frames, selected and positioned exactly as in training."""

    size: int
    """Side of a frame in pixels; a multiple of the patch size."""
    patch_size: int
    tokens: int = 2048
    """Patch budget; a clip that has fewer patches shows them all."""
    i_frames: IFramePolicy = "keep"
    """As `heads.*.source.i_frames`."""

    def __post_init__(self) -> None:
        _check_grid(self.size, self.patch_size)
        if self.tokens < 1:
            raise ValueError(f"--tokens is {self.tokens}; a clip must show at least 1 patch")

    @property
    def max_tokens(self) -> int:
        """Patches of a clip that is long enough."""
        return min(self.tokens, VIRTUAL_FRAMES * (self.size // self.patch_size) ** 2)

    def __call__(self, content: bytes, frames: range | None = None) -> View:
        """The selected patches in the order of their positions; `frames` as in `UniformFrames`.

        Raises:
            BadSample: the clip is damaged.
        """
        source = SourceConfig(
            kind="video",
            shards=(),
            size=self.size,
            clip_frames=VIRTUAL_FRAMES,
            tokens=self.tokens,
            i_frames=self.i_frames,
        )
        return Clip(content, None, source, self.patch_size, frames).codec_view()


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A still picture, whole."""

    size: int
    """Side in pixels; a multiple of the patch size."""
    patch_size: int

    def __post_init__(self) -> None:
        _check_grid(self.size, self.patch_size)

    @property
    def max_tokens(self) -> int:
        """Patches of a picture."""
        return (self.size // self.patch_size) ** 2

    def __call__(self, content: bytes, frames: range | None = None) -> View:
        """All patches at t = 0; a picture has no `frames`.

        Raises:
            BadSample: the picture is damaged.
        """
        assert frames is None
        return whole(image_pixels(content, self.size, None)[None], self.patch_size)


SampleView: TypeAlias = UniformFrames | CodecPatches | Picture


def uniform_frames(content: bytes, count: int, size: int, frames: range | None = None) -> tuple[np.ndarray, np.ndarray]:
    """`count` frames uint8 [count, size, size, 3] and their virtual times int32 [count].

    A clip shorter than `count` shows frames more than once.

    Args:
        content: the video file.
        count: frames to take.
        size: side in pixels.
        frames: the part of the file to take them from; None is all of it.

    Raises:
        BadSample: the clip is damaged.
    """
    frames = range(length(open_frames(content))) if frames is None else frames
    indices = segment_centres(len(frames), count)
    distinct, places = np.unique(indices, return_inverse=True)
    return frame_pixels(content, frames.start + distinct, size)[places], virtual_times(indices, len(frames))


def segment_centres(total: int, count: int) -> np.ndarray:
    """The frame in the middle of each of `count` equal segments of frames 0..total-1, rounded down: int64 [count]."""
    return (2 * np.arange(count) + 1) * (total - 1) // (2 * count)


def virtual_times(indices: np.ndarray, total: int) -> np.ndarray:
    """Frames `indices` of a clip of `total` on the virtual time axis, half-way cases to the even number: int32, same shape."""
    return np.rint(indices / max(total - 1, 1) * (VIRTUAL_FRAMES - 1)).astype(np.int32)


def whole_at(pixels: np.ndarray, times: np.ndarray, patch_size: int) -> View:
    """All patches of frames uint8 [F, H, W, 3] in raster order, frame f being at t = times[f]."""
    view = whole(pixels, patch_size)
    positions = view.positions.copy()
    positions[:, 0] = times[positions[:, 0]]
    return View(patches=view.patches, positions=positions)


def _check_grid(size: int, patch_size: int) -> None:
    if size < patch_size or size % patch_size:
        raise ValueError(f"--size is {size}, not a multiple of the model's patch size {patch_size}")
