"""What the headers of an H.264 stream say about references, without decoding anything.

Syntax of ITU-T H.264: sequence parameter sets (7.3.2.1.1), picture parameter sets (7.3.2.2), slice headers (7.3.3). Of each
picture, the first slice is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

MOST_ACTIVE = 32
"""Most references a slice may have in a list: what is assumed where a header cannot be read."""

_SLICE, _IDR_SLICE, _SPS, _PPS = 1, 5, 7, 8
_PARAMETER_SETS = frozenset({_SPS, _PPS, 13, 15})
"""Of sequences, pictures, sequences' extensions, and subsets of sequences."""
_HEADER_BYTES = 48
"""More than all of a slice header that is read here can take."""
_WITH_CHROMA_FORMAT = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
_SLICE_P, _SLICE_B, _SLICE_SP = 0, 1, 3


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """How a coded picture takes part in prediction."""

    is_reference: bool
    """Whether other pictures may be predicted from this one."""
    active: tuple[int, int]
    """References in list 0 and list 1 of its first slice: all that its vectors can name."""


@dataclass(frozen=True, slots=True)
class _Sequence:
    separate_planes: bool
    frame_number_bits: int
    order_type: int
    order_bits: int
    delta_order_zero: bool
    frames_only: bool


@dataclass(frozen=True, slots=True)
class _PictureSet:
    sequence: int
    order_present: bool
    active: tuple[int, int]
    redundant_present: bool


class HeaderReader:
    """Reads the headers of one stream's packets; they may come in display order, unless the stream redefines its parameter sets."""

    def __init__(self, extradata: bytes) -> None:
        """From the container's description of the stream: an avcC record (ISO/IEC 14496-15), Annex B units, or nothing."""
        self._sequences: dict[int, _Sequence] = {}
        self._picture_sets: dict[int, _PictureSet] = {}
        # An avcC record (version 1) gives the length of each unit's size; without one, units follow start codes.
        is_record = extradata[:1] == b"\x01" and len(extradata) > 6
        self._length_bytes = (extradata[4] & 3) + 1 if is_record else None
        self._known: set[bytes] = set()
        for unit in _record_units(extradata) if is_record else _start_code_units(extradata):
            self._known.add(unit.rstrip(b"\x00"))
            self._parameters(unit)

    @property
    def frames_only(self) -> bool:
        """Whether no sequence read so far allows fields, so that every picture is a frame; False if none was read."""
        return bool(self._sequences) and all(sequence.frames_only for sequence in self._sequences.values())

    def access(self, packet: bytes) -> tuple[bool, bool]:
        """Whether decoding can start at a packet's picture (an IDR picture), and whether others may be predicted from it.

        Raises:
            ValueError: there is no picture, or a parameter set that the container's description does not have: whoever left this
                packet out would decode later ones wrongly.
        """
        for unit in units(packet, self._length_bytes):
            kind = unit[0] & 31
            if 1 <= kind <= _IDR_SLICE:
                return kind == _IDR_SLICE, bool(unit[0] >> 5 & 3)
            if kind in _PARAMETER_SETS and unit.rstrip(b"\x00") not in self._known:
                raise ValueError("the parameter sets change")
        raise ValueError("there is no picture in this packet")

    def read(self, packet: bytes) -> PictureHeader:
        """The header of the picture in a packet; a header that makes no sense counts as one that allows everything."""
        for unit in units(packet, self._length_bytes):
            kind = unit[0] & 31
            if kind in (_SLICE, _IDR_SLICE):
                try:
                    active = self._active(unit)
                except (KeyError, IndexError, ValueError):
                    active = (MOST_ACTIVE, MOST_ACTIVE)
                return PictureHeader(bool(unit[0] >> 5 & 3), active)
            if kind < _IDR_SLICE:  # a data partition
                return PictureHeader(bool(unit[0] >> 5 & 3), (MOST_ACTIVE, MOST_ACTIVE))
            self._parameters(unit)
        return PictureHeader(True, (MOST_ACTIVE, MOST_ACTIVE))

    def _parameters(self, unit: bytes) -> None:
        kind = unit[0] & 31
        try:
            if kind == _SPS:
                number, sequence = _sequence(Bits(unit[1:]))
                self._sequences[number] = sequence
            elif kind == _PPS:
                number, picture_set = _picture_set(Bits(unit[1:]))
                self._picture_sets[number] = picture_set
        except (IndexError, ValueError):
            # Left out: slices that name it count as unreadable.
            return

    def _active(self, unit: bytes) -> tuple[int, int]:
        bits = Bits(unit[1:_HEADER_BYTES])
        bits.unsigned()  # first macroblock
        kind = bits.unsigned() % 5
        picture_set = self._picture_sets[bits.unsigned()]
        sequence = self._sequences[picture_set.sequence]
        bits.skip((2 if sequence.separate_planes else 0) + sequence.frame_number_bits)
        is_field = not sequence.frames_only and bits.take(1) == 1
        if is_field:
            bits.skip(1)
        if unit[0] & 31 == _IDR_SLICE:
            bits.unsigned()
        if sequence.order_type == 0:
            bits.skip(sequence.order_bits)
            if picture_set.order_present and not is_field:
                bits.unsigned()
        elif sequence.order_type == 1 and not sequence.delta_order_zero:
            bits.unsigned()
            if picture_set.order_present and not is_field:
                bits.unsigned()
        if picture_set.redundant_present:
            bits.unsigned()
        if kind == _SLICE_B:
            bits.skip(1)
        elif kind not in (_SLICE_P, _SLICE_SP):
            return (0, 0)
        first, second = picture_set.active
        if bits.take(1):
            first = bits.unsigned() + 1
            second = bits.unsigned() + 1 if kind == _SLICE_B else 0
        return (first, second if kind == _SLICE_B else 0)


