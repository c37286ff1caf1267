"""k-NN against the plainest possible implementation, and the counting of clips without features."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.knn import TEMPERATURE, evaluate, neighbour_votes
from eval.scores import score
from tests.eval.toys import features


@pytest.mark.parametrize(("count", "k"), [(1, 1), (37, 1), (37, 5), (37, 37)])
def test_votes_equal_brute_force(count: int, k: int) -> None:
    rng = np.random.default_rng(count)
    train, labels = rng.standard_normal((count, 6)) * rng.uniform(0.1, 9, (count, 1)), rng.integers(0, 4, count)
    queries = rng.standard_normal((11, 6)) * 7
    votes = neighbour_votes(train, labels, queries, classes=4, k=k)
    for query, vote in zip(queries, votes, strict=True):
        cosines = [float(row @ query) / (math.hypot(*row) * math.hypot(*query)) for row in train]
        expected = [0.0] * 4
        for near in sorted(range(count), key=lambda row: -cosines[row])[:k]:
            expected[labels[near]] += math.exp((cosines[near] - 1) / TEMPERATURE)
        assert vote == pytest.approx(expected, rel=1e-9)


def test_more_queries_than_a_chunk() -> None:
    rng = np.random.default_rng(0)
    train, labels, queries = rng.standard_normal((9, 3)), rng.integers(0, 2, 9), rng.standard_normal((2500, 3))
    votes = neighbour_votes(train, labels, queries, classes=2, k=3)
    backwards = neighbour_votes(train, labels, queries[::-1], classes=2, k=3)
    assert np.allclose(votes, backwards[::-1], rtol=1e-9)


def test_unanswered_clips_are_wrong_in_validation_and_silent_in_training() -> None:
    labels = np.arange(24) % 3
    train = features(labels, classes=3, seed=0, tokens=1, unanswered=(0, 1, 2))
    val = features(labels[:7], classes=3, seed=1, tokens=1, unanswered=(6,))
    # A row without features that voted would vote for a wrong class.
    train.pooled[:3] = val.pooled[[1, 2, 0]]
    result = evaluate(train, val, k=1)
    assert result.scores.samples == 7
    assert result.scores.unanswered == 1
    assert result.scores.correct1 == 6
    assert result.scores.top1 == pytest.approx(100 * 6 / 7)


def test_k_must_fit() -> None:
    train = features(np.arange(6) % 3, classes=3, seed=0, unanswered=(0,))
    for k in (0, 6):
        with pytest.raises(ValueError, match="between 1 and the 5 training clips"):
            evaluate(train, train, k=k)


def test_scores_rank_ties_by_class_and_count_five() -> None:
    evidence = np.zeros((3, 7))
    evidence[1, 6] = 1
    scores = score(evidence, np.array([4, 6, 5]), np.ones(3, bool))
    assert (scores.correct1, scores.correct5) == (1, 2)
    few = score(np.zeros((2, 2)), np.array([0, 1]), np.array([True, False]))
    assert (few.correct1, few.correct5, few.unanswered, few.samples) == (1, 1, 1, 2)
