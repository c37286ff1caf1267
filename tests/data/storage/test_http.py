"""Shards on a web server, over real connections: by ranges, through the cache, and when the server fails in one of many ways."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import fsspec
import numpy as np
import pytest

from megatron_ovenc.data.check import check_source
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage import files
from megatron_ovenc.data.storage.files import Storage
from megatron_ovenc.data.storage.labels import labels_path
from tests.data.samples import image_head, loading, write_images, write_shard
from tests.data.storage.test_remote import contents, copies
from tests.data.storage.writers import image_record, write_records
from tests.data.streams import fingerprints, loader, records, stream

pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from megatron_ovenc.data.storage import http

ROOT = Path(__file__).parents[3]


class WebServer:
    """The process, which can be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-m", "tests.data.storage.web_server", str(self.folder), str(self.port)]
        self.process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def url(self, name: str, mood: str = "good") -> str:
        return f"http://127.0.0.1:{self.port}/{mood}/{name}"

    def requests(self) -> int:
        """Requests of files so far."""
        with urlopen(f"http://127.0.0.1:{self.port}/seen") as answer:
            return int(answer.read())


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_private_folder", lambda: str(tmp_path / "private"))
    monkeypatch.setattr(files, "FIRST_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars, records whose labels are beside them, a list."""
    folder = tmp_path_factory.mktemp("served")
    rng = np.random.default_rng(0)
    for number in range(2):
        samples = [{"txt": rng.bytes(5001 + row), "bin": bytes([row])} for row in range(4)]
        write_shard(folder / f"s-{number}.tar", samples, np.arange(8).reshape(4, 2) + 10 * number)
    write_records(folder / "r.rec", [image_record(rng.bytes(300_000), [1, 2]), image_record(b"x", [3])])
    np.save(labels_path(folder / "r.rec"), np.array([[7], [8]]))
    (folder / "note.txt").write_text("s-0.tar.index.json 1 2\n")
    return folder


@pytest.fixture
def web(shared: Path) -> Iterator[WebServer]:
    server = WebServer(shared)
    yield server
    server.kill()


NAMES = ("s-*.tar", "r.rec", "note.txt")


@pytest.mark.parametrize("mood", ["good", "cut", "busy"])
@pytest.mark.parametrize("cached", [False, True])
def test_every_format_is_as_if_it_were_local(
    web: WebServer, shared: Path, tmp_path: Path, mood: str, cached: bool
) -> None:
    """Also from a server that closes connections in the middle of a body, or is busy, whenever it is asked for something new."""
    expected = contents(ShardSet.open([f"{shared}/{name}" for name in NAMES]))
    storage = Storage(str(tmp_path / "cache"), 1.0, 20) if cached else Storage(retry_s=20)
    found = ShardSet.open([web.url(name, mood) for name in NAMES], storage)
    assert found.entry_lengths == (8, 2, 1)
    assert found.sample_id(0) == web.url("s-0.tar", mood) + "#s-0-000"
    assert contents(found) == expected
    if not cached:
        return
    for number in (0, 4, 8):
        found.read(number)
        storage.settle()
    before = web.requests()
    shards_only = [found.read(number).members for number in range(10)]
    assert shards_only == [members for _, members, _ in expected[:10]]
    assert web.requests() == before
    assert {"s-0.tar", "s-1.tar", "r.rec"} < set(copies(tmp_path / "cache"))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_is_killed_and_comes_back_costs_nothing_but_time(
    tmp_path: Path, cached: bool, workers: int
) -> None:
    (tmp_path / "served").mkdir()
    local = image_head(write_images(tmp_path / "served", shards=3, samples=13))
    log, micro_batches = tmp_path / "bad.jsonl", 6
    expected = [[one[1:] for one in batch] for batch in stream(local, log, micro_batches)]
    server = WebServer(tmp_path / "served")
    remote = replace(local, source=replace(local.source, shards=(server.url("images-*.tar"),)))
    data = loading(
        workers=workers, prefetch=2, sample_timeout_s=60, remote_retry_s=30, cache_dir=str(tmp_path) if cached else None
    )
    one = loader(remote, log, data=data)
    try:
        found = [[each[1:] for each in fingerprints(one.next())] for _ in range(2)]
        server.kill()
        comes_back = threading.Timer(1, server.start)
        comes_back.start()
        found += [[each[1:] for each in fingerprints(one.next())] for _ in range(micro_batches - 2)]
    finally:
        one.close()
        comes_back.join()
        server.kill()
    assert found == expected
    assert records(log) == []


def test_a_server_that_stays_away_is_told_as_such(web: WebServer, shared: Path) -> None:
    """Not as files that are missing, which would be an index to be made, or labels that are elsewhere."""
    found = ShardSet.open([web.url("r.rec"), web.url("s-*.tar")], Storage(retry_s=0.1))
    web.kill()
    with pytest.raises(BadSample, match=r"could not be read, though tried for 0\.1 s .*[Cc]annot connect"):
        found.read(0)
    for name in ("s-0.tar", "s-*.tar", "r.rec", "note.txt"):
        with pytest.raises(ValueError, match=r"cannot be (opened|listed): .*tried (for|once) .*[Cc]annot connect"):
            ShardSet.open([web.url(name)], Storage(retry_s=0.1))


def test_labels_beside_a_shard_are_not_missed_because_the_server_is_busy(web: WebServer) -> None:
    found = ShardSet.open([web.url("r.rec", "busy")], Storage(retry_s=20))
    assert found.read(0).labels.tolist() == [7]


def test_what_is_missing_or_forbidden_is_not_waited_for(web: WebServer) -> None:
    storage = Storage(retry_s=1000)
    with pytest.raises(ValueError, match=r"s-7\.tar has no index"):
        ShardSet.open([web.url("s-7.tar")], storage)
    with pytest.raises(ValueError, match="no shard matches 'http://"):
        ShardSet.open([web.url("x-*.tar")], storage)
    with pytest.raises(ValueError, match=r"the server says 403, .*give access to it"):
        ShardSet.open([web.url("s-0.tar", "closed")], storage)
    with pytest.raises(ValueError, match="has wildcards before its last part"):
        ShardSet.open([f"http://127.0.0.1:{web.port}/*/s-0.tar"], storage)


def test_settings_of_the_user_reach_every_request(
    web: WebServer, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from `FSSPEC_HTTP='{"headers": {"Authorization": "key"}}'` in the environment."""
    monkeypatch.setitem(fsspec.config.conf, "http", {"headers": {"Authorization": "key"}})
    expected = contents(ShardSet.open([f"{shared}/{name}" for name in NAMES]))
    for storage in (Storage(retry_s=0.1), Storage(str(tmp_path / "cache"), 1.0, 0.1)):
        found = ShardSet.open([web.url(name, "closed") for name in NAMES], storage)
        assert contents(found) == expected
        storage.settle()
        assert contents(found) == expected


@pytest.mark.parametrize("cached", [False, True])
def test_a_server_without_ranges_is_refused_with_the_remedy(tmp_path: Path, web: WebServer, cached: bool) -> None:
    write_images(tmp_path, shards=2, samples=5)
    web.kill()
    server = WebServer(tmp_path)
    head = image_head(server.url("images-*.tar", "whole"))
    with pytest.raises(
        ValueError, match=r"^heads\.images\.source\.shards: .*does not serve ranges .*nginx.*or copy the shards"
    ):
        check_source(head, loading(cache_dir=str(tmp_path / "cache") if cached else None), patch_size=14)
    server.kill()


def test_other_bytes_than_were_asked_for_are_never_taken(web: WebServer) -> None:
    storage = Storage(retry_s=0.1)
    with pytest.raises(ValueError, match=r"cannot be opened: .*bytes 1-1/\d+ came of .*, not the bytes 0-0"):
        ShardSet.open([web.url("s-0.tar", "shifted")], storage)
    with pytest.raises(OSError, match=r"bytes 4-13/\d+ came of .*, not the bytes 3-12"):
        storage.read_range(web.url("r.rec", "shifted"), 3, 13)


def test_a_body_that_always_ends_early_is_a_bad_sample_and_no_copy(
    web: WebServer, shared: Path, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path / "cache"), 1.0, 0.2)
    for name in shared.iterdir():  # what is needed to open it comes whole
        storage.local(storage.stat(web.url(name.name)))
    found = ShardSet.open([web.url("s-*.tar")], storage)
    torn = replace(found.shards[0].content, path=web.url("s-0.tar", "torn"))
    with pytest.raises(OSError, match=r"s-0\.tar could not be read, though tried for 0\.2 s"):
        storage.read_range(torn.path, 0, 2000)
    assert storage.cached(torn) is None
    storage.settle()
    assert storage.cached(torn) is None
    storage.settle()


def test_a_connection_that_goes_silent_is_given_up_and_tried_again(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "STALL_S", 0.5)
    found = ShardSet.open([web.url("s-0.tar", "stalls")], Storage(retry_s=20))
    assert found.read(2).key == "s-0-002"


def test_a_file_that_was_replaced_by_one_of_the_same_size_is_another(tmp_path: Path) -> None:
    """Such as labels that were made anew: a copy of the former ones must not be trained on."""
    (tmp_path / "served").mkdir()
    labels = labels_path(tmp_path / "served/s.tar")
    write_shard(tmp_path / "served/s.tar", [{"txt": b"a"}], np.array([[1]]))
    server = WebServer(tmp_path / "served")
    for value in (1, 2):
        np.save(labels, np.array([[value]]))
        storage = Storage(str(tmp_path / "cache"), 1.0)
        assert ShardSet.open([server.url("s.tar")], storage).read(0).labels.tolist() == [value]
    server.kill()


def test_lists_need_no_ranges(web: WebServer, shared: Path) -> None:
    found = ShardSet.open([web.url("note.txt", "whole")])
    assert found.read(0).members == {"json": (shared / "s-0.tar.index.json").read_bytes()}
