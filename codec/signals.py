"""`FrameSignals` of any clip: what its encoder, or failing that its pixels, say about every frame.

    for frame in codec.signals("clip.mp4"):
        print(frame.index, frame.type, frame.residual.mean())

A reader is chosen by codec and opened here. Memory does not grow with the length of the clip.
"""

import warnings
from collections.abc import Callable, Generator, Iterator
from typing import TypeAlias, TypeVar

import av

from codec import estimate, h264
from codec.hevc import reader as hevc
from codec.source import Clip, open_clip
from codec.types import FrameSignals, Source, UnsupportedStream

Reader: TypeAlias = Callable[[Clip], Iterator[tuple[av.VideoFrame, FrameSignals]]]
T = TypeVar("T")

_READERS: dict[str, Reader] = {"h264": h264.read, "hevc": hevc.read}
"""Bitstream readers by FFmpeg's codec name; every other codec is estimated from its pixels."""


def decode(source: Source, *, name: str | None = None) -> Generator[tuple[av.VideoFrame, FrameSignals]]:
    """Decode a clip once, for callers that want the pixels too.

    Args:
        source: path of a clip, or its bytes.
        name: what error messages call it; by default the path.

    Yields:
        Each frame with its signals, in display order. H.264 and HEVC are read from the bitstream (`codec.h264`, `codec.hevc`); of
        other codecs the signals are measured on the decoded luma and marked `estimated` (`codec.estimate`). So are those of a
        clip that its reader does not support, after a warning that names the clip and the feature.

    Raises:
        CodecError: the clip cannot be opened; or it is damaged or cut off, after its sound frames have been yielded.
    """
    with open_clip(source, name) as clip:
        supported = yield from _unless_unsupported(_READERS.get(clip.codec, estimate.read)(clip))
    if not supported:
        yield from _estimate(source, name)


def signals(source: Source, *, name: str | None = None) -> Iterator[FrameSignals]:
    """The signals of a clip, one a frame in display order; arguments and errors as `decode`. No pixel of HEVC is decoded."""
    with open_clip(source, name) as clip:
        is_hevc = clip.codec == "hevc"
        supported = is_hevc and (yield from _unless_unsupported(hevc.signals(clip)))
    if not supported:
        for _, frame in _estimate(source, name) if is_hevc else decode(source, name=name):
            yield frame


def _unless_unsupported(frames: Iterator[T]) -> Generator[T, None, bool]:
    """All frames; or, if their reader supports nothing of the clip, none, a warning and False."""
    try:
        first = next(frames, None)
    except UnsupportedStream as error:
        warnings.warn(f"{error}; its signals are estimated from its pixels instead", stacklevel=3)
        return False
    if first is not None:
        yield first
        yield from frames
    return True


def _estimate(source: Source, name: str | None) -> Iterator[tuple[av.VideoFrame, FrameSignals]]:
    with open_clip(source, name) as clip:
        yield from estimate.read(clip)
