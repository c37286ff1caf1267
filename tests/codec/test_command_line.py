"""The command line: outputs that open, and one clear line on bad input."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image

import codec
from codec import analyze
from codec.__main__ import main
from codec.render import MAX_BYTES, render
from tests.codec.clips import encode, moving_square

GRID = (12, 7)


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    frames, _ = moving_square(20, (168, 98), (1, 4), start=(20, 20))
    path.write_bytes(encode(frames, options={"x264-params": "keyint=16:bframes=2"}))
    return path


def test_render_lights_the_selected_patches_and_darkens_the_rest(clip_path: Path) -> None:
    data = render(clip_path, budget=0.125, policy="anchor", grid=GRID, shown=["selected", "uniform"])
    image = Image.open(io.BytesIO(data))
    assert getattr(image, "n_frames") == 20  # noqa: B009
    maps = codec.saliency(codec.signals(clip_path), GRID)
    budget = round(0.125 * maps.size)
    selected, uniform = (np.zeros(maps.shape, bool) for _ in range(2))
    selected[tuple(codec.select(maps, budget, "anchor").T)] = True
    uniform[tuple(codec.select(np.zeros_like(maps), budget, "free").T)] = True
    assert selected.sum() == uniform.sum()
    width = round(320 * 98 / 168)
    for t in (0, 5, 19):
        image.seek(t)
        pixels = np.asarray(image.convert("L"), float)[14 : 14 + 320]
        for panel, chosen in enumerate((selected, uniform)):
            shown = pixels[:, panel * width : (panel + 1) * width]
            bounds = [np.arange(count + 1) * length // count for count, length in zip(GRID, shown.shape, strict=True)]
            for row, col in np.ndindex(GRID):
                y, x = (slice(edges[at] + 3, edges[at + 1] - 3) for edges, at in zip(bounds, (row, col), strict=True))
                assert (shown[y, x].mean() > 80) == chosen[t, row, col], (panel, t, row, col)


def test_render_shrinks_until_it_fits() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (192, 192), np.uint8) for _ in range(64)]
    data = render(
        encode(noise, options={"crf": "10", "preset": "ultrafast"}), budget=1.0, policy="free", shown=["selected"]
    )
    assert len(data) <= MAX_BYTES
    assert Image.open(io.BytesIO(data)).width < 320


@pytest.mark.parametrize("panels", [[], ["--panel", "motion"], ["--panel", "saliency", "--panel", "original"]])
@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_render_command(tmp_path: Path, clip_path: Path, suffix: str, panels: list[str]) -> None:
    output = tmp_path / f"clip.{suffix}"
    options = ["--budget", "40", "--policy", "free", "--frames", "4", *panels]
    assert main(["render", str(clip_path), "-o", str(output), *options]) == 0
    width = round(320 * 98 / 168) * (len(panels) // 2 or 4)
    if suffix == "gif":
        image = Image.open(output)
        assert (image.format, image.width) == ("GIF", width + width % 2)
    else:
        with av.open(str(output)) as container:
            shown = list(container.decode(video=0))
        assert (len(shown), shown[0].width) == (4, width + width % 2)


def test_inspect_lists_every_frame(clip_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(clip_path)]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("│")]
    assert len(rows) == 20
    assert "98 x 168" in printed
    assert "read from the bitstream" in printed


def test_inspect_gives_json_that_says_what_signals_say(clip_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(clip_path), "--json", "--groups", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    signals = list(codec.signals(clip_path))
    assert (found["codec"], found["height"], found["width"], found["estimated"]) == ("h264", 168, 98, False)
    assert [frame["type"] for frame in found["frames"]] == [frame.type for frame in signals]
    assert [frame["bytes"] for frame in found["frames"]] == [frame.frame_bytes for frame in signals]
    assert found["frames"][5]["residual"] == pytest.approx(signals[5].residual.mean())
    types = "".join(frame.type for frame in signals)
    assert found["groups"] == codec.adaptive_groups([frame.frame_bytes for frame in signals], types, 2).tolist()


@pytest.fixture
def corpus(tmp_path: Path, clip_path: Path) -> Path:
    """Two clips, a damaged one, a text and a shard of two clips."""
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    content = clip_path.read_bytes()
    other = encode(moving_square(8, (64, 96), (2, 1), side=16, start=(4, 4))[0], container="matroska")
    (folder / "one.mp4").write_bytes(content)
    (folder / "deep" / "two.mkv").write_bytes(other)
    (folder / "deep" / "cut.mp4").write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("not a clip")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for name, data in (("a/000.mp4", content), ("a/001.mkv", other), ("a/001.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder


def test_analyze_makes_sidecars_and_survives_bad_files(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, failures = tmp_path / "sidecars", tmp_path / "failures.jsonl"
    arguments = [str(corpus), str(corpus / "shard.tar"), "-o", str(output), "--failures", str(failures)]
    assert main(["analyze", *arguments]) == 3
    printed = capsys.readouterr()
    assert "4 made, 0 already there, 1 failed" in printed.out
    assert "cut.mp4" in printed.err
    (failure,) = map(json.loads, failures.read_text().splitlines())
    assert failure["clip"].endswith("cut.mp4") and "cut.mp4" in failure["reason"]
    made = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    assert made == ["deep/two.saliency", "one.saliency", "shard/a/000.saliency", "shard/a/001.saliency"]
    expected = codec.dumps(codec.analyse(corpus / "one.mp4"))
    assert (output / "one.saliency").read_bytes() == (output / "shard/a/000.saliency").read_bytes() == expected


def test_analyze_resumes(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "deep" / "cut.mp4").unlink()
    clips = [str(corpus / "one.mp4"), str(corpus / "deep")]
    assert main(["analyze", *clips, "--processes", "2"]) == 0
    assert (corpus / "one.saliency").exists() and (corpus / "deep" / "two.saliency").exists()
    (corpus / "one.mp4").write_bytes((corpus / "deep" / "two.mkv").read_bytes())
    assert main(["analyze", *clips]) == 0
    (corpus / "one.saliency").write_bytes(b"damaged")
    assert main(["analyze", *clips]) == 0
    assert main(["analyze", *clips, "--frames", "5"]) == 0
    assert main(["analyze", *clips, "--frames", "5", "--saliency", "reference"]) == 0
    assert main(["analyze", *clips, "--frames", "5", "--saliency", "reference", "--grid", "4x4"]) == 0
    assert main(["analyze", *clips, "--frames", "5", "--saliency", "reference", "--grid", "4x4"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "made" in line]
    counts = [tuple(int(word) for word in line.split() if word.isdigit()) for line in lines]
    assert counts == [(2, 0, 0), (1, 1, 0), (1, 1, 0), (2, 0, 0), (2, 0, 0), (2, 0, 0), (0, 2, 0)]
    assert not list(corpus.rglob("*.tmp"))


def test_a_shard_member_must_not_leave_its_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../../evil.mp4"))
    with pytest.raises(ValueError, match="leads out"):
        analyze.find_tasks([tmp_path / "shard.tar"], tmp_path / "out")


def test_select_writes_positions_and_a_summary(tmp_path: Path, clip_path: Path) -> None:
    output = tmp_path / "positions.npy"
    options = ["--grid", "12x7", "--budget", "12.5%", "--policy", "free", "--block", "2", "--floor", "1", "--cap", "40"]
    assert main(["select", str(clip_path), "-o", str(output), *options]) == 0
    sidecar = codec.analyse(clip_path, GRID)
    budget = round(0.125 * sidecar.saliency.size)
    expected = codec.select(sidecar.saliency, budget, "free", block=2, floor=1, cap=40)
    assert np.array_equal(np.load(output), expected)
    summary = json.loads(output.with_suffix(".json").read_text())
    assert summary["selected"] == budget == sum(summary["selected_per_frame"])
    assert summary["frame_indices"] == list(range(20))
    assert summary["grid"] == [12, 7]
    # The same from the sidecar alone.
    (tmp_path / "clip.saliency").write_bytes(codec.dumps(sidecar))
    again = tmp_path / "again.npy"
    assert main(["select", str(tmp_path / "clip.saliency"), "-o", str(again), *options]) == 0
    assert again.read_bytes() == output.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "{broken}"], "broken.mp4"),
        (["inspect", "{folder}/none.mp4"], "No such file"),
        (["inspect", "{clip}", "--groups", "0"], "groups=0"),
        (["render", "{clip}", "-o", "{folder}/x.gif", "--budget", "900000"], "lower the budget"),
        (["render", "{clip}", "-o", "{folder}/x.gif", "--budget", "0%"], "0.0%"),
        (["render", "{clip}", "-o", "{folder}/x.png"], "must end in .gif or .mp4"),
        (["select", "{clip}", "-o", "{folder}/x.npy", "--frames", "0"], "virtual_frames=0"),
        (["select", "{clip}", "-o", "{clip}/x.npy"], "clip.mp4"),
        (["select", "{folder}/none.saliency", "-o", "{folder}/x.npy"], "No such file"),
        (["analyze", "{folder}"], "there is no clip"),
        (["analyze", "{clip}", "--processes", "0"], "--processes 0"),
        (["analyze", "{clip}", "{clip}"], "name it once"),
        (["analyze", "{clip}", "-o", "{broken}"], "is a file; name a directory"),
        (["bench", "{folder}/none.mp4"], "none.mp4: there is no such file"),
        (["bench", "--saliency", "--seeds", "0"], "--seeds 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, clip_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    broken = tmp_path / "broken.mp4"
    folder = tmp_path / "folder"
    folder.mkdir()
    broken.write_bytes(b"not a video")
    filled = [text.format(broken=broken, folder=folder, clip=clip_path) for text in arguments]
    assert main(filled) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("codec: ")
    assert says in lines[0]


@pytest.mark.parametrize("option", ["--grid=16", "--budget=many", "--policy=hold", "--saliency=drone", "--panel=side"])
def test_bad_options_exit_with_2(
    tmp_path: Path, clip_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["render", str(clip_path), "-o", str(tmp_path / "x.gif"), option])
    assert option[2:].split("=")[0] in capsys.readouterr().err


def test_as_a_program(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    done = subprocess.run(
        [sys.executable, "-m", "codec", "inspect", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "empty.mp4" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_no_process_outlives_analyze(tmp_path: Path, clip_path: Path, sent: signal.Signals, code: int) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(400):
        os.link(clip_path, folder / f"{number:03d}.mp4")
    command = [sys.executable, "-m", "codec", "analyze", str(folder), "-o", str(tmp_path / "out"), "--processes", "2"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list((tmp_path / "out").glob("*")):
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(sent)
    assert process.stderr is not None
    told = process.stderr.read()  # ends when nobody holds the pipe any more
    assert process.wait(timeout=30) == code
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert len(list((tmp_path / "out").glob("*"))) < 400
    if sent == signal.SIGINT:
        assert "Traceback" not in told
        assert "codec: stopped" in told


def test_render_does_not_write_over_its_clip(
    tmp_path: Path, clip_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "clip.mp4"
    copy.write_bytes(clip_path.read_bytes())
    assert main(["render", str(copy), "-o", str(tmp_path / "." / "clip.mp4")]) == 2
    assert "is the clip itself" in capsys.readouterr().err
    assert copy.read_bytes() == clip_path.read_bytes()
