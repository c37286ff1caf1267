"""Retrieval by pooled embeddings: each held-out sample asks for training samples of its class; nothing is trained.

    python -m eval.retrieval --model output/packed_model --train clips/gallery --val clips/queries --output retrieval.json

Reported are recall@k (the share of queries with a sample of their class among the k nearest) and the mean average precision of the
whole ranking. Queries that cannot be read, and those whose class the gallery lacks, count as nothing found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from eval import cli
from eval.features import Features
from eval.knn import unit
from eval.scores import average_precision, indicator


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalResult:
    """What `evaluate` found, in percent."""

    queries: int
    """All held-out samples."""
    unanswered: int
    """Queries without features."""
    gallery: int
    """Training samples that could be found."""
    recall: dict[int, float]
    """By k."""
    mean_ap: float


def evaluate(gallery: Features, queries: Features, *, ks: Sequence[int] = (1, 5, 10)) -> RetrievalResult:
    """Rank the gallery for every query by cosine; equal ones by number.

    Raises:
        ValueError: no gallery sample could be read, or a k below 1.
    """
    known, asked = gallery.answered, queries.answered
    if not known.any() or min(ks) < 1:
        raise ValueError(f"--k is {list(ks)} on a gallery of {known.sum()} samples; both must be at least 1")
    classes = len(gallery.classes)
    shelf, shelf_classes = unit(gallery.embeddings[known]), indicator(gallery.labels[known], classes)
    firsts, precisions = [], []
    for embedding, label in zip(unit(queries.embeddings)[asked], queries.labels[asked], strict=True):
        order = np.argsort(-(shelf @ embedding), kind="stable")
        relevant = (shelf_classes[order] & indicator(np.asarray(label)[None], classes)).any(axis=1)
        firsts.append(int(relevant.argmax()) if relevant.any() else len(order))
        precisions.append(average_precision(relevant) if relevant.any() else 0.0)
    total = len(queries.labels)
    found = np.array(firsts)
    return RetrievalResult(
        queries=total,
        unanswered=int((~asked).sum()),
        gallery=int(known.sum()),
        recall={k: 100 * float((found < k).sum()) / total for k in sorted(ks)},
        mean_ap=100 * float(np.sum(precisions)) / total,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.parser("eval.retrieval", __doc__)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 5, 10], help="numbers of neighbours to look among")
    return cli.run(parser, arguments, "retrieval", _build, keep_tokens=False)


def _build(options: argparse.Namespace) -> cli.Measure:
    if min(options.k) < 1:
        raise ValueError(f"--k is {options.k}; each must be at least 1")

    def measure(train: Features, val: Features, device: object) -> tuple[dict[str, object], list[cli.Row]]:
        result = evaluate(train, val, ks=options.k)
        numbers = {f"recall@{k}": share for k, share in result.recall.items()} | {"mAP": result.mean_ap}
        return asdict(result), [cli.Row(name=name, percent=value) for name, value in numbers.items()]

    return measure


if __name__ == "__main__":
    sys.exit(main())
