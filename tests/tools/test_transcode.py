"""transcode: every frame, key frames where asked for, whole files or none, and what fails is named."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from rich.console import Console

from tests.data.poison import kill_at
from tests.data.samples import clip_bytes, coded_frames
from tools import encode, transcode
from tools.encode import Encoding, shrunk
from tools.inputs import Item
from tools.transcode import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_WRONG_ARGUMENTS, main

SMALL = ("--size", "28", "--preset", "ultrafast", "--workers", "1")


def run(source: Path, output: Path, *more: str) -> int:
    return main(["--input", str(source), "--output", str(output), *SMALL, *more])


def facts(path: Path) -> tuple[str, int, int, list[int], int]:
    """Codec, width, height, numbers of the key frames, number of frames; and that there is nothing but video."""
    with av.open(str(path)) as clip:
        assert [stream.type for stream in clip.streams] == ["video"]
        stream = clip.streams.video[0]
        frames = list(clip.decode(stream))
        keys = [number for number, frame in enumerate(frames) if frame.key_frame]
        return stream.codec_context.name, stream.width, stream.height, keys, len(frames)


def with_sound(frames: np.ndarray) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        video = out.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        sound = out.add_stream("aac", rate=16000, layout="mono")
        for frame in frames:
            out.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        noise.sample_rate = 16000
        out.mux(sound.encode(noise))
        out.mux(sound.encode(None))
        out.mux(video.encode(None))
    return file.getvalue()


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Two folders, three containers, two codecs, an odd size and two broken files."""
    folder = tmp_path / "films"
    (folder / "a" / "deep er").mkdir(parents=True)
    (folder / "b").mkdir()
    (folder / "a" / "deep er" / "one.mkv").write_bytes(with_sound(coded_frames(21, grid=4)))
    (folder / "b" / "two.mp4").write_bytes(clip_bytes(coded_frames(9)[:, :27, :25], "libx265"))
    (folder / "b" / "cut.mp4").write_bytes(clip_bytes(coded_frames(9))[:-300])
    (folder / "b" / "empty.avi").write_bytes(b"")
    (folder / "notes.txt").write_text("no clip")
    return folder


@pytest.mark.parametrize(("encoder", "name"), [("x264", "h264"), ("x265", "hevc")])
def test_a_folder_keeps_its_shape_and_its_frames(films, tmp_path, capsys, encoder, name):
    assert run(films, tmp_path / "out", "--encoder", encoder, "--gop", "5") == EXIT_FAILED
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert made == ["a/deep er/one.mp4", "b/two.mp4", "failed.jsonl", "transcode.json"]
    assert facts(tmp_path / "out/a/deep er/one.mp4") == (name, 28, 28, [0, 5, 10, 15, 20], 21)
    assert facts(tmp_path / "out/b/two.mp4") == (name, 24, 26, [0, 5], 9)  # 25 x 27: not enlarged, and even
    told = capsys.readouterr().err
    assert "2 made, 0 there already, 2 failed" in told
    failed = [json.loads(line) for line in (tmp_path / "out/failed.jsonl").read_text().splitlines()]
    assert [Path(line["path"]).name for line in failed] == ["cut.mp4", "empty.avi"]
    assert failed[1]["reason"].startswith("the clip: cannot be opened as a video")


def test_the_pictures_stay_what_they_were(tmp_path):
    (tmp_path / "in").mkdir()
    frames = coded_frames(6, grid=4)
    (tmp_path / "in/clip.mp4").write_bytes(clip_bytes(frames))
    assert run(tmp_path / "in", tmp_path / "out", "--size", "56", "--crf", "5") == 0
    with av.open(str(tmp_path / "out/clip.mp4")) as clip:
        made = np.stack([frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)])
        assert clip.streams.video[0].average_rate == 30
    centres = (slice(None), slice(7, None, 14), slice(7, None, 14))  # of patches, away from the edges of colour
    assert np.abs(made[centres].astype(int) - frames[centres]).max() < 12


