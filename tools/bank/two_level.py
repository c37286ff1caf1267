"""K-means for many centres: coarse cells, fine centres inside each, then rounds over all points that search only the nearest cells.

Cost of a round over N points and C centres in about sqrt(C) cells: a search of the cells and of `probe` cells' centres, so
N * (1 + probe) * sqrt(C) products instead of N * C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import faiss
import numpy as np

from tools.bank.kmeans import Clustering, Points, check_concepts, flat_kmeans, lloyd, nearest, on_gpus

T = TypeVar("T")

POINTS_A_CELL = 256
"""Points a cell that the cells are found with."""
TOLERANCE = 5e-4
"""Rounds over all points end when one lowers the error by less than this share of it: most is won inside the cells."""
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
        cells = faiss.IndexFlatIP(self.cells.shape[1])
        cells.add(self.cells)
        probe = min(self.probe, len(self.cells))
        centres = np.ascontiguousarray(centres, np.float32)
        if faiss.get_num_gpus() > 0:
            inverted = faiss.IndexIVFFlat(cells, cells.d, len(self.cells), faiss.METRIC_INNER_PRODUCT)
            inverted.add(centres)
            inverted.nprobe = probe
            index: Any = on_gpus(inverted)
        else:
            index = _Grouped(cells, centres, probe)
        for numbers, block in points.blocks():
            cosines, found = index.search(block, count)
            if len(short := np.flatnonzero(found[:, -1] < 0)):
                few = Points(matrix=block[short], rows=np.arange(len(short)))
                for part, whole, values in nearest(few, centres, count):
                    found[short[part]], cosines[short[part]] = whole, values
            yield numbers, found, cosines


class _Grouped:
    """What faiss' IndexIVFFlat computes, with the points of a block grouped by cell: one matrix product a cell.

    On a CPU the index itself goes point by point, which takes several times as long.
    """

    def __init__(self, cells: faiss.IndexFlatIP, centres: np.ndarray, probe: int) -> None:
        self._cells, self._probe = cells, probe
        home = cells.search(centres, 1)[1][:, 0]
        order = np.argsort(home, kind="stable")
        self._members = np.split(order, np.cumsum(np.bincount(home, minlength=cells.ntotal))[:-1])
        self._centres = [centres[members] for members in self._members]

    def search(self, block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines float32 [n, count], largest first, and centres int64 [n, count]; where there are too few, -1."""
        _, probed = self._cells.search(block, self._probe)
        found = np.full((probed.size, count), -1, np.int64)
        cosines = np.full((probed.size, count), -np.inf, np.float32)
        pairs = np.argsort(probed, axis=None, kind="stable")
        groups = np.split(pairs, np.cumsum(np.bincount(probed.ravel(), minlength=self._cells.ntotal))[:-1])

        def search_cell(cell: int) -> None:
            group, members = groups[cell], self._members[cell]
            if len(group) and len(members):
                kept, queries = min(count, len(members)), block[group // self._probe]
                values, near = faiss.knn(queries, self._centres[cell], kept, faiss.METRIC_INNER_PRODUCT)
                cosines[group, :kept], found[group, :kept] = values, members[near]

        _in_threads(search_cell, range(len(groups)))
        found, cosines = found.reshape(len(block), -1), cosines.reshape(len(block), -1)
        best = cosines.argmax(axis=1)[:, None] if count == 1 else np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(cosines, best, 1), np.take_along_axis(found, best, 1)


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
    check_concepts(points, concepts)
    rng = np.random.default_rng(seed)
    count = max(1, round(concepts**0.5))
    drawn = np.sort(rng.choice(len(points), min(len(points), POINTS_A_CELL * count), replace=False))
    sample = Points(matrix=points.matrix, rows=points.rows[drawn])
    cells = flat_kmeans(sample, count, iterations=CELL_ROUNDS, seed=seed).centres
    search = ProbedSearch(cells=cells, probe=probe)
    seeds = _fine(points, cells, concepts, rng)
    found = lloyd(points, seeds, search, iterations=iterations, tolerance=TOLERANCE, rng=rng, on_round=on_round)
    return found, search


def _fine(points: Points, cells: np.ndarray, concepts: int, rng: np.random.Generator) -> np.ndarray:
    """Centres float32 [C, F] by k-means inside every cell."""
    owners, spread = np.empty(len(points), np.int32), np.zeros(len(cells))
    for numbers, found, cosines in nearest(points, cells, 1):
        owners[numbers] = found[:, 0]
        spread += np.bincount(found[:, 0], 1 - cosines[:, 0].astype(np.float64), len(cells))
    order = np.argsort(owners, kind="stable")
    sizes = np.bincount(owners, minlength=len(cells))
    shares = allocate(spread, sizes, concepts)
    members = np.split(order, np.cumsum(sizes)[:-1])
    seeds = rng.integers(2**31, size=len(cells))

    def inside(cell: int) -> np.ndarray:
        own = Points(matrix=points.take(members[cell]), rows=np.arange(sizes[cell]))
        return flat_kmeans(own, int(shares[cell]), iterations=CELL_ROUNDS, seed=int(seeds[cell])).centres

    return np.concatenate(_in_threads(inside, np.flatnonzero(shares).tolist()))


def _in_threads(function: Callable[[int], T], items: Iterable[int]) -> list[T]:
    """Results in order. As many threads as faiss takes, of which each computes alone: many small products, not a few large ones."""
    with ThreadPoolExecutor(faiss.omp_get_max_threads(), initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, items))


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
