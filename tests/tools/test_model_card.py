"""A model card says what the files of a run say, and that the rest is unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megatron_ovenc.config import (
    BankConfig,
    CheckpointConfig,
    HeadConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    dump,
    parse,
)
from megatron_ovenc.parallel.rectangle import Rectangle
from megatron_ovenc.train.checkpoint import Checkpointer
from megatron_ovenc.train.weights import read_weights
from onevision_encoder import OneVisionEncoderImageProcessor, OneVisionEncoderVideoProcessor
from tools import pack_model
from tools.solo import build_encoder, solo_topology


@pytest.fixture(scope="module")
def run(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a checkpoint of step 3 and metrics beyond it."""
    directory = tmp_path_factory.mktemp("run")
    model, published = read_weights(golden / "tiny")
    image = SourceConfig(kind="image", shards=("pages/*.tar",), size=42)
    video = SourceConfig(kind="video", shards=("clips/*.tar",), size=70, tokens=90, num_frames=4, i_frames="anchor")
    heads = (
        HeadConfig(name="page", global_batch_size=8, bank=BankConfig(num_classes=1234), source=image),
        HeadConfig(name="clip", global_batch_size=4, bank=BankConfig(num_classes=77), source=video),
    )
    config = RunConfig(run_dir="r", model=model, heads=heads, train=TrainConfig(steps=10))
    with solo_topology() as topology:
        encoder = build_encoder(model, published, "golden", topology)
        writer = Checkpointer(
            directory / "checkpoints", CheckpointConfig(keep_last=0, asynchronous=False), dump(config)
        )
        named = encoder.named_parameters()
        writer.save({f"encoder.{name}": Rectangle.of(p, p.shape, [0] * p.dim()) for name, p in named}, {"step": 3})
    lines = [{"step": step, "loss/page": 9.0 - step, "loss/clip": 8.5, "lr": 0.1} for step in range(1, 6)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def test_card_of_a_run(run: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe.json"
    scores = {
        "last_epoch": {"epoch": 7, "top1": 41.5, "top5": 80},
        "best_epoch": {"epoch": 5, "top1": 44.25, "top5": 81},
    }
    report = {"chance": 12.5, "train_clips": 75, "val_clips": 112, "view": "codec", "tokens_per_clip": 128}
    probe.write_text(json.dumps(report | {"selected": scores}))
    pack_model.pack(run, tmp_path / "packed", probe=probe, licence="cc-by-4.0")
    card = (tmp_path / "packed" / "README.md").read_text()
    front, title = card.split("---\n")[1:3]
    assert yaml.safe_load(front)["license"] == "cc-by-4.0"
    assert title.strip().startswith("# packed\n")
    assert "3 of 10 optimizer steps" in section(card, "Training recipe")
    written = section(card, "Training recipe").split("```yaml\n")[1].split("```")[0]
    assert parse(written).heads[1].source.tokens == 90
    assert "| page | image | `pages/*.tar` | 42 px | 1,234 | 24 |" in section(card, "Training data")
    assert "| clip | video | `clips/*.tar` | 70 px | 77 | 12 |" in section(card, "Training data")
    assert "| page | 6.0000 |" in section(card, "Metrics")
    assert "| attentive probe, last epoch (7) | 41.50 | 80.00 |" in section(card, "Metrics")
    assert "12.50 %, 112 held-out and 75 training clips" in section(card, "Metrics")
    assert "Weights: cc-by-4.0" in section(card, "Licence")


def test_processors_see_what_the_run_saw(run: Path, tmp_path: Path) -> None:
    pack_model.pack(run, tmp_path / "packed")
    images = OneVisionEncoderImageProcessor.from_pretrained(tmp_path / "packed")
    assert images.crop_size == {"height": 42, "width": 42}
    videos = OneVisionEncoderVideoProcessor.from_pretrained(tmp_path / "packed")
    assert (videos.size, videos.num_tokens, videos.num_frames) == ({"height": 70, "width": 70}, 90, 4)
    assert (videos.virtual_frames, videos.i_frames, videos.sampling) == (64, "anchor", "codec")


def test_card_without_a_run_invents_nothing(golden: Path, tmp_path: Path) -> None:
    pack_model.pack(golden / "tiny", tmp_path / "packed")
    card = (tmp_path / "packed" / "README.md").read_text()
    assert "license" not in card.split("---\n")[1]
    assert "Unknown: the weights were packed from files" in section(card, "Training recipe")
    assert section(card, "Training data").strip() == "Unknown."
    assert "No record" in section(card, "Metrics")
    assert "No evaluation" in section(card, "Metrics")
    assert "none was stated" in section(card, "Licence")


@pytest.mark.parametrize("content", ["not json", "[]", '{"k": 5, "top1": 3}'])
def test_a_file_that_is_no_report_is_refused_before_anything_is_written(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "probe.json").write_text(content)
    arguments = ["--checkpoint", str(golden / "tiny"), "--output", str(tmp_path / "packed")]
    assert pack_model.main([*arguments, "--probe", str(tmp_path / "probe.json")]) == 2
    assert "probe.json is no report of eval.attentive_probe or eval.knn" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()
