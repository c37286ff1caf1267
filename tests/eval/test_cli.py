"""The commands from folders of clips to a JSON file, with a broken clip on the way; and under a launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from eval import attentive_probe, knn, linear_probe, retrieval
from eval.cli import EXIT_UNREADABLE
from tests.data.samples import PATCH, SIDE, clip_bytes, coded_frames, image_bytes
from tests.eval.test_official_datasets import FILES, write

LENIENT = ("--max-bad-share", "0.2")


def arguments(model: Path, clips: Path, output: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--train", str(clips), "--val", str(clips), "--output", str(output), *LENIENT, *more]


def test_knn(model_dir: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "knn.json"
    code = knn.main(arguments(model_dir, clips, output, "--k", "1", "--tokens", "8"))
    assert code == EXIT_UNREADABLE
    report = json.loads(output.read_text())
    # Every clip is its own nearest neighbour; only the broken one is wrong.
    assert (report["samples"], report["correct1"], report["unanswered"]) == (8, 7, 1)
    assert report["top1"] == pytest.approx(87.5)
    assert report["tokens_per_clip"] == 8
    assert report["val_counts"] == {"total": 8, "seen": 7, "missing": 0, "bad": 1}
    assert report["options"]["tokens"] == 8
    assert report["versions"]["transformers"] == transformers.__version__
    for names in (report["val_unanswered"], report["train_skipped"]):
        assert [Path(name["path"]).name for name in names] == ["1.mp4"]
    assert "tall/1.mp4" in capsys.readouterr().err


def test_attentive_probe(model_dir: Path, clips: Path, tmp_path: Path) -> None:
    output = tmp_path / "probe.json"
    view = ["--view", "codec", "--tokens", "12", "--cache", str(tmp_path / "cache")]
    grid = ["--lr", "1e-4", "1e-3", "--weight-decay", "0", "0.1", "--epochs", "3", "--probe-batch-size", "3"]
    assert attentive_probe.main(arguments(model_dir, clips, output, *view, *grid)) == EXIT_UNREADABLE
    report = json.loads(output.read_text())
    pairs = [(run["lr"], run["weight_decay"]) for run in report["runs"]]
    assert pairs == [(1e-4, 0.0), (1e-4, 0.1), (1e-3, 0.0), (1e-3, 0.1)]
    for run in report["runs"]:
        assert run["last_epoch"]["epoch"] == 3
        assert run["last_epoch"]["samples"] == 8
        assert run["best_epoch"]["top1"] == max(run["top1_by_epoch"])
        assert run["last_epoch"]["top1"] == run["top1_by_epoch"][-1]
    assert report["selected"] in report["runs"]
    assert report["selected"]["last_epoch"]["top1"] == max(run["last_epoch"]["top1"] for run in report["runs"])


def test_two_ranks_from_a_file_of_options_give_what_one_gives(model_dir: Path, clips: Path, tmp_path: Path) -> None:
    """Under torchrun, with real processes; the command line wins over the file."""
    options = tmp_path / "eval.yaml"
    options.write_text(
        f"model: {model_dir}\ntrain: {clips}\nval: {clips}\nmax_bad_share: 0.2\ntokens: 8\nclips: 2\nepochs: 7\nlr: [1e-3, 3e-3]\n"
    )
    outputs = tmp_path / "alone.json", tmp_path / "two.json"
    mine = ["--config", str(options), "--epochs", "2"]
    assert attentive_probe.main([*mine, "--output", str(outputs[0])]) == EXIT_UNREADABLE
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = subprocess.run(
        [*launcher, "-m", "eval.attentive_probe", *mine, "--device", "cpu", "--output", str(outputs[1])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    # torchrun makes every code but 0 a 1.
    assert finished.returncode == 1, finished.stderr
    alone, two = (json.loads(path.read_text()) for path in outputs)
    assert alone["runs"] == two["runs"]
    assert [len(run["top1_by_epoch"]) for run in two["runs"]] == [2, 2]
    assert (alone["ranks"], two["ranks"], two["clips_per_sample"]) == (1, 2, 2)


def test_pictures(model_dir: Path, tmp_path: Path) -> None:
    """Three commands on one folder of class folders, each finding that a picture is most like itself."""
    for number, length in enumerate((3, 20, 24)):
        for place, frame in enumerate(coded_frames(length)[:2]):
            path = tmp_path / "pictures" / f"class{number}" / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(255 - frame if number == 1 else frame // (number + 1)))
    output = tmp_path / "out.json"
    base = arguments(model_dir, tmp_path / "pictures", output, "--format", "images", "--cache", str(tmp_path / "cache"))
    assert knn.main([*base, "--k", "1"]) == 0
    assert json.loads(output.read_text())["top1"] == 100
    assert retrieval.main([*base, "--k", "1", "6"]) == 0
    report = json.loads(output.read_text())
    assert report["recall"] == {"1": 100.0, "6": 100.0}
    assert (report["view"], report["tokens_per_clip"]) == ("image", 4)
    assert linear_probe.main([*base, "--epochs", "20", "--lr", "1e-1", "--probe-batch-size", "6"]) == 0
    assert json.loads(output.read_text())["selected"]["last_epoch"]["top1"] == 100
    # None of them needs tokens, so all three share what the first computed.
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert not list(tmp_path.rglob("*.tokens.npy"))


def test_a_published_data_set_whose_videos_are_partly_gone(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Charades-Ego in miniature, whose score is mean average precision: the missing video is named and counted."""
    root, output = write(tmp_path, FILES["charades_ego"]), tmp_path / "probe.json"
    for name in ("A1EGO", "C3EGO"):
        (root / f"CharadesEgo_v1_480/{name}.mp4").write_bytes(clip_bytes(coded_frames(4)))
    command = ["--model", str(model_dir), "--format", "charades_ego", "--root", str(root), "--output", str(output)]
    command += ["--tokens", "8", "--epochs", "1", "--lr", "1e-3"]
    assert attentive_probe.main(command) == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert "1 of 2 training samples are missing, more than --max-bad-share 0.05 allows" in errors
    assert "missing: " in errors
    assert "B2EGO.mp4" in errors
    assert attentive_probe.main([*command, "--max-bad-share", "0.5"]) == EXIT_UNREADABLE
    report = json.loads(output.read_text())
    assert report["train_counts"] == {"total": 2, "seen": 1, "missing": 1, "bad": 0}
    assert report["selected"]["last_epoch"]["mean_ap"] == 100
    assert report["chance"] == 100


