"""Resident memory of the training process and its two workers while 10,000 samples pass."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.data.material import PATCH, open_loader
from codec.bench.scenes import ENCODERS, encode
from megatron_ovenc.config import BankConfig, HeadConfig, SourceConfig
from tools.inputs import Item
from tools.make_shards import Packing, make_shards

SIDE, FRAMES, SAMPLES, BATCH = 56, 16, 10_000, 50


def memory(console: Console) -> list[tuple[int, float]]:
    """(samples taken, MB of all three processes together) a few times. Short clips of 16 frames, so that it takes a minute."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder, items = Path(name), []
        for number in range(16):
            picture = rng.integers(0, 255, (SIDE, SIDE), np.uint8)
            path = folder / f"{number}.mkv"
            moving = (np.roll(picture, 2 * t, axis=1) for t in range(FRAMES))
            path.write_bytes(encode(moving, *ENCODERS["h264" if number % 2 else "hevc"]))
            items.append(Item(path=path, labels=(0,)))
        packing = Packing(
            kind="video", samples_per_shard=8, sidecar=True, size=SIDE, patch_size=PATCH, clip_frames=FRAMES
        )
        make_shards(items, folder / "shards", packing, workers=2, console=console)
        source = SourceConfig(
            kind="video", shards=(f"{name}/shards/*.tar",), size=SIDE, tokens=64, clip_frames=FRAMES, num_frames=4
        )
        bank = BankConfig(num_classes=2, positives=1)
        wanted = HeadConfig(name="video", global_batch_size=BATCH, bank=bank, source=source)
        loader = open_loader(wanted, 2, folder / "bad.jsonl")
        found = []
        for taken in range(BATCH, SAMPLES + 1, BATCH):
            loader.next()
            if taken in (1000, 2500, 5000, 7500, SAMPLES):
                found.append((taken, sum(map(_megabytes, (os.getpid(), *loader.worker_pids)))))
        loader.close()
        return found


def _megabytes(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
