"""Small shards of real images and clips whose pixels tell where they come from."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from megatron_ovenc.config.tree import BankConfig, DataConfig, HeadConfig, ModesConfig, SourceConfig
from megatron_ovenc.data.storage.labels import labels_path
from megatron_ovenc.data.storage.tar import index_path, index_tar

PATCH = 14
SIDE = 28
GRID = SIDE // PATCH
NUM_CLASSES = 50


def coded_frames(count: int, grid: int = GRID) -> np.ndarray:
    """uint8 [count, grid * PATCH, grid * PATCH, 3]: every patch has one colour, which tells its (frame, row, col)."""
    t, row, col = np.indices((count, grid, grid))
    colours = np.stack([40 + 170 * t // max(1, count - 1), 60 + 40 * row, 60 + 40 * col], axis=-1).astype(np.uint8)
    return colours.repeat(PATCH, axis=1).repeat(PATCH, axis=2)


def decoded_place(patches: np.ndarray, count: int) -> np.ndarray:
    """The (frame, row, col) that patches [n, 3 * PATCH**2] of `coded_frames(count)` tell: int [n, 3]."""
    means = patches.reshape(len(patches), 3, -1).mean(axis=2)
    t = (means[:, 0] - 40) * max(1, count - 1) / 170
    return np.stack([t, (means[:, 1] - 60) / 40, (means[:, 2] - 60) / 40], axis=1).round().astype(int)


def clip_bytes(frames: np.ndarray, encoder: str = "libx264", gop: int = 16, container: str = "mp4") -> bytes:
    """Encode without loss of colour resolution (4:4:4)."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        quiet = {"x265-params": "log-level=none:pools=none"} if encoder == "libx265" else {}
        stream: Any = out.add_stream(
            encoder, rate=30, options={"crf": "4", "preset": "ultrafast", "g": str(gop), **quiet}
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    return file.getvalue()


def image_bytes(pixels: np.ndarray, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_shard(tar: Path, samples: Sequence[Mapping[str, bytes]], labels: np.ndarray) -> None:
    """A shard of samples {extension: content}, keyed by number, with index and labels."""
    with tarfile.open(tar, "w") as archive:
        for number, members in enumerate(samples):
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{tar.stem}-{number:03d}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    Path(index_path(tar)).write_text(index_tar(tar).dumps())
    np.save(labels_path(tar), labels)


def write_images(folder: Path, shards: int, samples: int) -> str:
    """Shards of tiny pictures, each of one colour; returns their pattern."""
    rng = np.random.default_rng(0)
    for shard in range(shards):
        pictures = [np.full((20, 24, 3), rng.integers(0, 256, 3), np.uint8) for _ in range(samples)]
        labels = rng.integers(0, NUM_CLASSES, (samples, 10))
        write_shard(folder / f"images-{shard}.tar", [{"png": image_bytes(picture)} for picture in pictures], labels)
    return str(folder / "images-*.tar")


def overwrite(tar: str | os.PathLike[str], number: int, extension: str, content: bytes) -> None:
    """Replace the first bytes of a member in place."""
    offset = index_tar(tar).members[number][extension][0]
    with open(tar, "r+b") as file:
        file.seek(offset)
        file.write(content)


def image_head(
    pattern: str, *, name: str = "images", batch: int = 16, augment: bool = True, num_classes: int = NUM_CLASSES
) -> HeadConfig:
    return HeadConfig(
        name=name,
        global_batch_size=batch,
        bank=BankConfig(num_classes=num_classes, positives=4),
        source=SourceConfig(kind="image", shards=(pattern,), size=SIDE),
    )


def clip_source(pattern: str = "", **changes: object) -> SourceConfig:
    values: dict = {
        "kind": "video",
        "shards": (pattern,),
        "size": SIDE,
        "num_frames": 4,
        "clip_frames": 16,
        "tokens": 24,
    }
    return SourceConfig(**(values | changes))


def clip_head(pattern: str, *, batch: int = 8, **changes: object) -> HeadConfig:
    return HeadConfig(
        name="clips",
        global_batch_size=batch,
        bank=BankConfig(num_classes=NUM_CLASSES, positives=2),
        source=clip_source(pattern, **changes),
    )


def loading(**changes: object) -> DataConfig:
    values: dict = {"workers": 0, "prefetch": 4, "sample_timeout_s": 20.0}
    return DataConfig(**(values | changes))


ONLY_CODEC = ModesConfig(codec=1.0, frames=0.0, collage=0.0)
