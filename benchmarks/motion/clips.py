"""What every selector takes of every clip: made once, kept in one file a split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from safetensors.numpy import load_file, save_file

from benchmarks.motion.scenes import FRAMES, Scene
from benchmarks.motion.selectors import BUDGETS, PATCH_SIZE, PATCHES, SELECTORS, Clip
from eval.workers import ordered_map
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.order import generator
from megatron_ovenc.data.views import cut

PROGRESS = Console(stderr=True)
"""Where progress is shown: standard output is for the tables."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Views:
    """All clips of a split through one selector at one budget: N clips, K patches."""

    patches: np.ndarray
    """uint8 [N, K, 3, p, p]."""
    positions: np.ndarray
    """int32 [N, K, 3]: t, row, col."""
    labels: np.ndarray
    """int64 [N]."""
    panning: np.ndarray
    """bool [N]: whether the camera moves."""


class ClipSet:
    """A split's decoded pixels and the selectors' positions."""

    def __init__(self, path: Path, split: str, count: int, processes: int) -> None:
        """Load the file, or render, encode, read and select, and write it.

        Args:
            path: the file.
            split: name of the split: other names are other clips.
            count: clips N.
            processes: that work on them.

        Raises:
            ValueError: the file holds another number of clips.
        """
        if not path.exists():
            scenes = [Scene(split=split, number=number) for number in range(count)]
            taken = track(ordered_map(_take, scenes, processes), f"{split} clips", total=count, console=PROGRESS)
            made = [_sound(clip) for clip in taken]
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".tmp")
            # In C order: safetensors writes an array's memory as it lies.
            save_file({name: np.ascontiguousarray([clip[name] for clip in made]) for name in made[0]}, partial)
            partial.rename(path)
        self._arrays = load_file(path)
        if len(self._arrays["labels"]) != count:
            raise ValueError(
                f"{path} holds {len(self._arrays['labels'])} clips, not {count}: name another --output, or delete it"
            )

    def views(self, selector: str) -> dict[int, Views]:
        """What one selector shows of all clips, by budget."""
        return {budget: self._views(selector, budget) for budget in BUDGETS}

    def _views(self, selector: str, budget: int) -> Views:
        pixels, positions = self._arrays["pixels"], self._arrays[f"{selector}/{budget}"].astype(np.int32)
        count = len(pixels)
        t, row, col = positions.reshape(-1, 3).T
        frames = np.repeat(np.arange(count), budget) * FRAMES + t
        patches = cut(pixels.reshape(-1, *pixels.shape[2:]), frames, row, col, PATCH_SIZE)
        return Views(
            patches=patches.reshape(count, budget, 3, PATCH_SIZE, PATCH_SIZE),
            positions=positions,
            labels=self._arrays["labels"],
            panning=self._arrays["panning"],
        )

    def kept_by_rlt(self) -> dict[str, float]:
        """Mean share of patches that run-length tokenisation would keep without a budget, by camera."""
        share, panning = self._arrays["kept"], self._arrays["panning"]
        return {"still": float(share[~panning].mean()), "panning": float(share[panning].mean())}


def _sound(clip: dict[str, np.ndarray] | BadSample) -> dict[str, np.ndarray]:
    if isinstance(clip, BadSample):
        raise clip
    return clip


def _take(scene: Scene) -> dict[str, np.ndarray]:
    """One clip's row of every array."""
    clip = Clip.read(scene.encoded(), generator("motion selectors", scene.split, scene.number))
    assert clip.pixels.shape[:1] == (FRAMES,) and clip.sidecar.saliency.size == FRAMES * PATCHES
    row = {
        f"{name}/{budget}": select(clip, budget).astype(np.uint8)
        for name, select in SELECTORS.items()
        for budget in BUDGETS
    }
    return row | {
        "pixels": clip.pixels,
        "labels": np.int64(scene.label),
        "panning": np.bool_(scene.panning),
        "kept": clip.not_static().mean(dtype=np.float32),
    }
