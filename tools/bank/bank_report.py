"""What a bank holds, as a page: facts, histograms, and a contact sheet of a few clusters."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from eval.views import uniform_frames
from megatron_ovenc.data.dataset import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.images import image_pixels
from megatron_ovenc.data.shards import ShardSet
from tools.bank.kmeans import Points
from tools.bank.labels import Nearest
from tools.bank.spaces import Kind

CLUSTERS, SAMPLES, SIDE, CAPTION = 8, 8, 96, 16
"""Rows and columns of a contact sheet; side of a thumbnail and height of a row's caption, in pixels."""
_BINS = 32
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "img,svg{max-width:100%}table{border-collapse:collapse}td,th{padding:.25rem 1rem .25rem 0;text-align:left;"
    "border-bottom:1px solid #ddd}figcaption{color:#666}"
)


def histograms(sizes: np.ndarray, cosines: np.ndarray) -> dict[str, Any]:
    """Distribution of cluster sizes [C] (in steps of equal ratio; empty clusters apart) and of cosines to the own centre [N]."""
    filled = sizes[sizes > 0]
    edges = np.unique(np.rint(np.geomspace(1, max(2, filled.max() + 1), _BINS + 1)).astype(int))
    size_counts, _ = np.histogram(filled, edges)
    cosine_counts, cosine_edges = np.histogram(cosines.astype(np.float64), _BINS)  # float32 has no 32 bins just below 1
    low, middle, high = np.percentile(cosines, [5, 50, 95])
    return {
        "cluster_size": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
        "cluster_size_histogram": {"edges": edges.tolist(), "counts": size_counts.tolist()},
        "mean_cosine_to_own_centre": float(cosines.mean(dtype=np.float64)),
        "cosine_to_own_centre": {"p5": float(low), "median": float(middle), "p95": float(high)},
        "cosine_histogram": {"edges": cosine_edges.tolist(), "counts": cosine_counts.tolist()},
    }


def pick_clusters(sizes: np.ndarray) -> np.ndarray:
    """Up to CLUSTERS clusters that are not empty, evenly spaced by rank of size: the largest first, the smallest last."""
    order = np.argsort(-sizes, kind="stable")
    order = order[: np.count_nonzero(sizes)]
    return order[np.unique(np.linspace(0, len(order) - 1, CLUSTERS).astype(int))]


def contact_sheet(shards: ShardSet, kind: Kind, points: Points, found: Nearest, sizes: np.ndarray) -> Image.Image:
    """A row a cluster: the samples nearest to its centre, nearest first; of clips, the middle frame."""
    chosen = pick_clusters(sizes)
    height = SIDE + CAPTION
    sheet = Image.new("RGB", (SAMPLES * SIDE, len(chosen) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, cluster in enumerate(chosen):
        members = np.flatnonzero(found.owners == cluster)
        members = members[np.argsort(-found.cosines[members], kind="stable")]
        draw.text((2, row * height + 2), f"centre {cluster}: {sizes[cluster]} samples", fill="black")
        for column, member in enumerate(members[:SAMPLES]):
            pixels = thumbnail(shards, int(points.rows[member]), kind)
            sheet.paste(Image.fromarray(pixels), (column * SIDE, row * height + CAPTION))
    return sheet


def thumbnail(shards: ShardSet, number: int, kind: Kind) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]; grey where the sample can no longer be read."""
    try:
        members = shards.read(number).members
        extensions = IMAGE_EXTENSIONS if kind == "image" else VIDEO_EXTENSIONS
        content = next(members[extension] for extension in extensions if extension in members)
        return image_pixels(content, SIDE, None) if kind == "image" else uniform_frames(content, 1, SIDE)[0][0]
    except BadSample:
        return np.full((SIDE, SIDE, 3), 128, np.uint8)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def page(title: str, report: Mapping[str, Any], sheet: bytes) -> str:
    """The report as one self-contained HTML text.

    Args:
        title: heading.
        report: what report.json holds.
        sheet: PNG.
    """
    plain = {key: value for key, value in report.items() if not key.endswith("_histogram")}
    rows = "".join(
        f"<tr><th>{html.escape(key.replace('_', ' '))}</th><td>{html.escape(_shown(value))}</td></tr>"
        for key, value in plain.items()
    )
    figures = [
        (_bars(**report["cluster_size_histogram"]), "Clusters by number of samples (steps of equal ratio)"),
        (_bars(**report["cosine_histogram"]), "Samples by cosine to their own centre"),
        (
            f'<img src="data:image/png;base64,{base64.b64encode(sheet).decode()}" alt="contact sheet">',
            "The samples nearest to the centres of a few clusters, from the largest to the smallest",
        ),
    ]
    drawn = "".join(
        f"<figure>{figure}<figcaption>{html.escape(text)}</figcaption></figure>" for figure, text in figures
    )
    heading = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{heading}</title><style>{_STYLE}</style>'
        f"<h1>{heading}</h1><table>{rows}</table>{drawn}</html>\n"
    )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _bars(edges: Sequence[float], counts: Sequence[int]) -> str:
    """A histogram as SVG, its edges and counts on the bars."""
    width, height = 640 / len(counts), 160
    top = max(max(counts), 1)
    bars = "".join(
        f'<rect x="{place * width:.1f}" y="{height - height * count / top:.1f}" width="{max(width - 1, 1):.1f}" '
        f'height="{height * count / top:.1f}" fill="#4878a8">'
        f"<title>{edges[place]:.4g} to {edges[place + 1]:.4g}: {count}</title></rect>"
        for place, count in enumerate(counts)
    )
    ends = "".join(
        f'<text x="{x}" y="{height + 16}" font-size="12" text-anchor="{anchor}">{value:.4g}</text>'
        for x, anchor, value in ((0, "start", edges[0]), (640, "end", edges[-1]))
    )
    return f'<svg viewBox="0 -4 640 {height + 24}" role="img">{bars}{ends}</svg>'
