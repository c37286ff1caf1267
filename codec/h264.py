"""H.264 signals: the encoder's own motion vectors, and the residual they leave.

FFmpeg exports, per predicted block, the vector and whether it points to the past (list 0) or the future (list 1). What
it does not export makes these signals approximate, in five ways:

- *Which reference.* With several references a vector may name any of them. It is taken to name the nearest one in
  display order, in its direction, that was decoded before: index 0 of the lists x264 builds, and the commonest. In two
  real clips (90 frames, x264, 4 references, no B frames) another reference fitted 10 to 14 % of the macroblocks clearly better,
  and the mean residual was 1.5 to 1.8 times that of the best-fitting one, which is a lower bound of the true residual.
- *Sub-8x8 partitions.* Each 8x8 quarter of a macroblock carries the vector of its first partition.
- *Weighted prediction.* Two predictions are averaged with equal weights, and single ones are not scaled.
- *Field coding.* Vectors of interlaced macroblocks are read as if they were of frames.
- *Edges.* Beyond the picture its last pixels are repeated; the decoder repeats those of whole macroblocks, which FFmpeg crops.

With one reference, no weights and a progressive stream the interpolation is the decoder's own (see `compensate`): where hardly
any residual is coded (QP 51, no loop filter), 99 % of the cells of a 144x128 clip come out equal bit for bit, and 93 % of a 42x98
clip, whose differing cells lie mostly at the cropped edges. What part of the rest is coded residual is not known.
The residual is |decoded - predicted| luma, after the loop filter.

Blocks without a vector in a P or B frame are intra coded: the encoder found nothing to predict them from. They get motion
0 and the difference to the same place in the past reference, so that new content weighs as much as it changes the picture.
An I frame is predicted from no other, and has neither motion nor residual.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags2
from av.sidedata.sidedata import SideDataContainer

from codec.compensate import Reference, average, cell_residual, predict, reference
from codec.source import Clip, Luma, Picture, frame_signals, frame_type, luma, pictures
from codec.types import BLOCK_SIZE, FrameSignals, FrameType, cell_grid

_MAX_REORDER = 16
"""Most pictures H.264 lets a decoder hold back: a future reference that is later than that does not come."""
_MAX_PAST = 8
"""References remembered: those a 16-frame pyramid of B frames has decoded too late for the frame that closes it, and one."""
_MACROBLOCK = 16
_PAST, _FUTURE = -1, 1


@dataclass(slots=True)
class _Coded:
    """A picture waiting to be described."""

    picture: Picture
    index: int
    type: FrameType
    luma: Luma
    is_reference: bool
    vectors: np.ndarray | None
    interpolated: Reference | None = field(default=None)

    @property
    def needs_future(self) -> bool:
        return self.vectors is not None and bool((self.vectors["source"] == _FUTURE).any())

    def as_reference(self) -> Reference:
        """Interpolated once, however many pictures are predicted from it."""
        if self.interpolated is None:
            self.interpolated = reference(self.luma)
        return self.interpolated


def read(clip: Clip) -> Iterator[tuple[av.VideoFrame, FrameSignals]]:
    """Frames and signals of an H.264 clip, in display order.

    Raises:
        CodecError: as `source.pictures`.
    """
    context = clip.stream.codec_context
    context.flags2 |= Flags2.export_mvs
    extradata = context.extradata or b""
    # An avcC record (version 1) gives the length of the size before each unit; without one, units follow start codes.
    length_bytes = (extradata[4] & 3) + 1 if extradata[:1] == b"\x01" else None
    past: deque[_Coded] = deque(maxlen=_MAX_PAST)
    waiting: deque[_Coded] = deque()
    for index, picture in enumerate(pictures(clip)):
        waiting.append(_coded(picture, index, length_bytes))
        while waiting and _is_ready(waiting):
            yield _emit(clip, waiting, past)
    while waiting:
        yield _emit(clip, waiting, past)


def _coded(picture: Picture, index: int, length_bytes: int | None) -> _Coded:
    frame = picture.frame
    # Not `frame.side_data`: that keeps frame and side data alive in a cycle, hundreds of frames long, until Python looks for it.
    side_data = cast(Any, SideDataContainer)(frame).get("MOTION_VECTORS")
    return _Coded(
        picture=picture,
        index=index,
        type=frame_type(frame),
        luma=luma(frame),
        is_reference=_is_reference(picture.data, length_bytes),
        vectors=None if side_data is None else side_data.to_ndarray(),
    )


def _is_ready(waiting: deque[_Coded]) -> bool:
    """Whether the first waiting picture's references are all here."""
    first = waiting[0]
    return not first.needs_future or _future(waiting) is not None or len(waiting) > _MAX_REORDER


