"""make_shards: everything readable gets in with its labels, the rest is named, and a second call goes on where the first ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import codec
from megatron_ovenc.data.check import check_source
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage.base import RawSample
from megatron_ovenc.data.video import frame_count
from tests.data.poison import kill_at
from tests.data.samples import clip_bytes, clip_head, coded_frames, image_bytes
from tools import make_shards
from tools.inputs import Item
from tools.make_shards import EXIT_CANNOT_WRITE, EXIT_UNREADABLE, EXIT_WRONG_ARGUMENTS, LeftOut, main
from tools.processes import map_isolated


def run(source: Path, output: Path, kind: str, *more: str) -> int:
    return main(["--input", str(source), "--output", str(output), "--kind", kind, "--workers", "1", *more])


def packed(output: Path) -> list[RawSample]:
    shards = ShardSet.open([str(output / "*.tar")])
    return [shards.read(number) for number in range(len(shards))]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two classes of two clips and one broken one."""
    for label, name in enumerate(("b-walk", "a run")):
        folder = tmp_path / "clips" / name / "deeper"
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"clip.{number}.mp4").write_bytes(clip_bytes(coded_frames(4 + label)))
    broken = tmp_path / "clips" / "b-walk" / "broken.mp4"
    broken.write_bytes(clip_bytes(coded_frames(9))[:-300])
    (tmp_path / "clips" / "b-walk" / "notes.txt").write_text("not a clip")
    return tmp_path / "clips"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(image_bytes(np.full((9, 9, 3), number * 50, np.uint8)))
    (tmp_path / "bad.png").write_bytes(b"nothing")
    return tmp_path


SMALL = ("--size", "28", "--clip-frames", "16")


def test_a_folder_of_classes_becomes_labelled_shards_with_sidecars(clips, tmp_path, capsys):
    assert run(clips, tmp_path / "out", "video", "--samples-per-shard", "2", *SMALL) == EXIT_UNREADABLE
    assert json.loads((tmp_path / "out/classes.json").read_text()) == ["a run", "b-walk"]
    samples = packed(tmp_path / "out")
    assert [sample.labels.tolist() for sample in samples] == [[0], [0], [1], [1]]
    assert [sample.key for sample in samples] == [
        "00000000-clip_0",
        "00000001-clip_1",
        "00000003-clip_0",
        "00000004-clip_1",
    ]
    for sample in samples:
        sidecar = codec.loads(sample.members["saliency"])
        sidecar.verify(sample.members["mp4"])
        assert sidecar.saliency.shape == (frame_count(sample.members["mp4"]), 2, 2)
    told = capsys.readouterr().err
    assert "broken.mp4: the clip" in told
    assert "4 samples, 1 inputs left out" in told
    head = clip_head(str(tmp_path / "out/*.tar"))
    assert len(check_source(head, patch_size=14).shards) == 3


def test_without_sidecars_clips_are_still_read_to_their_end(clips, tmp_path):
    assert run(clips, tmp_path / "out", "video", "--no-sidecar") == EXIT_UNREADABLE
    samples = packed(tmp_path / "out")
    assert [set(sample.members) for sample in samples] == [{"mp4"}] * 4


