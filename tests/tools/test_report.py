"""A run's report, of a run directory with banks that were looked at."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tools.bank_picture import Snapshot, heads, picture
from tools.report import main


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


def test_the_report_shows_the_banks(run, tmp_path):
    output = tmp_path / "report.html"
    assert main(["--run", str(run), "--output", str(output)]) == 0
    page = output.read_text()
    assert page.count("<img") == 3
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


def test_a_damaged_snapshot_is_named(run, tmp_path, capsys):
    path = run / "banks" / "image.last.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    assert main(["--run", str(run), "--output", str(tmp_path / "report.html")]) == 2
    assert "image.last.safetensors is not a readable snapshot" in capsys.readouterr().err


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_named(run, tmp_path, capsys):
    metrics, output = run / "metrics.jsonl", str(tmp_path / "report.html")
    whole = metrics.read_text()
    metrics.write_text(whole + '{"step": 4, "lo')
    assert main(["--run", str(run), "--output", output]) == 0
    metrics.write_text('{"step": 0, "lo\n' + whole)
    assert main(["--run", str(run), "--output", output]) == 2
    assert "metrics.jsonl, line 1, is damaged" in capsys.readouterr().err


def test_facts_and_pictures_of_another_kind(run, tmp_path, capsys):
    (tmp_path / "facts.json").write_text("[1]")
    output = str(tmp_path / "report.html")
    assert main(["--run", str(run), "--output", output, "--facts", str(tmp_path / "facts.json")]) == 2
    assert "holds no JSON object" in capsys.readouterr().err
    assert main(["--run", str(run), "--output", output, "--picture", "clip.mp4"]) == 2
    assert "--picture clip.mp4" in capsys.readouterr().err
