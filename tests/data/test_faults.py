"""Faults: named, replaced, counted, and survived in bounded time."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_ovenc.data.dataset import MAX_ATTEMPTS, Fetched, HeadDataset
from megatron_ovenc.data.errors import BadRecord, BadSampleLog, DataError
from megatron_ovenc.data.handover import Channel
from megatron_ovenc.data.order import sample_indices
from megatron_ovenc.data.pool import WorkerPool
from megatron_ovenc.data.shards import ShardSet
from tests.data.poison import Poisoned
from tests.data.samples import (
    clip_bytes,
    clip_head,
    coded_frames,
    image_head,
    loading,
    overwrite,
    write_images,
    write_shard,
)
from tests.data.streams import fingerprints, loader, records, stream


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    return write_images(tmp_path_factory.mktemp("images"), shards=3, samples=13)


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
    for _ in range(22):
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
    assert 1.4 < time.monotonic() - begin < 60
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
    results = run_pool(poisoned(images, deadly={3, 9, 10}), 24, timeout_s=20)
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
    results = run_pool(poisoned(images, endless={2, 3, 11}), 16)
    assert [position for position, found in enumerate(results) if found.bad] == [2, 3, 11]
    assert time.monotonic() - begin < 60


def test_a_defect_that_one_sample_reveals_costs_that_sample(images, caplog):
    alone = poisoned(images, defective={1, 3})
    expected = [alone.fetch(position) for position in range(6)]
    assert [len(found.bad) for found in expected] == [0, 1, 0, 1, 0, 0]
    line = r"unexpected ZeroDivisionError at poison\.py:\d+: a defect"
    assert re.fullmatch(line, expected[1].bad[0].reason)
    assert caplog.text.count("Traceback") == 1  # two samples, one place
    results = run_pool(poisoned(images, defective={1, 3}), 6)
    assert [found.bad for found in results] == [found.bad for found in expected]


def test_defects_of_all_samples_exhaust_the_budget(images, tmp_path):
    one = loader(image_head(images), tmp_path / "bad.jsonl")
    one._dataset._view = None
    with pytest.raises(DataError, match=f"{MAX_ATTEMPTS} samples in a row"):
        one.next()
    assert all("unexpected TypeError at dataset.py" in record["reason"] for record in records(tmp_path / "bad.jsonl"))


def test_a_lack_of_memory_ends_the_run_with_a_traceback(images):
    with pytest.raises(RuntimeError, match="MemoryError: no more of it"):
        run_pool(poisoned(images, starving={1}), 4)


def test_who_hangs_after_a_bad_sample_is_the_one_that_is_named(images):
    dataset = poisoned(images, heirs={2})
    found = run_pool(dataset, 4)[2]
    first, second = found.bad
    names = [dataset._shards.sample_id(dataset.candidate(2, attempt)) for attempt in range(3)]
    assert [first.sample_id, second.sample_id, found.sample_id] == names
    assert "a defect" in first.reason
    assert "longer than 1.5 s" in second.reason


@pytest.mark.parametrize("number", [1, 3])
def test_a_worker_that_cannot_be_heard_is_replaced(images, monkeypatch, number):
    healthy, receive, heard = poisoned(images), Channel.receive, []

    def unheard(channel: Channel) -> object:
        heard.append(receive(channel))
        if len(heard) == number:
            raise OSError(errno.ENOBUFS, "no room for what it says")
        return heard[-1]

    monkeypatch.setattr(Channel, "receive", unheard)
    monkeypatch.setattr("megatron_ovenc.data.pool.END_TIMEOUT_S", 0.5)
    results = run_pool(healthy, 4, workers=1)
    assert len(heard) > number
    assert [found.sample_id for found in results] == [healthy.fetch(position).sample_id for position in range(4)]


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
