"""Lists of files, as the reference and people write them, and patches that were chosen beforehand."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_ovenc.data.check import check_source
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage import lists
from megatron_ovenc.data.storage.labels import labels_path
from tests.data.samples import GRID, ONLY_CODEC, clip_bytes, clip_head, coded_frames, decoded_place
from tests.data.storage.writers import write_visidx
from tests.data.streams import loader, records, stream

SELECTED = [0, 3, 5, 9, 10, 11, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 50, 51, 52, 53, 61, 62, 63]
"""24 of the 16 x 2 x 2 patches of a clip."""


def opened(path) -> ShardSet:
    return ShardSet.open([str(path)])


def write_clips(folder: Path, count: int, frames: int = 16, selected=SELECTED) -> Path:
    """Clips with patch selections, and the reference's list of 12 columns."""
    lines = []
    for number in range(count):
        (folder / f"{number}.mp4").write_bytes(clip_bytes(coded_frames(frames)))
        write_visidx(folder / f"{number}_k2048.visidx.npy", selected)
        labels = " ".join(str(number + label) for label in range(10))
        lines.append(f"{folder}/{number}.mp4 {labels} {folder}/{number}_k4096.visidx.npy\n")
    (folder / "part_000.txt").write_text("".join(lines))
    return folder / "part_000.txt"


def test_the_references_list_is_read_as_it_is(tmp_path):
    found = opened(write_clips(tmp_path, 2))
    sample = found.read(1)
    assert sample.members["mp4"] == (tmp_path / "1.mp4").read_bytes()
    assert sample.members["visidx.npy"] == (tmp_path / "1_k2048.visidx.npy").read_bytes()
    assert sample.labels.tolist() == list(range(1, 11))
    assert sample.sample_id == found.sample_id(1) == f"{tmp_path}/part_000.txt#{tmp_path}/1.mp4"


def test_formats_of_lists_say_the_same(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a b.png").write_bytes(b"picture")
    (tmp_path / "c.JPG").write_bytes(b"second")
    (tmp_path / "l.csv").write_text('"sub/a b.png",3,4,\r\nc.JPG\r\n')
    entries = [{"path": "sub/a b.png", "labels": [3, 4.0]}, {"path": "c.JPG"}]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, entries)))
    for name in ("l.csv", "l.jsonl"):
        found = opened(tmp_path / name)
        assert [found.read(n).members for n in range(len(found))] == [{"png": b"picture"}, {"jpg": b"second"}]
        assert found.labels(found.shards[0]).tolist() == [[3, 4], [-1, -1]]
        assert found.read(1).labels.tolist() == []
    np.save(labels_path(tmp_path / "l.csv"), np.array([[8], [9]]))
    assert opened(tmp_path / "l.csv").read(1).labels.tolist() == [9]


@pytest.mark.parametrize(("name", "line"), [("l.csv", "a.png,7\n"), ("l.jsonl", '{"path": "a.png", "labels": [7]}\n')])
def test_the_mark_that_spreadsheets_write_before_a_list_is_no_part_of_it(tmp_path, name, line):
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / name).write_text(2 * line, encoding="utf-8-sig")
    found = opened(tmp_path / name)
    assert [found.read(n).members["png"] for n in range(len(found))] == [b"picture"] * 2


def test_the_selected_patches_are_what_is_seen(tmp_path):
    head = clip_head(str(write_clips(tmp_path, 4)), batch=4, modes=ONLY_CODEC)
    check_source(head, patch_size=14)
    one = loader(head, tmp_path / "bad.jsonl", accumulation=1)
    batch = one.next()
    expected = np.stack(np.unravel_index(SELECTED, (16, GRID, GRID)), axis=1)
    assert np.array_equal(batch.positions.numpy(), np.tile(expected, (4, 1)))
    assert np.array_equal(decoded_place(batch.patches.numpy(), 16), np.tile(expected, (4, 1)))


def test_after_the_end_of_a_short_clip_its_last_frame_is_seen(tmp_path):
    head = clip_head(str(write_clips(tmp_path, 1, frames=11)), batch=1, modes=ONLY_CODEC)
    batch = loader(head, tmp_path / "bad.jsonl", accumulation=1).next()
    expected = np.stack(np.unravel_index(SELECTED, (16, GRID, GRID)), axis=1)
    assert np.array_equal(batch.positions.numpy(), expected)
    expected[:, 0] = np.minimum(expected[:, 0], 10)
    assert np.array_equal(decoded_place(batch.patches.numpy(), 11), expected)


BAD_SELECTIONS = {
    "all zeros: whatever made it had failed": np.zeros(24, np.int32),
    "selects 23 patches, .* is 24": np.array(SELECTED[1:], np.int32),
    "reaches from 0 to 64, outside of the 16 x 2 x 2 = 64": np.array([*SELECTED[:-1], 64], np.int32),
    "reaches from -7 to 63": np.array([-7, *SELECTED[1:]], np.int32),
    "not strictly ascending": np.array([*SELECTED[:-1], 62], np.int32),
    "not an array of integers": np.array(SELECTED, np.float32),
    r"not an array of integers \[K\]": np.array(SELECTED, np.int32).reshape(6, 4),
    "not a .npy array": b"\x93NUMPY but not really",
}


