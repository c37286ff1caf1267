"""Clips of 64 frames of 256 x 256 pixels, half H.264 and half HEVC, as files and as shards with and without sidecars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from codec.bench.scenes import ENCODERS, Scene, encode, render, scenes
from megatron_ovenc.config import BankConfig, DataConfig, HeadConfig, SourceConfig
from megatron_ovenc.data.errors import BadSampleLog
from megatron_ovenc.data.loader import HeadLoader
from tools.inputs import Item
from tools.make_shards import Packing, make_shards

SIDE, SIZE, PATCH, FRAMES, TOKENS = 256, 224, 14, 64, 2048
"""Of a stored frame and a shown one, in pixels; of a patch; frames of a clip; patches of it in the mode `codec`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Where the clips are."""

    clips: Path
    """Folder of .mkv files."""
    plain: Path
    """Folder of shards without sidecars."""
    described: Path
    """Folder of shards with sidecars."""


def prepare(folder: Path, console: Console) -> Material:
    """Render, encode and pack what is not there yet."""
    made = Material(clips=folder / "clips", plain=folder / "plain", described=folder / "described")
    made.clips.mkdir(parents=True, exist_ok=True)
    for scene in scenes(1):
        for codec in ENCODERS:
            path = made.clips / f"{scene.name.replace(' ', '-').replace(',', '')}-{codec}.mkv"
            if not path.exists():
                console.print(f"rendering {path.name}")
                path.write_bytes(encode(_frames(scene), *ENCODERS[codec]))
    items = [Item(path=path, labels=(0,)) for path in sorted(made.clips.glob("*.mkv"))]
    for output, sidecar in ((made.plain, False), (made.described, True)):
        packing = Packing(
            kind="video", samples_per_shard=1000, sidecar=sidecar, size=SIZE, patch_size=PATCH, clip_frames=FRAMES
        )
        if left_out := make_shards(items, output, packing, workers=2, console=console):
            raise RuntimeError(f"{left_out[0].path}: {left_out[0].reason}")
    return made


def head(shards: Path, batch: int = 8) -> HeadConfig:
    """A video head with the default mixture of modes."""
    source = SourceConfig(kind="video", shards=(str(shards / "*.tar"),), size=SIZE, tokens=TOKENS, clip_frames=FRAMES)
    return HeadConfig(name="video", global_batch_size=batch, bank=BankConfig(num_classes=2, positives=1), source=source)


def open_loader(wanted: HeadConfig, workers: int, bad_log: Path) -> HeadLoader:
    """A head's batches as the only rank of a run gets them."""
    return HeadLoader(
        wanted,
        DataConfig(workers=workers),
        patch_size=PATCH,
        seed=0,
        grad_accumulation=1,
        data_rank=0,
        data_size=1,
        bad_log=BadSampleLog(bad_log),
    )


def _frames(scene: Scene) -> Iterator[np.ndarray]:
    for picture, _ in render(scene):
        yield np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