def test_another_makers_encoder_at_the_same_budget(clips: Path, tmp_path: Path) -> None:
    """Twelve tokens buy three of its frames; the codec's patches are not for it."""
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=PATCH
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    output = tmp_path / "knn.json"
    assert knn.main(arguments(tmp_path / "dinov2", clips, output, "--k", "1", "--tokens", "15")) == EXIT_UNREADABLE
    report = json.loads(output.read_text())
    assert (report["model_type"], report["tokens_per_clip"], report["correct1"]) == ("dinov2", 12, 7)
    output.unlink()
    assert knn.main(arguments(tmp_path / "dinov2", clips, output, "--view", "codec")) == 2
    assert not output.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--k", "0"), "--k is 0"),
        (("--k", "8", "--tokens", "4"), "between 1 and the 7"),
        (("--size", "30"), "--size is 30"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--train", "absent"), "absent is not a directory"),
        (("--tokens", "3"), "a frame of 28 x 28 pixels takes 4 tokens, more than --tokens 3"),
        (("--tokens", "8", "--frames", "3"), "3 frames of 28 x 28 pixels takes 12 tokens"),
        (("--view", "codec", "--frames", "3"), "--frames is for --view frames"),
        (("--max-bad-share", "1"), "--max-bad-share is 1"),
        (("--max-bad-share", "0", "--tokens", "4"), "1 of 8 training samples cannot be read"),
        (("--format", "ssv2"), "--format ssv2 reads the published data set in --root"),
        (("--config", "absent.yaml"), "--config absent.yaml cannot be read"),
        (("--cache", __file__), "the directory cannot be made: File exists"),
        (("--output", str(Path(__file__).parent)), "is a directory; name a JSON file"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tokns: 3", "`tokns` is no option; did you mean `tokens`?"),
        ("tokens: [3, 4]", "`tokens` is [3, 4]; give a single value"),
        ("tokens: {a: 1}", "give a single value"),
        ("just words", "must hold options"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_of_options(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "eval.yaml").write_text(content)
    assert knn.main(["--config", str(tmp_path / "eval.yaml")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
