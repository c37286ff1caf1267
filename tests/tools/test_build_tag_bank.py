"""Banks of tags: nothing is cut off at the front of a list, nothing becomes a junk class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_ovenc.data.shards import ShardSet
from tests.data.samples import image_bytes, write_shard
from tools.build_tag_bank import main

PICTURE = image_bytes(np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    for shard in range(2):
        write_shard(tmp_path / f"p-{shard}.tar", [{"png": PICTURE}] * 4, np.full((4, 1), -1))
    return tmp_path


def write_tags(folder: Path, records: list[object]) -> None:
    (folder / "tags.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def build(folder: Path, *more: str) -> int:
    paths = [
        "--shards",
        str(folder / "p-*.tar"),
        "--tags",
        str(folder / "tags.jsonl"),
        "--output",
        str(folder / "bank"),
    ]
    return main([*paths, *more])


def tables(folder: Path) -> list[np.ndarray]:
    shards = ShardSet.open([str(folder / "p-*.tar")])
    return [np.array(shards.labels(shard)) for shard in shards.shards]


def vocabulary(folder: Path) -> list[str]:
    return [tag for tag, _ in json.loads((folder / "bank" / "vocabulary.json").read_text())["tags"]]


def test_labels_are_the_samples_tags(pages: Path) -> None:
    write_tags(
        pages,
        [
            {"id": "p-1-000", "tags": ["sun", "sea", "sun"]},
            {"record_id": "p-0-001", "gt": [17, "sun"]},
            {"sample_id": f"{pages}/p-0.tar#p-0-002", "tags": ["sea", "sun", "rare"]},
            {"id": "p-1-003", "tags": []},
            {"id": "p-0-003", "tags": [17]},
            {"id": "elsewhere", "tags": ["sun", "rare"]},
        ],
    )
    assert build(pages, "--labels", "3", "--min-count", "2") == 0
    assert vocabulary(pages) == ["sun", "17", "sea"]
    first, second = tables(pages)
    assert first.tolist() == [[-1] * 3, [1, 0, -1], [2, 0, -1], [1, -1, -1]]
    assert second.tolist() == [[0, 2, -1], [-1] * 3, [-1] * 3, [-1] * 3]
    report = json.loads((pages / "bank" / "report.json").read_text())
    assert (report["classes"], report["samples_without_record"], report["samples_without_label"]) == (3, 3, 4)
    assert (report["tags_outside_vocabulary"], report["records_without_sample"]) == (1, 1)
    # Other shards by the same classes.
    write_tags(pages, [{"id": "p-1-000", "tags": ["sea", "new"]}])
    known = ("--vocabulary", str(pages / "bank" / "vocabulary.json"), "--labels", "2")
    assert build(pages, *known) == 2
    assert build(pages, *known, "--overwrite-labels") == 0
    assert tables(pages)[1][0].tolist() == [2, -1]


def test_of_many_tags_a_random_subset_is_kept(pages: Path) -> None:
    words = [f"w{number:03d}" for number in range(200)]
    records = [{"id": f"p-{shard}-{row:03d}", "tags": words} for shard in range(2) for row in range(4)]
    write_tags(pages, records)
    assert build(pages, "--labels", "50") == 0
    rows = np.concatenate(tables(pages))
    assert all(len(set(row)) == 50 and row.min() >= 0 and row.max() < 200 for row in rows)
    assert len({tuple(row) for row in rows}) == 8
    # Every part of the list is kept as often as any other: 100 of 400 draws from each quarter, give or take.
    quarters = np.bincount(rows.ravel() // 50, minlength=4)
    assert (abs(quarters - 100) < 30).all()
    write_tags(pages, records[::-1])
    assert build(pages, "--labels", "50", "--overwrite-labels") == 0
    assert np.array_equal(np.concatenate(tables(pages)), rows)
    assert build(pages, "--labels", "50", "--overwrite-labels", "--seed", "1") == 0
    assert not np.array_equal(np.concatenate(tables(pages)), rows)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"id": "p-0-000"}], "line 1: it has 0 of the fields tags, gt"),
        ([{"id": "p-0-000", "tags": "sun"}], "its tags are 'sun', not a list"),
        ([{"id": "p-0-000", "tags": ["a"]}, ["p-0-001"]], "line 2: it has 0 of the fields id"),
        ([{"id": "p-0-000", "tags": ["a"]}] * 2, "more than one line for sample 'p-0-000'"),
        ([{"id": "nowhere", "tags": ["a"]}], "check that ids are keys of the shards' samples, such as "),
    ],
)
def test_what_is_wrong_is_said(
    records: list[object], message: str, pages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tags(pages, records)
    assert build(pages) == 2
    assert message in capsys.readouterr().err
    assert all((table == -1).all() for table in tables(pages))
    assert not (pages / "bank").exists()


def test_a_key_of_two_samples_needs_its_shard(pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pages / "copy").mkdir()
    for path in pages.glob("p-0.tar*"):
        (pages / "copy" / path.name).write_bytes(path.read_bytes())
    write_tags(pages, [{"id": "p-0-000", "tags": ["a"]}])
    both = ("--shards", str(pages / "p-0.tar"), str(pages / "copy" / "p-0.tar"))
    rest = ("--tags", str(pages / "tags.jsonl"), "--output", str(pages / "bank"), "--labels", "1")
    assert main([*both, *rest]) == 2
    assert "is the key of more than one sample; give SHARD#KEY" in capsys.readouterr().err
    write_tags(pages, [{"id": f"{pages / 'copy' / 'p-0.tar'}#p-0-000", "tags": ["a"]}])
    assert main([*both, *rest]) == 0
    shards = ShardSet.open(both[1:])
    assert [shards.labels(shard)[0].tolist() for shard in shards.shards] == [[-1], [0]]


def test_nothing_is_no_tag(pages: Path) -> None:
    write_tags(pages, [{"id": f"p-0-00{row}", "tags": ["", " ", "sea"]} for row in range(4)])
    assert build(pages, "--labels", "2", "--min-count", "1") == 0
    assert vocabulary(pages) == ["sea"]


def test_a_damaged_or_missing_tag_file_is_named(pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(pages) == 2
    assert "tags.jsonl: there is no such file" in capsys.readouterr().err
    (pages / "tags.jsonl").write_bytes(b'{"id": "p-0-000", "tags": ["\xff"]}\n')
    assert build(pages) == 2
    assert "tags.jsonl, line 1" in capsys.readouterr().err
