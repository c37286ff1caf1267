"""Writers of the formats that others defined, byte by byte, independent of what reads them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MAGIC = struct.pack("<I", 0xCED7230A)


def part(flag: int, payload: bytes) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(payload)) + payload + b"\0" * (-len(payload) % 4)


def record(payload: bytes) -> bytes:
    """A record as dmlc's writer makes it: cut wherever the magic stands at a multiple of four bytes."""
    pieces, begin = [], 0
    for place in range(0, len(payload) - 3, 4):
        if payload[place : place + 4] == MAGIC and place >= begin:
            pieces.append(payload[begin:place])
            begin = place + 4
    pieces.append(payload[begin:])
    if len(pieces) == 1:
        return part(0, pieces[0])
    flags = [1] + [2] * (len(pieces) - 2) + [3]
    return b"".join(part(flag, piece) for flag, piece in zip(flags, pieces, strict=True))


def image_record(image: bytes, labels: Sequence[float], number: int = 0) -> bytes:
    """A payload with its labels behind the header; one label alone stands in it."""
    if len(labels) == 1:
        return struct.pack("<IfQQ", 0, labels[0], number, 0) + image
    return struct.pack("<IfQQ", len(labels), 0.0, number, 0) + struct.pack(f"<{len(labels)}f", *labels) + image


def write_records(path: Path, payloads: Sequence[bytes], keys: Sequence[int] | None = None) -> list[int]:
    """A .rec and its .idx; returns the offsets."""
    content, offsets = b"", []
    for payload in payloads:
        offsets.append(len(content))
        content += record(payload)
    path.write_bytes(content)
    keys = range(len(payloads)) if keys is None else keys
    lines = "".join(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=True))
    path.with_suffix(".idx").write_text(lines)
    return offsets


def write_visidx(path: Path, indices: Sequence[int]) -> None:
    np.save(path, np.array(indices, np.int32))
