"""Scores of a classification in which every sample counts exactly once, answered or not.

Legend: N samples, C classes. Labels are int [N], or bool [N, C] where a sample has any number of classes.
"""

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
    """Those of whose classes one came first."""
    correct5: int
    """Those of whose classes one was among the first five, or among all if there are fewer."""
    mean_ap: float | None = None
    """Mean average precision in percent, where samples have any number of classes: then this is the data set's score."""

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.correct1 / self.samples

    @property
    def top5(self) -> float:
        """Percent."""
        return 100 * self.correct5 / self.samples

    @property
    def headline(self) -> float:
        """What runs are compared by: mean average precision where there is one, else top-1; percent."""
        return self.top1 if self.mean_ap is None else self.mean_ap


def score(evidence: np.ndarray, labels: np.ndarray, answered: np.ndarray) -> Scores:
    """Judge an answer a sample.

    Args:
        evidence: [N, C], the higher the likelier; equal classes rank by number.
        labels: int [N] or bool [N, C].
        answered: bool [N]; where False, `evidence` is not looked at.
    """
    assert len(evidence) == len(labels) == len(answered), "every sample is judged exactly once"
    ranked = np.argsort(-evidence, axis=1, kind="stable")[:, :5]
    right = ranked == labels[:, None] if labels.ndim == 1 else np.take_along_axis(labels, ranked, axis=1)
    hits = right & answered[:, None]
    return Scores(
        samples=len(labels),
        unanswered=int((~answered).sum()),
        correct1=int(hits[:, 0].sum()),
        correct5=int(hits.any(axis=1).sum()),
        mean_ap=None if labels.ndim == 1 else mean_average_precision(evidence, labels, answered),
    )


def mean_average_precision(evidence: np.ndarray, labels: np.ndarray, answered: np.ndarray) -> float:
    """Percent, over the classes that any sample has: of each, the mean precision at its samples' ranks.

    Samples without an answer rank last; equal ones by number.
    """
    evidence = np.where(answered[:, None], evidence, -np.inf)
    precisions = [
        average_precision(labels[np.argsort(-evidence[:, column], kind="stable"), column])
        for column in np.flatnonzero(labels.any(axis=0))
    ]
    return 100 * float(np.mean(precisions)) if precisions else 0.0


def average_precision(relevant: np.ndarray) -> float:
    """Of a ranking, bool [N], best first, with at least one relevant entry: the mean precision at the relevant ranks."""
    places = np.flatnonzero(relevant)
    return float(np.mean(np.arange(1, len(places) + 1) / (places + 1)))


def indicator(labels: np.ndarray, classes: int) -> np.ndarray:
    """bool [N, C] of labels of either form."""
    return labels if labels.ndim == 2 else labels[:, None] == np.arange(classes)
