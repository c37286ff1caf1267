"""H.264 signals: the encoder's own motion vectors, and the residual they leave.

FFmpeg exports, per predicted block, the vector and whether it points to the past (list 0) or the future (list 1). What
it does not export makes these signals approximate, in six ways:

- *Which reference.* Slice headers say how many references a vector can name (`h264_headers`). Where that is one, it is the
  nearest in display order, in the vector's direction, that was decoded before: index 0 of the lists x264 builds. Of several, at
  most the four nearest are tried for a block: the nearest stays if it predicts the block to 2 grey levels, or if no other leaves
  less than 0.9 of what it leaves. In two real clips (487 and 737 frames, x264) the mean residual so is 2.64 and 0.69 grey
  levels; always taking the nearest it is 3.11 and 1.21, always the best of four 2.63 and 0.68. Where the true reference is
  known (two scenes that take turns, 4 references, nothing but predictions coded), 93 % of the cells come out bit for bit, by the
  nearest 8 %.
- *Sub-8x8 partitions.* Each 8x8 quarter of a macroblock carries the vector of its first partition.
- *Weighted prediction.* Two predictions are averaged with equal weights, and single ones are not scaled.
- *Field coding.* Vectors of interlaced macroblocks are read as if they were of frames.
- *Edges.* Beyond the picture its last pixels are repeated; the decoder repeats those of whole macroblocks, which FFmpeg crops.
- *Every second line.* The residual of a cell is |decoded - predicted| luma, after the loop filter, over lines 0 and 2 of its four:
  that takes two thirds of the time. Against all lines, on 200 frames of the same clips, cells correlate by 0.99, the saliency of
  12 x 21 patches by 0.999, and 97 % of the top eighth of the patches are the same.

With one reference, no weights and a progressive stream the interpolation is the decoder's own (see `compensate`): where hardly
any residual is coded (QP 51, no loop filter), 99 % of the cells of a 144x128 clip come out equal bit for bit, and 93 % of a 42x98
clip, whose differing cells lie mostly at the cropped edges. What part of the rest is coded residual is not known.

Blocks without a vector in a P or B frame are intra coded: the encoder found nothing to predict them from. They get motion
0 and the difference to the same place in the past reference, so that new content weighs as much as it changes the picture.
An I frame is predicted from no other, and has neither motion nor residual.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags2
from av.sidedata.sidedata import SideDataContainer

from codec.compensate import RECORD_BYTES, Reference, core, motion_and_residual
from codec.h264_headers import HeaderReader, PictureHeader
from codec.source import Clip, Luma, Picture, frame_signals, frame_type, luma, pictures
from codec.types import FrameSignals, FrameType, cell_grid

MAX_CANDIDATES = 4
"""References of a list that are tried for a block, at most."""
_MAX_REORDER = 16
"""Most pictures H.264 lets a decoder hold back: a future reference that is later than that does not come."""
_MAX_PAST = 8
"""References remembered: those a 16-frame pyramid of B frames has decoded too late for the frame that closes it, and one."""


@dataclass(slots=True)
class _Coded:
    """A picture waiting to be described."""

    picture: Picture
    index: int
    type: FrameType
    luma: Luma
    header: PictureHeader
    vectors: npt.NDArray[np.uint8] | None
    """[records, RECORD_BYTES], as FFmpeg exports them."""
    needs_future: bool


def read(clip: Clip) -> Iterator[tuple[av.VideoFrame, FrameSignals]]:
    """Frames and signals of an H.264 clip, in display order.

    Raises:
        UnsupportedStream: the compiled core was not built.
        CodecError: as `source.pictures`.
    """
    core()
    context = clip.stream.codec_context
    context.flags2 |= Flags2.export_mvs
    headers = HeaderReader(context.extradata or b"")
    past: deque[_Coded] = deque(maxlen=_MAX_PAST)
    waiting: deque[_Coded] = deque()
    for index, picture in enumerate(pictures(clip)):
        waiting.append(_coded(picture, index, headers))
        while waiting and _is_ready(waiting):
            yield _emit(clip, waiting, past)
    while waiting:
        yield _emit(clip, waiting, past)


def _coded(picture: Picture, index: int, headers: HeaderReader) -> _Coded:
    frame = picture.frame
    # Not `frame.side_data`: that keeps frame and side data alive in a cycle, hundreds of frames long, until Python looks for it.
    side_data = cast(Any, SideDataContainer)(frame).get("MOTION_VECTORS")
    # Not `to_ndarray`, which takes longer to name the fields than they take to read.
    vectors = None if side_data is None else np.frombuffer(side_data, np.uint8).reshape(-1, RECORD_BYTES)
    return _Coded(
        picture=picture,
        index=index,
        type=frame_type(frame),
        luma=luma(frame),
        header=headers.read(picture.data),
        vectors=vectors,
        # A record begins with its `source`: below zero for the past, above for the future.
        needs_future=vectors is not None and bool((vectors.view(np.int32)[:, 0] > 0).any()),
    )


def _is_ready(waiting: deque[_Coded]) -> bool:
    """Whether the first waiting picture's references are all here."""
    first = waiting[0]
    return not first.needs_future or len(waiting) > _MAX_REORDER or any(_future(waiting))


def _future(waiting: deque[_Coded]) -> Iterator[_Coded]:
    """What the first waiting picture may be predicted from among those displayed after it, nearest first."""
    first = waiting[0]
    return (other for other in waiting if other.index > first.index and _can_predict(other, first))


def _can_predict(other: _Coded, picture: _Coded) -> bool:
    return other.header.is_reference and other.picture.order < picture.picture.order


def _emit(clip: Clip, waiting: deque[_Coded], past: deque[_Coded]) -> tuple[av.VideoFrame, FrameSignals]:
    """Describe the first waiting picture and file it under the past."""
    coded = waiting[0]
    before = (other for other in reversed(past) if _can_predict(other, coded))
    back, ahead = (
        [
            Reference(luma=other.luma, distance=abs(other.index - coded.index))
            for other in islice(nearest, min(MAX_CANDIDATES, max(1, active)))
        ]
        for nearest, active in zip((before, _future(waiting)), coded.header.active, strict=True)
    )
    motion, residual = (
        _still(coded.luma)
        if coded.type == "I" or not back
        else motion_and_residual(coded.luma, back, ahead, coded.vectors)
    )
    waiting.popleft()
    if coded.header.is_reference:
        past.append(coded)
    signals = frame_signals(clip, coded.picture, index=coded.index, motion=motion, residual=residual, estimated=False)
    return coded.picture.frame, signals


def _still(picture: Luma) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Motion and residual of a picture that is predicted from no other."""
    rows, cols = cell_grid(*picture.shape)
    return np.zeros((rows, cols, 2), np.float32), np.zeros((rows, cols), np.float32)
