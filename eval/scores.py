"""Top-1 and top-5 of a classification in which every sample counts exactly once, answered or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Counts rather than shares, so that two results can be compared exactly."""

    samples: int
    """All held-out samples."""
    unanswered: int
    """Those without features; they count as wrong."""
    correct1: int
    """Those whose class came first."""
    correct5: int
    """Those whose class was among the first five, or among all if there are fewer."""

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.correct1 / self.samples

    @property
    def top5(self) -> float:
        """Percent."""
        return 100 * self.correct5 / self.samples


def score(evidence: np.ndarray, labels: np.ndarray, answered: np.ndarray) -> Scores:
    """Judge an answer a sample.

    Args:
        evidence: [N, classes], the higher the likelier; equal classes rank by number.
        labels: int [N].
        answered: bool [N]; where False, `evidence` is not looked at.
    """
    assert len(evidence) == len(labels) == len(answered), "every sample is judged exactly once"
    ranked = np.argsort(-evidence, axis=1, kind="stable")[:, :5]
    hits = (ranked == labels[:, None]) & answered[:, None]
    return Scores(
        samples=len(labels),
        unanswered=int((~answered).sum()),
        correct1=int(hits[:, 0].sum()),
        correct5=int(hits.any(axis=1).sum()),
    )
