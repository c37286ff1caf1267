"""Pictures that a worker hands over undecoded, for `dali_batch` to decode a micro-batch at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from megatron_ovenc.data.images import is_plain_jpeg, open_picture
from megatron_ovenc.data.views import grid_positions
from megatron_ovenc.data.windows import Framing, Window

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker that ends entropy-coded data: neither a stuffed zero nor a restart (ITU-T T.81, B.1.1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A JPEG of which the header has been read, and what is to be seen of it."""

    content: np.ndarray
    """uint8 [bytes]: the file."""
    window: Window
    """Drawn by the worker, so that nothing random is left to the decoder."""
    area: int
    """Pixels of the whole picture."""
    patch_size: int
    """Side of a patch in pixels."""
    sample_id: str
    """Shard path, `#`, key."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.window.height // self.patch_size, self.window.width // self.patch_size

    @property
    def positions(self) -> np.ndarray:
        """int32 [n, 3]: t, row, col of the patches in raster order."""
        return grid_positions(1, *self.grid)


def encoded(content: bytes, framing: Framing, *, patch_size: int, sample_id: str) -> Encoded | None:
    """The picture undecoded, or None where it is for Pillow: no RGB or grey JPEG, or one that is not complete.

    Raises:
        BadSample: not a picture.
    """
    file, width, height = open_picture(content)
    # What decoders make of a file that breaks off differs; whether it is a bad sample must not.
    if not is_plain_jpeg(file) or not complete_jpeg(content):
        return None
    return Encoded(
        content=np.frombuffer(content, np.uint8),
        window=framing(width, height),
        area=width * height,
        patch_size=patch_size,
        sample_id=sample_id,
    )


def complete_jpeg(content: bytes) -> bool:
    """Whether a JPEG's segments follow each other up to its end marker; what comes behind does not matter."""
    place = 2
    while content[place : place + 1] == b"\xff":
        marker = content[place + 1] if place + 1 < len(content) else None
        if marker == 0xFF:  # padding before a marker
            place += 1
            continue
        if marker in (None, _END_OF_IMAGE):
            return marker is not None
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == _START_OF_SCAN:
            following = _AFTER_SCAN.search(content, place)
            place = following.start() if following else len(content)
    return False
