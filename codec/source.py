"""Opening clips and decoding them in display order, with every kind of damage turned into a `CodecError`.

FFmpeg conceals most damage: it paints over missing slices and treats a cut file as a short one. A training set must
not be fed such pictures unknowingly, so a stream is called damaged when the demuxer or decoder reports an error, when a
packet or picture is marked corrupt (concealment included), or when there are fewer packets than the container promises.
MP4, Matroska and AVI say how long they are, others at best how many frames they hold. MPEG-TS, raw streams, and what was never
closed (a recording that stopped) say neither: cut between two packets, or where the rest of one is concealed, they look whole.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import PictureType
from av.video.stream import VideoStream

from codec.truncated import missing_bytes
from codec.types import BLOCK_SIZE, CodecError, FrameSignals, FrameType, Source, describe

Luma: TypeAlias = npt.NDArray[np.uint8]
"""[H, W]"""

_LUMA_FIRST = frozenset(
    {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray"},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A decoded frame together with the packet it came from."""

    frame: av.VideoFrame
    data: bytes
    """The packet: the coded picture as the container stores it."""
    order: int
    """Position in decoding order, from 0: a picture can only be predicted from pictures of lower order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """An open clip. Obtained from `open_clip`, which closes it."""

    name: str
    source: Source
    container: InputContainer
    stream: VideoStream

    @property
    def codec(self) -> str:
        """FFmpeg's name of the stream's codec: "h264", "hevc", "vp9", ..."""
        return self.stream.codec_context.name


@contextmanager
def open_clip(source: Source, name: str | None = None) -> Iterator[Clip]:
    """Open a clip for decoding on one thread (callers parallelise over clips, and results must not vary).

    Raises:
        CodecError: missing, empty or unreadable file, no video stream, or no decoder for it.
    """
    label = describe(source, name)
    if isinstance(source, bytes) and not source:
        raise CodecError(f"{label}: the clip is empty (0 bytes)")
    # Neither a clip's bytes nor a local file may name other inputs, as playlists do.
    options = {"protocol_whitelist": "" if isinstance(source, bytes) else "file"}
    try:
        container = av.open(
            io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source), mode="r", options=options
        )
    except (av.error.FFmpegError, OSError) as error:
        raise CodecError(f"{label}: cannot be opened as a video: {reason(error)}") from error
    with container:
        stream = cast(VideoStream | None, container.streams.best("video"))
        if stream is None:
            raise CodecError(f"{label}: there is no video stream in this {container.format.long_name} file")
        if stream.disposition & Disposition.attached_pic:
            raise CodecError(f"{label}: there is only a cover picture in this {container.format.long_name} file")
        if stream.codec_context is None:
            raise CodecError(f"{label}: FFmpeg has no decoder for the codec of this video stream")
        stream.codec_context.thread_count = 1
        yield Clip(name=label, source=source, container=container, stream=stream)


def pictures(clip: Clip, observe: Callable[[int, av.Packet], None] | None = None) -> Iterator[Picture]:
    """Decode a clip in display order.

    Every sound picture before the damage is yielded first; then the error is raised.

    Args:
        clip: an open clip.
        observe: called with each packet and its position in decoding order before the packet is decoded.

    Raises:
        CodecError: the stream is damaged, truncated, changes its picture size, or holds no picture at all.
    """
    decoder = clip.stream.codec_context
    # FFmpeg carries `opaque` from each packet to the picture decoded from it, through reordering and missing time stamps.
    decoder.flags |= Flags.copy_opaque
    size: tuple[int, int] | None = None
    count = 0
    for order, packet in enumerate(packets(clip)):
        if packet is not None:
            if observe is not None:
                observe(order, packet)
            # The packet's bytes, not the packet: one that owned itself would never be freed.
            packet.opaque = (order, bytes(packet))
        try:
            frames = decoder.decode(packet)
        except av.error.FFmpegError as error:
            raise CodecError(f"{clip.name}: cannot be decoded past frame {count}: {reason(error)}") from error
        for frame in frames:
            size = size or (frame.width, frame.height)
            check_frame(clip.name, frame, count, size)
            decoded_at, data = cast(tuple[int, bytes], frame.opaque)
            yield Picture(frame=frame, data=data, order=decoded_at)
            count += 1
    if count == 0:
        raise CodecError(f"{clip.name}: no frame could be decoded from its {clip.codec} stream")


def frame_count(source: Source, *, name: str | None = None) -> int:
    """Number of frames that `codec.decode` will yield, found by decoding all of them, so that damage shows; `Frames` is quicker.

    Raises:
        CodecError: as `open_clip` and `pictures`.
    """
    with open_clip(source, name) as clip:
        return sum(1 for _ in pictures(clip))


def check_frame(name: str, frame: av.VideoFrame, index: int, size: tuple[int, int]) -> None:
    """Refuse a decoded frame that is damaged or has another (width, height) than the clip's first.

    Raises:
        CodecError: it is so.
    """
    if frame.is_corrupt:
        raise CodecError(f"{name}: frame {index} is damaged: parts of it could not be decoded")
    if (frame.width, frame.height) != size:
        raise CodecError(
            f"{name}: the picture size changes from {size[0]}x{size[1]} to {frame.width}x{frame.height} "
            f"at frame {index}: split the clip there"
        )


def luma(frame: av.VideoFrame) -> Luma:
    """The 8-bit luma plane of a frame, without a copy where the pixel format has one."""
    if frame.format.name not in _LUMA_FIRST:
        frame = frame.reformat(format="gray")
    plane = frame.planes[0]
    rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : frame.width]


def frame_type(frame: av.VideoFrame) -> FrameType:
    """I, P or B; the rare switching pictures count as what they predict like, unknown ones by their key-frame flag."""
    match frame.pict_type:
        case PictureType.I | PictureType.SI:
            return "I"
        case PictureType.B | PictureType.BI:
            return "B"
        case PictureType.NONE if frame.key_frame:
            return "I"
        case _:
            return "P"


def frame_signals(
    clip: Clip,
    picture: Picture,
    *,
    index: int,
    motion: npt.NDArray[np.float32],
    residual: npt.NDArray[np.float32],
    estimated: bool,
) -> FrameSignals:
    """The signals of one picture, with what every reader takes from the frame and its packet."""
    frame, base = picture.frame, clip.stream.time_base
    return FrameSignals(
        index=index,
        pts=frame.pts,
        # The float nearest to the fraction, as float(pts * base) would be.
        time=None if frame.pts is None or base is None else frame.pts * base.numerator / base.denominator,
        type=frame_type(frame),
        key_frame=bool(frame.key_frame),
        height=frame.height,
        width=frame.width,
        block_size=BLOCK_SIZE,
        motion=motion,
        residual=residual,
        bits=None,
        frame_bytes=len(picture.data),
        estimated=estimated,
    )


def reason(error: Exception) -> str:
    """The human part of an FFmpeg or system error."""
    return getattr(error, "strerror", None) or str(error)


def packets(clip: Clip) -> Iterator[av.Packet | None]:
    """The packets of the video stream, then None to drain the decoder; only then is damage to the file raised."""
    count = 0
    damage: CodecError | None = None
    try:
        for packet in clip.container.demux(clip.stream):
            if packet.is_corrupt:
                damage = CodecError(f"{clip.name}: the packet after frame {count} is damaged or cut off")
                break
            if packet.size:
                count += 1
                yield packet
    except av.error.FFmpegError as error:
        damage = CodecError(f"{clip.name}: cannot be read past frame {count}: {reason(error)}")
    yield None
    if damage is None:
        missing = missing_bytes(clip.source)
        if missing or (missing is None and count < clip.stream.frames):
            total = f" of {clip.stream.frames}" if clip.stream.frames > count else ""
            damage = CodecError(f"{clip.name}: truncated after {count}{total} frames")
    if damage is not None:
        raise damage
