"""The commands and files that pages, recipes and docstrings name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from launch import submit

ROOT = Path(__file__).parents[2]
ROOMS = ("megatron_ovenc", "onevision_encoder", "codec", "launch", "eval", "tools", "benchmarks")
PATTERNS = (
    "*.md",
    "docs/*.md",
    "benchmarks/*.md",
    "configs/*.yaml",
    "launch/slurm/*",
    *(f"{room}/**/*.py" for room in ROOMS),
)
TEXTS = {path: path.read_text() for pattern in PATTERNS for path in ROOT.glob(pattern)}


def test_the_commands_of_launch_submit_are_understood() -> None:
    lines: list[str] = []
    for text in TEXTS.values():
        whole = re.sub(r"\\+\n#? *", " ", text)
        lines += re.findall(r"^[# ]*python -m launch\.submit (--.*?)(?: +#.*)?$", whole, re.MULTILINE)
    lines = [line for line in lines if "$" not in line]  # the sbatch file's own
    assert len(lines) > len(list(ROOT.glob("configs/*.yaml")))
    for line in lines:
        options = submit.arguments(shlex.split(line))
        named = [path for path in (options.config, options.hostfile, options.env_file) if path is not None]
        absent = [str(path) for path in named if not (ROOT / path).is_file()]
        assert all(path.startswith("my") for path in absent), line  # which the reader writes


def test_recipes_that_are_named_exist() -> None:
    for path, text in TEXTS.items():
        for name in re.findall(r"\bconfigs/\w+\.\w+", text):
            assert (ROOT / name).is_file(), f"{path} names {name}"
