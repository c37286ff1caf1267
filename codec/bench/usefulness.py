"""How well saliency finds moving objects: recall of their patches at each budget, on rendered scenes.

Recall is the share of all patches with a moving object in them, over all 64 frames, that are among the selected ones; `best
possible` selects from the truth. Selection is `free`, so I frames are shown only to use up a budget. Pixel difference is the mean
absolute difference to the previous decoded frame, as it is or moved along with the camera.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from codec.bench.scenes import ENCODERS, FRAMES, HEIGHT, WIDTH, Scene, bilinear, encode, object_patches, render
from codec.camera import Camera, compensate
from codec.saliency import DEFAULT, REFERENCE, SaliencyConfig, saliency
from codec.select import select
from codec.signals import decode
from codec.source import luma
from codec.types import FrameSignals

GRID = (16, 20)
BUDGETS = (0.031, 0.0625, 0.125, 0.25)
_CAMERAS: tuple[Camera, ...] = ("none", "median", "similarity", "affine")

Scores: TypeAlias = npt.NDArray[np.float32]
"""[T, rows, cols], 0 and up"""


@dataclass(frozen=True, slots=True)
class Material:
    """A scene after encoding and decoding."""

    scene: Scene
    truth: npt.NDArray[np.bool_]
    """[T, rows, cols]"""
    signals: list[FrameSignals]
    differences: Scores
    """To the previous decoded frame, mean per patch."""
    camera_differences: Scores
    """The same after moving the previous frame along with the camera, as fitted to the motion that the signals tell."""
    coded_bytes: int


def prepare(scene: Scene, codec: str) -> Material:
    """Render, encode and read back one scene."""
    pictures, masks = zip(*render(scene), strict=True)
    data = encode(iter(pictures), *ENCODERS[codec])
    signals, lumas = [], []
    for frame, found in decode(data, name=scene.name):
        signals.append(found)
        lumas.append(luma(frame).astype(np.int16))
    if len(signals) != FRAMES:
        raise ValueError(f"{scene.name}: {len(signals)} frames came back of {FRAMES}")
    stills = [np.abs(after - before) for before, after in itertools.pairwise([lumas[0], *lumas])]
    moved = [
        np.abs(after - _along_camera(before, frame))
        for before, after, frame in zip([lumas[0], *lumas], lumas, signals, strict=False)
    ]
    return Material(
        scene, object_patches(np.stack(masks), GRID), signals, _per_patch(stills), _per_patch(moved), len(data)
    )


def _along_camera(picture: npt.NDArray[np.int16], frame: FrameSignals) -> npt.NDArray[np.float32]:
    """The previous frame's picture moved as the camera moved it."""
    camera = frame.motion - compensate(frame.motion, "similarity")
    across, down = (camera[..., axis].repeat(frame.block_size, 0).repeat(frame.block_size, 1) for axis in (0, 1))
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    return bilinear(picture, (x - across).clip(0, WIDTH - 1), (y - down).clip(0, HEIGHT - 1))


