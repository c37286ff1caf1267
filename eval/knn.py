"""k-nearest-neighbour classification of held-out samples by their pooled embeddings: nothing is trained.

    python -m eval.knn --model output/packed_model --train clips/train --val clips/val --output knn.json
    python -m eval.knn ... --view codec --tokens 256 --cache output/features
    python -m eval.knn --model output/packed_model --format images --train imagenet/train --val imagenet/val --output knn.json

Every neighbour votes with exp(cosine / temperature) for its classes, the k nearest training samples of each held-out one. Samples
that cannot be read are named: held-out ones count as wrong, training ones do not vote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval import cli
from eval.features import Features
from eval.scores import Scores, indicator, score

TEMPERATURE = 0.07
"""Sharpness of the vote, as in the k-NN evaluations of self-supervised vision models (DINO, arXiv 2104.14294)."""
_CHUNK_ELEMENTS = 2**25
"""Cosines that exist at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnResult:
    """What `evaluate` found."""

    k: int
    scores: Scores


def evaluate(train: Features, val: Features, *, k: int = 20) -> KnnResult:
    """Classify every held-out sample by its neighbours among the training samples.

    Raises:
        ValueError: fewer than k training samples could be read, or k < 1.
    """
    known = train.answered
    if not 1 <= k <= known.sum():
        raise ValueError(f"--k is {k}, but must be between 1 and the {known.sum()} training samples that could be read")
    votes = neighbour_votes(
        train.embeddings[known], train.labels[known], val.embeddings, classes=len(train.classes), k=k
    )
    return KnnResult(k=k, scores=score(votes, val.labels, val.answered))


def neighbour_votes(train: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, classes: int, k: int) -> np.ndarray:
    """Votes float32 [Q, classes] for `queries` [Q, D] of the k rows of `train` [N, D] with the highest cosine.

    Args:
        train, queries: embeddings; their lengths do not matter.
        labels: int [N] or bool [N, classes].
        classes: number of them.
        k: at most N.
    """
    train, queries = unit(train), unit(queries)
    votes = np.zeros((len(queries), classes), np.float32)
    step = max(1, _CHUNK_ELEMENTS // len(train))
    for start in range(0, len(queries), step):
        cosines = queries[start : start + step] @ train.T
        nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        weights = np.exp((np.take_along_axis(cosines, nearest, axis=1) - 1) / TEMPERATURE)
        for neighbour, weight in zip(nearest.T, weights.T, strict=True):
            votes[start : start + step] += weight[:, None] * indicator(labels[neighbour], classes)
    return votes


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; zero rows stay."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.parser("eval.knn", __doc__)
    parser.add_argument("--k", type=int, default=20, help="neighbours that vote")
    return cli.run(parser, arguments, "k-NN", _build, keep_tokens=False)


def _build(options: argparse.Namespace) -> cli.Measure:
    if options.k < 1:
        raise ValueError(f"--k is {options.k}; at least 1 neighbour must vote")

    def measure(train: Features, val: Features, device: object) -> tuple[dict[str, object], list[cli.Row]]:
        result = evaluate(train, val, k=options.k)
        row = cli.Row(name=f"{result.k}-NN", scores=result.scores)
        return {"k": result.k, "temperature": TEMPERATURE, **row.as_json()}, [row]

    return measure


if __name__ == "__main__":
    sys.exit(main())
