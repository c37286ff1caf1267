"""Frames of a clip by number, decoding no more of it than they need.

    frames = codec.Frames("clip.mp4")
    for frame in frames.at([3, 17, frames.count - 1]):
        ...

Of H.264 and HEVC, packets tell before anything is decoded how many frames there are, where decoding can start, and which frames no
other is predicted from (half of them in what x264 and x265 make by default). The bitstream is asked, never a container's key-frame
flags. Where packets leave doubts, and in other codecs, everything up to the last wanted frame is decoded.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TypeAlias, cast

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags

from codec.h264_headers import HeaderReader, units
from codec.source import Clip, check_frame, frame_count, open_clip, packets, pictures, reason
from codec.types import CodecError, Source, describe

_HEVC_PICTURES = range(32)
_HEVC_IRREGULAR = frozenset({16, 17, 18, 36, 37})
"""Types of HEVC units (ITU-T H.265, table 7-1) before which frames may be left out: broken links, ends of sequences."""
_HEVC_STARTS = frozenset({19, 20, 21})
"""IDR and CRA pictures: whatever is shown after them can be decoded from there."""

Access: TypeAlias = tuple[bool, bool]
"""Of a packet in decoding order: whether decoding can start there; whether others may be predicted from it."""


class Frames:
    """The frames of a clip by their display index. Nothing stays open."""

    def __init__(self, source: Source, name: str | None = None) -> None:
        """Read the packets, and decode them where they do not tell how many frames there are.

        Raises:
            CodecError: as `open_clip`, or the clip is damaged or cut off as far as this shows in what was read.
        """
        self._source = source
        self._name = describe(source, name)
        with open_clip(source, name) as clip:
            context = clip.stream.codec_context
            self.codec = clip.codec
            """FFmpeg's name of the stream's codec."""
            self.size = (context.width, context.height)
            """Width and height in pixels, as the stream's head has them."""
            self._index = _index(clip)
        self.count = len(self._index.packets) if self._index else frame_count(source, name=name)
        """Number of frames."""

    def at(self, wanted: Sequence[int] | npt.NDArray[np.integer]) -> Iterator[av.VideoFrame]:
        """Decode frames at strictly increasing display indices.

        Raises:
            CodecError: the clip is damaged, or ends before a wanted frame.
        """
        indices = [int(index) for index in wanted]
        if any(after <= before for before, after in pairwise([-1, *indices])):
            raise ValueError(f"frame indices must be non-negative and strictly increasing; got {indices}")
        if indices and indices[-1] >= self.count:
            missing = next(index for index in indices if index >= self.count)
            raise CodecError(f"{self._name} ends before frame {missing}: it has {self.count}")
        return self._sought(indices) if self._index else self._filtered(indices)

    def _filtered(self, indices: list[int]) -> Iterator[av.VideoFrame]:
        """By decoding everything up to the last."""
        left = iter(indices)
        wanted = next(left, None)
        for index, frame in enumerate(_all(self._source, self._name) if indices else ()):
            if index == wanted:
                yield frame
                wanted = next(left, None)
                if wanted is None:
                    return
        if wanted is not None:
            raise CodecError(f"{self._name} ends before frame {wanted}, which its packets promise")

    def _sought(self, indices: list[int]) -> Iterator[av.VideoFrame]:
        """By decoding from the nearest starts, leaving out what no wanted frame is predicted from."""
        assert self._index is not None
        done = 0
        size: tuple[int, int] | None = None
        for place, frame in chain.from_iterable(map(self._decoded, self._index.runs(indices))):
            if place != indices[done]:
                # One did not come out, or out of order: the packets lie about which is which.
                break
            size = size or (frame.width, frame.height)
            check_frame(self._name, frame, place, size)
            yield frame
            done += 1
        if done < len(indices):
            yield from self._filtered(indices[done:])

    def _decoded(self, run: "_Run") -> Iterator[tuple[int, av.VideoFrame]]:
        """(display index, frame) of the wanted frames of a run as they come out of the decoder; -1 where that is out of order."""
        index = self._index
        assert index is not None
        decoder = index.decoder
        decoder.flush_buffers()
        last = -1
        for order in (*run.orders, None):
            packet = None
            if order is not None:
                packet = index.packets[order]
                # In a tuple of its own: PyAV knows these by their address, and the small integers are shared by all clips.
                packet.opaque = (order,)
            try:
                frames = decoder.decode(packet)
            except av.error.FFmpegError as error:
                before = f"frame {index.shown[order]}" if order is not None else "its end"
                raise CodecError(f"{self._name}: cannot be decoded at {before}: {reason(error)}") from error
            for frame in frames:
                place = index.shown[cast(tuple[int], frame.opaque)[0]]
                if place < last:
                    yield -1, frame
                if place in run.wanted:
                    yield place, frame
                last = place


