"""A run's report, of a run directory with banks that were looked at."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tools.bank_picture import Snapshot, heads, picture
from tools.report.__main__ import main
from tools.report.charts import running_mean, thin
from tools.report.run import Run


@pytest.fixture
def run(tmp_path):
    """Three steps, two of them with a look at the bank; clusters fall apart between the snapshots."""
    records = [{"step": step, "loss/image": 3.0 - step} for step in (1, 2, 3)]
    records[0] |= {"bank/image/used_share": 0.1, "bank/image/duplicate_share": 0.0}
    records[2] |= {"bank/image/used_share": 0.4, "bank/image/duplicate_share": 0.5}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "banks").mkdir()
    rng = np.random.default_rng(0)
    for name, noise, step in (("first", 2.0, 0), ("last", 0.1, 99)):
        centres = np.eye(4, 8, dtype=np.float32)
        labels = rng.integers(0, 4, 40)
        embeddings = centres[labels] + noise * rng.normal(size=(40, 8)).astype(np.float32) / np.sqrt(8)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        tensors = {"embeddings": embeddings, "labels": labels * 10, "centres": centres, "classes": np.arange(4) * 10}
        save_file(tensors, tmp_path / "banks" / f"image.{name}.safetensors", metadata={"step": str(step)})
    return tmp_path


def test_the_report_shows_the_banks(run):
    assert main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Bank image: what the looks at it found" in page
    assert "two principal axes" in page


def test_pictures_and_cosines(run):
    assert heads(run) == ["image"]
    image = Image.open(io.BytesIO(picture(run, "image")))
    assert image.width > 1.8 * image.height  # two panels
    first, last = (Snapshot.read(run / "banks" / f"image.{name}.safetensors") for name in ("first", "last"))
    assert (first.step, last.step) == (0, 99)
    assert last.cosines()[0] > 0.99
    assert first.cosines()[0] < 0.7
    assert abs(last.cosines()[1]) < 0.1


def test_a_damaged_snapshot_is_named(run, capsys):
    path = run / "banks" / "image.last.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    assert main([str(run)]) == 2
    assert "image.last.safetensors is not a readable snapshot" in capsys.readouterr().err


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_named(run, capsys):
    metrics = run / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"step": 4, "lo')
    assert main([str(run)]) == 0
    metrics.write_text('{"step": 0, "lo\n' + whole)
    assert main([str(run)]) == 2
    assert "metrics.jsonl, line 1, is damaged" in capsys.readouterr().err


def test_facts_and_pictures_of_another_kind(run, tmp_path, capsys):
    (tmp_path / "facts.json").write_text("[1]")
    assert main([str(run), "--facts", str(tmp_path / "facts.json")]) == 2
    assert "holds no JSON object" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(run), "--picture", "clip.mp4"])
    assert "--picture clip.mp4" in capsys.readouterr().err


def shown(page: str) -> str:
    """The words of a page."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", page))


