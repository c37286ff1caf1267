"""What the packets of an H.264 or HEVC clip tell before any is decoded: which frame each shows, where decoding can start, and which
frames no other is predicted from.

All of it is taken from the bitstream and from time stamps, and only where that is beyond doubt. Doubts are pictures coded as
fields, missing, repeated or unordered time stamps, parameter sets that change on the way, and frames that are not shown.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import av
from av.codec.context import Flags

from codec.h264_headers import Bits, HeaderReader, units
from codec.source import Clip, packets

_PICTURES = range(32)
_IRREGULAR = frozenset({16, 17, 18, 36, 37})
"""Types of HEVC units (ITU-T H.265, table 7-1) before which frames may be left out: broken links, ends of sequences."""
_STARTS = frozenset({19, 20, 21})
"""IDR and CRA pictures: whatever is shown after them can be decoded from there."""
_PARAMETER_SETS = frozenset({32, 33, 34})
_PICTURE_PARAMETERS = 34

Access: TypeAlias = tuple[bool, bool]
"""Of a packet in decoding order: whether decoding can start there; whether others may be predicted from it."""


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of packets to decode without a break."""

    orders: list[int]
    """Packets, ascending in decoding order."""
    wanted: frozenset[int]
    """Display indices."""


@dataclass(frozen=True, slots=True)
class Index:
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

    def runs(self, indices: list[int]) -> list[Run]:
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

    def _run(self, first: int, last: int, wanted: frozenset[int]) -> Run:
        needed = [order for order in range(first, last + 1) if self.is_reference[order] or self.shown[order] in wanted]
        return Run(needed, wanted)


def read_index(clip: Clip) -> Index | None:
    """What the packets say, or None where that leaves doubts.

    Raises:
        CodecError: the file is damaged or cut off, or empty.
    """
    found = [packet for packet in packets(clip) if packet is not None]
    if not found:
        return None
    if any(packet.has_sidedata("new_extradata") for packet in found):
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
    starts = [order for order, (start, _) in enumerate(access) if start]
    latest = [-1, *accumulate(shown, max)]
    # The container has no times but those of decoding (AVI), or its clock starts anew (recordings that were joined).
    if (decoder.has_b_frames and decoded == shown == sorted(shown)) or any(
        shown[start] < latest[start] for start in starts
    ):
        return None
    decoder.flags |= Flags.copy_opaque
    return Index(
        decoder=decoder,
        packets=found,
        shown=shown,
        decoded=decoded,
        starts=starts,
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
    is_record = extradata[:1] == b"\x01" and len(extradata) > 22
    length_bytes = (extradata[21] & 3) + 1 if is_record else None
    known = {unit.rstrip(b"\x00") for unit in (_record_units(extradata) if is_record else units(extradata, None))}
    if any(_may_hide(unit) for unit in known):
        return None
    access, has_layers = [], False
    for packet in found:
        first: int | None = None
        for unit in units(bytes(packet), length_bytes):
            kind = unit[0] >> 1 & 63
            changes = kind in _PARAMETER_SETS and unit.rstrip(b"\x00") not in known
            if kind in _IRREGULAR or changes or len(unit) < 2:
                return None
            if kind in _PICTURES:
                first = kind if first is None else first
                has_layers |= unit[1] & 7 > 1
        if first is None:
            return None
        # Even numbers below 16: no other picture of the same temporal layer is predicted from these.
        access.append((first in _STARTS, first >= 16 or first % 2 == 1))
    return [(start, True) for start, _ in access] if has_layers else access


def _may_hide(unit: bytes) -> bool:
    """Whether a unit is a picture parameter set with which slices say if their picture is shown (H.265, 7.3.2.3.1)."""
    if len(unit) < 3 or unit[0] >> 1 & 63 != _PICTURE_PARAMETERS:
        return False
    bits = Bits(unit[2:])
    try:
        bits.unsigned()
        bits.unsigned()
        bits.skip(1)
        return bits.take(1) == 1
    except ValueError:
        return True


def _record_units(record: bytes) -> Iterator[bytes]:
    """Parameter sets of an hvcC record: arrays of one type each, with 16-bit counts and sizes."""
    position = 23
    for _ in range(record[22]):
        count, position = int.from_bytes(record[position + 1 : position + 3], "big"), position + 3
        for _ in range(count):
            end = position + 2 + int.from_bytes(record[position : position + 2], "big")
            yield record[position + 2 : end]
            position = end