def _per_patch(pictures: Sequence[np.ndarray]) -> Scores:
    rows, cols = GRID
    blocks = np.stack(pictures).reshape(FRAMES, rows, HEIGHT // rows, cols, WIDTH // cols)
    return blocks.mean(axis=(2, 4)).astype(np.float32)


def methods() -> dict[str, Callable[[Material], Scores]]:
    """What is compared: names as printed, and the scores each gives to patches."""

    def by(config: SaliencyConfig) -> Callable[[Material], Scores]:
        return lambda material: saliency(material.signals, GRID, config=config)

    def alone(signal: str, camera: Camera, **options: object) -> SaliencyConfig:
        weights = {f"{name}_weight": float(name == signal) for name in ("motion", "residual", "bits")}
        return replace(DEFAULT, camera=camera, **weights, **options)  # type: ignore[arg-type]

    table: dict[str, Callable[[Material], Scores]] = {
        "uniform frames": lambda material: np.zeros_like(material.differences),
        "random": lambda material: (
            np.random.default_rng(material.scene.seed).random(material.truth.shape, np.float32) + 1
        ),
        "pixel difference": lambda material: material.differences,
        "pixel difference, camera similarity": lambda material: material.camera_differences,
    }
    table |= {f"motion, camera {camera}": by(alone("motion", camera)) for camera in _CAMERAS}
    table["residual"] = by(alone("residual", "none"))
    table |= {f"bits, {scale}": by(alone("bits", "none", bits_scale=scale)) for scale in ("linear", "sqrt", "log")}
    table |= {f"fused, camera {camera}": by(replace(DEFAULT, camera=camera)) for camera in _CAMERAS}
    table["fused, percentile over the clip"] = by(replace(DEFAULT, normalisation="clip"))
    table["preset `reference`"] = by(REFERENCE)
    table["preset `default`"] = by(DEFAULT)
    table["best possible"] = lambda material: material.truth.astype(np.float32)
    return table


def recall(scores: Scores, truth: npt.NDArray[np.bool_], budget: float) -> float:
    """Share of the true patches among the selected ones."""
    positions = select(scores, round(budget * scores.size), "free")
    return float(truth[tuple(positions.T)].sum() / truth.sum())


def measure(materials: Iterable[Material]) -> dict[tuple[str, float, Scene], float]:
    """Recall by method, budget and scene; methods that need bits are left out where there are none."""
    found = {}
    for material in materials:
        has_bits = all(frame.bits is not None for frame in material.signals)
        for name, score in methods().items():
            if name.startswith("bits") and not has_bits:
                continue
            scores = score(material)
            for budget in BUDGETS:
                found[name, budget, material.scene] = recall(scores, material.truth, budget)
    return found


def summary(
    found: dict[tuple[str, float, Scene], float], chosen: Callable[[Scene], bool] = lambda scene: True
) -> dict[str, list[tuple[float, float]]]:
    """Per method and budget: mean recall over the chosen scenes, and its standard deviation over seeds."""
    names = list(dict.fromkeys(name for name, _, _ in found))
    seeds = sorted({scene.seed for _, _, scene in found})

    def of(name: str, budget: float) -> tuple[float, float]:
        means = [
            np.mean(
                [
                    value
                    for (n, b, scene), value in found.items()
                    if (n, b, scene.seed) == (name, budget, seed) and chosen(scene)
                ]
            )
            for seed in seeds
        ]
        return float(np.mean(means)), float(np.std(means))

    return {name: [of(name, budget) for budget in BUDGETS] for name in names}


def report(found: dict[tuple[str, float, Scene], float], codec: str, estimated: bool) -> list[str]:
    """The tables of one codec as Markdown lines."""
    how = "estimated from pixels" if estimated else "read from the bitstream"
    seeds = len({scene.seed for _, _, scene in found})
    count = len({scene for _, _, scene in found})
    lines = [
        f"### {codec}: signals {how}",
        "",
        f"Recall in percent, mean of {count} scenes ± spread over {seeds} seeds.",
        "",
    ]
    lines += _table("method", [f"{budget:.3g}" for budget in (100 * b for b in BUDGETS)], "{} %", summary(found))
    lines += ["", "The same at 12.5 %, by camera, kind of object and noise:", ""]
    kinds: dict[str, Callable[[Scene], bool]] = {
        "static": lambda scene: scene.camera == "static",
        "pan": lambda scene: scene.camera == "pan",
        "zoom": lambda scene: scene.camera == "zoom",
        "small fast": lambda scene: scene.objects == "small fast",
        "large slow": lambda scene: scene.objects == "large slow",
        "no noise": lambda scene: scene.noise == 0,
        "noise": lambda scene: scene.noise > 0,
    }
    shown = {scene for _, _, scene in found}
    kinds = {kind: chosen for kind, chosen in kinds.items() if any(map(chosen, shown))}
    at = BUDGETS.index(0.125)
    parts = {kind: summary(found, chosen) for kind, chosen in kinds.items()}
    rows = {name: [parts[kind][name][at] for kind in kinds] for name in dict.fromkeys(name for name, _, _ in found)}
    return [*lines, *_table("method", list(kinds), "{}", rows), ""]


def _table(first: str, columns: Sequence[str], heading: str, rows: dict[str, list[tuple[float, float]]]) -> list[str]:
    head = [
        f"| {first} | " + " | ".join(heading.format(column) for column in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    body = [
        f"| {name} | " + " | ".join(f"{100 * mean:.1f} ± {100 * spread:.1f}" for mean, spread in values) + " |"
        for name, values in rows.items()
    ]
    return head + body
