"""One stream on every layout: 1, 2, 4, 8 data ranks x 0 to 4 workers, with a stop after any step.

The heads have what could make ranks disagree: weighted sources, modes, augmentation, bad samples, and two micro-batches a step of
eleven samples each, which no number of ranks divides. The ranks of a layout load at the same time, each with workers of its own.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import codec
from megatron_ovenc.config.tree import HeadConfig
from tests.data.samples import (
    GRID,
    NUM_CLASSES,
    clip_bytes,
    clip_head,
    coded_frames,
    image_bytes,
    image_head,
    loading,
    overwrite,
    write_shard,
)
from tests.data.storage.writers import image_record, write_records, write_visidx
from tests.data.streams import fingerprints, loader, records

BATCH, ACCUMULATION, STEPS = 22, 2, 7
RANKS, WORKERS = (1, 2, 4, 8), (0, 1, 2, 3, 4)

Step = list[list[tuple]]
"""Each micro-batch's samples, all about them, in the order of the ranks."""


@dataclass(frozen=True)
class Stream:
    """A head, and what one rank without workers takes from it in STEPS steps."""

    head: HeadConfig
    steps: list[Step]
    bad: list[dict]
    """Its bad samples as they were named."""


def take(head: HeadConfig, log: Path, state: str, *, ranks: int, workers: int, steps: int) -> tuple[list[Step], str]:
    """So many steps on a layout, from a state that was written down as a checkpoint does, and the state after them."""
    with ExitStack() as stack, ThreadPoolExecutor(ranks) as at_once:
        data = loading(workers=workers, prefetch=2, sample_timeout_s=100, max_bad_share=0.99)
        loaders = [
            loader(head, log, data=data, rank=rank, ranks=ranks, accumulation=ACCUMULATION) for rank in range(ranks)
        ]
        for one in loaders:
            stack.callback(one.close)
            one.load_state_dict(json.loads(state))
        taken = [
            [
                [sample for batch in at_once.map(lambda one: fingerprints(one.next()), loaders) for sample in batch]
                for _ in range(ACCUMULATION)
            ]
            for _ in range(steps)
        ]
        (after,) = {json.dumps(one.state_dict()) for one in loaders}
        return taken, after


def state_after(steps: int) -> str:
    return json.dumps({"consumed": BATCH * steps})


def clip_sources(folder: Path) -> HeadConfig:
    """Clips of 12 to 25 frames: two tars, saliency beside some, four of nine bad; and a list that selects patches."""
    contents = [clip_bytes(np.roll(coded_frames(length), length, axis=0)) for length in range(12, 26)]
    samples = [{"mp4": content} for content in contents[:9]]
    for sample in samples[::3]:
        sample["saliency"] = codec.dumps(codec.analyse(sample["mp4"], (GRID, GRID), virtual_frames=16))
    samples[1]["mp4"] = samples[1]["mp4"][:700]
    samples[5]["mp4"] = b""
    labels = np.arange(27).reshape(9, 3)
    labels[7, 1] = NUM_CLASSES
    write_shard(folder / "a-0.tar", samples[:5], labels[:5])
    write_shard(folder / "a-1.tar", samples[5:], labels[5:])
    overwrite(folder / "a-1.tar", 3, "mp4", b"\xff" * 40)
    lines = []
    for number, content in enumerate(contents[9:]):
        (folder / f"{number}.mp4").write_bytes(content)
        write_visidx(folder / f"{number}.visidx.npy", range(number, number + 48, 2))
        lines.append(f"{number}.mp4 {number} {number + 10} {folder}/{number}.visidx.npy\n")
    (folder / "b.txt").write_text("".join(lines))
    return weighted(clip_head("", batch=BATCH), folder / "a-*.tar", folder / "b.txt")


