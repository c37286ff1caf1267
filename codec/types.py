"""What every signal reader of `codec` produces, and how it fails.

Legend: H, W are luma pixels; rows, cols count cells of `block_size` x `block_size` pixels, ceil(H / block_size) by
ceil(W / block_size), the last row and column being cut by the picture's edge.
"""

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

BLOCK_SIZE = 4
"""Pixels per cell side: the finest unit of motion in H.264 and HEVC, and small against a 14-pixel patch."""

CLIP_EXTENSIONS = (
    *("mp4", "mkv", "webm", "mov", "m4v", "avi", "ts", "mts", "m2ts", "mpg", "mpeg", "3gp", "flv", "wmv"),
    *("264", "h264", "265", "h265", "hevc"),
)
"""By which names of files are known to be clips; what they hold is for FFmpeg to say."""

FrameType: TypeAlias = Literal["I", "P", "B"]
Source: TypeAlias = str | os.PathLike[str] | bytes
"""A clip: the path of a file, or the bytes of one (a member of a tar shard, say)."""


class CodecError(ValueError):
    """A clip or a sidecar that cannot be read: the message names it and says why."""


class UnsupportedStream(CodecError):
    """A stream with a feature that its bitstream reader does not have, or a reader whose compiled core was not built."""


def not_compiled(what: str) -> UnsupportedStream:
    """The error of a checkout whose C++ parts were never built."""
    return UnsupportedStream(
        f"{what} is not compiled: install a C++ compiler (g++) and run `pip install -e .` in the checkout again"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSignals:
    """What an encoder said about one frame: how things moved, what motion could not explain, and what it cost."""

    index: int
    """Position in display order, from 0."""
    pts: int | None
    """Presentation time in the stream's time base; None where the container has none (raw Annex B)."""
    time: float | None
    """Presentation time in seconds, or None."""
    type: FrameType
    key_frame: bool
    """True where decoding can start. Every key frame is an I frame; an I frame need not be a key frame."""
    height: int
    """H, luma pixels."""
    width: int
    """W, luma pixels."""
    block_size: int
    """Pixels per cell side of the fields below."""
    motion: npt.NDArray[np.float32]
    """[rows, cols, 2]: (x, y) pixels by which the content of a cell moved since the previous frame; +x right, +y down."""
    residual: npt.NDArray[np.float32]
    """[rows, cols]: mean |luma - prediction| over a cell's pixels, in grey levels 0..255."""
    bits: npt.NDArray[np.float32] | None
    """[rows, cols]: bits spent on each cell, or None where the reader cannot tell."""
    frame_bytes: int
    """Size of the frame's packet."""
    estimated: bool
    """True where motion and residual were measured on decoded pixels, not read from the bitstream."""


def cell_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of cells that cover an H x W picture."""
    return -(-height // BLOCK_SIZE), -(-width // BLOCK_SIZE)


def describe(source: Source, name: str | None = None) -> str:
    """How error messages call a clip: `name` if the caller gave one, else the path, else its size in bytes."""
    if name is not None:
        return name
    return f"<{len(source)} bytes in memory>" if isinstance(source, bytes) else os.fspath(source)
