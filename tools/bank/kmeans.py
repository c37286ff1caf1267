"""Spherical k-means with faiss as the search: unit vectors, cosine, exact ("flat"), on GPUs where faiss has them.

Points may live on disk: every pass reads them in blocks, so memory holds the centres, a sum a centre and eight bytes a point.
Seeds are drawn by k-means++ (each with probability proportional to its distance 1 - cosine from the seeds before it; Arthur and
Vassilvitskii, 2007) in passes that at most double their number. The same points and seed give the same centres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import faiss
import numpy as np

BLOCK = 65536
"""Points in memory at a time."""
_SAME = 1e-6
"""Points closer than this are one point."""
_EXTRA = 10
"""Further rounds that a last emptied cluster may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Points:
    """Some rows of a matrix that may be a memory map, read as unit vectors."""

    matrix: np.ndarray
    """[M, F] of any float type."""
    rows: np.ndarray
    """int64 [N], ascending: those that are points; none is zero."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        return self.matrix.shape[1]

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Points by number: float32 [n, F]."""
        points = self.matrix[self.rows[numbers]].astype(np.float32)
        return points / np.linalg.norm(points, axis=1, keepdims=True)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All points, block by block, with the numbers they have."""
        for start in range(0, len(self), BLOCK):
            end = min(start + BLOCK, len(self))
            yield slice(start, end), self.take(np.arange(start, end))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clustering:
    """Centres, and how the points lie around them."""

    centres: np.ndarray
    """float32 [C, F], unit vectors."""
    sizes: np.ndarray
    """int64 [C]: points whose nearest centre this is."""
    mean_cosine: float
    """Of the points to their nearest centres."""
    repaired: int
    """Times that an empty cluster was given a new centre."""
    rounds: int
    """Updates of the centres."""


def spherical_kmeans(
    points: Points, concepts: int, *, iterations: int, seed: int, on_round: Callable[[], object] | None = None
) -> Clustering:
    """Cluster.

    An empty cluster starts again from a point drawn as the seeds were, far from all centres. Ends early when no point changes its
    cluster.

    Args:
        points: N of them.
        concepts: C, the number of centres.
        iterations: most updates of the centres, up to a few more while a cluster is still empty.
        seed: of the initial centres.
        on_round: called after each update.

    Raises:
        ValueError: C < 1, or C > N.
    """
    if not 1 <= concepts <= len(points):
        raise ValueError(
            f"--concepts is {concepts}, but must be between 1 and the {len(points)} samples that have features; ask for fewer "
            f"concepts or give more samples"
        )
    rng = np.random.default_rng(seed)
    centres = _seed(points, concepts, rng)
    owners, cosines = _nearest_one(points, centres)
    repaired = rounds = 0
    while True:
        sums, sizes = _sums(points, owners, concepts)
        empty = np.flatnonzero(sizes == 0)
        if rounds >= iterations and (not len(empty) or rounds >= iterations + _EXTRA):
            break
        # A point that is alone in its cluster founds no other.
        moved = _draw(points, np.where(sizes[owners] == 1, 1, cosines), len(empty), rng)
        for cluster, number, point in zip(empty, moved, points.take(moved), strict=False):
            sums[owners[number]] -= point
            sums[cluster] = point
        repaired += len(moved)
        centres = _unit_or(sums, centres)
        before = owners
        owners, cosines = _nearest_one(points, centres)
        rounds += 1
        if on_round is not None:
            on_round()
        if not len(empty) and np.array_equal(owners, before):
            break
    return Clustering(
        centres=centres,
        sizes=np.bincount(owners, minlength=concepts),
        mean_cosine=float(cosines.mean(dtype=np.float64)),
        repaired=repaired,
        rounds=rounds,
    )


def nearest(points: Points, centres: np.ndarray, count: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The `count` nearest of `centres` [C, F] for every point, block by block.

    Yields:
        Numbers of the points, centres int64 [n, count], nearest first, and their cosines float32 [n, count].
    """
    index: faiss.Index = faiss.IndexFlatIP(centres.shape[1])
    if faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(np.ascontiguousarray(centres, np.float32))
    for numbers, block in points.blocks():
        cosines, found = index.search(block, count)
        yield numbers, found, cosines


def _nearest_one(points: Points, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centre int32 [N] of every point, and its cosine float32 [N]."""
    owners, cosines = np.empty(len(points), np.int32), np.empty(len(points), np.float32)
    for numbers, found, values in nearest(points, centres, 1):
        owners[numbers], cosines[numbers] = found[:, 0], values[:, 0]
    return owners, cosines


def _sums(points: Points, owners: np.ndarray, concepts: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of each cluster's points float32 [C, F], and their number [C]."""
    sums = np.zeros((concepts, points.width), np.float32)
    for numbers, block in points.blocks():
        order = np.argsort(owners[numbers], kind="stable")
        clusters, starts = np.unique(owners[numbers][order], return_index=True)
        sums[clusters] += np.add.reduceat(block[order], starts)
    return sums, np.bincount(owners, minlength=concepts)


def _unit_or(sums: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Rows brought to unit length; those that cancel out, or are empty, keep their old direction."""
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(norms > _SAME, sums / np.maximum(norms, _SAME), fallback).astype(np.float32)


def _seed(points: Points, concepts: int, rng: np.random.Generator) -> np.ndarray:
    """Initial centres float32 [C, F]: different points, by k-means++."""
    chosen = rng.integers(len(points), size=1)
    _, cosines = _nearest_one(points, points.take(chosen))
    while len(chosen) < concepts:
        more = _draw(points, cosines, min(len(chosen), concepts - len(chosen)), rng)
        if not len(more):
            # No point differs from all seeds: fewer distinct points than concepts.
            more = rng.permutation(np.setdiff1d(np.arange(len(points)), chosen))[: concepts - len(chosen)]
        chosen = np.concatenate([chosen, more])
        _, fresh = _nearest_one(points, points.take(more))
        cosines = np.maximum(cosines, fresh)
    return points.take(chosen)


def _draw(points: Points, cosines: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `wanted` further centres, at least one while any point differs from all centres: int64 numbers of points.

    Candidates are drawn by their distance from the centres before this pass and then accepted with the probability by which
    those of this pass have shortened it, which is what drawing one after the other would do.
    """
    distances = 1.0 - cosines.astype(np.float64)
    distances[distances < _SAME] = 0
    mass = np.cumsum(distances)
    if wanted == 0 or mass[-1] == 0:
        return np.empty(0, np.int64)
    drawn = np.searchsorted(mass, rng.random(2 * wanted) * mass[-1], side="right").clip(0, len(mass) - 1)
    candidates = points.take(drawn)
    chances = rng.random(len(drawn))
    accepted: list[int] = []
    for place, number in enumerate(drawn):
        nearest_new = (candidates[accepted] @ candidates[place]).max(initial=-1.0)
        remaining = min(distances[number], max(0.0, 1.0 - float(nearest_new)))
        if remaining >= _SAME and chances[place] * distances[number] < remaining:
            accepted.append(place)
            if len(accepted) == wanted:
                break
    return drawn[accepted]
