"""A data set that harms its workers. Its module is light, because workers import it."""

from __future__ import annotations

import os
import signal
import time

from megatron_ovenc.data.dataset import HeadDataset
from megatron_ovenc.data.storage.base import RawSample
from megatron_ovenc.data.views import View
from tools.inputs import Item


class Poisoned(HeadDataset):
    """Some positions' first samples kill the process that reads them, or never end, or reveal a defect.

    `heirs` are positions whose first sample reveals a defect, and the next never ends.
    """

    deadly: frozenset[int] = frozenset()
    endless: frozenset[int] = frozenset()
    defective: frozenset[int] = frozenset()
    starving: frozenset[int] = frozenset()
    heirs: frozenset[int] = frozenset()
    disarmed = False

    def _view(self, raw: RawSample, position: int) -> View:
        tried = [self._shards.sample_id(self.candidate(position, attempt)) for attempt in range(2)]
        if raw.sample_id in tried and not self.disarmed:
            self._harm(position, tried.index(raw.sample_id))
        return super()._view(raw, position)

    def _harm(self, position: int, attempt: int) -> None:
        if position in self.heirs and attempt == 1:
            time.sleep(1000)
        if attempt:
            return
        if position in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if position in self.endless:
            time.sleep(1000)
        if position in self.defective | self.heirs:
            raise ZeroDivisionError("a defect")
        if position in self.starving:
            raise MemoryError("no more of it")


def kill_at(item: Item) -> bytes | None:
    """Stands for a reader that crashes on some files."""
    if "deadly" in item.path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return item.path.name.encode()
