"""The benchmarks' tables as Markdown, and the file that keeps them."""

import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
from rich.console import Console

from codec.bench import speed as reading
from codec.bench import usefulness as finding
from codec.bench.scenes import ENCODERS, scenes

_SECTIONS = ("usefulness", "speed")


def usefulness(seeds: int, console: Console) -> list[str]:
    """Recall tables of each codec.

    Raises:
        ValueError: fewer than one seed.
    """
    if seeds < 1:
        raise ValueError(f"--seeds {seeds} must be at least 1")
    lines = ["## Usefulness", "", f"`python -m codec bench --saliency --seeds {seeds}` on {machine()}.", ""]
    for codec in ENCODERS:
        materials = []
        for scene in scenes(seeds):
            console.print(f"{codec}: {scene.name}")
            materials.append(finding.prepare(scene, codec))
        lines += finding.report(finding.measure(materials), codec, materials[0].signals[0].estimated)
    return lines


def speed(clips: Sequence[Path], peers: Path, console: Console) -> list[str]:
    """Speed and memory tables."""
    command = " ".join(["python -m codec bench", *(clip.name for clip in clips)])
    lines = ["## Speed and memory", "", f"`{command}` on {machine()}.", ""]
    with tempfile.TemporaryDirectory() as folder:
        lines += reading.speed_table(clips or list(reading.default_clips(Path(folder))), peers, console)
    return [*lines, "", *reading.memory_table(console), ""]


def write(path: Path, section: str, lines: Sequence[str]) -> None:
    """Replace one section of the file that keeps the tables; the rest stays."""
    text = path.read_text() if path.exists() else "".join(f"{mark}\n" for name in _SECTIONS for mark in _marks(name))
    begin, end = _marks(section)
    if begin not in text or end not in text:
        raise ValueError(f"{path} has no section between {begin} and {end}: add these lines, or name another file")
    before, after = text[: text.index(begin)], text[text.index(end) :]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{begin}\n" + "\n".join(lines).rstrip() + f"\n{after}")


def machine() -> str:
    """This machine in a few words."""
    try:
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    versions = f"Python {platform.python_version()}, PyAV {av.__version__}, libavcodec {reading.ffmpeg_version()}"
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, {versions}"


def _marks(section: str) -> tuple[str, str]:
    return f"<!-- {section} -->", f"<!-- end of {section} -->"
