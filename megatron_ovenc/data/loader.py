"""A head's micro-batches on one data rank, the same whatever the ranks, workers and interruptions.

loader = HeadLoader(head, config.data, patch_size=14, seed=0, grad_accumulation=2, data_rank=0, data_size=4, bad_log=log)
batch = loader.next()
saved = loader.state_dict()                # {"consumed": samples of this head, over all ranks}
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice

import numpy as np
import torch

from megatron_ovenc.config.tree import DataConfig, HeadConfig
from megatron_ovenc.data.batch import PatchBatch, Sample, pack
from megatron_ovenc.data.dali_batch import BatchDecoder
from megatron_ovenc.data.dataset import MAX_ATTEMPTS, Exhausted, Fetched, HeadDataset
from megatron_ovenc.data.encoded import Encoded
from megatron_ovenc.data.errors import BadRecord, BadSample, BadSampleLog, DataError
from megatron_ovenc.data.order import micro_batch_slices
from megatron_ovenc.data.pool import WorkerPool
from megatron_ovenc.data.shards import ShardSet, storage_of
from megatron_ovenc.data.views import View

CPU = torch.device("cpu")
BUDGET_AFTER = 100
"""Samples that a rank takes from a head before their share of bad ones is judged."""


class HeadLoader:
    """An endless stream of micro-batches; processes start with the first one that is asked for."""

    def __init__(
        self,
        head: HeadConfig,
        data: DataConfig,
        *,
        patch_size: int,
        seed: int,
        grad_accumulation: int,
        data_rank: int,
        data_size: int,
        bad_log: BadSampleLog,
        consumed: int = 0,
        device: torch.device = CPU,
    ) -> None:
        """
        Args:
            head, data: the head's and the common part of the configuration.
            patch_size: `model.patch_size`.
            seed: `train.seed`.
            grad_accumulation: micro-batches a step.
            data_rank, data_size: which of how many data-parallel ranks this is.
            bad_log: where bad samples are named.
            consumed: samples of this head that all ranks together have taken before.
            device: where the batches will go. For a GPU they are made in page-locked memory; pictures of `decoder: dali_gpu` are
                decoded on it, and are there already.

        Raises:
            ValueError: shards are missing or damaged, or the batch does not divide.
        """
        self._head = head
        self._data = data
        self._slices = micro_batch_slices(head.global_batch_size, grad_accumulation, data_size, head=head.name)
        self._mine = self._slices[data_rank]
        self._micro_batch = head.global_batch_size // grad_accumulation
        self._dataset = HeadDataset(
            head,
            ShardSet.open(head.source.shards, storage_of(data)),
            patch_size=patch_size,
            seed=seed,
            micro_batch=self._micro_batch,
        )
        self._bad_log = bad_log
        self._consumed = consumed
        self._pin_memory = device.type == "cuda"
        self._decoder: BatchDecoder | None = None
        if head.source.decoder == "dali_gpu":
            self._decoder = BatchDecoder(patch_size=patch_size, device=device, threads=max(1, data.workers))
        self._pool: WorkerPool | None = None
        self._upcoming: Iterator[int] = iter(())
        self._taken = 0
        self._bad = 0
        self._wait_s = 0.0

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Samples of a micro-batch on each data rank."""
        return tuple(part.stop - part.start for part in self._slices)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that run now."""
        return () if self._pool is None else self._pool.pids

    def next(self) -> PatchBatch:
        """The next micro-batch's samples of this rank.

        Raises:
            DataError: too much of the data is bad.
        """
        begin = time.monotonic()
        positions = range(self._consumed + self._mine.start, self._consumed + self._mine.stop)
        batch = pack(self._samples(positions), pin_memory=self._pin_memory)
        self._consumed += self._micro_batch
        self._wait_s += time.monotonic() - begin
        return batch

    @property
    def bad_samples(self) -> int:
        """Samples that this rank has replaced so far."""
        return self._bad

    def take_wait(self) -> float:
        """Seconds that `next` has taken, to wait for samples and to pack them, since this was last asked."""
        waited, self._wait_s = self._wait_s, 0.0
        return waited

    def state_dict(self) -> dict[str, int]:
        """{"consumed": samples of this head that all ranks together have taken}."""
        return {"consumed": self._consumed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from `state`; what had been loaded ahead is dropped."""
        self.close()
        self._consumed = state["consumed"]

    def close(self) -> None:
        """End the worker processes and give back the decoder's memory; `next` would start anew."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None
        if self._decoder is not None:
            self._decoder.close()

    def _samples(self, positions: Sequence[int]) -> list[Sample]:
        """The samples at some positions. What only turns out to be bad here is replaced as if a worker had found it."""
        fetched = {position: self._take(position) for position in positions}
        patches: dict[int, np.ndarray | torch.Tensor] = {}
        while missing := [position for position in positions if position not in patches]:
            for position, found in zip(missing, self._decode([fetched[p].view for p in missing]), strict=True):
                if isinstance(found, BadSample):
                    fetched[position] = self._replace(position, fetched[position], found)
                else:
                    patches[position] = found
        return [
            Sample(
                patches=patches[position],
                positions=one.view.positions,
                labels=one.labels,
                sample_id=one.sample_id,
            )
            for position, one in fetched.items()
        ]

    def _decode(self, views: Sequence[View | Encoded]) -> Sequence[np.ndarray | torch.Tensor | BadSample]:
        if self._decoder is not None:
            return self._decoder.decode(views)
        return [view.patches for view in views if isinstance(view, View)]

    def _take(self, position: int) -> Fetched:
        fetched = self._fetch(position)
        self._taken += 1
        return self._checked(fetched, fetched.bad)

    def _replace(self, position: int, fetched: Fetched, reason: BadSample) -> Fetched:
        reasons = [record.reason for record in fetched.bad]
        again = self._dataset.fetch(position, (*reasons, str(reason)))
        return self._checked(again, again.bad[len(reasons) :])

    def _checked(self, fetched: Fetched | Exhausted, bad: tuple[BadRecord, ...]) -> Fetched:
        """Account for bad samples; stop where there is no good one."""
        self._account(bad)
        if isinstance(fetched, Exhausted):
            raise DataError(
                f"{MAX_ATTEMPTS} samples in a row could not be used in head {self._head.name!r}; they are listed in "
                f"{self._bad_log.path}; check heads.{self._head.name}.source"
            )
        return fetched

    def _fetch(self, position: int) -> Fetched | Exhausted:
        if self._data.workers == 0:
            return self._dataset.fetch(position)
        if self._pool is None:
            self._pool = WorkerPool(
                self._dataset,
                workers=self._data.workers,
                prefetch=self._data.prefetch,
                prefetch_bytes=self._data.prefetch_mb * 1e6 or math.inf,
                timeout_s=self._data.sample_timeout_s,
            )
            self._upcoming = self._positions()
            for ahead in islice(self._upcoming, self._pool.capacity):
                self._pool.submit(ahead)
        fetched = self._pool.get(position)
        self._pool.submit(next(self._upcoming))
        return fetched

    def _positions(self) -> Iterator[int]:
        """This rank's positions from the next micro-batch on."""
        for start in count(self._consumed, self._micro_batch):
            yield from range(start + self._mine.start, start + self._mine.stop)

    def _account(self, bad: tuple[BadRecord, ...]) -> None:
        """Name bad samples, and stop where there are too many of them."""
        for record in bad:
            self._bad_log.add(record)
        self._bad += len(bad)
        limit = self._data.max_bad_share
        if self._taken >= BUDGET_AFTER and self._bad > limit * self._taken:
            raise DataError(
                f"{self._bad} bad samples among {self._taken} ({self._bad / self._taken:.1%}) in head {self._head.name!r}, "
                f"more than data.max_bad_share = {limit:g} allows; they are listed in {self._bad_log.path}; "
                f"repair the data, or raise data.max_bad_share to go on without it"
            )
