"""launch.pretrain with a fault on rank 1 in its second step: it hangs, or it raises while the first one's checkpoint is slowly
written. A stand-in for a broken machine."""

from __future__ import annotations

import os
import time
from typing import Any

from launch import pretrain
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.data.loader import HeadLoader
from megatron_ovenc.train import watchdog
from megatron_ovenc.train.checkpoint import Checkpointer

FAULTY_AT = 2


def never_ending_read() -> None:
    time.sleep(600)


def main(fault: str, argv: list[str]) -> int:
    load, calls = HeadLoader.next, 0

    def faulty_next(self: HeadLoader) -> PatchBatch:
        nonlocal calls
        calls += 1
        if calls == FAULTY_AT and os.environ["RANK"] == "1":
            if fault == "hang":
                never_ending_read()
            raise ValueError("the disk of rank 1 is gone")
        return load(self)

    def slow_record(self: Checkpointer, *args: Any) -> Any:
        time.sleep(2)
        return record(self, *args)

    HeadLoader.next = faulty_next  # type: ignore[method-assign]
    if fault == "raise":
        record = Checkpointer._record
        Checkpointer._record = slow_record  # type: ignore[method-assign]
        watchdog.MOST_GRACE_S = 0.5
    return pretrain.main(argv)
