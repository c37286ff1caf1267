"""MXNet records, written byte by byte."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from megatron_ovenc.data.check import check_source
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage.labels import labels_path
from tests.data.samples import image_bytes, image_head, write_images
from tests.data.storage.writers import MAGIC, image_record, part, write_records
from tests.data.streams import records, stream

PAYLOADS = [
    image_record(b"one label", [7.0]),
    image_record(b"ten labels, an odd length.", range(10)),
    image_record(b"", [3.0, -1.0]),
    # At multiples of four: first, twice in a row, last. Elsewhere it is content.
    image_record(MAGIC + b"1234" + MAGIC + MAGIC + b"12" + MAGIC + b"12" + MAGIC, [5.0, 6.0]),
    image_record(bytes(range(256)) * 2000, [2.0**24, 1.0]),
    image_record(b"a hundred", range(100)),
]


def opened(path) -> ShardSet:
    return ShardSet.open([str(path)])


@pytest.fixture
def rec(tmp_path):
    write_records(tmp_path / "set.rec", PAYLOADS)
    return tmp_path / "set.rec"


def test_images_and_all_forms_of_labels_are_read(rec):
    found = pickle.loads(pickle.dumps(opened(rec)))
    samples = [found.read(number) for number in range(len(found))]
    assert [sample.members["jpg"] for sample in samples] == [
        b"one label",
        b"ten labels, an odd length.",
        b"",
        PAYLOADS[3][24 + 8 :],
        bytes(range(256)) * 2000,
        b"a hundred",
    ]
    expected = [[7], list(range(10)), [3, -1], [5, 6], [2**24, 1], list(range(100))]
    assert [sample.labels.tolist() for sample in samples] == expected
    assert all(sample.labels.dtype == np.int64 for sample in samples)
    assert samples[4].sample_id == found.sample_id(4) == f"{rec}#4"
    labels = found.labels(found.shards[0])
    assert labels.shape == (6, 100)
    assert [[value for value in row if value != -1] for row in labels] == [[7], list(range(10)), [3], *expected[3:]]
    assert found.labels(found.shards[0], 2)[:, 0].tolist() == [7, 3, 2**24]


def test_more_labels_than_are_read_at_first(tmp_path):
    write_records(tmp_path / "wide.rec", [image_record(b"x", range(1000))])
    found = opened(tmp_path / "wide.rec")
    assert found.labels(found.shards[0]).tolist() == [list(range(1000))]


def test_order_and_keys_are_the_indexs(tmp_path):
    offsets = write_records(tmp_path / "a.rec", PAYLOADS[:3])
    (tmp_path / "a.idx").write_text(f"42\t{offsets[2]}\n17\t{offsets[0]}\n")
    found = opened(tmp_path / "a.rec")
    assert [found.sample_id(number)[-3:] for number in range(2)] == ["#42", "#17"]
    assert found.read(1).labels.tolist() == [7]


def test_labels_beside_the_file_replace_those_inside(rec):
    np.save(labels_path(rec), np.arange(6)[:, None])
    assert [opened(rec).read(number).labels.tolist() for number in range(6)] == [[n] for n in range(6)]
    np.save(labels_path(rec), np.arange(5)[:, None])
    with pytest.raises(ValueError, match=r"set\.rec\.labels\.npy holds int64 \[5, 1\]"):
        opened(rec)


def test_what_does_not_fit_is_refused(rec, tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            opened(rec)

    content, index = rec.read_bytes(), rec.with_suffix(".idx")
    rec.write_bytes(content[:-6])
    refused(r"set\.rec does not fit its index set\.idx: its record is cut off: 3 of 433 bytes are missing")
    rec.write_bytes(content[:-440])
    refused(r"set\.idx lists a record at byte \d+, but shard .* has only \d+ bytes")
    rec.write_bytes(b"")
    refused(r"has only 0 bytes")
    rec.write_bytes(b"\1" + content[1:])
    refused(r"no record begins at byte 0 of the \.rec file: 0xced72301 is not its magic 0xced7230a")
    rec.write_bytes(content)
    for text in ("0\t0\n1\tx\n", "0\t0\n1\n", "0\t-4\n"):
        index.write_text(text)
        refused(r"set\.idx (is not an index of records|lists a record at byte -4)")
    index.unlink()
    refused(r"set\.rec has no index .*set\.idx")


def test_no_records_are_no_obstacle_but_no_training_data(tmp_path, rec):
    write_records(tmp_path / "none.rec", [])
    assert len(ShardSet.open([str(rec), str(tmp_path / "none.rec")])) == 6
    with pytest.raises(ValueError, match=r"heads\.images\.source\.shards: .* hold no sample"):
        check_source(image_head(str(tmp_path / "none.rec")), patch_size=14)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"\0\0\0\0" + part(0, PAYLOADS[1])[4:], "is not its magic"),
        (part(3, PAYLOADS[1]), "flagged 3 .* is out of place"),
        (part(1, PAYLOADS[1][:8]) + part(1, PAYLOADS[1][8:]), "flagged 1 .* is out of place"),
        (part(1, PAYLOADS[1][:8]) + part(0, PAYLOADS[1][8:]), "flagged 0 .* is out of place"),
        (part(5, PAYLOADS[1]), "the unknown flag 5"),
        (part(0, b"short"), "has 5 bytes, fewer than the header"),
        (part(0, b"\xff\xff\0\0" + PAYLOADS[0][4:]), "announces 65535 labels"),
        (part(0, image_record(b"x", [1.5])), r"its labels \[1\.5\] are not class numbers"),
        (part(0, image_record(b"x", [float("nan"), 1])), "are not class numbers"),
        (part(0, image_record(b"x", [1e30])), "are not class numbers"),
    ],
)
def test_a_damaged_record_is_one_bad_sample(tmp_path, damaged, message):
    content = part(0, PAYLOADS[0]) + damaged + part(0, PAYLOADS[2])
    (tmp_path / "d.rec").write_bytes(content)
    last = len(content) - len(part(0, PAYLOADS[2]))
    (tmp_path / "d.idx").write_text(f"0\t0\n1\t{len(part(0, PAYLOADS[0]))}\n2\t{last}\n")
    found = opened(tmp_path / "d.rec")
    with pytest.raises(BadSample, match=message):
        found.read(1)
    assert found.read(0).labels.tolist() == [7]
    assert found.read(2).labels.tolist() == [3, -1]


def test_a_file_that_is_cut_off_or_goes_away_during_the_run(rec):
    found = opened(rec)
    os.truncate(rec, 80)
    with pytest.raises(BadSample, match=r"its record is cut off: \d+ of 90 bytes are missing"):
        found.read(1)
    assert found.read(0).labels.tolist() == [7]
    rec.unlink()
    assert found.read(0).labels.tolist() == [7]  # open since
    with pytest.raises(BadSample, match="cannot be read any more"):
        ShardSet(found.shards).read(0)


def test_records_and_tars_train_together(tmp_path):
    pattern = write_images(tmp_path, shards=1, samples=5)
    pictures = [image_bytes(np.full((30, 20, 3), 20 * n, np.uint8), "jpeg") for n in range(6)]
    write_records(tmp_path / "b.rec", [image_record(picture, [n, n + 10]) for n, picture in enumerate(pictures)])
    head = image_head(pattern, batch=22)
    head = replace(head, source=replace(head.source, shards=(pattern, str(tmp_path / "b.rec"))))
    check_source(head, patch_size=14)
    batches = stream(head, tmp_path / "bad.jsonl", 1, workers=1)
    names = [one[0].rsplit("/", 1)[1] for one in batches[0]]
    assert sorted(names) == sorted(
        [f"b.rec#{n}" for n in range(6)] + [f"images-0.tar#images-0-00{n}" for n in range(5)]
    )
    labels = {name: set(one[1]) - {-1} for name, one in zip(names, batches[0], strict=True)}
    assert all(labels[f"b.rec#{n}"] == {n, n + 10} for n in range(6))
    assert records(tmp_path / "bad.jsonl") == []