def _future(waiting: deque[_Coded]) -> _Coded | None:
    first = waiting[0]
    later = (other for other in waiting if other.index > first.index)
    return next((other for other in later if _can_predict(other, first)), None)


def _can_predict(other: _Coded, picture: _Coded) -> bool:
    return other.is_reference and other.picture.order < picture.picture.order


def _emit(clip: Clip, waiting: deque[_Coded], past: deque[_Coded]) -> tuple[av.VideoFrame, FrameSignals]:
    """Describe the first waiting picture and file it under the past."""
    coded = waiting[0]
    before = next((other for other in reversed(past) if _can_predict(other, coded)), None)
    motion, residual = _motion_and_residual(coded, before, _future(waiting))
    waiting.popleft()
    if coded.is_reference:
        past.append(coded)
    signals = frame_signals(clip, coded.picture, index=coded.index, motion=motion, residual=residual, estimated=False)
    return coded.picture.frame, signals


def _motion_and_residual(
    coded: _Coded, before: _Coded | None, after: _Coded | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Motion [rows, cols, 2] and residual [rows, cols] of one picture, from its nearest references."""
    rows, cols = cell_grid(*coded.luma.shape)
    if coded.type == "I" or before is None:
        return np.zeros((rows, cols, 2), np.float32), np.zeros((rows, cols), np.float32)
    back, has_back = _vector_field(coded, _PAST)
    ahead, has_ahead = _vector_field(coded, _FUTURE)
    prediction = predict(before.as_reference(), back)
    # A vector leads from the picture to its reference: content came from the past one, and goes to the future one.
    motion = -back / np.float32(4 * (coded.index - before.index))
    if after is not None and has_ahead.any():
        prediction_ahead = predict(after.as_reference(), ahead)
        motion_ahead = ahead / np.float32(4 * (after.index - coded.index))
        both = has_back & has_ahead
        only_ahead = has_ahead & ~has_back
        motion = np.where(both[..., None], (motion + motion_ahead) / 2, motion)
        motion = np.where(only_ahead[..., None], motion_ahead, motion)
        prediction = np.where(_to_pixels(both, coded.luma), average(prediction, prediction_ahead), prediction)
        prediction = np.where(_to_pixels(only_ahead, coded.luma), prediction_ahead, prediction)
    return motion.astype(np.float32, copy=False), cell_residual(coded.luma, prediction)


def _vector_field(coded: _Coded, direction: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Vectors [rows, cols, 2] of one direction in quarter pixels, 0 where there is none, and where there is one [rows, cols]."""
    rows, cols = cell_grid(*coded.luma.shape)
    # The last macroblocks may stick out of the picture.
    spare = _MACROBLOCK // BLOCK_SIZE
    vectors = np.zeros((rows + spare, cols + spare, 2), np.int32)
    known = np.zeros((rows + spare, cols + spare), np.bool_)
    if coded.vectors is not None:
        ours = coded.vectors[coded.vectors["source"] == direction]
        sizes = ours["w"].astype(np.int32) << 8 | ours["h"]
        for size in np.unique(sizes):
            wide, tall = int(size) >> 8, int(size) & 255
            blocks = ours[sizes == size]
            # dst is the centre of the block.
            top = (blocks["dst_y"].astype(np.intp) - tall // 2) // BLOCK_SIZE
            left = (blocks["dst_x"].astype(np.intp) - wide // 2) // BLOCK_SIZE
            y = top[:, None, None] + np.arange(tall // BLOCK_SIZE)[:, None]
            x = left[:, None, None] + np.arange(wide // BLOCK_SIZE)
            quarters = np.stack([blocks["motion_x"], blocks["motion_y"]], axis=-1)
            vectors[y, x] = quarters[:, None, None]
            known[y, x] = True
    return vectors[:rows, :cols], known[:rows, :cols]


def _to_pixels(cells: npt.NDArray[np.bool_], picture: Luma) -> npt.NDArray[np.bool_]:
    height, width = picture.shape
    return cells.repeat(BLOCK_SIZE, axis=0).repeat(BLOCK_SIZE, axis=1)[:height, :width]


def _is_reference(packet: bytes, length_bytes: int | None) -> bool:
    """Whether other pictures may be predicted from this one: nal_ref_idc of its first slice (H.264, 7.4.1)."""
    position = 0
    while position < len(packet):
        if length_bytes is None:
            start = packet.find(b"\x00\x00\x01", position)
            if start < 0:
                break
            unit, position = start + 3, start + 3
        else:
            unit = position + length_bytes
            position = unit + int.from_bytes(packet[position:unit], "big")
        if unit < len(packet) and 1 <= packet[unit] & 31 <= 5:
            return bool(packet[unit] >> 5 & 3)
    return True