def image_sources(folder: Path) -> HeadConfig:
    """Pictures of many sizes: two tars with a bad one, and records with another."""
    rng = np.random.default_rng(0)
    pictures = [image_bytes(rng.integers(0, 256, (20 + n, 50 - n, 3), dtype=np.uint8)) for n in range(23)]
    samples = [{"png": content} for content in pictures[:17]]
    samples[4] = {"txt": b"no picture"}
    labels = rng.integers(0, NUM_CLASSES, (17, 6))
    write_shard(folder / "a-0.tar", samples[:10], labels[:10])
    write_shard(folder / "a-1.tar", samples[10:], labels[10:])
    pictures[19] = pictures[19][:60]
    write_records(folder / "b.rec", [image_record(content, [1, 2, 3, 4, 5]) for content in pictures[17:]])
    return weighted(image_head("", batch=BATCH), folder / "a-*.tar", folder / "b.rec")


def weighted(head: HeadConfig, *patterns: Path) -> HeadConfig:
    return replace(head, source=replace(head.source, shards=tuple(map(str, patterns)), weights=(0.7, 0.3)))


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stream]:
    found = {}
    for name, make in (("clips", clip_sources), ("images", image_sources)):
        folder = tmp_path_factory.mktemp(name)
        head, log = make(folder), folder / "bad.jsonl"
        steps, after = take(head, log, state_after(0), ranks=1, workers=0, steps=STEPS)
        assert after == state_after(STEPS)
        found[name] = Stream(head, steps, records(log))
    return found


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("workers", WORKERS)
def test_samples_labels_and_patches_are_the_same_on_every_layout(streams, tmp_path, ranks, workers):
    # Without workers, which take a moment to start, both heads; with them in turn, so that each sees every number of either.
    kinds = sorted(streams)
    for kind in kinds if workers == 0 else [kinds[(RANKS.index(ranks) + workers) % 2]]:
        stream, log = streams[kind], tmp_path / f"{kind}.jsonl"
        found, after = take(stream.head, log, state_after(0), ranks=ranks, workers=workers, steps=2)
        assert found == stream.steps[:2]
        assert after == state_after(2)
        # Those that ranks have ahead of their use are not named, nor are any named twice.
        expected = [record for record in stream.bad if record["position"] < 2 * BATCH]
        assert sorted(records(log), key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("kind", ["clips", "images"])
def test_a_stop_after_any_step_changes_nothing_whoever_goes_on(streams, tmp_path, kind):
    """A run that is stopped after every step, each time continued by another number of ranks and workers."""
    stream, state, found = streams[kind], state_after(0), []
    for ranks, workers in [(1, 0), (4, 1), (2, 0), (8, 0), (1, 3), (2, 2), (8, 0)]:
        steps, state = take(stream.head, tmp_path / "bad.jsonl", state, ranks=ranks, workers=workers, steps=1)
        found += steps
    assert found == stream.steps
    assert state == state_after(STEPS)
    assert sorted(records(tmp_path / "bad.jsonl"), key=str) == sorted(stream.bad, key=str)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_any_number_of_ranks_goes_on_from_any_step(streams, tmp_path, ranks):
    for stream in streams.values():
        for stop in range(1, STEPS):
            found, after = take(stream.head, tmp_path / "x", state_after(stop), ranks=ranks, workers=0, steps=1)
            assert found == stream.steps[stop : stop + 1]
            assert after == state_after(stop + 1)


@pytest.mark.parametrize(("kind", "lengths"), [("clips", (9, 5)), ("images", (17, 6))])
def test_each_source_is_shuffled_anew_every_epoch(streams, kind, lengths):
    """By sample ids, bad ones where they would have come."""
    stream = streams[kind]
    names = [one[0] for step in stream.steps for micro_batch in step for one in micro_batch]
    for record in reversed(stream.bad):  # the first of a position last: those after it stood in and were bad, too
        names[record["position"]] = record["sample_id"]
    for source, length in zip("ab", lengths, strict=True):
        order = [name for name in names if name.rpartition("/")[2][0] == source or f"/{source}." in name]
        epochs = [tuple(order[begin : begin + length]) for begin in range(0, len(order) - length + 1, length)]
        assert len(epochs) >= 5
        assert all(len(set(epoch)) == length for epoch in epochs)
        assert all(one != other for one, other in pairwise(epochs))
        assert len(set(epochs)) > len(epochs) / 2
