"""index_shards: tars of others become readable where they are, with the labels that they carry."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np

from megatron_ovenc.data.check import check_source
from megatron_ovenc.data.shards import ShardSet
from tests.data.samples import image_bytes, image_head
from tools.index_shards import EXIT_UNREADABLE, EXIT_WRONG_ARGUMENTS, main


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def picture(value: int) -> bytes:
    return image_bytes(np.full((20, 20, 3), value, np.uint8))


def test_a_tar_of_someone_else_is_trained_on_as_it_is(tmp_path):
    tar = tmp_path / "web 0.tar"
    write_tar(tar, {"a/1.png": picture(1), "a/1.cls": b"7\n", "a/2.png": picture(2), "a/2.json": b"{}"})
    before = tar.read_bytes()
    assert main([str(tmp_path / "*.tar"), "--workers", "1"]) == 0
    assert tar.read_bytes() == before
    shards = ShardSet.open([str(tar)])
    assert [shards.read(n).labels.tolist() for n in range(2)] == [[7], [-1]]
    assert [shards.read(n).members["png"] for n in range(2)] == [picture(1), picture(2)]
    assert len(check_source(image_head(str(tar)), patch_size=14)) == 2


def test_what_is_there_is_kept_and_what_is_stale_made_anew(tmp_path):
    tar, labels = tmp_path / "s.tar", tmp_path / "s.tar.labels.npy"
    write_tar(tar, {"1.png": picture(1)})
    np.save(labels, np.array([[5]]))
    assert main([str(tar)]) == 0
    assert np.load(labels).tolist() == [[5]]
    made = os.stat(f"{tar}.index.json").st_mtime_ns
    assert main([str(tar)]) == 0
    assert os.stat(f"{tar}.index.json").st_mtime_ns == made
    labels.unlink()
    write_tar(tar, {"1.png": picture(1), "2.png": picture(2) * 20})
    assert main([str(tar)]) == 0
    assert len(ShardSet.open([str(tar)])) == 2


def test_bad_tars_are_named_and_do_not_stop_the_rest(tmp_path, capsys):
    write_tar(tmp_path / "good.tar", {"1.png": picture(1)})
    write_tar(tmp_path / "text.tar", {"1.png": picture(1), "1.cls": b"cat"})
    (tmp_path / "no.tar").write_bytes(b"nothing of the kind" * 100)
    assert main([str(tmp_path / "*.tar"), "--workers", "2"]) == EXIT_UNREADABLE
    told = capsys.readouterr().err
    assert "the .cls of 1 is no class number: b'cat'" in told
    assert "no.tar cannot be read as an uncompressed tar" in told
    assert len(ShardSet.open([str(tmp_path / "good.tar")])) == 1
    assert main([str(tmp_path / "nothing*.tar")]) == EXIT_WRONG_ARGUMENTS
