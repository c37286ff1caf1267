"""k-NN against the plainest possible implementation, and the counting of clips without features."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval import retrieval
from eval.knn import TEMPERATURE, evaluate, neighbour_votes
from eval.scores import mean_average_precision, score
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
        assert vote == pytest.approx(expected, rel=1e-4)


def test_more_queries_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.knn._CHUNK_ELEMENTS", 100)
    rng = np.random.default_rng(0)
    train, labels, queries = rng.standard_normal((9, 3)), rng.integers(0, 2, 9), rng.standard_normal((250, 3))
    votes = neighbour_votes(train, labels, queries, classes=2, k=3)
    backwards = neighbour_votes(train, labels, queries[::-1], classes=2, k=3)
    assert np.allclose(votes, backwards[::-1], rtol=1e-4)


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
        with pytest.raises(ValueError, match="between 1 and the 5 training samples"):
            evaluate(train, train, k=k)


def test_scores_rank_ties_by_class_and_count_five() -> None:
    evidence = np.zeros((3, 7))
    evidence[1, 6] = 1
    scores = score(evidence, np.array([4, 6, 5]), np.ones(3, bool))
    assert (scores.correct1, scores.correct5) == (1, 2)
    few = score(np.zeros((2, 2)), np.array([0, 1]), np.array([True, False]))
    assert (few.correct1, few.correct5, few.unanswered, few.samples) == (1, 1, 1, 2)


def test_several_classes_a_sample() -> None:
    """Neighbours vote for all of their classes; the score is mean average precision, worked out by hand."""
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], bool)
    votes = neighbour_votes(np.eye(3), labels, np.eye(3)[:1], classes=3, k=3)
    far = math.exp(-1 / TEMPERATURE)
    assert votes[0] == pytest.approx([1 + far, 2 * far, 0], rel=1e-4)
    evidence = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.5, 0.7, 0], [0.1, 0.9, 0]])
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    # Class 0 ranks samples 0, 2, 1: hits at 1 and 3. Class 1 ranks 3, 1, 2: hits at 2 and 3. Nobody has class 2.
    expected = 100 * ((1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    assert mean_average_precision(evidence, truth, np.ones(4, bool)) == pytest.approx(expected)
    scores = score(evidence, truth, np.ones(4, bool))
    assert (scores.correct1, scores.headline) == (3, pytest.approx(expected))
    # Sample 3 without an answer no longer ranks before the others.
    answered = np.array([True, True, True, False])
    assert mean_average_precision(evidence, truth, answered) == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1) / 2)


def test_retrieval() -> None:
    train = features(np.array([0, 0, 1, 2]), classes=3, seed=0, tokens=1)
    val = features(np.array([0, 1, 2, 2]), classes=3, seed=1, tokens=1, unanswered=(3,))
    train.pooled[:, 0] = np.eye(16)[:4]
    # The first query finds its class at ranks 1 and 3, the second at rank 2, the third at once; the last cannot ask.
    val.pooled[:, 0] = 0.0
    val.pooled[0, 0, :4] = (3, 1, 2, 0)
    val.pooled[1, 0, :4] = (0, 2, 1, 0)
    val.pooled[2, 0, :4] = (0, 0, 0, 1)
    result = retrieval.evaluate(train, val, ks=(1, 2))
    assert result.recall == {1: pytest.approx(50.0), 2: pytest.approx(75.0)}
    assert result.mean_ap == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1 / 2 + 1) / 4)
    assert (result.queries, result.unanswered, result.gallery) == (4, 1, 4)