def test_a_repeated_call_makes_what_is_missing_cut_off_or_older_than_its_source(films, tmp_path, capsys):
    out = tmp_path / "out"
    run(films, out)
    (one, two) = out / "a/deep er/one.mp4", out / "b/two.mp4"
    before = one.stat().st_mtime_ns
    two.write_bytes(two.read_bytes()[:-200])
    (films / "b/cut.mp4").write_bytes(clip_bytes(coded_frames(7)))
    capsys.readouterr()
    assert run(films, out) == EXIT_FAILED
    assert "2 made, 1 there already, 1 failed" in capsys.readouterr().err
    assert one.stat().st_mtime_ns == before
    assert facts(two)[-1] == 9
    (films / "b/empty.avi").unlink()
    os.utime(films / "b/two.mp4", (2e9, 2e9))
    assert run(films, out) == 0
    assert "1 made, 2 there already, 0 failed" in capsys.readouterr().err
    assert not (out / "failed.jsonl").exists()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_lists_are_carried_with_their_labels(films, tmp_path, suffix):
    rows = [("films/b/two.mp4", [3, 1]), ("films/b/cut.mp4", [2]), ("films/a/deep er/one.mkv", [])]
    source = tmp_path / f"list.{suffix}"
    if suffix == "csv":
        source.write_text("".join(",".join([path, *map(str, labels)]) + "\n" for path, labels in rows))
    else:
        source.write_text("".join(json.dumps({"path": path, "labels": labels}) + "\n" for path, labels in rows))
    assert run(source, tmp_path / "out") == EXIT_FAILED
    items, _ = transcode.read_inputs(tmp_path / "out" / source.name, ("mp4",))
    assert [(item.path.relative_to(tmp_path / "out").as_posix(), item.labels) for item in items] == [
        ("films/b/two.mp4", (3, 1)),
        ("films/a/deep er/one.mp4", ()),
    ]
    assert all(item.path.is_file() for item in items)


def test_wrong_calls_say_what_to_change(films, tmp_path, capsys):
    (films / "b/two.avi").write_bytes(b"")
    assert run(films, tmp_path / "out") == EXIT_WRONG_ARGUMENTS
    assert "would both become" in capsys.readouterr().err
    (films / "b/two.avi").unlink()
    assert run(films, films) == EXIT_WRONG_ARGUMENTS
    assert "would overwrite the clip" in capsys.readouterr().err
    assert run(films, tmp_path / "out", "--preset", "nonsense") == EXIT_WRONG_ARGUMENTS
    assert "--encoder x264 with --preset nonsense does not work" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    run(films, tmp_path / "out")
    capsys.readouterr()
    assert run(films, tmp_path / "out", "--gop", "8") == EXIT_WRONG_ARGUMENTS
    assert "begun with --gop 16, not 8" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    assert run(tmp_path / "nothing", tmp_path / "o2") == EXIT_WRONG_ARGUMENTS


def test_an_encoder_that_loses_frames_leaves_nothing_behind(films, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encode.codec, "frame_count", lambda path: 3)
    monkeypatch.setattr(transcode, "_whole", lambda job: False)
    assert run(films, tmp_path / "out") == EXIT_FAILED
    assert "9 frames were decoded, but 3 came out" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".mp4", ".tmp")]


def test_a_clip_that_kills_its_decoder_is_named_and_the_rest_is_made(tmp_path, monkeypatch):
    jobs = [
        transcode.Job(item=Item(path=Path(name), labels=()), target=tmp_path / name)
        for name in ("a", "deadly", "b", "c")
    ]
    monkeypatch.setattr(transcode, "_transcode", kill_at_job)
    settings = Encoding(encoder="x264", size=28, gop=16, crf=20, preset=None)
    results = transcode.transcode(jobs, settings, workers=2, console=Console(stderr=True))
    assert [result.failure is None for result in results] == [True, False, True, True]
    assert "kills the process" in str(results[1].failure)


def kill_at_job(job: transcode.Job, encoding: Encoding) -> transcode.Done:
    kill_at(job.item)
    return transcode.Done(job=job)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_call_that_is_killed_goes_on_when_repeated(tmp_path, sent):
    (tmp_path / "in").mkdir()
    content = clip_bytes(coded_frames(150, grid=12))
    for number in range(6):
        (tmp_path / f"in/{number}.mp4").write_bytes(content)
    command = [sys.executable, "-m", "tools.transcode", "--input", f"{tmp_path}/in", "--output", f"{tmp_path}/out"]
    command += ["--workers", "2", "--size", "160", "--preset", "veryslow"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE)
    while first.poll() is None and not list((tmp_path / "out").glob("*.mp4")):
        pass
    first.send_signal(sent)
    _, told = first.communicate(timeout=60)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mp4")}
    assert first.returncode == (EXIT_INTERRUPTED if sent == signal.SIGINT else -signal.SIGKILL)
    assert sent == signal.SIGKILL or b"interrupted" in told
    assert 0 < len(made) < 6
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    whole = sorted((tmp_path / "out").glob("*.mp4"))
    assert len(whole) == 6
    assert all(facts(path)[-1] == 150 for path in whole)
    assert all(path.stat().st_mtime_ns == before for path, before in made.items())
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_sides_shrink_together_and_stay_even():
    assert shrunk(1920, 1080, 256) == (456, 256)
    assert shrunk(1081, 1921, 224) == (224, 398)
    assert shrunk(100, 60, 256) == (100, 60)
    assert shrunk(3000, 1, 256) == (3000, 2)
