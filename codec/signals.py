"""`FrameSignals` of any clip: what its encoder, or failing that its pixels, say about every frame.

    for frame in codec.signals("clip.mp4"):
        print(frame.index, frame.type, frame.residual.mean())

A reader is chosen by codec and opened here; each decodes the clip once and yields pixels and signals together. Memory does
not grow with the length of the clip.
"""

from collections.abc import Callable, Generator, Iterator
from typing import TypeAlias

import av

from codec import estimate, h264
from codec.source import Clip, open_clip
from codec.types import FrameSignals, Source

Reader: TypeAlias = Callable[[Clip], Iterator[tuple[av.VideoFrame, FrameSignals]]]

_READERS: dict[str, Reader] = {"h264": h264.read}
"""Bitstream readers by FFmpeg's codec name; every other codec is estimated from its pixels."""


def decode(source: Source, *, name: str | None = None) -> Generator[tuple[av.VideoFrame, FrameSignals]]:
    """Decode a clip once, for callers that want the pixels too.

    Args:
        source: path of a clip, or its bytes.
        name: what error messages call it; by default the path.

    Yields:
        Each frame with its signals, in display order. H.264 is read from the bitstream (`codec.h264`); of other codecs the
        signals are measured on the decoded luma and marked `estimated` (`codec.estimate`).

    Raises:
        CodecError: the clip cannot be opened; or it is damaged or cut off, after its sound frames have been yielded.
    """
    with open_clip(source, name) as clip:
        yield from _READERS.get(clip.codec, estimate.read)(clip)


def signals(source: Source, *, name: str | None = None) -> Iterator[FrameSignals]:
    """The signals of a clip, one a frame in display order; arguments and errors as `decode`."""
    for _, frame in decode(source, name=name):
        yield frame
