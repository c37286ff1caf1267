"""Shards: what goes in comes out, from any process or thread; what does not fit together is refused by name."""

from __future__ import annotations

import glob
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from megatron_ovenc.data import shards as shards_module
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage.labels import labels_path
from megatron_ovenc.data.storage.tar import index_path, index_tar, read_index
from tests.data.samples import overwrite, write_shard

CONTENT = [
    [{"txt": f"{shard}/{row}".encode() * 50, "bin": bytes([row])} for row in range(3 + shard)] for shard in range(3)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, samples in enumerate(CONTENT):
        labels = np.arange(len(samples) * 2).reshape(-1, 2) + 100 * number
        write_shard(tmp_path / f"s-{number}.tar", samples, labels)
    return tmp_path


def test_samples_of_all_shards_form_one_sequence(folder):
    found = ShardSet.open([str(folder / "s-[01].tar"), str(folder / "s-2.tar")])
    assert len(found) == 3 + 4 + 5
    everything = [found.read(number) for number in range(len(found))]
    assert [sample.members for sample in everything] == [sample for part in CONTENT for sample in part]
    assert everything[7].labels.tolist() == [200, 201]
    assert everything[7].sample_id == found.sample_id(7) == f"{folder}/s-2.tar#s-2-000"
    with pytest.raises(IndexError):
        found.read(12)


def test_order_does_not_depend_on_the_file_system(folder, monkeypatch):
    listing = glob.glob
    monkeypatch.setattr(glob, "glob", lambda *args, **kwargs: sorted(listing(*args, **kwargs), reverse=True))
    assert [Path(s.path).name for s in ShardSet.open([f"{folder}/*.tar"]).shards] == ["s-0.tar", "s-1.tar", "s-2.tar"]


def test_threads_forks_and_pickles_read_the_same(folder, monkeypatch):
    monkeypatch.setattr(shards_module, "OPEN_SHARDS", 1)  # files are closed and opened again all the time
    found = ShardSet.open([f"{folder}/*.tar"])
    expected = [found.read(number).members for number in range(12)]
    copy = pickle.loads(pickle.dumps(found))
    numbers = [(7 * i) % 12 for i in range(600)]
    with ThreadPoolExecutor(8) as threads:
        for number, sample in zip(numbers, threads.map(copy.read, numbers), strict=True):
            assert sample.members == expected[number]
    assert len(os.listdir("/proc/self/fd")) < 100
    child = os.fork()
    if child == 0:
        os._exit(0 if [found.read(n).members for n in reversed(range(12))] == expected[::-1] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_shard_without_samples_is_no_obstacle(folder):
    write_shard(folder / "s-1b.tar", [], np.empty((0, 2), np.int64))
    found = ShardSet.open([f"{folder}/*.tar"])
    assert len(found) == 12
    assert found.read(7).sample_id.endswith("s-2-000")


def test_keys_may_have_folders_but_samples_must_not_be_torn_apart(tmp_path):
    def tar(*names: str) -> Path:
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name))
        return path

    index = index_tar(tar("a.b/1.JPG", "a.b/1.seg.png", "a.b/2.jpg"))
    assert index.keys == ("a.b/1", "a.b/2")
    assert set(index.members[0]) == {"jpg", "seg.png"}
    for names in (("1.jpg", "2.jpg", "1.txt"), ("1.jpg", "1.JPG")):
        with pytest.raises(ValueError, match="repeats an earlier sample"):
            index_tar(tar(*names))
    (tmp_path / "no.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(ValueError, match=r"no\.tar cannot be read"):
        index_tar(tmp_path / "no.tar")


def test_damage_to_a_member_is_a_bad_sample(folder):
    tar = folder / "s-1.tar"
    found = ShardSet.open([str(tar)])
    overwrite(tar, 2, "txt", b"X")
    with pytest.raises(BadSample, match=r"its \.txt is damaged"):
        found.read(2)
    assert found.read(1).members == CONTENT[1][1]
    end = index_tar(tar).members[3]["txt"][0] + 5
    os.truncate(tar, end)
    with pytest.raises(BadSample, match=r"its \.txt is cut off: \d+ of 150 bytes"):
        ShardSet(found.shards).read(3)
    tar.unlink()
    with pytest.raises(BadSample, match="cannot be read any more"):
        ShardSet(found.shards).read(0)
    Path(index_path(tar)).unlink()
    assert ShardSet(found.shards).sample_id(2) == f"{tar}#[2]"


def test_what_is_missing_or_does_not_fit_is_named(folder):
    def refused(message: str, *patterns: str) -> None:
        with pytest.raises(ValueError, match=message):
            ShardSet.open(patterns or [f"{folder}/*.tar"])

    refused(r"no shard matches '/nowhere/\*\.tar'", "/nowhere/*.tar")
    refused(r"s-0\.tar is matched by more than one pattern", f"{folder}/*.tar", f"{folder}/s-0.tar")
    tar, labels, index = folder / "s-1.tar", Path(labels_path(folder / "s-1.tar")), Path(index_path(folder / "s-1.tar"))
    good_labels, good_index = labels.read_bytes(), index.read_text()

    np.save(labels, np.zeros((3, 2), np.int64))
    refused(r"s-1\.tar\.labels\.npy holds int64 \[3, 2\], but .* needs int64 \[4, L\]")
    np.save(labels, np.zeros((4, 2), np.int32))
    refused(r"holds int32")
    labels.write_bytes(b"garbage")
    refused(r"labels\.npy is not a \.npy array")
    labels.unlink()
    refused(r"s-1\.tar has no labels .*s-1\.tar\.labels\.npy")
    labels.write_bytes(good_labels)

    index.write_text(json.dumps(json.loads(good_index) | {"version": 99}))
    refused(r"has version 99, this program reads 1")
    index.write_text(good_index[:-20])
    refused(r"is not a shard index")
    index.unlink()
    refused(r"s-1\.tar has no index .* tools\.index_shards writes it")
    index.write_text(good_index)

    os.truncate(tar, tar.stat().st_size - 512)
    refused(r"s-1\.tar has \d+ bytes, but its index .* was made for \d+")


def test_an_index_survives_being_written(folder):
    index = index_tar(folder / "s-2.tar")
    assert read_index(str(folder / "s-2.tar")) == index
