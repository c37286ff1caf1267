"""launch.pretrain with a fault, a stand-in for a broken machine.

hang, raise      of rank 1 in its second step; `raise` comes while the first one's checkpoint is slowly written
slow profile     a rank takes longer to write its profile than a hang takes
end              rank 0 fails while it closes its files after the last step
"""

from __future__ import annotations

import os
import time
from typing import Any

from torch.profiler import profile

from launch import pretrain
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.data.loader import HeadLoader
from megatron_ovenc.train import watchdog
from megatron_ovenc.train.checkpoint import Checkpointer
from megatron_ovenc.train.metrics import MetricsWriter

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

    def slow_export(self: profile, path: str) -> None:
        time.sleep(7)

    def failing_close(self: MetricsWriter) -> None:
        raise ValueError("the files of rank 0 are gone")

    if fault in ("hang", "raise"):
        HeadLoader.next = faulty_next  # type: ignore[method-assign]
    if fault == "slow profile":
        profile.export_chrome_trace = slow_export  # type: ignore[method-assign]
    if fault == "end":
        MetricsWriter.close = failing_close  # type: ignore[method-assign]
    if fault == "raise":
        record = Checkpointer._record
        Checkpointer._record = slow_record  # type: ignore[method-assign]
        watchdog.MOST_GRACE_S = 0.5
    return pretrain.main(argv)
