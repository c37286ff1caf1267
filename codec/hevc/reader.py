"""`FrameSignals` of an HEVC clip.

Everything is the encoder's own, nothing is estimated:

- *Motion* is how far content moved since the frame shown before, by each short-term reference's vector and distance; the mean of
  both where a cell is predicted from two. Cells that are intra coded, or predicted from long-term references only, have none.
- *Residual* is the root mean square of the coded luma residual over a cell's pixels, before the loop filters, where other readers
  take the mean of the absolute difference.
- *Bits* are the coding unit's, spread evenly over its cells.

I frames have neither motion nor residual, as in `codec.h264`: they are predicted from no other frame, so their residual says
nothing of what is new. Their bits are theirs; `codec.hevc.frames` has their residual too.
"""

from collections import deque
from collections.abc import Iterator

import av
import numpy as np

from codec.hevc.parser import Parsed, Parser, parse
from codec.source import Clip, Picture, pictures
from codec.types import BLOCK_SIZE, CodecError, FrameSignals, cell_grid


def signals(clip: Clip) -> Iterator[FrameSignals]:
    """The signals of an HEVC clip in display order, without decoding its pixels.

    Raises:
        UnsupportedStream, CodecError: as `parser.parse`.
    """
    for index, parsed in enumerate(parse(clip)):
        yield _signals(clip, parsed, index)


def read(clip: Clip) -> Iterator[tuple[av.VideoFrame, FrameSignals]]:
    """Frames and signals of an HEVC clip in display order: FFmpeg decodes the same packets as the reader parses.

    Raises:
        UnsupportedStream: see there.
        CodecError: as `parser.parse` and `source.pictures`, or where the two disagree on which frames are shown.
    """
    parser = Parser(clip)
    decoded: deque[Picture] = deque()
    parsed: deque[Parsed] = deque()
    index = 0
    damage: CodecError | None = None
    frames = pictures(clip, parser.read)
    while damage is None:
        try:
            decoded.append(next(frames))
        except StopIteration:
            break
        except CodecError as error:
            damage = error
        parsed.extend(parser.take())
        while decoded and parsed:
            yield _pair(clip, decoded.popleft(), parsed.popleft(), index)
            index += 1
        if not parsed:
            damage = damage or parser.damage
    if damage is None:
        parser.end()
        parsed.extend(parser.take())
        damage = parser.damage
    while decoded and parsed:
        yield _pair(clip, decoded.popleft(), parsed.popleft(), index)
        index += 1
    if damage is not None:
        raise damage
    if decoded or parsed:
        raise CodecError(
            f"{clip.name}: FFmpeg shows {index + len(decoded)} frames, its bitstream {index + len(parsed)}"
        )


def _pair(clip: Clip, picture: Picture, parsed: Parsed, index: int) -> tuple[av.VideoFrame, FrameSignals]:
    if picture.order != parsed.picture.order:
        raise CodecError(
            f"{clip.name}: frame {index} is packet {picture.order} by FFmpeg, packet {parsed.picture.order} by its bitstream"
        )
    return picture.frame, _signals(clip, parsed, index)


def _signals(clip: Clip, parsed: Parsed, index: int) -> FrameSignals:
    picture, base = parsed.picture, clip.stream.time_base
    rows, cols = cell_grid(picture.height, picture.width)
    intra = picture.type == "I"
    return FrameSignals(
        index=index,
        pts=parsed.pts,
        time=None if parsed.pts is None or base is None else float(parsed.pts * base),
        type=picture.type,
        key_frame=picture.key_frame,
        height=picture.height,
        width=picture.width,
        block_size=BLOCK_SIZE,
        motion=np.zeros((rows, cols, 2), np.float32) if intra else picture.displacement(parsed.step),
        residual=np.zeros((rows, cols), np.float32) if intra else picture.residual(),
        bits=picture.bits(),
        frame_bytes=parsed.size,
        estimated=False,
    )
