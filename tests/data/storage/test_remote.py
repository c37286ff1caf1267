"""Remote shards through fsspec: by ranges, through the cache, and when remote or disk fail."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from megatron_ovenc.data.check import check_source
from megatron_ovenc.data.errors import BadSample, DataError
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage import cache as cache_module
from megatron_ovenc.data.storage import files
from megatron_ovenc.data.storage.base import FileRef
from megatron_ovenc.data.storage.cache import FileCache
from megatron_ovenc.data.storage.files import RemoteError, Storage
from tests.data.samples import image_head, loading, write_images, write_shard
from tests.data.storage.writers import image_record, write_records
from tests.data.streams import fingerprints, loader, records, stream


class Counting(LocalFileSystem):
    """Local files as a remote that counts calls and fails when told to."""

    protocol = "counted"
    calls: ClassVar[Counter[str]] = Counter()
    failing: ClassVar[Exception | None] = None

    def _called(self, what: str) -> None:
        Counting.calls[what] += 1
        if Counting.failing is not None:
            raise Counting.failing

    def info(self, path, **kwargs):
        self._called("info")
        return super().info(path, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._called("range")
        return super().cat_file(path, start=start, end=end, **kwargs)

    def get_file(self, rpath, lpath, **kwargs):
        self._called("get")
        return super().get_file(rpath, lpath, **kwargs)


@pytest.fixture
def counted(monkeypatch):
    fsspec.register_implementation("counted", Counting, clobber=True)
    Counting.calls, Counting.failing = Counter(), None
    monkeypatch.setattr(files, "FIRST_PAUSE_S", 0.001)
    yield Counting.calls
    Counting.failing = None


@pytest.fixture(autouse=True)
def private_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_private_folder", lambda: str(tmp_path / "private"))


@pytest.fixture
def shards(tmp_path) -> Path:
    folder = tmp_path / "remote"
    folder.mkdir()
    for number in range(3):
        samples = [{"txt": os.urandom(5000), "bin": bytes([row])} for row in range(4)]
        write_shard(folder / f"s-{number}.tar", samples, np.arange(8).reshape(4, 2) + 10 * number)
    return folder


def contents(found: ShardSet) -> list:
    return [(raw.key, raw.members, raw.labels.tolist()) for raw in (found.read(number) for number in range(len(found)))]


def copies(folder: Path) -> list[str]:
    return sorted(path.name.split(".", 2)[2] for path in folder.iterdir() if path.name != "lock")


def test_every_format_by_any_url_is_as_if_it_were_local(shards, tmp_path):
    write_records(shards / "r.rec", [image_record(bytes(300_000), [1, 2]), image_record(b"x", [3])])
    (shards / "note.txt").write_text("s-0.tar.index.json 1 2\n")
    names = ["s-*.tar", "r.rec", "note.txt"]
    expected = contents(ShardSet.open([f"{shards}/{name}" for name in names]))
    memory = MemoryFileSystem()
    for path in shards.iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    for prefix in (f"file://{shards}", "memory://bucket"):
        found = ShardSet.open([f"{prefix}/{name}" for name in names])
        assert contents(found) == expected
        assert contents(pickle.loads(pickle.dumps(found))) == expected
        assert found.entry_lengths == (12, 2, 1)
        assert found.sample_id(0) == f"{prefix if 'file' in prefix else 'memory:///bucket'}/s-0.tar#s-0-000"
    memory.rm("/bucket", recursive=True)


def test_without_a_cache_a_sample_is_one_range_and_indexes_are_fetched_once(shards, counted):
    found = ShardSet.open([f"counted://{shards}/*.tar"])
    assert counted["get"] == 6
    counted.clear()
    expected = contents(ShardSet.open([f"{shards}/*.tar"]))
    assert contents(found) == contents(pickle.loads(pickle.dumps(found))) == expected
    assert counted == {"range": 24}


def test_with_a_cache_a_shard_is_fetched_once(shards, counted, tmp_path):
    storage = Storage(str(tmp_path / "cache"), 1.0)
    found = ShardSet.open([f"counted://{shards}/*.tar"], storage)
    expected = contents(ShardSet.open([f"{shards}/*.tar"]))
    for number in (0, 4, 8):
        found.read(number)
        storage.settle()
    assert counted["range"] == 3
    counted.clear()
    assert contents(found) == contents(pickle.loads(pickle.dumps(found))) == expected
    assert counted == {}
    assert copies(tmp_path / "cache") == sorted(
        f"s-{n}.tar{end}" for n in range(3) for end in ("", ".index.json", ".labels.npy")
    )
    # What the cache holds is what was there: a changed file is another file.
    write_shard(shards / "s-0.tar", [{"txt": b"new"}], np.array([[7]]))
    again = ShardSet.open([f"counted://{shards}/s-0.tar"], storage)
    assert again.read(0).members == {"txt": b"new"}


def test_processes_and_threads_share_a_fetch(shards, tmp_path):
    code = (
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from megatron_ovenc.data.storage.files import Storage\n"
        "storage = Storage(sys.argv[1], 1.0)\n"
        "ref = storage.stat(sys.argv[2])\n"
        "with ThreadPoolExecutor(8) as threads:\n"
        "    paths = set(threads.map(lambda _: storage.local(ref), range(40)))\n"
        "assert len(paths) == 1 and open(paths.pop(), 'rb').read() == open(sys.argv[2][7:], 'rb').read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), f"file://{shards}/s-0.tar"]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert copies(tmp_path / "cache") == ["s-0.tar"]


def fill(cache: FileCache, name: str, size: int, *, optional: bool = True) -> str | None:
    return cache.fetch(
        FileRef(f"x://{name}", size), lambda path: void(Path(path).write_bytes(bytes(size))), optional=optional
    )


def void(_: object) -> None:
    return None


def test_the_cache_is_bounded_and_gives_up_the_longest_idle_only(tmp_path):
    cache = FileCache(str(tmp_path), 1000)
    paths = {name: fill(cache, name, 300) for name in "abc"}
    assert fill(cache, "d", 300) is None  # all are in use
    assert copies(tmp_path) == ["a", "b", "c"]
    old = time.time() - cache_module.IDLE_S
    for age, name in enumerate("cab"):
        os.utime(paths[name], (old - 30 + age, old - 30 + age))
    assert cache.find(FileRef("x://c", 300)) == paths["c"]  # in use again
    assert fill(cache, "d", 300)
    assert copies(tmp_path) == ["b", "c", "d"]
    assert fill(cache, "big", 1001) is None
    assert fill(cache, "big", 1001, optional=False)  # what must be there is, limit or not
    assert copies(tmp_path) == ["big", "c", "d"]


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    cache = FileCache(str(tmp_path), 1000)
    child = os.fork()
    if child == 0:
        cache.fetch(FileRef("x://a", 900), lambda path: os.kill(os.getpid(), signal.SIGKILL), optional=True)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert copies(tmp_path) == ["a.partial"]
    assert fill(cache, "b", 900)
    assert copies(tmp_path) == ["b"]


def test_a_copy_that_arrives_short_is_no_copy(tmp_path):
    cache = FileCache(str(tmp_path), 1000)
    ref = FileRef("x://a", 30)
    with pytest.raises(OSError, match="29 bytes of x://a arrived, not its 30"):
        cache.fetch(ref, lambda path: void(Path(path).write_bytes(bytes(29))), optional=False)
    assert cache.find(ref) is None
    assert copies(tmp_path) == []
    path = fill(cache, "a", 30)
    os.truncate(path, 10)
    assert cache.find(ref) is None
    assert fill(cache, "a", 30) == path
    assert cache.find(ref) == path


def test_a_file_that_its_fetcher_gave_up_is_fetched_by_who_waited(tmp_path):
    cache = FileCache(str(tmp_path), 1000)
    ref = FileRef("x://a", 3)
    tries = []

    def download(path: str) -> None:
        tries.append(path)
        if len(tries) == 1:
            time.sleep(0.2)
            raise OSError("no")
        Path(path).write_bytes(b"abc")

    def fetch(_: int) -> str:
        try:
            return cache.fetch(ref, download, optional=False) or "none"
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(fetch, range(4)))
    assert sorted(results, key=len)[0] == "no"
    assert len(set(results)) == 2
    assert len(tries) == 2


def test_a_full_disk_is_told_once_and_survived(shards, counted, tmp_path, caplog):
    storage = Storage(str(tmp_path / "cache"), 1.0)
    found = ShardSet.open([f"counted://{shards}/*.tar"], storage)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    expected = contents(ShardSet.open([f"{shards}/*.tar"]))
    # No file may grow beyond 4 KiB: a real error of a real write, as of a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with caplog.at_level(logging.WARNING):
            for number in (0, 4, 8):
                found.read(number)
                storage.settle()
            assert contents(found) == expected
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "lower data.cache_gb or move data.cache_dir" in caplog.text
    assert not any(name.endswith((".tar", ".partial")) for name in copies(tmp_path / "cache"))


def test_a_cache_that_cannot_be_written_is_named_at_the_start(shards, tmp_path):
    (tmp_path / "file").write_text("")
    storage = Storage(str(tmp_path / "file/cache"), 1.0)
    with pytest.raises(ValueError, match=r"s-0\.tar cannot be opened: .*file/cache"):
        ShardSet.open([f"file://{shards}/*.tar"], storage)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_common_folder_is_fine_but_not_where_a_private_one_was_expected(tmp_path):
    os.chown(tmp_path, 65534, 65534)
    assert fill(FileCache(str(tmp_path), 1000), "a", 3)
    with pytest.raises(PermissionError, match=r"belongs to another user; set data\.cache_dir"):
        FileCache(str(tmp_path), 1000, private=True).fetch(FileRef("x://b", 3), void, optional=True)


def test_a_remote_that_fails_for_a_while_is_asked_again(shards, counted, monkeypatch):
    found = ShardSet.open([f"counted://{shards}/*.tar"], Storage(retry_s=5))
    pauses = []

    def recover(pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 3:
            Counting.failing = None

    monkeypatch.setattr(files.time, "sleep", recover)
    Counting.failing = ConnectionResetError("reset")
    assert found.read(5).key == "s-1-001"
    assert pauses == [0.001, 0.002, 0.004]


def test_a_remote_that_stays_away_ends_in_bad_samples_in_bounded_time(shards, counted):
    found = ShardSet.open([f"counted://{shards}/*.tar"], Storage(retry_s=0.5))
    Counting.failing = TimeoutError("away")
    counted.clear()
    with pytest.raises(
        BadSample, match=r"s-1\.tar could not be read, though tried for 0\.5 s \(data\.remote_retry_s\): .*away"
    ):
        found.read(5)
    assert counted["range"] > 3
    counted.clear()
    with pytest.raises(BadSample, match="though tried once more"):
        found.read(6)
    assert counted["range"] == 1
    Counting.failing = None
    assert found.read(6).key == "s-1-002"


def test_a_run_whose_remote_goes_away_stops_with_the_remedy(counted, tmp_path):
    (tmp_path / "remote").mkdir()
    pattern = f"counted://{write_images(tmp_path / 'remote', shards=2, samples=8)}"
    one = loader(image_head(pattern), tmp_path / "bad.jsonl", data=loading(remote_retry_s=0.05))
    one.next()
    Counting.failing = ConnectionError("no route")
    with pytest.raises(DataError, match=r"16 samples in a row .* check heads\.images\.source"):
        one.next()
    assert "no route" in records(tmp_path / "bad.jsonl")[0]["reason"]


def test_missing_files_and_rights_are_not_waited_for(shards, counted):
    storage = Storage(retry_s=1000)
    with pytest.raises(ValueError, match=r"s-9\.tar has no index"):
        ShardSet.open([f"counted://{shards}/s-9.tar"], storage)
    with pytest.raises(ValueError, match="no shard matches 'counted://"):
        ShardSet.open([f"counted://{shards}/x-*.tar"], storage)
    Counting.failing = PermissionError(errno.EACCES, "denied")
    with pytest.raises(ValueError, match=r"cannot be opened: .*denied"):
        ShardSet.open([f"counted://{shards}/s-1.tar"], storage)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket/*.tar", "Protocol not known"),
        ("nosuch://bucket/a.tar", "Protocol not known"),
        ("simplecache::s3://bucket/*.tar", "chains file systems"),
        *([] if find_spec("s3fs") else [("s3://bucket/*.tar", "s3fs"), ("s3://bucket/a.tar", "s3fs")]),
    ],
)
def test_what_fsspec_does_not_know_or_cannot_do_is_told_with_its_key(url, message):
    with pytest.raises(ValueError, match=rf"heads\.images\.source\.shards: .*{message}"):
        check_source(image_head(url), patch_size=14)


@pytest.mark.parametrize("name", ["s-0.tar", "s-*.tar"])
def test_without_aiohttp_a_web_server_is_refused_with_the_remedy(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "megatron_ovenc.data.storage.http", raising=False)
    monkeypatch.delattr("megatron_ovenc.data.storage.http", raising=False)
    with pytest.raises(ValueError, match=r"heads\.images\.source\.shards: .*pip install aiohttp"):
        check_source(image_head(f"http://127.0.0.1:9/{name}"), patch_size=14)


def test_a_remote_that_cannot_be_reached_stops_the_start(counted, shards):
    storage = Storage(retry_s=0.02)
    Counting.failing = ConnectionError("refused")
    with pytest.raises(ValueError, match=r"cannot be (listed|opened): .*tried for 0\.02 s"):
        ShardSet.open([f"counted://{shards}/*.tar"], storage)
    with pytest.raises(RemoteError):
        storage.read_whole(f"counted://{shards}/s-0.tar")


def test_the_stream_is_the_same_from_disk_remote_and_cache(tmp_path):
    (tmp_path / "remote").mkdir()
    pattern = write_images(tmp_path / "remote", shards=3, samples=13)
    local = image_head(pattern)
    remote = replace(local, source=replace(local.source, shards=(f"file://{pattern}",)))
    check_source(remote, loading(cache_dir=str(tmp_path / "cache")), patch_size=14)
    expected = [[one[1:] for one in batch] for batch in stream(local, tmp_path / "bad.jsonl", 5)]
    for changes in ({}, {"cache_dir": str(tmp_path / "cache")}, {"cache_dir": str(tmp_path / "cache"), "workers": 2}):
        one = loader(remote, tmp_path / "bad.jsonl", data=loading(**changes))
        got = [[each[1:] for each in fingerprints(one.next())] for _ in range(5)]
        one.close()
        assert got == expected
    assert records(tmp_path / "bad.jsonl") == []