def test_csv_and_jsonl_lists_pad_labels_and_name_what_is_missing(pictures, capsys):
    (pictures / "list.csv").write_text("0.png,7,3\n1.png\n\nbad.png,1\n2.png,5,\ngone.png,2\n3.png,1,2,3\n")
    assert run(pictures / "list.csv", pictures / "csv", "image") == EXIT_UNREADABLE
    expected = [[7, 3, -1], [-1, -1, -1], [5, -1, -1], [1, 2, 3]]
    samples = packed(pictures / "csv")
    assert [sample.labels.tolist() for sample in samples] == expected
    assert [sample.members["png"] for sample in samples] == [(pictures / f"{n}.png").read_bytes() for n in (0, 1, 2, 3)]
    told = capsys.readouterr().err
    assert "gone.png: " in told
    assert "bad.png: the image cannot be decoded" in told
    lines = [
        {"path": "0.png", "labels": [7, 3]},
        {"path": "1.png"},
        {"path": "2.png", "labels": [5]},
        {"path": "3.png", "labels": [1, 2, 3]},
    ]
    (pictures / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert run(pictures / "list.jsonl", pictures / "jsonl", "image") == 0
    assert [sample.labels.tolist() for sample in packed(pictures / "jsonl")] == expected
    assert not (pictures / "jsonl/classes.json").exists()


def test_a_flat_folder_is_packed_without_labels(pictures):
    (pictures / "bad.png").unlink()
    assert run(pictures, pictures.parent / "flat-out", "image") == 0
    assert [sample.labels.tolist() for sample in packed(pictures.parent / "flat-out")] == [[-1]] * 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "path,label\n", "line 1: labels must be whole numbers"),
        ("l.csv", "0.png,-3\n", "line 1: labels must not be negative"),
        ("l.csv", "", "names no file"),
        ("l.jsonl", '{"path": "0.png"}\n{"file": 1}\n', "line 2: expected"),
        ("l.jsonl", '{"path": "0.png", "labels": [1.5]}', "line 1: labels must be whole numbers"),
        ("l.jsonl", "[1", "line 1: expected"),
        ("l.txt", "0.png", "neither a folder nor"),
        ("absent.csv", None, "does not exist"),
    ],
)
def test_wrong_lists_are_refused_before_anything_is_written(tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert run(tmp_path / name, tmp_path / "out", "image") == EXIT_WRONG_ARGUMENTS
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_beside_class_folders_are_ambiguous(clips, tmp_path, capsys):
    (clips / "stray.mp4").write_bytes(b"")
    assert run(clips, tmp_path / "out", "video") == EXIT_WRONG_ARGUMENTS
    assert "stray.mp4" in capsys.readouterr().err
    assert run(clips, tmp_path / "out", "video", "--size", "30") == EXIT_WRONG_ARGUMENTS


def test_an_interrupted_call_goes_on_and_keeps_complete_shards(pictures, monkeypatch):
    output = pictures.parent / "resumed"
    (pictures / "list.csv").write_text("".join(f"{n}.png,{n}\n" for n in range(3)) + "bad.png,9\n4.png,4\n")
    arguments = (pictures / "list.csv", output, "image", "--samples-per-shard", "2")
    real = make_shards._prepare

    def interrupted(item, packing):
        if item.path.name == "4.png":
            raise KeyboardInterrupt
        return real(item, packing)

    monkeypatch.setattr(make_shards, "_prepare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*arguments)
    assert sorted(path.name for path in output.glob("*.tar")) == ["shard-000000.tar", "shard-000001.tar"]
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar*")}
    # A shard without its index was being written.
    (output / "shard-000000.tar.index.json").unlink()

    seen = []

    def counted(item, packing):
        seen.append(item.path.name)
        return real(item, packing)

    monkeypatch.setattr(make_shards, "_prepare", counted)
    assert run(*arguments) == EXIT_UNREADABLE
    assert seen == ["0.png", "1.png", "4.png"]
    assert [sample.labels.tolist() for sample in packed(output)] == [[0], [1], [2], [4]]
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar*")}
    assert before["shard-000001.tar"] == after["shard-000001.tar"]
    assert not list(output.glob("*.tmp"))


def test_an_input_that_kills_its_reader_is_left_out_alone():
    names = ["a", "b", "deadly-1", "c", "d", "e", "deadly-2", "f"]
    items = [Item(path=Path(name), labels=()) for name in names]
    results = list(map_isolated(kill_at, items, workers=2, crashed=make_shards._crashed, chunk=2))
    for name, result in zip(names, results, strict=True):
        if "deadly" in name:
            assert isinstance(result, LeftOut)
            assert result.path == Path(name)
        else:
            assert result == name.encode()


def test_an_output_is_not_continued_with_other_inputs_or_settings(pictures, capsys):
    output = pictures.parent / "claimed"
    assert run(pictures, output, "image") == EXIT_UNREADABLE
    (pictures / "5.png").write_bytes(b"")
    assert run(pictures, output, "image") == EXIT_WRONG_ARGUMENTS
    assert "begun with other inputs or settings (inputs, inputs_sha256 differ" in capsys.readouterr().err


def test_the_command_line_works_with_processes_and_gives_the_same_bytes(clips, tmp_path):
    assert run(clips, tmp_path / "one", "video", *SMALL) == EXIT_UNREADABLE
    command = [
        "-m",
        "tools.make_shards",
        "--input",
        str(clips),
        "--output",
        str(tmp_path / "two"),
        "--kind",
        "video",
        "--workers",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, *command, *SMALL], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    assert done.returncode == EXIT_UNREADABLE, done.stderr
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_a_shard_that_was_cut_off_is_made_anew(pictures):
    output = pictures / "out"
    assert run(pictures / "0.png", output, "image") == EXIT_WRONG_ARGUMENTS  # neither a folder nor a list
    (pictures / "list.csv").write_text("".join(f"{number}.png,{number}\n" for number in range(5)))
    assert run(pictures / "list.csv", output, "image", "--samples-per-shard", "3") == 0
    whole = [(path, path.read_bytes()) for path in sorted(output.glob("*.tar"))]
    os.truncate(whole[0][0], 1000)
    whole[1][0].unlink()
    assert run(pictures / "list.csv", output, "image", "--samples-per-shard", "3") == 0
    assert [(path, path.read_bytes()) for path in sorted(output.glob("*.tar"))] == whole


def test_names_that_begin_with_a_dot_do_not_count(pictures, tmp_path):
    source = tmp_path / "classes"
    for name in ("a/1.png", "b/2.png", "b/._2.png", ".ipynb_checkpoints/3.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((pictures / "1.png").read_bytes())
    assert run(source, tmp_path / "out", "image") == 0
    assert json.loads((tmp_path / "out/classes.json").read_text()) == ["a", "b"]
    assert [sample.labels.tolist() for sample in packed(tmp_path / "out")] == [[0], [1]]


def test_lists_of_spreadsheets_and_misspelt_keys(pictures, capsys):
    (pictures / "list.csv").write_text("0.png,4\n", encoding="utf-8-sig")
    assert run(pictures / "list.csv", pictures / "out", "image") == 0
    (pictures / "list.jsonl").write_text('{"path": "0.png", "label": [4], "caption": "a cat"}\n')
    assert run(pictures / "list.jsonl", pictures / "other", "image") == EXIT_WRONG_ARGUMENTS
    assert "'label' is no key, 'labels' is" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named(pictures, capsys):
    (pictures / "list.csv").write_text("0.png\n")
    (pictures / "file").write_text("in the way")
    assert run(pictures / "list.csv", pictures / "file", "image") == EXIT_CANNOT_WRITE
    assert "in the way" not in capsys.readouterr().err
    assert (pictures / "file").read_text() == "in the way"
