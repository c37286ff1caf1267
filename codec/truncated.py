"""Whether a file is as long as it says. FFmpeg takes a file that was cut for a shorter clip."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from codec.types import Source

_SEGMENT = b"\x18\x53\x80\x67"


def missing_bytes(source: Source) -> int | None:
    """How many bytes are missing at the end of an MP4 (QuickTime), Matroska (WebM) or AVI file; None where the file does not say.

    Sizes are those of ISO/IEC 14496-12, 4.2, of RFC 8794 (EBML), section 6, and of RIFF's chunks.
    """
    with _opened(source) as file:
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(12)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska(file, length)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp"):
            return _boxes(file, length)
        if head[:4] == b"RIFF":
            return _chunks(file, length)
    return None


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    with io.BytesIO(source) if isinstance(source, bytes) else open(os.fspath(source), "rb") as file:
        yield file


def _boxes(file: BinaryIO, length: int) -> int | None:
    """A file is a row of boxes, each of which begins with its size."""
    position = 0
    while position + 8 <= length:
        file.seek(position)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 0:  # to the end, wherever that is
            return None
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8 or not head[4:8].isalnum():  # something else that was appended
            return 0
        position += size
    # A few bytes more are the beginning of another box.
    return max(0, position - length) or int(position < length)


def _chunks(file: BinaryIO, length: int) -> int:
    """One chunk, or several of large files, each with its size behind its name."""
    position = 0
    while position + 8 <= length:
        file.seek(position)
        head = file.read(8)
        if head[:4] != b"RIFF":  # something else that was appended
            return 0
        position += 8 + int.from_bytes(head[4:], "little")
        position += position % 2
    return max(0, position - length)


def _matroska(file: BinaryIO, length: int) -> int | None:
    """A header, then a segment that holds everything else."""
    _, header = _element(file, 0)
    if header is None:
        return None
    name, end = _element(file, header)
    return None if end is None or name != _SEGMENT else max(0, end - length)


def _element(file: BinaryIO, position: int) -> tuple[bytes, int | None]:
    """The four-byte identifier of the element at a position, and where it ends, if it says so."""
    file.seek(position)
    name, coded = file.read(4), file.read(8)
    width = 9 - coded[0].bit_length() if coded else 9
    if width > len(coded):
        return name, None
    size, unknown = int.from_bytes(coded[:width], "big") & ((1 << 7 * width) - 1), (1 << 7 * width) - 1
    return name, None if size == unknown else position + 4 + width + size
