"""Both commands from folders of clips to a JSON file, with a broken clip on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval import attentive_probe, knn
from eval.cli import EXIT_UNREADABLE


def arguments(model: Path, clips: Path, output: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--train", str(clips), "--val", str(clips), "--output", str(output), *more]


def test_knn(model_dir: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "knn.json"
    code = knn.main(arguments(model_dir, clips, output, "--k", "1", "--frames", "2"))
    assert code == EXIT_UNREADABLE
    report = json.loads(output.read_text())
    # Every clip is its own nearest neighbour; only the broken one is wrong.
    assert (report["samples"], report["correct1"], report["unanswered"]) == (8, 7, 1)
    assert report["top1"] == pytest.approx(87.5)
    assert report["tokens_per_clip"] == 8
    for names in (report["val_unanswered"], report["train_skipped"]):
        assert [Path(name["path"]).name for name in names] == ["1.mp4"]
    assert "tall/1.mp4" in capsys.readouterr().err


def test_attentive_probe(model_dir: Path, clips: Path, tmp_path: Path) -> None:
    output = tmp_path / "probe.json"
    view = ["--view", "codec", "--tokens", "12", "--cache", str(tmp_path / "cache")]
    code = attentive_probe.main(
        arguments(model_dir, clips, output, *view, "--lr", "1e-4", "1e-3", "--epochs", "3", "--probe-batch-size", "3")
    )
    assert code == EXIT_UNREADABLE
    report = json.loads(output.read_text())
    assert [run["lr"] for run in report["runs"]] == [1e-4, 1e-3]
    for run in report["runs"]:
        assert run["last_epoch"]["epoch"] == 3
        assert run["last_epoch"]["samples"] == 8
        assert run["best_epoch"]["top1"] == max(run["top1_by_epoch"])
        assert run["last_epoch"]["top1"] == run["top1_by_epoch"][-1]
    assert report["selected"] in report["runs"]
    assert report["selected"]["last_epoch"]["top1"] == max(run["last_epoch"]["top1"] for run in report["runs"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--k", "0"), "--k is 0"),
        (("--k", "8"), "between 1 and the 7"),
        (("--size", "30"), "--size is 30"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--train", "absent"), "absent is not a directory"),
    ],
)
def test_what_is_wrong_is_said(
    more: tuple[str, ...],
    message: str,
    model_dir: Path,
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "knn.json"
    assert knn.main(arguments(model_dir, clips, output, *more)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not output.exists()
