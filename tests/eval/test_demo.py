"""The demo's figures are what the commands of docs/demo.md give: on a demo cut down to its last part and to a few clips."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_ovenc.config import load
from tests.eval.test_getting_started import clip
from tools import demo
from tools.import_model import import_model
from tools.pack_model import pack
from tools.stages import Stages

ROOT = Path(__file__).parents[2]
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "docs/demo.md").read_text(), re.DOTALL)
    for line in block.strip().splitlines()
]
OUTPUT = Path("output/demo")
"""Where the demo works if it is not told otherwise."""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's recipe, its clips in two classes, and in place of the trained run one that holds other weights."""
    recipe = ROOT / demo.CONFIG
    monkeypatch.chdir(tmp_path)
    for split, count in (("probe", 5), ("val", 4)):
        for label in ("down", "right"):
            for number in range(count):
                path = OUTPUT / "data/clips" / split / label / f"{number}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(clip(number + 100 * (split == "val"), label == "down"))
    other = Path("other.yaml")
    other.write_text("run_dir: x\nmodel: {preset: tiny}\nheads: []\ntrain: {steps: 1, seed: 1}\n")
    pack(other, Path("other"))
    import_model(Path("other"), OUTPUT / "run")
    (OUTPUT / "run" / "config.yaml").write_text(recipe.read_text())
    return recipe


class InThisProcess(Stages):
    """Runs commands by their modules' `main`: a process of its own for each takes long to start."""

    def run(self, *command: str | Path, ok: Sequence[int] = (0,)) -> None:
        _, _, module, *words = map(str, command)
        if "--workers" in words:
            words[words.index("--workers") + 1] = "1"
        assert importlib.import_module(module).main(words) in ok

    def run_together(self, *commands: Sequence[str | Path]) -> None:
        for command in commands:
            self.run(*command)


def test_the_pages_commands_give_the_demos_figures(config: Path) -> None:
    stages = InThisProcess({})
    figures = demo.probe(stages, OUTPUT, load(config))
    assert figures.keys() == {
        f"{probe}_top1_{weights}" for probe in ("probe", "attentive_probe") for weights in ("untrained", "trained")
    }
    for command, key in zip(COMMANDS, ("probe_top1_trained", "attentive_probe_top1_trained"), strict=True):
        threads, *words = shlex.split(command)
        assert threads == "OMP_NUM_THREADS=1"
        stages.run(*words)
        result = json.loads(Path(words[words.index("--output") + 1]).read_text())
        assert (result["top1"] if key.startswith("probe") else result["selected"]["last_epoch"]["top1"]) == figures[key]
