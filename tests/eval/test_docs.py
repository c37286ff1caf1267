"""The commands of docs/evaluation.md: those on folders run as they stand, the others are understood."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_ovenc.config import EvalConfig
from tests.data.samples import image_bytes
from tests.eval.test_official_datasets import FILES, write

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.strip().splitlines()
]
OPTIONS, TRAINING = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def arguments(command: list[str]) -> tuple[str, list[str]]:
    """The module that a command runs, and its arguments."""
    place = next(place for place, word in enumerate(command) if word.startswith("eval."))
    return command[place], command[place + 1 :]


@pytest.fixture
def place(model_dir: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what the page's commands name; one clip is left out, which is broken."""
    shutil.copytree(model_dir, tmp_path / "encoder")
    for split in ("train", "val"):
        shutil.copytree(clips, tmp_path / "clips" / split, ignore=shutil.ignore_patterns("1.mp4"))
        for label, shade in (("dark", 20), ("light", 200)):
            path = tmp_path / "pictures" / split / label / "1.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(image_bytes(np.full((30, 40, 3), shade, np.uint8)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_on_folders_run(place: Path) -> None:
    ran = 0
    for module, words in map(arguments, COMMANDS):
        if "--config" in words:
            continue
        assert importlib.import_module(module).main([*words, "--workers", "1"]) == 0, words
        assert json.loads((place / words[words.index("--output") + 1]).read_text())["val_counts"]["missing"] == 0
        ran += 1
    assert ran == 4


def test_commands_with_a_file_of_options_reach_the_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As far as this goes without the data set: its annotations are there, its videos are missing."""
    (place / "eval.yaml").write_text(OPTIONS)
    write(place / "data/ssv2", FILES["ssv2"])
    launched = [arguments(command) for command in COMMANDS if "--config" in command]
    assert len(launched) == 3
    for module, words in launched:
        assert importlib.import_module(module).main(words) == 2
        assert "1 of 1 training samples are missing" in " ".join(capsys.readouterr().err.split())


def test_the_section_of_a_run_is_one() -> None:
    assert EvalConfig(**yaml.safe_load(TRAINING)["eval"]).tokens == 512
