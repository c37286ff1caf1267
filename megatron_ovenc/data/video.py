"""Clips to the pixels of the frames that are needed, decoded once."""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

import codec
from codec.source import open_clip, pictures
from megatron_ovenc.data.errors import BadSample

_NAME = "the clip"


def frame_count(content: bytes) -> int:
    """Number of frames, found by decoding: what containers promise is not always so.

    Raises:
        BadSample: not a clip, or a damaged one.
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
    resize = _Resizer(size)
    pixels = []
    try:
        with open_clip(content, _NAME) as clip:
            for index, picture in enumerate(pictures(clip)):
                if index in chosen:
                    pixels.append(resize(picture.frame))
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
    resize = _Resizer(size)
    pixels = []

    def signals() -> Iterator[codec.FrameSignals]:
        for frame, found in codec.decode(content, name=_NAME):
            if found.index in chosen:
                pixels.append(resize(frame))
            yield found

    try:
        described = codec.sample(signals(), wanted)
    except ValueError as error:  # a CodecError is one, and so is a clip that ends too early
        raise BadSample(str(error)) from error
    return np.stack(pixels), described


class _Resizer:
    """RGB squares from decoded frames; the filters are set up once a clip, which else costs several times the work itself."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [size, size, 3]; the picture is stretched to a square, as saliency grids are."""
        side = self._size
        resized = self._reformatter.reformat(frame, side, side, "rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        return resized.to_ndarray()