@pytest.mark.parametrize("message", BAD_SELECTIONS)
def test_a_bad_selection_is_a_bad_sample_and_a_list_of_them_refused(tmp_path, message):
    path, content = write_clips(tmp_path, 3), BAD_SELECTIONS[message]

    def spoil(number: int) -> None:
        target = tmp_path / f"{number}_k2048.visidx.npy"
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            np.save(target, content)

    spoil(1)
    head = clip_head(str(path), batch=6, modes=ONLY_CODEC)
    check_source(head, patch_size=14)
    names = {one[0] for batch in stream(head, tmp_path / "bad.jsonl", 4) for one in batch}
    assert {name.rsplit("/", 1)[1] for name in names} == {"0.mp4", "2.mp4"}
    named = records(tmp_path / "bad.jsonl")
    assert {record["sample_id"].rsplit("/", 1)[1] for record in named} == {"1.mp4"}
    with pytest.raises(BadSample, match=message):
        raise BadSample(named[0]["reason"])
    spoil(0)
    spoil(2)
    with pytest.raises(ValueError, match=rf"heads\.clips\.source\.shards: none of the 3 samples .*{message}"):
        check_source(head, patch_size=14)
    # Who takes no codec patches does not look at them.
    frames = replace(head, source=replace(head.source, modes=replace(ONLY_CODEC, codec=0.0, frames=1.0)))
    check_source(frames, patch_size=14)
    assert len(stream(frames, tmp_path / "none.jsonl", 1)[0]) == 3
    assert records(tmp_path / "none.jsonl") == []


def test_paths_are_bytes_and_can_be_named_anywhere(tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff\xe9.mp4"
    with open(odd, "wb") as file:
        file.write(clip_bytes(coded_frames(16)))
    (tmp_path / "l.txt").write_bytes(b"\xff\xe9.mp4 1 2\n\xfe.mp4 3\n")
    found = opened(tmp_path / "l.txt")
    sample = found.read(0)
    assert len(sample.members["mp4"]) > 100
    assert sample.sample_id.encode().endswith(b"#\\udcff\\udce9.mp4")
    batches = stream(clip_head(str(tmp_path / "l.txt"), batch=4), tmp_path / "bad.jsonl", 2, workers=1)
    assert {one[0] for batch in batches for one in batch} == {sample.sample_id}
    assert records(tmp_path / "bad.jsonl")[0]["sample_id"].endswith("#\\udcfe.mp4")
    assert "No such file" in records(tmp_path / "bad.jsonl")[0]["reason"]


def test_a_list_in_the_working_directory_needs_no_folder_in_its_name(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "l.csv").write_text(f"a.png,1\n./a.png,2\n{tmp_path}/a.png,3\n")
    monkeypatch.chdir(tmp_path)
    found = opened("l.csv")
    assert [found.read(number).members for number in range(3)] == [{"png": b"picture"}] * 3


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 129, 1000])
@pytest.mark.parametrize("end", ["\n", ""])
def test_any_line_of_a_list_of_any_length_is_found(tmp_path, monkeypatch, count, end):
    monkeypatch.setattr(lists, "_BLOCK", 700)
    text = "\n".join(f"{number}{'x' * (number % 37)}.png {number}" for number in range(count))
    (tmp_path / "l.txt").write_text(text + end if count else "")
    found = opened(tmp_path / "l.txt")
    assert len(found) == count
    assert found.labels(found.shards[0]).reshape(-1).tolist() == list(range(count))
    assert found.keys(found.shards[0]) == [f"{number}{'x' * (number % 37)}.png" for number in range(count)]


def test_a_bad_line_is_a_bad_sample_and_a_bad_first_line_a_wrong_list(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    good = {"txt": "a.png 1", "csv": "a.png,1", "jsonl": '{"path": "a.png", "labels": [1]}'}
    bad = {"txt": ("", "a.png one"), "csv": ("", "a.png,1.5", ",3"), "jsonl": ("", "{}", "[1]", '{"path": 3}', "{")}
    bad["jsonl"] += tuple(
        f'{{"path": "a.png", "labels": [{label}]}}' for label in ("1.7", "true", "NaN", "1e400", "null")
    )
    for suffix, line in good.items():
        for wrong in bad[suffix]:
            path = tmp_path / f"l.{suffix}"
            path.write_text(f"{line}\n{wrong}\n{line}\n")
            found = opened(path)
            assert found.read(2).members == {"png": b"picture"}
            assert found.labels(found.shards[0]).tolist() == [[1], [-1], [1]]
            with pytest.raises(BadSample, match="line 2 of its list: "):
                found.read(1)
            assert found.sample_id(1) == f"{path}#[1]"
            path.write_text(f"{wrong}\n{line}\n")
            with pytest.raises(ValueError, match=rf"line 1 of the list .*l\.{suffix}"):
                opened(path)


def test_files_that_are_missing_are_named_before_and_during_the_run(tmp_path):
    path = write_clips(tmp_path, 3)
    head = clip_head(str(path), batch=4, modes=ONLY_CODEC)
    found = opened(path)
    (tmp_path / "1.mp4").unlink()
    with pytest.raises(BadSample, match=r"its file .*/1\.mp4 cannot be read: No such file"):
        found.read(1)
    check_source(head, patch_size=14)
    (tmp_path / "0.mp4").unlink()
    (tmp_path / "2_k2048.visidx.npy").unlink()
    with pytest.raises(
        ValueError, match=r"none of the 3 samples looked at can be used, such as .*0\.mp4.* cannot be read"
    ):
        check_source(head, patch_size=14)


def test_other_suffixes_are_refused(tmp_path):
    (tmp_path / "l.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"l\.zip ends in none of \.tar, \.rec, \.txt, \.csv, \.jsonl"):
        opened(tmp_path / "l.zip")