def write_run(folder: Path, attempts: list[tuple[int, int]], lr: float = 1e-3) -> Path:
    """A run directory as the trainer leaves it: `attempts` from a step to a step, an hour apart; step 4 is not taken."""
    folder.mkdir()
    settings = {"train": {"steps": 20}, "optimizer": {"lr": lr}, "heads": [{"name": "image", "loss_weight": 1.0}]}
    (folder / "config.yaml").write_text(json.dumps(settings))
    records, starts = [], []
    for number, (first, last) in enumerate(attempts):
        begin = 1e9 + 3600 * number
        starts.append({"time": begin, "step": first, "data": 2, "tensor": 1, "host": f"node{number}"})
        for step in range(first + 1, last + 1):
            record = {"step": step, "time": begin + step, "loss/image": 5 - step / 10, "samples_per_s": 100.0 + step}
            record |= {"tokens_per_s": 1e4, "tflops": 1.0, "mfu": 0.42, "data_wait": 0.1, "lr": lr, "memory_gib": 2.0}
            record |= {"skipped": int(step == 4), "straggler/rank": 3, "straggler/ratio": 1.5 + number}
            records.append(record | ({"loss/image": None} if step == 4 else {}))
        records[-1] |= {"checkpoint/stall_s": 0.5, "checkpoint/write_s": 4.0}
    for name, rows in (("metrics", records), ("attempts", starts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_that_restarted_skipped_and_met_bad_samples(tmp_path):
    run = write_run(tmp_path / "eventful", [(0, 7), (5, 12)])
    bad = {
        "head": "image",
        "sample_id": "a.tar#3",
        "position": 9,
        "reason": "truncated <file>",
        "replaced_by": "a.tar#4",
    }
    (run / "bad_samples.jsonl").write_text((json.dumps(bad) + "\n") * 2)
    skipped = {
        "step": 4,
        "reason": "non-finite",
        "losses": {"image": None},
        "ranks": [1],
        "samples": {"image": ["b.tar#1"]},
    }
    (run / "bad_steps.jsonl").write_text(json.dumps(skipped) + "\n")
    (run / "exit_status.json").write_text(
        json.dumps({"status": "failed", "step": 12, "detail": "rank 3: out of memory"})
    )
    checkpoint = run / "checkpoints" / "step_00000012"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text(
        json.dumps({"files": {"x": {"bytes": 2_500_000}, "y": {"bytes": 1_000_000}}})
    )

    assert main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert 'src="http' not in page and "href" not in page
    words = shown(page)
    for told in (
        "eventful failed",
        "rank 3: out of memory",
        "12 of 20 steps",
        "42.0% MFU",
        "1 restarts",
        "2 steps repeated",
        "0 7 data 2 x tensor 1 from node0 2 60 min",
        "5 12 data 2 x tensor 1 from node1",
        "12 3.5 MB 2",
        "3 100% of steps 2.50",
        "4 non-finite 1 b.tar#1",
        "truncated &lt;file&gt; 2 a.tar#3",
    ):
        assert told in words, told
    assert "Seconds of a save" in page


def test_a_run_that_is_running_killed_or_has_done_nothing(tmp_path, capsys):
    run = write_run(tmp_path / "run", [(0, 3)])
    (run / "exit_status.json").write_text('{"status": "running", "step": 0}')
    assert main([str(run)]) == 0
    assert "/run running" in shown((run / "report.html").read_text())
    os.utime(run / "metrics.jsonl", (1e9, 1e9))
    assert main([str(run)]) == 0
    assert "running, or killed" in shown((run / "report.html").read_text())
    for name in ("metrics.jsonl", "attempts.jsonl", "exit_status.json"):
        (run / name).unlink()
    assert main([str(run)]) == 0
    assert "The run has taken no step yet." in shown((run / "report.html").read_text())
    assert main([str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err


def test_a_run_of_before_attempts_were_noted(tmp_path):
    run = write_run(tmp_path / "old", [(0, 7), (5, 12)])
    (run / "attempts.jsonl").unlink()
    found = Run(run).attempts
    assert [(a.first, a.last, a.repeated) for a in found] == [(0, 7, 2), (5, 12, 0)]


def test_runs_beside_each_other(tmp_path, capsys):
    runs = [write_run(tmp_path / name, [(0, 12)], lr) for name, lr in (("a", 1e-3), ("b", 2e-3))]
    with pytest.raises(SystemExit, match="2"):
        main([str(run) for run in runs])
    assert "give --output" in capsys.readouterr().err
    assert main([*(str(run) for run in runs), "-o", str(tmp_path / "ab.html")]) == 0
    words = shown((tmp_path / "ab.html").read_text())
    assert "optimizer.lr 0.001 0.002" in words
    assert "train.steps" not in words
    assert "loss of head image" in words


def test_long_runs_are_thinned_and_gaps_stay_gaps():
    values = [float("nan") if 100 <= i < 900 else 1.0 for i in range(100_000)]
    steps, low, middle, high = thin(range(100_000), values)
    assert len(steps) == len(middle) == 400
    assert np.isnan(middle[1]) and middle[0] == low[0] == high[0] == 1.0
    mean = running_mean(np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan]), 3)
    np.testing.assert_array_equal(mean, [1.0, 2.0, 3.0, 3.0, np.nan, np.nan])
