"""What the bitstream says about each frame of a clip, as a table or as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from codec.gop import adaptive_groups
from codec.signals import decode
from codec.source import open_clip
from codec.types import FrameType, Source


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSummary:
    """One frame in a few numbers; means are over the picture."""

    index: int
    time: float | None
    """Seconds, or None."""
    type: FrameType
    key_frame: bool
    bytes: int
    motion: float
    """Mean speed, pixels a frame."""
    residual: float
    """Mean residual, grey levels."""
    bits: float | None
    """Bits of all cells, or None where the reader cannot tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSummary:
    """A clip and its frames."""

    name: str
    codec: str
    height: int
    width: int
    estimated: bool
    """True where motion and residual were measured on pixels, not read from the bitstream."""
    frames: Sequence[FrameSummary]

    def as_json(self, groups: int | None) -> dict[str, Any]:
        """Plain types; with the first frames of `groups` adaptive groups if that many are asked for."""
        return asdict(self) | ({} if groups is None else {"groups": self.groups(groups)})

    def groups(self, count: int) -> list[int]:
        """First frames of the adaptive groups of pictures, see `codec.adaptive_groups`."""
        types = "".join(frame.type for frame in self.frames)
        return adaptive_groups([frame.bytes for frame in self.frames], types, count).tolist()


def summarise(source: Source, name: str | None = None) -> ClipSummary:
    """Read a clip to its end.

    Raises:
        CodecError: as `codec.decode`.
    """
    frames = []
    with open_clip(source, name) as clip:
        label, codec = clip.name, clip.codec
    for _, frame in decode(source, name=name):
        frames.append(
            FrameSummary(
                index=frame.index,
                time=frame.time,
                type=frame.type,
                key_frame=frame.key_frame,
                bytes=frame.frame_bytes,
                motion=float(np.hypot(frame.motion[..., 0], frame.motion[..., 1]).mean()),
                residual=float(frame.residual.mean()),
                bits=None if frame.bits is None else float(frame.bits.sum()),
            )
        )
    return ClipSummary(
        name=label, codec=codec, height=frame.height, width=frame.width, estimated=frame.estimated, frames=frames
    )


def table(clip: ClipSummary, groups: int | None) -> Table:
    """One row a frame; the first frames of adaptive groups are marked if their number is given."""
    starts = set() if groups is None else set(clip.groups(groups))
    heads = ["frame", "time", "type", "key", "bytes", "motion px", "residual", "bits"] + ["group"] * (
        groups is not None
    )
    printed = Table(*heads, title=clip.name)
    for frame in clip.frames:
        row = [
            str(frame.index),
            "" if frame.time is None else f"{frame.time:.3f}",
            frame.type,
            "yes" if frame.key_frame else "",
            str(frame.bytes),
            f"{frame.motion:.2f}",
            f"{frame.residual:.2f}",
            "" if frame.bits is None else f"{frame.bits:.0f}",
        ]
        printed.add_row(*row, *(["starts" if frame.index in starts else ""] if groups is not None else []))
    how = "estimated from pixels" if clip.estimated else "read from the bitstream"
    printed.caption = f"{clip.codec}, {clip.width} x {clip.height}; means over the picture, {how}"
    return printed
