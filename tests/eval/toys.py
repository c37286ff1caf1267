"""Features without clips."""

from __future__ import annotations

import numpy as np

from eval.features import Failure, Features


def features(
    labels: np.ndarray, *, classes: int, seed: int, width: int = 16, tokens: int = 5, unanswered: tuple[int, ...] = ()
) -> Features:
    """Clips whose class shows in one of their tokens, each time another: [N, tokens, width], the rest noise."""
    rng = np.random.default_rng(seed)
    signs = np.random.default_rng(99).standard_normal((classes, width)) * 3
    found = rng.standard_normal((len(labels), tokens, width)).astype(np.float16)
    lengths = rng.integers(1, tokens + 1, len(labels))
    for row, label in enumerate(labels):
        found[row, rng.integers(lengths[row])] = signs[label] + 0.1 * rng.standard_normal(width)
        # What lies beyond the length must not matter: it shouts another class.
        found[row, lengths[row] :] = 5 * signs[(label + 1) % classes]
    lengths[list(unanswered)] = 0
    pooled = np.stack([found[row, : max(1, length)].mean(axis=0) for row, length in enumerate(lengths)])
    return Features(
        classes=tuple(f"class {number}" for number in range(classes)),
        labels=np.asarray(labels, np.int64),
        pooled=pooled.astype(np.float32),
        tokens=found,
        lengths=lengths,
        failures=tuple(Failure(path=f"{row}.mp4", reason="broken") for row in unanswered),
    )
