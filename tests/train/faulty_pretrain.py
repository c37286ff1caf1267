"""launch.pretrain with a fault on rank 1 in its second micro-batch: it hangs, or it raises. A stand-in for a broken machine."""

from __future__ import annotations

import os
import time

from launch import pretrain
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.data.loader import HeadLoader

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

    HeadLoader.next = faulty_next  # type: ignore[method-assign]
    return pretrain.main(argv)