@dataclass(frozen=True, slots=True)
class _Run:
    """A stretch of packets to decode without a break."""

    orders: list[int]
    """Packets, ascending in decoding order."""
    wanted: frozenset[int]
    """Display indices."""


@dataclass(frozen=True, slots=True)
class _Index:
    """What packets say, in decoding order."""

    decoder: av.VideoCodecContext
    packets: list[av.Packet]
    shown: list[int]
    """Display index of each packet's frame."""
    decoded: list[int]
    """Place in decoding order of each frame in display order: the inverse of `shown`."""
    starts: list[int]
    """Packets at which decoding can start, ascending; the first is 0."""
    is_reference: list[bool]

    def runs(self, indices: list[int]) -> list[_Run]:
        """How to get at frames of ascending display indices, in their order."""
        runs: list[tuple[int, int, list[int]]] = []
        for index in indices:
            order = self.decoded[index]
            start = self._start(order)
            if runs and start <= runs[-1][1]:
                first, last, wanted = runs.pop()
                runs.append((min(first, start), max(last, order), [*wanted, index]))
            else:
                runs.append((start, order, [index]))
        return [self._run(first, last, frozenset(wanted)) for first, last, wanted in runs]

    def _start(self, order: int) -> int:
        """The packet from which the frame of packet `order` can be decoded."""
        place = bisect_right(self.starts, order) - 1
        # What is shown before the picture at which decoding starts may be predicted from pictures before that.
        if self.shown[order] < self.shown[self.starts[place]]:
            place -= 1
        return self.starts[place]

    def _run(self, first: int, last: int, wanted: frozenset[int]) -> _Run:
        needed = [order for order in range(first, last + 1) if self.is_reference[order] or self.shown[order] in wanted]
        return _Run(needed, wanted)


def _all(source: Source, name: str) -> Iterator[av.VideoFrame]:
    with open_clip(source, name) as clip:
        for picture in pictures(clip):
            yield picture.frame


def _index(clip: Clip) -> _Index | None:
    """What the packets say, or None where that leaves doubts.

    Raises:
        CodecError: the file is damaged or cut off, or empty.
    """
    found = [packet for packet in packets(clip) if packet is not None]
    if not found:
        return None
    decoder = clip.stream.codec_context
    scan = {"h264": _h264_access, "hevc": _hevc_access}.get(clip.codec)
    access = scan(decoder.extradata or b"", found) if scan else None
    stamps = [packet.pts for packet in found if packet.pts is not None and not packet.is_discard]
    if access is None or len(set(stamps)) < len(found) or not access[0][0] or min(stamps) < stamps[0]:
        return None
    decoded = sorted(range(len(found)), key=stamps.__getitem__)
    shown = [0] * len(found)
    for place, order in enumerate(decoded):
        shown[order] = place
    decoder.flags |= Flags.copy_opaque
    return _Index(
        decoder=decoder,
        packets=found,
        shown=shown,
        decoded=decoded,
        starts=[order for order, (start, _) in enumerate(access) if start],
        is_reference=[reference for _, reference in access],
    )


def _h264_access(extradata: bytes, found: Sequence[av.Packet]) -> list[Access] | None:
    headers = HeaderReader(extradata)
    try:
        access = [headers.access(bytes(packet)) for packet in found]
    except ValueError:
        return None
    return access if headers.frames_only else None


def _hevc_access(extradata: bytes, found: Sequence[av.Packet]) -> list[Access] | None:
    # An hvcC record (ISO/IEC 14496-15) has the length of units' sizes in its 22nd byte; without one, units follow start codes.
    length_bytes = (extradata[21] & 3) + 1 if extradata[:1] == b"\x01" and len(extradata) > 22 else None
    access, has_layers = [], False
    for packet in found:
        headers = [(unit[0] >> 1 & 63, unit[1] & 7) for unit in units(bytes(packet), length_bytes) if len(unit) > 1]
        kinds = [kind for kind, _ in headers]
        first = next((kind for kind in kinds if kind in _HEVC_PICTURES), None)
        if first is None or not _HEVC_IRREGULAR.isdisjoint(kinds):
            return None
        has_layers |= any(temporal > 1 for kind, temporal in headers if kind in _HEVC_PICTURES)
        # Even numbers below 16: no other picture of the same temporal layer is predicted from these.
        access.append((first in _HEVC_STARTS, first >= 16 or first % 2 == 1))
    return [(start, True) for start, _ in access] if has_layers else access
