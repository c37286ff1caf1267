"""Clips to the pixels of the frames that are needed, decoded once."""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np

import codec
from codec.source import open_clip, pictures
from megatron_ovenc.data.errors import BadSample

_NAME = "the clip"


def frame_count(content: bytes) -> int:
    """Number of frames, from the packets alone.

    Raises:
        BadSample: not a clip, or a truncated one.
    """
    try:
        return codec.frame_count(content, name=_NAME)
    except codec.CodecError as error:
        raise BadSample(str(error)) from error


def frame_pixels(content: bytes, wanted: np.ndarray, size: int) -> np.ndarray:
    """Frames at strictly increasing display indices `wanted` [m]: uint8 [m, size, size, 3], RGB.

    Decoding stops after the last of them.

    Raises:
        BadSample: the clip is damaged, or ends before a wanted frame.
    """
    last = int(wanted[-1])
    chosen = set(wanted.tolist())
    pixels = []
    try:
        with open_clip(content, _NAME) as clip:
            for index, picture in enumerate(pictures(clip)):
                if index in chosen:
                    pixels.append(_resized(picture.frame, size))
                if index == last:
                    break
    except codec.CodecError as error:
        raise BadSample(str(error)) from error
    if len(pixels) < len(wanted):
        raise BadSample(f"{_NAME} ends before frame {wanted[len(pixels)]}, which its packets or its sidecar promise")
    return np.stack(pixels)


def frame_pixels_and_signals(
    content: bytes, wanted: np.ndarray, size: int
) -> tuple[np.ndarray, list[codec.FrameSignals]]:
    """As `frame_pixels`, with the codec's signals of the same frames, each answering for the skipped ones before it."""
    chosen = set(wanted.tolist())
    pixels = []

    def signals() -> Iterator[codec.FrameSignals]:
        for frame, found in codec.decode(content, name=_NAME):
            if found.index in chosen:
                pixels.append(_resized(frame, size))
            yield found

    try:
        described = codec.sample(signals(), wanted)
    except ValueError as error:  # a CodecError is one, and so is a clip that ends too early
        raise BadSample(str(error)) from error
    return np.stack(pixels), described


def _resized(frame: av.VideoFrame, size: int) -> np.ndarray:
    """uint8 [size, size, 3]; the picture is stretched to a square, as saliency grids are."""
    return frame.to_ndarray(format="rgb24", width=size, height=size, interpolation="BICUBIC")