class Bits:
    """Fixed-length and Exp-Golomb codes (H.264, 9.1) of a unit's payload, emulation prevention removed."""

    def __init__(self, payload: bytes) -> None:
        raw = payload.replace(b"\x00\x00\x03", b"\x00\x00")
        self._bits = bin(int.from_bytes(b"\x01" + raw, "big"))[3:]
        self._at = 0

    def skip(self, count: int) -> None:
        self._at += count

    def take(self, count: int) -> int:
        self._at += count
        return int(self._bits[self._at - count : self._at], 2)

    def unsigned(self) -> int:
        one = self._bits.index("1", self._at)
        length = one - self._at
        self._at = one + length + 1
        return int(self._bits[one : self._at], 2) - 1

    def signed(self) -> int:
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def _sequence(bits: Bits) -> tuple[int, _Sequence]:
    profile = bits.take(8)
    bits.skip(16)
    number = bits.unsigned()
    separate = False
    if profile in _WITH_CHROMA_FORMAT:
        chroma = bits.unsigned()
        separate = chroma == 3 and bits.take(1) == 1
        bits.unsigned()  # bit depth of luma
        bits.unsigned()  # and chroma
        bits.skip(1)
        if bits.take(1):
            for index in range(8 if chroma != 3 else 12):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    frame_number_bits = bits.unsigned() + 4
    order_type = bits.unsigned()
    order_bits, delta_zero = 0, False
    if order_type == 0:
        order_bits = bits.unsigned() + 4
    elif order_type == 1:
        delta_zero = bits.take(1) == 1
        bits.unsigned()
        bits.unsigned()
        for _ in range(bits.unsigned()):
            bits.unsigned()
    bits.unsigned()  # reference frames kept
    bits.skip(1)
    bits.unsigned()  # width
    bits.unsigned()  # height
    frames_only = bits.take(1) == 1
    return number, _Sequence(separate, frame_number_bits, order_type, order_bits, delta_zero, frames_only)


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _picture_set(bits: Bits) -> tuple[int, _PictureSet]:
    number, sequence = bits.unsigned(), bits.unsigned()
    bits.skip(1)
    order_present = bits.take(1) == 1
    if bits.unsigned():
        raise ValueError("slice groups")
    active = (bits.unsigned() + 1, bits.unsigned() + 1)
    bits.skip(3)  # weighted prediction
    for _ in range(3):  # quantisers
        bits.unsigned()
    bits.skip(2)
    return number, _PictureSet(sequence, order_present, active, bits.take(1) == 1)


def _record_units(record: bytes) -> Iterator[bytes]:
    """Parameter sets of an avcC record: counts and 16-bit sizes in front of the units."""
    position = 5
    for mask in (31, 255):
        if position >= len(record):
            return
        count, position = record[position] & mask, position + 1
        for _ in range(count):
            end = position + 2 + int.from_bytes(record[position : position + 2], "big")
            if unit := record[position + 2 : end]:
                yield unit
            position = end


def units(packet: bytes, length_bytes: int | None) -> Iterator[bytes]:
    """The network abstraction layer's units in a packet, behind sizes of so many bytes, or behind start codes (None)."""
    return _start_code_units(packet) if length_bytes is None else _sized_units(packet, length_bytes)


def _sized_units(packet: bytes, length_bytes: int) -> Iterator[bytes]:
    position = 0
    while position + length_bytes < len(packet):
        begin = position + length_bytes
        position = begin + int.from_bytes(packet[position:begin], "big")
        if unit := packet[begin:position]:
            yield unit


def _start_code_units(stream: bytes) -> Iterator[bytes]:
    begin = stream.find(b"\x00\x00\x01")
    while begin >= 0:
        end = stream.find(b"\x00\x00\x01", begin + 3)
        if unit := stream[begin + 3 : end if end >= 0 else len(stream)]:
            yield unit
        begin = end
