"""Clips to pixels: the frames that are needed are decoded, the patches that are shown are cut out of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

import codec
from megatron_ovenc.data.errors import BadSample

_NAME = "the clip"


def open_frames(content: bytes) -> codec.Frames:
    """The frames of a clip by number.

    Raises:
        BadSample: not a clip, or one whose damage or truncation shows in its packets.
    """
    with _bad_samples():
        return codec.Frames(content, _NAME)


def length(frames: codec.Frames) -> int:
    """Number of a clip's frames.

    Raises:
        BadSample: the clip is damaged.
    """
    with _bad_samples():
        return frames.count


def frame_count(content: bytes) -> int:
    """Number of frames, found by decoding all of them, so that damage anywhere shows.

    Raises:
        BadSample: not a clip, or a damaged one.
    """
    with _bad_samples():
        return codec.frame_count(content, name=_NAME)


def cut_patches(
    frames: codec.Frames, indices: np.ndarray, positions: np.ndarray, cutter: codec.Cutter, patch_size: int
) -> np.ndarray:
    """Patches of a clip: uint8 [n, 3 * p * p], channel-major.

    Args:
        frames: the clip's.
        indices: display index of the frame that each t stands for, [T], strictly increasing.
        positions: t, row, col of each patch, int32 [n, 3], in order of t; t beyond T - 1 is the last frame.
        cutter: of patches of p = `patch_size` pixels.

    Raises:
        BadSample: the clip is damaged, or ends before a wanted frame.
    """
    patches = np.empty((len(positions), 3, patch_size, patch_size), np.uint8)
    times, begins = np.unique(np.minimum(positions[:, 0], len(indices) - 1), return_index=True)
    rows, cols = np.ascontiguousarray(positions[:, 1]), np.ascontiguousarray(positions[:, 2])
    ends = [*begins[1:], len(positions)]
    with _bad_samples():
        for frame, begin, end in zip(frames.at(indices[times]), begins, ends, strict=True):
            cutter(frame, rows[begin:end], cols[begin:end], patches[begin:end])
    return patches.reshape(len(patches), -1)


def frame_pixels(content: bytes, wanted: np.ndarray, size: int) -> np.ndarray:
    """Frames at strictly increasing display indices `wanted` [m]: uint8 [m, size, size, 3], RGB, stretched to squares.

    Raises:
        BadSample: the clip is damaged, or ends before a wanted frame.
    """
    cutter = codec.Cutter((1, 1), size)
    with _bad_samples():
        return np.stack([cutter.whole(frame) for frame in codec.Frames(content, _NAME).at(wanted)])


def frame_signals(content: bytes, wanted: np.ndarray) -> list[codec.FrameSignals]:
    """What the encoder said about frames at strictly increasing display indices, each answering for the skipped ones before it.

    Raises:
        BadSample: the clip is damaged, or ends before a wanted frame.
    """
    with _bad_samples():
        return codec.sample(codec.signals(content, name=_NAME), wanted)


def analysed(content: bytes, grid: tuple[int, int], clip_frames: int) -> codec.Sidecar:
    """What a sidecar of the clip would hold.

    Raises:
        BadSample: the clip is damaged.
    """
    with _bad_samples():
        return codec.analyse(content, grid, virtual_frames=clip_frames, name=_NAME)


@contextmanager
def _bad_samples() -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # a CodecError is one, and so is what `codec.sample` says of a clip that ends too early
        raise BadSample(str(error)) from error
