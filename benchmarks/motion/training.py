"""One training: this project's encoder and a linear classifier, from random weights, on what one selector shows.

Every selector and seed is trained by the same recipe. Budgets take turns, a step each, and the one model that comes of it is
judged at all of them, as the paper judges its one encoder. Transposing a clip swaps the axes of motion: each clip of a batch
is shown in one of the eight symmetries of the square, drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.motion.clips import Views
from benchmarks.motion.scenes import CLASSES, SPEEDS
from benchmarks.motion.selectors import GRID, PATCH_SIZE
from megatron_ovenc.config import ModelConfig, ParallelConfig, ScheduleConfig
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts, random_values
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.schedule import Schedule

WIDTH = 64
MODEL = ModelConfig(
    hidden_size=WIDTH,
    ffn_size=4 * WIDTH,
    num_layers=2,
    num_heads=2,
    patch_size=PATCH_SIZE,
    rope="rotation",
    rope_theta=100.0,
)
"""Rotary frequencies that fit 64 frames and 4 places."""
INITIAL_STD = 0.1
"""Of the weights: the default of 0.02 suits a width of 1024; here attention would begin blind to positions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How long, and how."""

    steps: int
    """Optimizer steps, of all budgets together."""
    batch_size: int = 16
    """Clips a step."""
    lr: float = 2e-3
    """Peak of a cosine schedule."""
    warmup_steps: int = 30
    weight_decay: float = 0.05
    clip_norm: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Top-1 in percent on held-out clips."""

    overall: float
    direction: float
    """Of the direction alone, whatever the speed."""
    speed: float
    still: float
    """Overall, among clips of a camera that stands still."""
    panning: float


def train(
    views: Mapping[int, Views],
    held_out: Mapping[int, Views],
    recipe: Recipe,
    *,
    seed: int,
    topology: Topology,
    on_step: Callable[[], object] = lambda: None,
) -> dict[int, Accuracy]:
    """Train one model, and judge it after the last step.

    Args:
        views: training clips by budget.
        held_out: other clips, by the same budgets.
        recipe: how to train.
        seed: of weights, order and symmetries.
        topology: of this process alone.
        on_step: called after each step.

    Returns:
        Accuracy on the held-out clips by budget.
    """
    classifier = Classifier(seed, topology)
    parameters = list(classifier.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    schedule = Schedule(ScheduleConfig(kind="cosine", warmup_steps=recipe.warmup_steps), recipe.lr, recipe.steps)
    rng = np.random.default_rng(seed)
    budgets = sorted(views)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step + 1)
        shown = views[budgets[step % len(budgets)]]
        rows = rng.choice(len(shown.labels), recipe.batch_size, replace=False)
        patches, positions, labels = in_a_symmetry(shown.patches[rows], shown.positions[rows], shown.labels[rows], rng)
        loss = F.cross_entropy(classifier(patches, positions), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        on_step()
    return {budget: judge(classifier.predict(shown), shown) for budget, shown in held_out.items()}


class Classifier(torch.nn.Module):
    """The encoder and a linear layer on its pooled embedding."""

    def __init__(self, seed: int, topology: Topology) -> None:
        super().__init__()
        self.encoder = Encoder(MODEL, ParallelConfig(), topology)
        values = random_values(seed, INITIAL_STD)
        fill_parameters(self.encoder, parameter_layouts(self.encoder, topology), topology, values)
        self.head = torch.nn.Linear(WIDTH, len(CLASSES))
        # Zero: all classes alike, whatever the seed.
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, patches_BKcpp: np.ndarray, positions_BK3: np.ndarray) -> torch.Tensor:
        """Logits [B, classes]."""
        batch, tokens = positions_BK3.shape[:2]
        output = self.encoder(
            torch.from_numpy(patches_BKcpp.reshape(batch * tokens, -1)),
            torch.from_numpy(positions_BK3.reshape(-1, 3)),
            torch.arange(batch + 1, dtype=torch.int32) * tokens,
        )
        return self.head(output.pooled)

    @torch.inference_mode()
    def predict(self, views: Views, batch_size: int = 64) -> np.ndarray:
        """Most likely class of every clip: int64 [N]."""
        starts = range(0, len(views.labels), batch_size)
        logits = [self(views.patches[i : i + batch_size], views.positions[i : i + batch_size]) for i in starts]
        return torch.cat(logits).argmax(dim=1).numpy()


def judge(predictions: np.ndarray, views: Views) -> Accuracy:
    """Compare predictions [N] with the labels."""

    def percent(right: np.ndarray) -> float:
        return 100 * float(right.mean())

    right = predictions == views.labels
    return Accuracy(
        overall=percent(right),
        direction=percent(predictions // len(SPEEDS) == views.labels // len(SPEEDS)),
        speed=percent(predictions % len(SPEEDS) == views.labels % len(SPEEDS)),
        still=percent(right[~views.panning]),
        panning=percent(right[views.panning]),
    )


def in_a_symmetry(
    patches: np.ndarray, positions: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mirror and transpose each clip or not, its label with it; shapes as in `Views`."""
    patches, positions, directions = patches.copy(), positions.copy(), labels // len(SPEEDS)
    # Rows and columns are axes 1, 2 of positions and 3, 4 of patches. A mirrored axis of motion stays what it is.
    for axis in (1, 2):
        chosen = rng.random(len(labels)) < 0.5
        patches[chosen] = np.flip(patches[chosen], axis + 2)
        positions[chosen, :, axis] = GRID[axis - 1] - 1 - positions[chosen, :, axis]
    chosen = rng.random(len(labels)) < 0.5
    patches[chosen] = patches[chosen].swapaxes(3, 4)
    positions[chosen] = positions[chosen][..., [0, 2, 1]]
    directions[chosen] = 1 - directions[chosen]
    return patches, positions, directions * len(SPEEDS) + labels % len(SPEEDS)
