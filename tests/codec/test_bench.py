"""The benchmarks: scenes whose truth is right, recall that is what it says, tables that are kept."""

import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import codec
from codec.bench import report, speed, usefulness
from codec.bench.scenes import HEIGHT, WIDTH, Scene, object_patches, render, scenes
from tests.codec.clips import encode, panning

FAST = Scene(camera="pan", objects="small fast", noise=0.0, seed=0)


@pytest.fixture(scope="module")
def material() -> usefulness.Material:
    return usefulness.prepare(FAST, "h264")


def test_scenes_repeat_and_their_masks_move() -> None:
    first, again = (list(islice(render(FAST), 3)) for _ in range(2))
    for (picture, mask), (same, also) in zip(first, again, strict=True):
        assert np.array_equal(picture, same) and np.array_equal(mask, also)
        assert picture.shape == mask.shape == (HEIGHT, WIDTH) and picture.dtype == np.uint8
        assert 0 < mask.mean() < 0.05
    assert not np.array_equal(first[0][1], first[1][1])
    assert len(scenes(2)) == 2 * 3 * 2 * 2 == len(set(scenes(2)))


def test_only_objects_change_a_still_scene() -> None:
    still = Scene(camera="static", objects="large slow", noise=0.0, seed=1)
    (one, mask), (other, later) = islice(render(still), 2)
    assert not (one != other)[~(mask | later)].any()
    assert (one != other)[mask].any()


def test_truth_is_a_quarter_of_a_patch() -> None:
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :2, :2] = True  # a quarter of the first patch
    masks[1, 4, 4:7] = True  # less than one of the last
    assert object_patches(masks, (2, 2)).nonzero() == tuple(np.array([[0], [0], [0]]))


def test_recall_by_hand(material: usefulness.Material) -> None:
    truth = np.zeros((2, 2, 2), bool)
    truth[1, 0] = True
    scores = np.zeros((2, 2, 2), np.float32)
    scores[1, 0, 0], scores[0, 1, 1] = 1, 0.5
    assert usefulness.recall(scores, truth, 0.25) == 0.5
    assert usefulness.recall(scores, truth, 1.0) == 1.0
    best = usefulness.methods()["best possible"](material)
    assert usefulness.recall(best, material.truth, 0.25) == 1.0


def test_the_defaults_beat_pixel_differences_under_a_panning_camera(material: usefulness.Material) -> None:
    found = usefulness.measure([material])
    assert found["preset `default`", 0.125, FAST] > 0.9
    assert found["preset `default`", 0.125, FAST] > found["pixel difference", 0.125, FAST]
    assert found["preset `default`", 0.125, FAST] > found["preset `reference`", 0.125, FAST]
    assert found["uniform frames", 0.25, FAST] == pytest.approx(0.25, abs=0.05)
    lines = usefulness.report(found, "h264", estimated=False)
    assert not any(line.startswith("| bits") for line in lines), "H.264 tells no bits"
    assert sum(line.startswith("| preset `default`") for line in lines) == 2


def test_sections_are_replaced_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "codec.md"
    report.write(path, "speed", ["fast"])
    path.write_text("# Head\n" + path.read_text())
    report.write(path, "usefulness", ["useful"])
    report.write(path, "speed", ["faster"])
    text = path.read_text()
    assert text.startswith("# Head\n")
    assert "useful" in text and "faster" in text and "fast\n" not in text
    (tmp_path / "other.md").write_text("nothing here")
    with pytest.raises(ValueError, match="no section"):
        report.write(tmp_path / "other.md", "speed", ["fast"])


def test_reading_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the peers: their installation needs a package index. Why they are left out is said in the table."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode(panning(12, (64, 80), (1, 0))))

    def refuse(folder: Path, peer: str, console: Console) -> str:
        raise ValueError("ERROR: no index here")

    monkeypatch.setattr(speed, "peer_python", refuse)
    lines = speed.speed_table([path], tmp_path, Console(file=io.StringIO()))
    (row,) = [line for line in lines if line.startswith("| clip.mp4")]
    assert "| h264 | 80x64 | 12 |" in row
    assert sum("no index here" in line for line in lines) == 2
    measured = speed.measure("signals", path)
    assert isinstance(measured, speed.Measured)
    assert measured.frames == codec.frame_count(path) == 12
    assert measured.seconds > 0 and measured.megabytes > 10
    assert "No such file" in str(speed.measure("decode", tmp_path / "none.mp4"))
