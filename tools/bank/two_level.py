"""K-means for many centres: coarse cells, fine centres inside each, then rounds over all points that search only the nearest cells.

Cost of a round over N points and C centres in about sqrt(C) cells: a search of the cells and of `probe` cells' centres, so
N * (1 + probe) * sqrt(C) products instead of N * C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import faiss
import numpy as np

from tools.bank.kmeans import Clustering, Points, flat_kmeans, lloyd, nearest, on_gpus

POINTS_A_CELL = 256
"""Points a cell that the cells are found with."""
CELL_ROUNDS = 10
"""Rounds of k-means for the cells, and for the centres in each of them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProbedSearch:
    """Nearest centres among those in the cells that are nearest to a point."""

    cells: np.ndarray
    """float32 [K, F], unit vectors. A centre lies in the cell that it is nearest to."""
    probe: int
    """Cells that are searched."""

    def __call__(
        self, points: Points, centres: np.ndarray, count: int
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """As `nearest`. A point whose cells hold fewer than `count` centres is compared with all."""
        quantizer = faiss.IndexFlatIP(self.cells.shape[1])
        quantizer.add(self.cells)
        index = faiss.IndexIVFFlat(quantizer, self.cells.shape[1], len(self.cells), faiss.METRIC_INNER_PRODUCT)
        index.add(np.ascontiguousarray(centres, np.float32))
        index.nprobe = min(self.probe, len(self.cells))
        index = on_gpus(index)
        for numbers, block in points.blocks():
            cosines, found = index.search(block, count)
            if len(short := np.flatnonzero(found[:, -1] < 0)):
                few = Points(matrix=block[short], rows=np.arange(len(short)))
                for part, whole, values in nearest(few, centres, count):
                    found[short[part]], cosines[short[part]] = whole, values
            yield numbers, found, cosines


def two_level_kmeans(
    points: Points,
    concepts: int,
    *,
    iterations: int,
    probe: int,
    seed: int,
    on_round: Callable[[], object] | None = None,
) -> tuple[Clustering, ProbedSearch]:
    """Cluster, and the search that the clusters were found with.

    Args:
        points: N of them.
        concepts: C, the number of centres.
        iterations: most rounds over all points, as in `lloyd`.
        probe: cells that are searched for a point's nearest centre.
        seed: of all draws.
        on_round: called after each of these rounds.

    Raises:
        ValueError: C < 1, or C > N.
    """
    rng = np.random.default_rng(seed)
    count = max(1, round(concepts**0.5))
    drawn = np.sort(rng.choice(len(points), min(len(points), POINTS_A_CELL * count), replace=False))
    sample = Points(matrix=points.matrix, rows=points.rows[drawn])
    cells = flat_kmeans(sample, count, iterations=CELL_ROUNDS, seed=seed).centres
    search = ProbedSearch(cells=cells, probe=probe)
    seeds = _fine(points, cells, concepts, rng)
    return lloyd(points, seeds, search, iterations=iterations, rng=rng, on_round=on_round), search


def _fine(points: Points, cells: np.ndarray, concepts: int, rng: np.random.Generator) -> np.ndarray:
    """Centres float32 [C, F] by k-means inside every cell."""
    owners, spread = np.empty(len(points), np.int32), np.zeros(len(cells))
    for numbers, found, cosines in nearest(points, cells, 1):
        owners[numbers] = found[:, 0]
        spread += np.bincount(found[:, 0], 1 - cosines[:, 0].astype(np.float64), len(cells))
    order = np.argsort(owners, kind="stable")
    sizes = np.bincount(owners, minlength=len(cells))
    shares = allocate(spread, sizes, concepts)
    centres = []
    for members, share in zip(np.split(order, np.cumsum(sizes)[:-1]), shares, strict=True):
        if share:
            inside = Points(matrix=points.take(members), rows=np.arange(len(members)))
            found = flat_kmeans(inside, int(share), iterations=CELL_ROUNDS, seed=int(rng.integers(2**31)))
            centres.append(found.centres)
    return np.concatenate(centres)


def allocate(weights: np.ndarray, limits: np.ndarray, total: int) -> np.ndarray:
    """Split `total` in proportion to weights, rounded by largest remainders: int64 [K], from 1 (or 0 of 0) to the limits.

    Args:
        weights: [K], not negative.
        limits: int [K], whose sum is at least `total`.
        total: at least the number of limits that are not 0.
    """
    weights = np.maximum(
        weights, 1e-9 * max(weights.max(), 1e-9)
    )  # so that even cells of equal points grow where all must
    least, low, high = np.minimum(limits, 1), 0.0, 2 * float((limits / weights).max())
    for _ in range(200):
        scale = (low + high) / 2
        low, high = (scale, high) if np.clip(scale * weights, least, limits).sum() < total else (low, scale)
    due = np.clip(high * weights, least, limits)
    shares = np.floor(due).astype(np.int64)
    order = np.argsort(shares - due, kind="stable")
    more = order[(shares < limits)[order]][: total - shares.sum()]
    shares[more] += 1
    return shares
