"""k-nearest-neighbour classification of held-out clips by their pooled embeddings: nothing is trained.

    python -m eval.knn --model output/packed_model --train clips/train --val clips/val --output knn.json
    python -m eval.knn ... --view codec --tokens 256 --cache output/features

Every clip votes with exp(cosine / temperature) for its class, the k nearest training clips of each held-out one. Clips that
cannot be read are named: held-out ones count as wrong, training ones do not vote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval import cli
from eval.features import Features
from eval.scores import Scores, score

TEMPERATURE = 0.07
"""Sharpness of the vote, as in the k-NN evaluations of self-supervised vision models."""
_CHUNK = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnResult:
    """What `evaluate` found."""

    k: int
    scores: Scores


def evaluate(train: Features, val: Features, *, k: int = 20) -> KnnResult:
    """Classify every held-out clip by its neighbours among the training clips.

    Raises:
        ValueError: fewer than k training clips could be read, or k < 1.
    """
    known = train.answered
    if not 1 <= k <= known.sum():
        raise ValueError(f"--k is {k}, but must be between 1 and the {known.sum()} training clips that could be read")
    votes = neighbour_votes(train.pooled[known], train.labels[known], val.pooled, classes=len(train.classes), k=k)
    return KnnResult(k=k, scores=score(votes, val.labels, val.answered))


def neighbour_votes(train: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, classes: int, k: int) -> np.ndarray:
    """Votes float64 [Q, classes] for `queries` [Q, D] of the k rows of `train` [N, D] with the highest cosine.

    Among equally near rows the earlier ones count as nearer.
    """
    train, queries = _unit(train), _unit(queries)
    votes = np.zeros((len(queries), classes))
    for start in range(0, len(queries), _CHUNK):
        cosines = queries[start : start + _CHUNK] @ train.T
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        weights = np.exp((np.take_along_axis(cosines, nearest, axis=1) - 1.0) / TEMPERATURE)
        rows = np.arange(start, start + len(cosines))[:, None]
        np.add.at(votes, (rows, labels[nearest]), weights)
    return votes


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.knn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_options(parser)
    parser.add_argument("--k", type=int, default=20, help="neighbours that vote")
    return cli.run(parser.parse_args(arguments), "k-NN", _build)


def _build(options: argparse.Namespace) -> cli.Measure:
    if options.k < 1:
        raise ValueError(f"--k is {options.k}; at least 1 neighbour must vote")

    def measure(train: Features, val: Features) -> tuple[dict[str, object], list[cli.Row]]:
        result = evaluate(train, val, k=options.k)
        row = cli.Row(name=f"{result.k}-NN", scores=result.scores)
        return {"k": result.k, "temperature": TEMPERATURE, **row.as_json()}, [row]

    return measure


if __name__ == "__main__":
    sys.exit(main())
