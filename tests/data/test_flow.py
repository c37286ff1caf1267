"""Samples on their way: bounded in bytes, the same without shared memory, packed where a GPU copies from, waits counted."""

from __future__ import annotations

import gc
import itertools
import math
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_ovenc.data.batch import Sample, pack
from megatron_ovenc.data.dataset import Fetched
from megatron_ovenc.data.pool import WorkerPool
from tests.data.heavy import Heavy
from tests.data.samples import clip_bytes, clip_head, coded_frames, image_head, loading, write_images, write_shard
from tests.data.streams import fingerprints, loader, records, stream

MEGABYTE = 1_000_000


def open_pool(dataset: Heavy, *, prefetch: int = 8, workers: int = 2, **options: Any) -> WorkerPool:
    pool = WorkerPool(dataset, workers=workers, prefetch=prefetch, timeout_s=options.pop("timeout_s", 20.0), **options)
    for position in range(pool.capacity):
        pool.submit(position)
    return pool


def take(pool: WorkerPool, position: int, dataset: Heavy) -> None:
    """Get a position, and see that it is what it should be."""
    found = pool.get(position)
    pool.submit(position + pool.capacity)
    expected = Heavy(dataset.nbytes).fetch(position)
    assert isinstance(found, Fetched)
    assert isinstance(expected, Fetched)
    assert (found.sample_id, found.bad) == (f"{position}", ())
    for got, wanted in (
        (found.view.patches, expected.view.patches),
        (found.view.positions, expected.view.positions),
        (found.labels, expected.labels),
    ):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert np.array_equal(got, wanted)


def settles_at(number: int, count: Callable[[], int]) -> bool:
    """Whether a count arrives at a number and stays there."""
    deadline = time.monotonic() + 60
    while count() < number and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    return count() == number


