"""A contact sheet: one HTML file that shows pictures, and clips with the patches that codec selection takes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from codec.panels import dimmed
from megatron_ovenc.config.tree import SourceConfig
from megatron_ovenc.data.dataset import IMAGE_EXTENSIONS, SIDECAR_EXTENSION, VIDEO_EXTENSIONS
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.images import framed_pixels
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage.base import RawSample
from megatron_ovenc.data.video import frame_pixels
from megatron_ovenc.data.views import Clip
from megatron_ovenc.data.windows import Window

THUMBNAIL = 160
"""Long side in pixels."""
FRAMES = 4
"""Of a clip, evenly spaced."""

_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#111827}
.sheet{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;border:1px solid #e5e7eb;border-radius:.4rem;padding:.5rem}
figcaption{font-size:.75rem;color:#6b7280;max-width:42rem;overflow-wrap:anywhere}.bad{color:#b91c1c}
td,th{text-align:left;padding:.1rem 1rem .1rem 0;vertical-align:top}th{font-weight:600}
"""


def page(shards: ShardSet, facts: Mapping[str, Any], source: SourceConfig, *, patch_size: int, count: int) -> str:
    """HTML with the statistics and `count` evenly spaced samples; clips are seen as `source` says."""
    places = np.unique(np.linspace(0, len(shards) - 1, min(count, len(shards))).astype(int))
    figures = "\n".join(_figure(shards, int(place), source, patch_size) for place in places)
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>" for name, value in facts.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Shards</title><style>{_STYLE}</style>'
        f'<h1>{len(shards)} samples</h1><table>{rows}</table><h2>Samples</h2><div class="sheet">{figures}</div></html>\n'
    )


def _figure(shards: ShardSet, number: int, source: SourceConfig, patch_size: int) -> str:
    try:
        raw = shards.read(number)
        pictures = _pictures(raw, source, patch_size)
    except BadSample as error:
        return (
            f"<figure><figcaption>{escape(shards.sample_id(number))}<br>"
            f'<span class="bad">{escape(str(error))}</span></figcaption></figure>'
        )
    images = " ".join(f'<img alt="" src="data:image/jpeg;base64,{_jpeg(picture)}">' for picture in pictures)
    labels = ", ".join(str(label) for label in raw.labels if label != -1) or "none"
    return f"<figure>{images}<figcaption>{escape(raw.sample_id)}<br>labels: {labels}</figcaption></figure>"


def _pictures(raw: RawSample, source: SourceConfig, patch_size: int) -> list[np.ndarray]:
    for extension, content in raw.members.items():
        if extension in IMAGE_EXTENSIONS:
            return [framed_pixels(content, _thumbnail)]
        if extension in VIDEO_EXTENSIONS:
            return _frames(content, raw.members.get(SIDECAR_EXTENSION), source, patch_size)
    return []


def _thumbnail(width: int, height: int) -> Window:
    scale = THUMBNAIL / max(width, height)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return Window((0, 0, width, height), *size, False)


def _frames(content: bytes, sidecar: bytes | None, source: SourceConfig, patch_size: int) -> list[np.ndarray]:
    clip = Clip(content, sidecar, source, patch_size)
    positions = clip.codec_view().positions
    times = np.unique(np.linspace(0, len(clip.indices) - 1, FRAMES).astype(int))
    pixels = frame_pixels(content, clip.indices[times], source.size)
    lit = np.zeros((len(clip.indices), *[source.size // patch_size] * 2), bool)
    lit[tuple(positions.T)] = True
    return [dimmed(picture, chosen) for picture, chosen in zip(pixels, lit[times], strict=True)]


def _jpeg(picture: np.ndarray) -> str:
    image, file = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, "jpeg", quality=85)
    return base64.b64encode(file.getvalue()).decode()


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {count}" for key, count in value.items()) or "none"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "; ".join(" ".join(map(str, one.values())) for one in value)
    return "none" if value in (None, []) else str(value)
