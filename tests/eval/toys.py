"""Features without clips."""

from __future__ import annotations

import numpy as np

from eval.blocks import BLOCK, Block, BlockStore
from eval.features import Failure, Features
from eval.ranks import ALONE, Ranks


def features(
    labels: np.ndarray,
    *,
    classes: int,
    seed: int,
    width: int = 16,
    tokens: int = 5,
    clips: int = 1,
    unanswered: tuple[int, ...] = (),
    ranks: Ranks = ALONE,
) -> Features:
    """Clips whose class (or the first of whose classes) shows in one of their tokens, each time another; the rest is noise."""
    rng = np.random.default_rng(seed)
    signs = np.random.default_rng(99).standard_normal((classes, width)) * 3
    count = len(labels)
    found = rng.standard_normal((count, clips, tokens, width)).astype(np.float16)
    lengths = rng.integers(1, tokens + 1, (count, clips))
    for row, label in enumerate(labels if labels.ndim == 1 else labels.argmax(axis=1)):
        for clip in range(clips):
            length = lengths[row, clip]
            found[row, clip, rng.integers(length)] = signs[label] + 0.1 * rng.standard_normal(width)
            # What lies beyond the length must not matter: it shouts another class.
            found[row, clip, length:] = 5 * signs[(label + 1) % classes]
    pooled = np.array(
        [[found[row, clip, : lengths[row, clip]].mean(axis=0) for clip in range(clips)] for row in range(count)]
    )
    lengths[list(unanswered)] = 0
    store = BlockStore(None)
    for block in range(ranks.rank, -(-count // BLOCK), ranks.world):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        store.put(block, Block(pooled=pooled[part], lengths=lengths[part], failures={}, tokens=found[part]))
    return Features(
        classes=tuple(f"class {number}" for number in range(classes)),
        labels=labels,
        pooled=pooled.astype(np.float32),
        lengths=lengths,
        failures=tuple(Failure(path=f"{row}.mp4", reason="broken") for row in unanswered),
        blocks=store,
        ranks=ranks,
    )