def test_loading_ahead_stops_at_the_bound(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.touch()
    dataset = Heavy(4 * MEGABYTE, begun)
    # A share of 10 MB: what is held when the third large sample of 4.08 MB is begun is below it, at the fourth it is above.
    pool = open_pool(dataset, prefetch_bytes=20 * MEGABYTE)
    # Worker 0 has the small sample besides.
    assert settles_at(7, lambda: begun.stat().st_size)
    take(pool, 0, dataset)
    take(pool, 1, dataset)
    assert settles_at(8, lambda: begun.stat().st_size)
    for position in range(2, 40):
        take(pool, position, dataset)
    assert settles_at(40 + 6, lambda: begun.stat().st_size)
    pool.close()


def test_a_bound_below_one_sample_lets_each_worker_have_one(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.touch()
    dataset = Heavy(2 * MEGABYTE, begun)
    pool = open_pool(dataset, workers=3, prefetch=2, prefetch_bytes=1.0)
    assert settles_at(3, lambda: begun.stat().st_size)
    for position in range(30):
        take(pool, position, dataset)
        if position == 10:
            os.kill(pool.pids[0], signal.SIGKILL)
    pool.close()


def test_without_a_bound_the_number_of_samples_is_one(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.touch()
    pool = open_pool(Heavy(2 * MEGABYTE, begun), prefetch=6, prefetch_bytes=math.inf)
    assert settles_at(12, lambda: begun.stat().st_size)
    pool.close()


@pytest.mark.parametrize("prefetch_mb", [0, 1e-6])
def test_the_stream_is_the_same_whatever_the_bound(prefetch_mb: float, tmp_path: Path) -> None:
    head, log = image_head(write_images(tmp_path, shards=3, samples=13)), tmp_path / "bad.jsonl"
    expected = stream(head, log, 6)
    one = loader(head, log, data=loading(workers=2, prefetch_mb=prefetch_mb))
    assert [fingerprints(one.next()) for _ in range(6)] == expected
    one.close()


@pytest.mark.parametrize("limit", [resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, None])
def test_workers_without_memory_files_deliver_the_same(
    limit: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = Heavy(MEGABYTE, limit=limit)
    pool = open_pool(dataset, prefetch=3)
    for position in range(20):
        take(pool, position, dataset)
    pool.close()
    told = [record.message for record in caplog.records if "shared memory" in record.message]
    assert len(told) == (limit is not None)
    assert all(("Too many open files" in each or "File too large" in each) and "ulimit" in each for each in told)


def test_a_worker_that_stops_within_an_answer_is_given_up(tmp_path: Path) -> None:
    dataset = Heavy(8 * MEGABYTE, limit=resource.RLIMIT_FSIZE)
    pool = open_pool(dataset, workers=1, prefetch=2, timeout_s=1.5)
    take(pool, 0, dataset)
    (worker,) = pool._workers
    # An answer of which the socket holds a small part, and which nobody has read.
    assert wait([worker.channel.fileno()], timeout=20)
    os.kill(pool.pids[0], signal.SIGSTOP)
    found = pool.get(1)
    pool.close()
    assert isinstance(found, Fetched)
    assert "longer than 1.5 s" in found.bad[0].reason


def test_a_worker_that_cannot_be_killed_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = open_pool(Heavy(MEGABYTE), workers=1, prefetch=1, timeout_s=1.0)
    pool.get(0)
    stuck = pool.pids[0]
    os.kill(stuck, signal.SIGSTOP)
    pool.submit(1)
    with monkeypatch.context() as patched:
        patched.setattr("subprocess.Popen.kill", lambda self: None)
        patched.setattr("megatron_ovenc.data.pool.END_TIMEOUT_S", 0.1)
        found = pool.get(1)
    assert isinstance(found, Fetched)
    assert "longer than 1 s" in found.bad[0].reason
    assert f"decoding process {stuck} does not end" in caplog.text
    assert stuck not in pool.pids
    os.kill(stuck, signal.SIGKILL)
    pool.close()


def test_a_worker_killed_within_an_answer_costs_nothing(tmp_path: Path) -> None:
    dataset = Heavy(8 * MEGABYTE, limit=resource.RLIMIT_FSIZE)
    pool = open_pool(dataset, workers=1, prefetch=2)
    take(pool, 0, dataset)
    assert wait([pool._workers[0].channel.fileno()], timeout=20)
    os.kill(pool.pids[0], signal.SIGKILL)
    for position in range(1, 5):
        take(pool, position, dataset)
    pool.close()


def test_a_pool_leaves_neither_descriptors_nor_maps(tmp_path: Path) -> None:
    def held() -> tuple[int, int]:
        gc.collect()  # files that other tests have left in cycles
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("/memfd:")

    before = held()
    dataset = Heavy(MEGABYTE)
    pool = open_pool(dataset)
    for position in range(30):
        take(pool, position, dataset)
        if position in (7, 19):
            os.kill(pool.pids[position == 19], signal.SIGKILL)
    pool.close()
    del pool
    assert held() == before


def test_clips_arrive_in_batches_without_a_copy_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is written to memory that is asked for as page-locked, and is this memory itself."""
    samples = [{"mp4": clip_bytes(coded_frames(20))} for _ in range(6)]
    write_shard(tmp_path / "clips.tar", samples, np.arange(12).reshape(6, 2))
    head, log = clip_head(str(tmp_path / "clips.tar"), batch=6), tmp_path / "bad.jsonl"
    expected = stream(head, log, 2)
    asked: dict[int, bool] = {}
    empty = torch.empty

    def recorded(*args: Any, pin_memory: bool, **options: Any) -> torch.Tensor:
        made = empty(*args, **options)  # pages are locked by CUDA, which need not be here
        asked[made.data_ptr()] = pin_memory
        return made

    monkeypatch.setattr("megatron_ovenc.data.batch.torch.empty", recorded)
    for device, pinned in ((torch.device("cuda", 0), True), (torch.device("cpu"), False)):
        asked.clear()
        one = loader(head, log, device=device)
        batches = [one.next() for _ in range(2)]
        assert [fingerprints(batch) for batch in batches] == expected
        for batch in batches:
            assert [asked[t.data_ptr()] for t in (batch.patches, batch.positions, batch.labels)] == [pinned] * 3
    assert records(log) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_samples_of_any_length_are_packed(dtype: type) -> None:
    rng = np.random.default_rng(0)
    lengths = (3, 1, 0, 7)
    samples = [
        Sample(
            patches=rng.integers(0, 255, (length, 588)).astype(dtype),
            positions=rng.integers(0, 9, (length, 3)).astype(np.int32),
            labels=np.array([number, -1]),
            sample_id=f"{number}",
        )
        for number, length in enumerate(lengths)
    ]
    for sample in samples:
        sample.patches.flags.writeable = False
    batch = pack(samples)
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 4, 11]
    assert batch.labels.tolist() == [[0, -1], [1, -1], [2, -1], [3, -1]]
    for sample, (begin, end) in zip(samples, itertools.pairwise(batch.cu_seqlens.tolist()), strict=True):
        assert np.array_equal(batch.patches[begin:end].numpy(), sample.patches)
        assert np.array_equal(batch.positions[begin:end].numpy(), sample.positions)
    assert (batch.patches.numpy().dtype, batch.positions.dtype, batch.labels.dtype) == (dtype, torch.int32, torch.int64)


def test_the_wait_is_the_time_to_get_samples_and_to_pack_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def slow(seconds: float, act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*args: Any, **options: Any) -> Any:
            clock[0] += seconds
            return act(*args, **options)

        return acting

    head = image_head(write_images(tmp_path, shards=1, samples=13))
    one = loader(head, tmp_path / "bad.jsonl")
    monkeypatch.setattr("megatron_ovenc.data.loader.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("megatron_ovenc.data.loader.pack", slow(5, pack))
    monkeypatch.setattr(one._dataset, "fetch", slow(0.25, one._dataset.fetch))
    assert one.take_wait() == 0
    for _ in range(2):
        one.next()
        clock[0] += 100  # the step
    assert one.take_wait() == 2 * (8 * 0.25 + 5)
    assert one.take_wait() == 0
