"""A data set of large samples that need no files. Its module is light, because workers import it."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron_ovenc.data.dataset import Exhausted, Fetched, HeadDataset
from megatron_ovenc.data.errors import BadRecord
from megatron_ovenc.data.views import View


class Heavy(HeadDataset):
    """Samples of some bytes each, all of which tell their position."""

    def __init__(self, nbytes: int, begun: Path | None = None, limit: int | None = None) -> None:
        """
        Args:
            nbytes: of the patches; the sample at position 0 is small.
            begun: file that gets a byte for each sample that a process begins to load.
            limit: of the system (resource.RLIMIT_*), which is exhausted in processes that have loaded a sample.
        """
        self.nbytes, self.begun, self.limit = nbytes, begun, limit

    def fetch(
        self, position: int, reasons: tuple[str, ...] = (), tell: Callable[[tuple[str, ...]], None] | None = None
    ) -> Fetched | Exhausted:
        if self.begun is not None:
            with open(self.begun, "ab") as file:
                file.write(b".")
        patches = np.full((self.nbytes // 588 if position else 1, 588), position % 251, np.uint8)
        view = View(patches=patches, positions=np.full((len(patches), 3), position, np.int32))
        if self.limit is not None:
            exhaust(self.limit)
            self.limit = None
        name = str(position)
        bad = (BadRecord(head="", sample_id=name, position=position, reason=why, replaced_by=name) for why in reasons)
        return Fetched(view=view, labels=np.array([position]), sample_id=name, bad=tuple(bad))


def exhaust(limit: int, left: int = 0) -> None:
    """Leave this process little of a resource: of bytes that it may write to a file, or of files that it may open."""
    free = os.dup(0)
    os.close(free)
    soft = left + (free if limit == resource.RLIMIT_NOFILE else 0)
    resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))
