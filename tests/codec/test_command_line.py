"""The command line: outputs that open, and one clear line on bad input."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import codec
from codec.__main__ import main
from codec.render import MAX_BYTES, render
from tests.codec.clips import encode, moving_square


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    frames, _ = moving_square(20, (168, 98), (1, 4), start=(20, 20))
    path.write_bytes(encode(frames, options={"x264-params": "keyint=16:bframes=2"}))
    return path


def test_render_lights_the_selected_patches_and_darkens_the_rest(clip_path) -> None:
    grid = (12, 7)
    data = render(clip_path, budget=0.125, policy="anchor", grid=grid)
    image = Image.open(io.BytesIO(data))
    assert getattr(image, "n_frames") == 20  # noqa: B009
    maps = codec.saliency(codec.signals(clip_path), grid)
    positions = codec.select(maps, round(0.125 * maps.size), "anchor")
    chosen = np.zeros(maps.shape, bool)
    chosen[tuple(positions.T)] = True
    for t in (0, 5, 19):
        image.seek(t)
        pixels = np.asarray(image.convert("L"), float)[:320]
        bounds = [np.arange(count + 1) * length // count for count, length in zip(grid, pixels.shape, strict=True)]
        for row, col in np.ndindex(grid):
            y, x = (slice(edges[at] + 3, edges[at + 1] - 3) for edges, at in zip(bounds, (row, col), strict=True))
            assert (pixels[y, x].mean() > 80) == chosen[t, row, col], (t, row, col)


def test_render_shrinks_until_it_fits() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (256, 256), np.uint8) for _ in range(64)]
    data = render(encode(noise, options={"crf": "10", "preset": "ultrafast"}), budget=1.0, policy="free")
    assert len(data) <= MAX_BYTES
    assert Image.open(io.BytesIO(data)).width < 320


def test_render_command(tmp_path, clip_path) -> None:
    output = tmp_path / "clip.gif"
    assert main(["render", str(clip_path), "-o", str(output), "--budget", "40", "--policy", "free"]) == 0
    assert Image.open(output).format == "GIF"


def test_info_lists_every_frame(clip_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(clip_path)]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("│")]
    assert len(rows) == 20
    assert "98 x 168" in printed
    assert "read from the bitstream" in printed


def test_sidecar_command_uses_the_clips_own_aspect(tmp_path, clip_path) -> None:
    output = tmp_path / "clip.saliency"
    assert main(["sidecar", str(clip_path), "-o", str(output)]) == 0
    assert codec.loads(output.read_bytes()).saliency.shape == (20, 21, 12)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info", "{broken}"], "broken.mp4"),
        (["info", "{folder}/none.mp4"], "No such file"),
        (["render", "{clip}", "-o", "{folder}/x.gif", "--budget", "900000"], "lower the budget"),
        (["render", "{clip}", "-o", "{folder}/x.gif", "--budget", "0%"], "0.0%"),
        (["sidecar", "{clip}", "-o", "{folder}/none/x"], "No such file"),
        (["sidecar", "{clip}", "-o", "{folder}/x", "--frames", "0"], "virtual_frames=0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path, clip_path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    filled = [text.format(broken=broken, folder=tmp_path, clip=clip_path) for text in arguments]
    assert main(filled) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("codec: ")
    assert says in lines[0]


@pytest.mark.parametrize("option", ["--grid=16", "--budget=many", "--policy=hold", "--camera=drone"])
def test_bad_options_exit_with_2(tmp_path, clip_path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["render", str(clip_path), "-o", str(tmp_path / "x.gif"), option])
    assert option[2:].split("=")[0] in capsys.readouterr().err


def test_as_a_program(tmp_path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    done = subprocess.run(
        [sys.executable, "-m", "codec", "info", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "empty.mp4" in done.stderr
    assert "Traceback" not in done.stderr
