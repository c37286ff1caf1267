"""The report shows what is in a bank, and a build that was killed goes on where it stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from megatron_ovenc.data.shards import ShardSet
from tests.data.samples import clip_bytes, coded_frames, image_bytes, write_shard
from tools.bank.bank_report import CAPTION, SIDE, histograms, pick_clusters, thumbnail
from tools.bank.features import MATRIX, PROGRESS
from tools.build_concept_bank import EXIT_BAD_SAMPLES, main

ROOT = Path(__file__).parents[2]
COLOURS = np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230], [230, 230, 20], [20, 230, 230], [230, 20, 230]])


def test_samples_that_are_their_own_centres_have_a_histogram() -> None:
    cosines = np.array([1.0, np.nextafter(np.float32(1), np.float32(0))], np.float32)
    assert sum(histograms(np.array([1, 1]), cosines)["cosine_histogram"]["counts"]) == 2


def write_pictures(folder: Path, counts: list[int], side: int = 32) -> str:
    """Shards of plain pictures, brighter and darker: colour c for 1 / 2 ** (c + 1) of them."""
    rng = np.random.default_rng(0)
    for shard, count in enumerate(counts):
        colours = [(number & -number).bit_length() - 1 for number in range(1, count + 1)]
        pixels = [
            np.broadcast_to((COLOURS[colour % 6] + rng.integers(-8, 9)).clip(0, 255), (side, side, 3)).astype(np.uint8)
            for colour in colours
        ]
        samples = [{"png": image_bytes(picture)} for picture in pixels]
        write_shard(folder / f"c-{shard}.tar", samples, np.full((count, 1), -1))
    return str(folder / "c-*.tar")


def command(pattern: str, output: Path, *more: str) -> list[str]:
    return ["--shards", pattern, "--output", str(output), "--kind", "image", "--labels", "2", *more]


def test_the_report_shows_the_clusters(tmp_path: Path) -> None:
    pattern = write_pictures(tmp_path, [31, 31])
    output = tmp_path / "bank"
    more = ("--concepts", "5", "--workers", "1")
    assert main(command(pattern, output, *more)) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["two_level"] is False
    assert report["search_agreement"] is None
    assert report["cluster_size"] == {"min": 2, "median": 8.0, "max": 32}
    assert sum(report["cluster_size_histogram"]["counts"]) == 5
    assert sum(report["cosine_histogram"]["counts"]) == 62
    assert (report["duplicate_clusters"], report["duplicate_clusters_repaired"]) == (0, 0)
    sheet = np.asarray(Image.open(output / "contact_sheet.png"))
    assert sheet.shape == (5 * (SIDE + CAPTION), 8 * SIDE, 3)
    # A row a cluster, the largest first: every thumbnail of a row has its colour.
    for row, size in enumerate((32, 16, 8, 4, 2)):
        band = sheet[row * (SIDE + CAPTION) + CAPTION : (row + 1) * (SIDE + CAPTION)]
        for column in range(8):
            colour = band[:, column * SIDE : (column + 1) * SIDE].mean(axis=(0, 1))
            expected = COLOURS[row] if column < size else (255, 255, 255)
            assert np.allclose(colour, expected, atol=12), (row, column)
    page = (output / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "data:image/png;base64," in page
    assert "duplicate clusters repaired" in page


def test_labels_of_two_levels_are_those_of_their_search(tmp_path: Path) -> None:
    pattern = write_pictures(tmp_path, [31, 31])
    output = tmp_path / "bank"
    more = ("--concepts", "5", "--workers", "1", "--two-level", "on", "--probe", "9")
    assert main(command(pattern, output, *more)) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["two_level"] is True
    # All cells are searched, so nothing is missed.
    assert report["search_agreement"] == {"points": 62, "nearest": 1, "labels": 1}
    labels = np.concatenate([np.load(path) for path in sorted(tmp_path.glob("c-*.labels.npy"))])
    cosines = np.load(output / MATRIX).astype(np.float32) @ np.load(output / "centres.npy").T
    best = np.take_along_axis(cosines, labels, 1)
    assert np.allclose(best, -np.sort(-cosines, axis=1)[:, :2], atol=1e-3)
    assert report["cluster_size"]["max"] == np.bincount(labels[:, 0]).max()


def test_too_few_different_samples_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = image_bytes(np.full((16, 16, 3), 99, np.uint8))
    write_shard(tmp_path / "c-0.tar", [{"png": same}] * 6, np.full((6, 1), -1))
    more = ("--concepts", "3", "--workers", "1")
    assert main(command(str(tmp_path / "c-0.tar"), tmp_path / "bank", *more)) == 0
    assert "2 centres are as another, 2 clusters are empty: too few samples differ" in capsys.readouterr().err
    assert json.loads((tmp_path / "bank" / "report.json").read_text())["duplicate_clusters"] == 2


def test_thumbnails_are_middle_frames_or_grey(tmp_path: Path) -> None:
    frames = coded_frames(21)
    write_shard(tmp_path / "v.tar", [{"mp4": clip_bytes(frames)}, {"mp4": b"no clip"}], np.full((2, 1), -1))
    shards = ShardSet.open([str(tmp_path / "v.tar")])
    shown = thumbnail(shards, 0, "video")
    assert shown.shape == (SIDE, SIDE, 3)
    assert shown[..., 0].mean() == pytest.approx(frames[10][..., 0].mean(), abs=4)
    assert (thumbnail(shards, 1, "video") == 128).all()


def test_picked_clusters_span_the_sizes() -> None:
    sizes = np.array([0, 5, 90, 7, 0, 30, 2, 11, 60, 1, 3, 8])
    assert sizes[pick_clusters(sizes)].tolist()[0] == 90
    assert sizes[pick_clusters(sizes)].tolist()[-1] == 1
    assert len(pick_clusters(sizes)) == 8
    assert pick_clusters(np.array([0, 4])).tolist() == [1]
    assert sum(histograms(sizes, np.array([0.1, 0.5]))["cluster_size_histogram"]["counts"]) == 10


def test_a_killed_build_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pattern = write_pictures(tmp_path, [4, 150], side=192)
    output = tmp_path / "bank"
    arguments = command(pattern, output, "--concepts", "4", "--workers", "2")
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.build_concept_bank", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + 60
        while not (output / PROGRESS).exists() or (output / PROGRESS).read_text().count("\n") < 2:
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            time.sleep(0.002)
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (output / PROGRESS).read_text().count("\n") == 2
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert (ShardSet.open([pattern]).labels(ShardSet.open([pattern]).shards[0]) == -1).all()
    before = np.array(np.load(output / MATRIX)[:4])
    assert main(arguments) == 0
    labels = [np.load(f"{shard}.labels.npy") for shard in sorted(tmp_path.glob("c-*.tar"))]
    matrix = np.load(output / MATRIX)
    assert np.array_equal(matrix[:4], before)
    fresh = command(pattern, tmp_path / "fresh", "--concepts", "4", "--workers", "1", "--overwrite-labels")
    assert main(fresh) != EXIT_BAD_SAMPLES
    assert np.array_equal(np.load(tmp_path / "fresh" / MATRIX), matrix)
    for shard, table in zip(sorted(tmp_path.glob("c-*.tar")), labels, strict=True):
        assert np.array_equal(np.load(f"{shard}.labels.npy"), table)
