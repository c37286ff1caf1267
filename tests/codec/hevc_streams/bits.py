"""Bits, Exp-Golomb codes and NAL units (H.265 clauses 7.3.1, 9.2 and Annex B)."""

import numpy as np


def bits_needed(count: int) -> int:
    """Ceil(Log2(count)): the length of a fixed code for `count` values."""
    return (count - 1).bit_length()


class BitWriter:
    """Collects bits, most significant first."""

    def __init__(self) -> None:
        self.bits: list[int] = []

    def u(self, value: int, length: int = 1) -> None:
        """Unsigned value in `length` bits."""
        assert 0 <= value < 1 << length, (value, length)
        self.bits.extend((value >> shift) & 1 for shift in range(length - 1, -1, -1))

    def ue(self, value: int) -> None:
        """Unsigned Exp-Golomb code."""
        length = (value + 1).bit_length()
        self.u(value + 1, 2 * length - 1)

    def se(self, value: int) -> None:
        """Signed Exp-Golomb code."""
        self.ue(2 * value - 1 if value > 0 else -2 * value)

    def align(self) -> None:
        """Zero bits up to the next byte."""
        self.bits.extend([0] * (-len(self.bits) % 8))

    def trail(self) -> None:
        """A one bit and zeros to the next byte: rbsp_trailing_bits() and byte_alignment()."""
        self.u(1)
        self.align()

    def to_bytes(self) -> bytes:
        assert len(self.bits) % 8 == 0
        return np.packbits(np.array(self.bits, np.uint8)).tobytes()


def escape(payload: bytes) -> bytes:
    """Insert emulation prevention bytes."""
    out = bytearray()
    zeros = 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(out)


def nal_unit(kind: int, escaped_payload: bytes, temporal_id: int = 0) -> bytes:
    """One NAL unit with a four-byte start code; the payload has its emulation prevention already."""
    header = bytes([kind << 1, temporal_id + 1])
    return b"\x00\x00\x00\x01" + header + escaped_payload
