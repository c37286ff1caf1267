"""A data set that harms its workers. Its module is light, because workers import it."""

from __future__ import annotations

import os
import signal
import time

from megatron_ovenc.data.dataset import Exhausted, Fetched, HeadDataset
from tools.inputs import Item


class Poisoned(HeadDataset):
    """Some positions' first samples kill the process that reads them, or never end, or reveal a defect."""

    deadly: frozenset[int] = frozenset()
    endless: frozenset[int] = frozenset()
    defective: frozenset[int] = frozenset()
    disarmed = False

    def fetch(self, position: int, reasons: tuple[str, ...] = ()) -> Fetched | Exhausted:
        if not reasons and not self.disarmed:
            if position in self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            if position in self.endless:
                time.sleep(1000)
            if position in self.defective:
                raise ZeroDivisionError("a defect")
        return super().fetch(position, reasons)


def kill_at(item: Item) -> bytes | None:
    """Stands for a reader that crashes on some files."""
    if "deadly" in item.path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return item.path.name.encode()
