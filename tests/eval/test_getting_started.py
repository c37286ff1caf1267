"""docs/getting_started.md from its first command to its last, in order and as they stand but for fewer steps, on small clips."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from eval.in_training_data import evaluation_data
from launch import submit
from megatron_ovenc.config import load
from megatron_ovenc.train.preflight import check_run
from tests.data.samples import clip_bytes
from tests.forked import forked

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "getting_started.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().splitlines()]
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
(SNIPPET,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FEWER = {
    "launch.pretrain": ["--set", "train.steps=2", "--set", "schedule.warmup_steps=1"],
    "eval.attentive_probe": ["--epochs", "2"],
}
MODULES = [
    "tools.make_shards",
    "tools.build_concept_bank",
    "launch.pretrain",
    "tools.report",
    "tools.pack_model",
    "tools.pack_model",
    "eval.knn",
    "eval.knn",
    "eval.attentive_probe",
]


def clip(seed: int, downwards: bool) -> bytes:
    """A bright square goes down or to the right over noise."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 120, (1, 70, 90, 3), dtype=np.uint8), 20, axis=0)
    for number, frame in enumerate(frames):
        row, column = (2 * number, 30) if downwards else (30, 3 * number)
        frame[row : row + 20, column : column + 20] = 250
    return clip_bytes(frames)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with 24 clips to train on and 8 to judge, in two classes."""
    for split, count in (("train", 12), ("val", 4)):
        for label in ("down", "right"):
            for number in range(count):
                path = tmp_path / "clips" / split / label / f"{number}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(clip(number + 100 * (split == "val"), label == "down"))
    shutil.copy(tmp_path / "clips/val/down/0.mp4", tmp_path / "clip.mp4")
    (tmp_path / "my_run.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_from_clips_to_features(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss", reason="concepts are clustered by faiss (the extra `bank`)")
    install, *commands = COMMANDS[: 1 + len(MODULES)]
    assert install == "make install && . .venv/bin/activate"
    for expected, command in zip(MODULES, commands, strict=True):
        python, _, module, *words = shlex.split(command)
        assert (python, module) == ("python", expected)
        words += FEWER.get(module, [])
        if module in ("launch.pretrain", "tools.report"):  # these take hold of their process
            forked(module, *words).check_returncode()
        else:
            assert importlib.import_module(module).main(words) == 0, command
    before, probe = (json.loads((place / name).read_text()) for name in ("before.json", "probe.json"))
    assert (before["samples"], before["unanswered"], before["tokens_per_clip"]) == (8, 0, 128)
    assert probe["selected"]["last_epoch"]["samples"] == 8
    names: dict = {}
    exec(compile(SNIPPET, "docs/getting_started.md", "exec"), names)
    assert names["output"].last_hidden_state.shape[:2] == (1, 128)
    assert "[1, 128" in capsys.readouterr().out.replace("torch.Size(", "")


def test_the_commands_of_a_cluster_are_understood(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, many, cluster = COMMANDS[1 + len(MODULES) :]
    python, _, module, *words = shlex.split(plan)
    assert python == "python"
    forked(module, *words).check_returncode()
    words = shlex.split(many)
    overrides = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    config = load("my_run.yaml", overrides)
    assert (config.parallel.device, config.parallel.precision) == ("cuda", "bf16")
    assert evaluation_data(config) is None
    shutil.copytree(ROOT / "hostfiles", "hostfiles")
    shutil.copytree(ROOT / "launch" / "env", "launch/env")
    # Options, files and recipe are read; there are no shards yet, which is told first.
    assert submit.main([*shlex.split(cluster)[3:], "--dry-run"]) == 2
    assert "data/clips/*.tar" in capsys.readouterr().err
    with pytest.raises(ValueError, match="data/clips"):
        check_run(config, 8)
