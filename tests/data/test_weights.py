"""Weighted sources of one head: exact shares, epochs of their own, and one order whatever the ranks, workers and stops."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from megatron_ovenc.data.check import check_source
from megatron_ovenc.data.mixture import CYCLE, counts, counts_before, source_at
from tests.data.samples import image_bytes, image_head, overwrite, write_shard
from tests.data.storage.writers import image_record, write_records
from tests.data.streams import records, stream

LENGTHS = (17, 5, 9)


@pytest.fixture(scope="module")
def patterns(tmp_path_factory) -> tuple[str, ...]:
    """Two tars as one entry, records, a list."""
    folder = tmp_path_factory.mktemp("sources")
    picture = image_bytes(np.full((20, 24, 3), 90, np.uint8))
    for number, count in enumerate((10, 7)):
        write_shard(folder / f"a-{number}.tar", [{"png": picture}] * count, np.zeros((count, 1), np.int64))
    write_records(folder / "b.rec", [image_record(picture, [1])] * 5)
    for number in range(9):
        (folder / f"{number}.png").write_bytes(picture)
    (folder / "c.txt").write_text("".join(f"{number}.png 2\n" for number in range(9)))
    return (str(folder / "a-*.tar"), str(folder / "b.rec"), str(folder / "c.txt"))


def weighted(patterns, weights, batch=16):
    head = image_head(patterns[0], batch=batch)
    return replace(head, source=replace(head.source, shards=patterns, weights=weights))


def names(batches) -> list[list[str]]:
    return [[one[0].rsplit("/", 1)[1] for one in batch] for batch in batches]


def entry(name: str) -> int:
    return 0 if name.startswith("a-") else 1 if name.startswith("b.rec") else 2


def test_shares_are_exact_and_every_source_has_epochs_of_its_own(patterns, tmp_path):
    batches = names(stream(weighted(patterns, (4, 1, 3)), tmp_path / "bad.jsonl", 30))
    for batch in batches:
        assert Counter(map(entry, batch)) == {0: 4, 1: 1, 2: 3}
    flat = [name for batch in batches for name in batch]
    for source, length in enumerate(LENGTHS):
        order = [name for name in flat if entry(name) == source]
        epochs = [order[begin : begin + length] for begin in range(0, len(order) - length, length)]
        assert len(epochs) >= 5
        assert all(len(set(epoch)) == length for epoch in epochs)
        assert len(set(map(tuple, epochs))) == len(epochs)
    # No place in the batch belongs to a source.
    assert len({tuple(map(entry, batch)) for batch in batches}) > 20
    assert records(tmp_path / "bad.jsonl") == []


@pytest.mark.parametrize("weights", [(), (0.6, 0.1, 0.3)], ids=["one", "weighted"])
def test_the_order_is_the_same_for_any_ranks_and_stops(patterns, tmp_path, weights):
    """With worker processes: test_order_grid."""
    head, log, steps = weighted(patterns, weights), tmp_path / "bad.jsonl", 8
    expected = stream(head, log, steps)
    flat = [one[0] for batch in expected for one in batch]
    assert len(set(flat)) == 31
    for stop in range(1, steps):
        for ranks in (1, 2, 4, 8):
            assert stream(head, log, 1, ranks=ranks, consumed=8 * stop) == expected[stop : stop + 1]
    assert records(log) == []


@pytest.mark.parametrize("weights", [(1.0,), (3, 1), (0.9, 0.05, 0.05), (0.123, 4.56, 0.07, 1e-3)])
@pytest.mark.parametrize("micro_batch", [1, 3, 8, 100])
@pytest.mark.parametrize("first", [0, CYCLE - 40, 5 * CYCLE - 1])
def test_a_source_gives_its_samples_one_after_the_other(weights, micro_batch, first):
    shares = tuple(weight / sum(weights) for weight in weights)
    key = {"purpose": "source", "seed": 3, "head": "h"}
    expected = counts_before(first, micro_batch, shares, **key)
    assert sum(expected) == first * micro_batch
    # Close to its share at any time, not only on average.
    assert np.abs(np.array(expected) - np.array(shares) * first * micro_batch).max() < 4 + first / CYCLE
    for block in range(first, first + 80):
        assert expected == counts_before(block, micro_batch, shares, **key)
        found = Counter()
        for position in range(block * micro_batch, (block + 1) * micro_batch):
            source, place = source_at(position, weights, micro_batch, seed=3, head="h")
            assert place == expected[source]
            expected[source] += 1
            found[source] += 1
        assert [found[source] for source in range(len(weights))] == counts(block, micro_batch, shares, **key)


def test_a_bad_sample_is_replaced_from_its_own_source(tmp_path):
    picture = image_bytes(np.full((20, 24, 3), 90, np.uint8))
    for name in "ab":
        write_shard(tmp_path / f"{name}-0.tar", [{"png": picture}] * 6, np.zeros((6, 1), np.int64))
    overwrite(tmp_path / "b-0.tar", 3, "png", b"X")
    head = weighted((str(tmp_path / "a-0.tar"), str(tmp_path / "b-0.tar")), (1, 1))
    batches = names(stream(head, tmp_path / "bad.jsonl", 9))
    assert all(sum(name.startswith("b") for name in batch) == 4 for batch in batches)
    named = records(tmp_path / "bad.jsonl")
    assert {record["sample_id"].rsplit("#")[1] for record in named} == {"b-0-003"}
    assert all("b-0.tar" in record["replaced_by"] for record in named)


@pytest.mark.parametrize("weights", [(1, 2), (1, 2, 0), (1, 2, -3), (1, float("inf"), 1), (1, float("nan"), 1)])
def test_wrong_weights_name_their_key(patterns, weights):
    with pytest.raises(ValueError, match=r"heads\.images\.source\.weights are .* for each of the 3 entries"):
        check_source(weighted(patterns, weights), patch_size=14)


def test_an_entry_without_samples_cannot_have_a_share(patterns, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    head = weighted((*patterns[:2], str(tmp_path / "empty.csv")), (1, 1, 1))
    with pytest.raises(ValueError, match=r"source\.shards: '.*empty\.csv' has a weight but holds no sample"):
        check_source(head, patch_size=14)
