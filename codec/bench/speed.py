"""Speed and memory of reading signals, beside FFmpeg's plain decode and the peers, each in a process of its own on one thread."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from rich.console import Console

from codec.bench.scenes import ENCODERS, FRAMES, HEIGHT, WIDTH, Scene, encode, render
from codec.source import open_clip
from codec.types import CodecError

REPEATS = 3
LENGTHS = (1, 2, 4)
_SCENE = Scene(camera="pan", objects="large slow", noise=4.0, seed=0)
_PEERS = {
    "codec-video-prep": ("codec-video-prep==0.2.5", "bits per macroblock or 64x64 unit", ("h264", "hevc")),
    "motion-vector-extractor": ("motion-vector-extractor==2.0.0", "motion vectors", ("h264",)),
}
"""What is installed, what it gives, and of which codecs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One reader on one clip."""

    frames: int
    seconds: float
    megabytes: float
    """Peak resident memory of the process."""

    @property
    def milliseconds(self) -> float:
        return 1000 * self.seconds / max(self.frames, 1)


def measure(reader: str, clip: Path, python: str = sys.executable) -> Measured | str:
    """Run one reader, or say why it failed."""
    script = Path(__file__).with_name("reading.py")
    # The clip's reader is found wherever this program's was; a peer's Python has its own.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if python == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [python, str(script), reader, str(clip), str(REPEATS)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def rendered(folder: Path, codec: str, times: int) -> Path:
    """A rendered clip of 64 frames, shown `times` times, there and back."""
    pictures = [picture for picture, _ in render(_SCENE)]
    there_and_back = itertools.cycle([*pictures, *reversed(pictures)])
    path = folder / f"rendered-{codec}-{times * FRAMES}.mkv"
    path.write_bytes(encode(itertools.islice(there_and_back, times * FRAMES), *ENCODERS[codec]))
    return path


def peer_python(folder: Path, peer: str, console: Console) -> str:
    """The Python of a peer's own environment below `folder`, made on first use.

    Raises:
        ValueError: it cannot be installed; the message ends with pip's reason.
    """
    home = (folder / peer).resolve()
    python, ready = home / "bin" / "python", home / "installed"
    if not ready.exists():
        console.print(f"installing {_PEERS[peer][0]} into {home}")
        venv.create(home, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", _PEERS[peer][0]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise ValueError(errors[-1])
        ready.touch()
    return str(python)


def speed_table(clips: Sequence[Path], peers: Path, console: Console) -> list[str]:
    """Milliseconds a frame of every reader on every clip, as Markdown lines."""
    pythons: dict[str, str] = {}
    notes = []
    for peer, (package, gives, _) in _PEERS.items():
        try:
            pythons[peer] = peer_python(peers, peer, console)
            notes.append(f"- {package} gives {gives}.")
        except (ValueError, OSError) as error:
            notes.append(f"- {package} (gives {gives}) was left out: {error}")
    heads = ["clip", "codec", "size", "frames", "plain decode", "`codec.signals`", "ratio", *pythons]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for clip in clips:
        console.print(f"reading {clip}")
        codec, size = _what(clip)
        plain, ours = measure("decode", clip), measure("signals", clip)
        if isinstance(plain, str) or isinstance(ours, str):
            raise CodecError(f"{clip}: cannot be measured: {plain if isinstance(plain, str) else ours}")
        cells = [clip.name, codec, size, str(ours.frames), f"{plain.milliseconds:.2f}", f"{ours.milliseconds:.2f}"]
        cells.append(f"{ours.seconds / plain.seconds:.2f}")
        cells += [_peer_cell(peer, python, clip, codec) for peer, python in pythons.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return ["Milliseconds a frame, best of 3, one thread:", "", *lines, "", *notes]


def memory_table(console: Console) -> list[str]:
    """Peak memory over clips of growing length, as Markdown lines."""
    heads = ["codec", *(f"{times * FRAMES} frames" for times in LENGTHS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    with tempfile.TemporaryDirectory() as folder:
        for codec in ENCODERS:
            console.print(f"memory of {codec}")
            found = [measure("signals", rendered(Path(folder), codec, times)) for times in LENGTHS]
            cells = [one if isinstance(one, str) else f"{one.megabytes:.0f} MB" for one in found]
            lines.append("| " + " | ".join([codec, *cells]) + " |")
    return [f"Peak resident memory of a process that reads all signals of a {WIDTH}x{HEIGHT} clip:", "", *lines]


def default_clips(folder: Path) -> Iterator[Path]:
    """What is read if no clip is given."""
    for codec in ENCODERS:
        yield rendered(folder, codec, 2)


def _peer_cell(peer: str, python: str, clip: Path, codec: str) -> str:
    if codec not in _PEERS[peer][2]:
        return "cannot"
    found = measure(peer, clip, python)
    if isinstance(found, str):
        return f"failed: {found}"
    return f"{found.milliseconds:.2f}" if found.frames else "no frame"


def _what(clip: Path) -> tuple[str, str]:
    with open_clip(clip) as opened:
        context = opened.stream.codec_context
        return opened.codec, f"{context.width}x{context.height}"


def ffmpeg_version() -> str:
    """Of the libavcodec that PyAV brings."""
    return ".".join(map(str, av.library_versions["libavcodec"]))
