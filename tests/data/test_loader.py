"""The loader: one stream of samples, whatever the ranks, workers and stops; and faults that are named and survived."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_ovenc.config.tree import DataConfig, HeadConfig
from megatron_ovenc.data.dataset import MAX_ATTEMPTS, Fetched, HeadDataset
from megatron_ovenc.data.errors import BadRecord, BadSampleLog, DataError
from megatron_ovenc.data.loader import HeadLoader
from megatron_ovenc.data.order import sample_indices
from megatron_ovenc.data.pool import WorkerPool
from megatron_ovenc.data.shards import ShardSet, labels_path
from tests.data.poison import Poisoned
from tests.data.samples import (
    GRID,
    clip_bytes,
    clip_head,
    coded_frames,
    decoded_place,
    image_head,
    loading,
    overwrite,
    write_images,
    write_shard,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    return write_images(tmp_path_factory.mktemp("images"), shards=3, samples=13)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("clips")
    for shard in range(2):
        samples = [{"mp4": clip_bytes(coded_frames(20 + shard))} for _ in range(6)]
        write_shard(folder / f"clips-{shard}.tar", samples, np.arange(12).reshape(6, 2))
    return str(folder / "*.tar")


def loader(
    head: HeadConfig,
    log: Path,
    *,
    data: DataConfig | None = None,
    rank: int = 0,
    ranks: int = 1,
    accumulation: int = 2,
    consumed: int = 0,
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
    )


def fingerprints(batch) -> list[tuple]:
    """Everything about each sample of a batch."""
    ends = batch.cu_seqlens.tolist()
    return [
        (name, tuple(labels), batch.positions[a:b].numpy().tobytes(), batch.patches[a:b].numpy().tobytes())
        for name, labels, a, b in zip(batch.sample_ids, batch.labels.tolist(), ends, ends[1:], strict=False)
    ]


def stream(
    head: HeadConfig, log: Path, micro_batches: int, *, ranks: int = 1, workers: int = 0, consumed: int = 0
) -> list[list[tuple]]:
    """Micro-batches over all ranks."""
    loaders = [
        loader(head, log, data=loading(workers=workers), rank=rank, ranks=ranks, consumed=consumed)
        for rank in range(ranks)
    ]
    try:
        return [[one for each in loaders for one in fingerprints(each.next())] for _ in range(micro_batches)]
    finally:
        for each in loaders:
            each.close()


def records(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_the_stream_is_the_same_for_any_ranks_workers_and_stops(kind, images, clips, tmp_path):
    head = image_head(images) if kind == "images" else clip_head(clips, batch=16)
    log = tmp_path / "bad.jsonl"
    expected = stream(head, log, 6)
    assert len(set(expected[0])) == len(expected[0]) == 8
    assert expected[0] != expected[1]
    for ranks in (2, 4, 8, 3):
        assert stream(head, log, 4, ranks=ranks) == expected[:4]
    assert stream(head, log, 6, ranks=1, workers=1) == expected
    assert stream(head, log, 6, ranks=2, workers=2) == expected
    # Stopped after some micro-batches, resumed on other ranks and workers.
    assert stream(head, log, 3, ranks=4, consumed=3 * 8) == expected[3:]
    assert stream(head, log, 1, ranks=1, workers=2, consumed=5 * 8) == expected[5:]
    assert records(log) == []


def test_epochs_hold_every_sample_once_each_in_another_order(images, tmp_path):
    names = [one[0] for batch in stream(image_head(images, batch=26), tmp_path / "bad.jsonl", 9) for one in batch]
    epochs = [names[start : start + 39] for start in (0, 39, 78)]
    assert all(len(set(epoch)) == 39 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_next_epoch_augments_and_draws_labels_anew(images, tmp_path):
    batches = stream(image_head(images, batch=26), tmp_path / "bad.jsonl", 6)
    seen: dict[str, list] = {}
    for one in (one for batch in batches for one in batch):
        seen.setdefault(one[0], []).append(one)
    assert sum(first[1] != second[1] for first, second in seen.values()) > 30


def test_state_is_the_samples_that_all_ranks_consumed(images, tmp_path):
    one = loader(image_head(images), tmp_path / "bad.jsonl", rank=1, ranks=2, data=loading(workers=1))
    assert one.batch_sizes == (4, 4)
    for _ in range(3):
        one.next()
    assert one.state_dict() == {"consumed": 24}
    ahead = fingerprints(one.next())
    one.load_state_dict({"consumed": 24})
    assert one.worker_pids == ()
    assert fingerprints(one.next()) == ahead
    assert one.take_wait() > 0
    assert one.take_wait() == 0
    one.close()


def test_uneven_ranks(images, tmp_path):
    assert loader(image_head(images, batch=14), tmp_path / "x", ranks=3).batch_sizes == (3, 2, 2)
    with pytest.raises(ValueError, match=r"heads\.images\.global_batch_size"):
        loader(image_head(images, batch=15), tmp_path / "x")


def test_modes_are_mixed_exactly_and_positions_fit_the_pixels(clips, tmp_path):
    one = loader(clip_head(clips, batch=16, tokens=23), tmp_path / "bad.jsonl", accumulation=1)
    batch = one.next()
    kinds: list[str] = []
    for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        positions = batch.positions[a:b].numpy()
        length = 20 if "clips-0" in batch.sample_ids[len(kinds)] else 21
        seen = decoded_place(batch.patches[a:b].numpy(), length)
        if len(positions) == 23:
            kinds.append("codec")
        else:
            kinds.append("collage" if positions[:, 0].max() == 0 else "frames")
        rows = positions[:, 1] % GRID if kinds[-1] == "collage" else positions[:, 1]
        assert seen[:, 1:].tolist() == np.stack([rows, positions[:, 2]], axis=1).tolist()
    assert sorted(kinds) == ["codec"] * 8 + ["collage"] * 2 + ["frames"] * 6
    assert batch.labels.shape == (16, 2)


# --- faults -----------------------------------------------------------------------------------------------------------------


def damaged_clips(folder: Path) -> tuple[str, dict[str, str]]:
    """Twelve clips of which five are bad in different ways, and what their reasons must contain."""
    good = clip_bytes(coded_frames(20))
    samples = [{"mp4": good} for _ in range(12)]
    samples[1] = {"mp4": good[: len(good) // 2]}
    samples[3] = {"mp4": b""}
    samples[8] = {"txt": b"no clip at all"}
    labels = np.arange(24).reshape(12, 2)
    labels[5, 1] = 50
    write_shard(folder / "clips-0.tar", samples, labels)
    overwrite(folder / "clips-0.tar", 10, "mp4", b"\xff" * 40)
    reasons = {
        "001": "the clip",
        "003": "empty",
        "005": "label 50 is outside",
        "008": "has none of .mp4",
        "010": "its .mp4 is damaged",
    }
    return str(folder / "clips-0.tar"), {f"clips-0-{number}": reason for number, reason in reasons.items()}


def test_bad_samples_are_named_and_replaced_alike_everywhere(tmp_path):
    pattern, reasons = damaged_clips(tmp_path)
    head = clip_head(pattern, batch=12)
    logs = [tmp_path / f"{number}.jsonl" for number in range(3)]
    expected = stream(head, logs[0], 8)  # 48 samples: four epochs
    assert stream(head, logs[1], 8, ranks=3) == expected
    assert stream(head, logs[2], 8, workers=2) == expected
    named = records(logs[0])
    assert {record["sample_id"].rpartition("#")[2] for record in named} == set(reasons)
    for record in named:
        assert record["head"] == "clips"
        assert reasons[record["sample_id"].rpartition("#")[2]] in record["reason"]
    for log in logs[1:]:
        assert sorted(records(log), key=str) == sorted(named, key=str)
    order = [one[0] for batch in expected for one in batch]
    assert not any(name.rpartition("#")[2] in reasons for name in order)
    # Good samples are where they would be without the bad ones; a bad one's place is taken by the last replacement named.
    numbers = sample_indices(np.arange(48), 12, seed=7, head="clips")
    for position, (number, name) in enumerate(zip(numbers, order, strict=True)):
        replacements = [record for record in named if record["position"] == position]
        assert bool(replacements) == (f"clips-0-{number:03d}" in reasons)
        assert name == (replacements[-1]["replaced_by"] if replacements else f"{pattern}#clips-0-{number:03d}")


def test_too_many_bad_samples_stop_the_run(tmp_path):
    pattern, _ = damaged_clips(tmp_path)
    one = loader(
        clip_head(pattern, batch=100), tmp_path / "bad.jsonl", data=loading(max_bad_share=0.2), accumulation=20
    )
    for _ in range(19):
        one.next()
    with pytest.raises(DataError) as stopped:
        one.next()
    assert one.state_dict()["consumed"] == 95  # judged at the hundredth sample, not before
    for part in ("'clips'", "data.max_bad_share = 0.2", "bad.jsonl", "%"):
        assert part in str(stopped.value)
    # The same stream within a larger budget.
    one = loader(
        clip_head(pattern, batch=100), tmp_path / "bad2.jsonl", data=loading(max_bad_share=0.99), accumulation=20
    )
    for _ in range(30):
        one.next()


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_samples_ends_at_once(tmp_path, workers):
    write_shard(tmp_path / "x.tar", [{"png": b""}] * 3, np.zeros((3, 1), np.int64))
    one = loader(image_head(str(tmp_path / "x.tar")), tmp_path / "bad.jsonl", data=loading(workers=workers))
    with pytest.raises(DataError, match=rf"{MAX_ATTEMPTS} samples in a row .* head 'images'"):
        one.next()
    one.close()
    assert len(records(tmp_path / "bad.jsonl")) == MAX_ATTEMPTS


def test_killed_workers_cost_nothing_but_time(images, tmp_path):
    head, log = image_head(images, batch=16), tmp_path / "bad.jsonl"
    expected = stream(head, log, 10)
    one = loader(head, log, data=loading(workers=2, prefetch=6))
    batches = [fingerprints(one.next()) for _ in range(2)]
    first = one.worker_pids
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    batches += [fingerprints(one.next()) for _ in range(4)]
    os.kill(one.worker_pids[0], signal.SIGKILL)
    batches += [fingerprints(one.next()) for _ in range(4)]
    assert not set(first) & set(one.worker_pids)
    last = one.worker_pids
    one.close()
    assert batches == expected
    assert records(log) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in (*first, *last))


def test_a_hanging_worker_is_given_up_its_sample_named(images, tmp_path):
    head, log = image_head(images, batch=16), tmp_path / "bad.jsonl"
    expected = stream(head, log, 6)
    one = loader(head, log, data=loading(workers=1, prefetch=2, sample_timeout_s=1.5))
    batches = [fingerprints(one.next())]
    os.kill(one.worker_pids[0], signal.SIGSTOP)
    begin = time.monotonic()
    batches += [fingerprints(one.next()) for _ in range(5)]
    assert 1.4 < time.monotonic() - begin < 15
    one.close()
    (record,) = records(log)
    assert "longer than 1.5 s" in record["reason"]
    assert "data.sample_timeout_s" in record["reason"]
    flat, wanted = ([one for part in parts for one in part] for parts in (batches, expected))
    different = [position for position in range(48) if flat[position] != wanted[position]]
    assert different == [record["position"]]
    assert flat[record["position"]][0] == record["replaced_by"]
    assert wanted[record["position"]][0] == record["sample_id"]


def poisoned(images: str, **sets: set[int]) -> Poisoned:
    made = Poisoned(image_head(images), ShardSet.open([images]), patch_size=14, seed=7, micro_batch=8)
    for name, positions in sets.items():
        setattr(made, name, frozenset(positions))
    return made


def run_pool(
    dataset: HeadDataset, count: int, *, workers: int = 2, prefetch: int = 4, timeout_s: float = 1.5
) -> list[Fetched]:
    pool = WorkerPool(dataset, workers=workers, prefetch=prefetch, timeout_s=timeout_s)
    try:
        for position in range(pool.capacity):
            pool.submit(position)
        results = []
        for position in range(count):
            found = pool.get(position)
            assert isinstance(found, Fetched)
            results.append(found)
            pool.submit(position + pool.capacity)
        return results
    finally:
        pool.close()


def test_the_sample_that_kills_its_worker_is_found_among_those_in_flight(images):
    healthy = poisoned(images)
    results = run_pool(poisoned(images, deadly={3, 9, 10}), 24)
    for position, found in enumerate(results):
        reasons = ("the process decoding it died twice (signal 9)",) if position in (3, 9, 10) else ()
        expected = healthy.fetch(position, reasons)
        assert isinstance(expected, Fetched)
        assert found.bad == expected.bad
        assert found.sample_id == expected.sample_id
        assert (found.view.patches == expected.view.patches).all()
    assert [found.bad[0].position for found in results if found.bad] == [3, 9, 10]


def test_endless_samples_are_given_up_one_by_one_in_bounded_time(images):
    begin = time.monotonic()
    results = run_pool(poisoned(images, endless={2, 3, 11}), 16, timeout_s=0.7)
    assert [position for position, found in enumerate(results) if found.bad] == [2, 3, 11]
    assert time.monotonic() - begin < 20


def test_a_defect_of_the_program_is_raised_with_its_traceback(images):
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a defect"):
        run_pool(poisoned(images, defective={1}), 4)


def test_a_worker_killed_while_it_starts_is_started_again(images):
    pool = WorkerPool(poisoned(images), workers=1, prefetch=2, timeout_s=5)
    pool.submit(0)
    os.kill(pool.pids[0], signal.SIGKILL)
    found = pool.get(0)
    pool.close()
    assert isinstance(found, Fetched)
    assert found.bad == ()


def test_a_worker_that_cannot_start_ends_the_run(images, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(DataError, match=r"ended before it was ready \(exit code 1\), 3 times in a row"):
        run_pool(poisoned(images), 1)


def test_workers_are_light_deaf_to_job_signals_and_end_with_their_parent(images, tmp_path):
    one = loader(image_head(images), tmp_path / "bad.jsonl", data=loading(workers=1))
    one.next()
    (pid,) = one.worker_pids
    assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(pid, number)
    time.sleep(0.2)
    assert one.worker_pids == (pid,)
    one.next()
    assert one.worker_pids == (pid,)
    child = os.fork()
    if child == 0:
        # Dies without saying goodbye, its own workers with it.
        orphaned = loader(image_head(images), tmp_path / "bad.jsonl", data=loading(workers=1))
        orphaned.next()
        (tmp_path / "pid").write_text(str(orphaned.worker_pids[0]))
        os._exit(0)
    os.waitpid(child, 0)
    orphan = Path("/proc") / (tmp_path / "pid").read_text()
    deadline = time.monotonic() + 10
    while orphan.exists() and "State:\tZ" not in (orphan / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not orphan.exists() or "State:\tZ" in (orphan / "status").read_text()
    one.close()


def test_lines_of_many_processes_do_not_mix(tmp_path):
    log = tmp_path / "bad.jsonl"
    record = BadRecord(head="h", sample_id="ä#1", position=1, reason="r" * 3000, replaced_by="b")
    children = []
    for number in range(4):
        if (child := os.fork()) == 0:
            for _ in range(100):
                BadSampleLog(log).add(replace(record, head=str(number)))
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert len(records(log)) == 400


def test_a_shard_that_vanishes_while_training_is_survived(tmp_path):
    pattern = write_images(tmp_path, shards=3, samples=10)
    one = loader(image_head(pattern), tmp_path / "bad.jsonl", data=loading(max_bad_share=0.9))
    (tmp_path / "images-1.tar").unlink()
    names = [name for _ in range(8) for name in one.next().sample_ids]
    assert not any("images-1" in name for name in names)
    assert all("cannot be read any more" in record["reason"] for record in records(tmp_path / "bad.jsonl"))


def test_new_labels_beside_the_shards_are_what_is_trained_on(tmp_path):
    pattern = write_images(tmp_path, shards=1, samples=8)
    np.save(labels_path(tmp_path / "images-0.tar"), np.arange(8)[:, None])
    head = image_head(pattern, batch=16)
    head = replace(head, bank=replace(head.bank, positives=1))
    batch = loader(head, tmp_path / "bad.jsonl").next()
    assert sorted(batch.labels[:, 0].tolist()) == list(range(8))
    assert [int(name[-3:]) for name in batch.sample_ids] == batch.labels[:, 0].tolist()
