"""Shards in an S3 bucket, by s3fs from moto's server over real connections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage import files
from megatron_ovenc.data.storage.files import Storage
from megatron_ovenc.data.storage.labels import labels_path
from tests.data.samples import image_bytes, image_head, loading, write_images
from tests.data.storage.test_remote import contents, copies
from tests.data.storage.writers import image_record, write_records
from tests.data.streams import fingerprints, loader, records, stream

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed (pip install s3fs 'moto[server]')")
moto_server = pytest.importorskip("moto.server", reason="moto is not installed (pip install s3fs 'moto[server]')")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are in the bucket, too."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(files, "_private_folder", lambda: str(tmp_path / "private"))
    s3fs.S3FileSystem.clear_instance_cache()
    folder = tmp_path / "served"
    folder.mkdir()
    write_images(folder, shards=3, samples=13)
    write_records(folder / "r.rec", [image_record(image_bytes(np.full((9, 9, 3), 5, np.uint8)), [1, 2])] * 3)
    np.save(labels_path(folder / "r.rec"), np.array([[7], [8], [9]]))
    (folder / "note.txt").write_text("images-0.tar.index.json 1 2\n")
    s3fs.S3FileSystem().put(str(folder), "bucket/train", recursive=True)
    yield folder
    server.stop()


@pytest.mark.parametrize("cached", [False, True])
def test_every_format_is_as_if_it_were_local(served: Path, tmp_path: Path, cached: bool) -> None:
    storage = Storage(str(tmp_path / "cache"), 1.0) if cached else Storage()
    names = ("images-*.tar", "r.rec", "note.txt")
    found = ShardSet.open([f"s3://bucket/train/{name}" for name in names], storage)
    expected = contents(ShardSet.open([f"{served}/{name}" for name in names]))
    assert found.entry_lengths == (39, 3, 1)
    assert contents(found) == expected
    if cached:
        for number in (0, 13, 26, 39):
            found.read(number)
            storage.settle()
        assert {"images-0.tar", "images-1.tar", "images-2.tar", "r.rec"} < set(copies(tmp_path / "cache"))
        assert contents(found) == expected


def test_the_stream_is_that_of_local_files(served: Path, tmp_path: Path) -> None:
    local = image_head(f"{served}/images-*.tar")
    remote = replace(local, source=replace(local.source, shards=("s3://bucket/train/images-*.tar",)))
    expected = [[one[1:] for one in batch] for batch in stream(local, tmp_path / "bad.jsonl", 4)]
    for workers, cache in ((0, None), (2, None), (1, str(tmp_path / "cache"))):
        one = loader(
            remote, tmp_path / "bad.jsonl", data=loading(workers=workers, cache_dir=cache, sample_timeout_s=60)
        )
        found = [[each[1:] for each in fingerprints(one.next())] for _ in range(4)]
        one.close()
        assert found == expected
    assert records(tmp_path / "bad.jsonl") == []


def test_what_is_missing_is_told_and_what_was_replaced_is_another(served: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "cache"), 1.0, retry_s=1000)
    for url, message in (
        ("s3://bucket/train/x.tar", r"x\.tar has no index"),
        ("s3://bucket/none-*.tar", "no shard matches"),
        ("s3://nobucket/a.tar", "has no index"),
    ):
        with pytest.raises(ValueError, match=message):
            ShardSet.open([url], storage)
    for value in (11, 12):
        np.save(labels_path(served / "r.rec"), np.full((3, 1), value))
        s3fs.S3FileSystem().put_file(labels_path(served / "r.rec"), "bucket/train/r.rec.labels.npy")
        s3fs.S3FileSystem().invalidate_cache()
        assert ShardSet.open(["s3://bucket/train/r.rec"], storage).read(1).labels.tolist() == [value]
