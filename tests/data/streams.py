"""Streams of micro-batches, and what tells two of them apart."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from megatron_ovenc.config.tree import DataConfig, HeadConfig
from megatron_ovenc.data.errors import BadSampleLog
from megatron_ovenc.data.loader import CPU, HeadLoader
from tests.data.samples import (
    loading,
)


def loader(
    head: HeadConfig,
    log: Path,
    *,
    data: DataConfig | None = None,
    rank: int = 0,
    ranks: int = 1,
    accumulation: int = 2,
    consumed: int = 0,
    device: torch.device = CPU,
):
    return HeadLoader(
        head,
        data or loading(),
        patch_size=14,
        seed=7,
        grad_accumulation=accumulation,
        data_rank=rank,
        data_size=ranks,
        bad_log=BadSampleLog(log),
        consumed=consumed,
        device=device,
    )


def fingerprints(batch) -> list[tuple]:
    """Everything about each sample of a batch."""
    ends = batch.cu_seqlens.tolist()
    return [
        (name, tuple(labels), batch.positions[a:b].numpy().tobytes(), batch.patches[a:b].cpu().numpy().tobytes())
        for name, labels, a, b in zip(batch.sample_ids, batch.labels.tolist(), ends, ends[1:], strict=False)
    ]


def stream(
    head: HeadConfig,
    log: Path,
    micro_batches: int,
    *,
    ranks: int = 1,
    workers: int = 0,
    consumed: int = 0,
    device: torch.device = CPU,
) -> list[list[tuple]]:
    """Micro-batches over all ranks."""
    loaders = [
        loader(head, log, data=loading(workers=workers), rank=rank, ranks=ranks, consumed=consumed, device=device)
        for rank in range(ranks)
    ]
    try:
        return [[one for each in loaders for one in fingerprints(each.next())] for _ in range(micro_batches)]
    finally:
        for each in loaders:
            each.close()


def records(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
