"""What a stored sample is, and what a shard of any format offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from megatron_ovenc.data.storage.files import Storage

VISIDX_EXTENSION = "visidx.npy"
"""Extension of the member that holds a clip's patches as linear indices of the (t, row, col) grid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawSample:
    """A sample as stored."""

    key: str
    members: dict[str, bytes]
    """Content by extension, lower case, without the dot."""
    labels: np.ndarray
    """int64 [L], -1 = none."""
    sample_id: str
    """Shard path, `#`, key."""


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file as it was found at the start."""

    path: str
    """Local path, or URL."""
    size: int
    """Bytes."""
    version: str = ""
    """Changes with the content; of remote files only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What is known of a shard without its index in memory."""

    path: str
    length: int
    """Samples."""
    label_width: int
    """Most labels of a sample, as far as the format tells without reading all."""
    content: FileRef
    """The shard itself."""
    index: FileRef
    """The file that says where its samples are; for a list, the list."""
    labels: FileRef | None
    """The label array beside it; None: labels are inside the shard."""


class ShardReader(Protocol):
    """One open shard. Safe to share between threads and forks."""

    @classmethod
    def inspect(cls, path: str, storage: Storage) -> Shard:
        """Check that a shard and what belongs to it fit together.

        Raises:
            ValueError: they do not; says what to do.
            OSError: a file is missing or cannot be read.
        """

    def __init__(self, shard: Shard, storage: Storage) -> None: ...

    def key(self, row: int) -> str:
        """Name of a sample within its shard."""

    def read(self, row: int) -> tuple[dict[str, bytes], np.ndarray]:
        """Members by extension, and the labels inside the shard, int64 [L].

        Raises:
            BadSample: what is stored is damaged.
            OSError: the shard cannot be read.
        """

    def own_labels(self, row: int) -> np.ndarray:
        """The labels inside the shard, int64 [L], without the content where that is possible; raises as `read` does."""


def printable(path: str) -> str:
    """A path as text that can be written anywhere: bytes that are not UTF-8 are shown as `\\udcXX`."""
    return path.encode("utf-8", "backslashreplace").decode()
