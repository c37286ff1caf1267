"""Spherical k-means with faiss as the search: unit vectors, cosine, on GPUs where faiss has them.

Points may live on disk: every pass reads them in blocks, so memory holds the centres, a sum a centre and eight bytes a point.
`flat_kmeans` compares every point with every centre; tools.bank.two_level does not. Seeds are drawn by k-means++ (each with
probability proportional to its distance 1 - cosine from the seeds before it; Arthur and Vassilvitskii, 2007) in passes that at most
double their number. The same points and seed give the same centres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import faiss
import numpy as np

BLOCK = 65536
"""Points in memory at a time."""
SAME = 1e-6
"""Points, or centres, whose cosine is within this of 1 are one."""
_EXTRA = 10
"""Further rounds that mending the last empty or doubled clusters may take."""
_DRAWN = 512
"""Candidates for seeds that are compared with each other at a time."""


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
    empty_repaired: int
    """Times that an empty cluster was given a new centre."""
    duplicates_repaired: int
    """Times that one of two centres that were the same was given a new place."""
    duplicates: int
    """Centres that are still the same as another: where fewer points differ than there are centres, some must be."""
    rounds: int
    """Updates of the centres."""


class Search(Protocol):
    """A way to find nearest centres."""

    def __call__(
        self, points: Points, centres: np.ndarray, count: int
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]: ...


def flat_kmeans(
    points: Points, concepts: int, *, iterations: int, seed: int, on_round: Callable[[], object] | None = None
) -> Clustering:
    """Cluster by exact search.

    Args:
        points: N of them.
        concepts: C, the number of centres.
        iterations: as in `lloyd`.
        seed: of the initial centres.
        on_round: called after each update.

    Raises:
        ValueError: C < 1, or C > N.
    """
    check_concepts(points, concepts)
    rng = np.random.default_rng(seed)
    centres = _seed(points, concepts, rng)
    return lloyd(points, centres, nearest, iterations=iterations, rng=rng, on_round=on_round)


def check_concepts(points: Points, concepts: int) -> None:
    """Refuse more centres than points.

    Raises:
        ValueError: C < 1, or C > N.
    """
    if not 1 <= concepts <= len(points):
        raise ValueError(
            f"--concepts is {concepts}, but must be between 1 and the {len(points)} samples that have features; ask for fewer "
            f"concepts or give more samples"
        )


def lloyd(
    points: Points,
    centres: np.ndarray,
    search: Search,
    *,
    iterations: int,
    rng: np.random.Generator,
    tolerance: float = 0.0,
    on_round: Callable[[], object] | None = None,
) -> Clustering:
    """Move centres to the mean directions of the points that are nearest to them, round by round.

    An empty cluster, and at the end one of two with the same centre, starts again from a point drawn as the seeds were, far from
    all centres. Ends early when no point changes its cluster, or a round wins little.

    Args:
        points: N of them.
        centres: float32 [C, F], unit vectors, to begin with.
        search: finds the nearest centre of every point.
        iterations: most rounds, up to a few more while a cluster is empty or doubled.
        rng: draws points for such clusters.
        tolerance: least share of the error, the mean of 1 - cosine, that a round must win for another to follow.
        on_round: called after each round.
    """
    owners, cosines = _nearest_one(points, centres, search)
    empty_repaired = duplicates_repaired = rounds = 0
    settled = False
    while True:
        sums = _sums(points, owners, len(centres))
        done = settled or rounds >= iterations
        twins = _twins(centres, search) if done else {}
        for twin, kept in twins.items():
            sums[kept] += sums[twin]
            sums[twin] = 0
        owners = _renamed(owners, twins, len(centres))
        sizes = np.bincount(owners, minlength=len(centres))
        empty = np.flatnonzero(sizes == 0)
        if done and (not len(empty) or rounds >= iterations + _EXTRA):
            break
        founded = _found(points, sums, sizes, owners, cosines, empty, rng)
        if done and not len(founded):
            break
        doubled = sum(cluster in twins for cluster in founded)
        empty_repaired += len(founded) - doubled
        duplicates_repaired += doubled
        centres = _unit_or(sums, centres)
        before, error = owners, 1 - cosines.mean(dtype=np.float64)
        owners, cosines = _nearest_one(points, centres, search)
        rounds += 1
        if on_round is not None:
            on_round()
        won = error - (1 - cosines.mean(dtype=np.float64))
        settled = not len(empty) and (np.array_equal(owners, before) or won < tolerance * error)
    return Clustering(
        centres=centres,
        sizes=sizes,
        mean_cosine=float(cosines.mean(dtype=np.float64)),
        empty_repaired=empty_repaired,
        duplicates_repaired=duplicates_repaired,
        duplicates=len(twins),
        rounds=rounds,
    )


def _found(
    points: Points,
    sums: np.ndarray,
    sizes: np.ndarray,
    owners: np.ndarray,
    cosines: np.ndarray,
    empty: np.ndarray,
    rng: np.random.Generator,
) -> list[int]:
    """Move points far from their centres out of these' sums into those of empty clusters; returns the clusters that got one."""
    # A point that is alone in its cluster founds no other.
    moved = _draw(points, np.where(sizes[owners] == 1, 1, cosines), len(empty), rng)
    for cluster, number, point in zip(empty, moved, points.take(moved), strict=False):
        sums[owners[number]] -= point
        sums[cluster] = point
    return empty[: len(moved)].tolist()


def nearest(points: Points, centres: np.ndarray, count: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The `count` nearest of `centres` [C, F] for every point, block by block, by comparing with all.

    Yields:
        Numbers of the points, centres int64 [n, count], nearest first, and their cosines float32 [n, count].
    """
    index = on_gpus(faiss.IndexFlatIP(centres.shape[1]))
    index.add(np.ascontiguousarray(centres, np.float32))
    for numbers, block in points.blocks():
        cosines, found = index.search(block, count)
        yield numbers, found, cosines


def on_gpus(index: faiss.Index) -> faiss.Index:
    """The index, on all GPUs if faiss has any."""
    return faiss.index_cpu_to_all_gpus(index) if faiss.get_num_gpus() > 0 else index


def _nearest_one(points: Points, centres: np.ndarray, search: Search) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centre int32 [N] of every point, and its cosine float32 [N]."""
    owners, cosines = np.empty(len(points), np.int32), np.empty(len(points), np.float32)
    for numbers, found, values in search(points, centres, 1):
        owners[numbers], cosines[numbers] = found[:, 0], values[:, 0]
    return owners, cosines


def _twins(centres: np.ndarray, search: Search) -> dict[int, int]:
    """Centres that are the same as one before them, each with the first that it is the same as; ascending."""
    if len(centres) < 2:
        return {}
    pairs: dict[int, int] = {}
    for numbers, found, cosines in search(Points(matrix=centres, rows=np.arange(len(centres))), centres, 2):
        own = np.arange(numbers.start, numbers.stop)
        # Single precision finds candidates, double precision decides.
        for place, column in zip(*np.nonzero((cosines > 1 - 10 * SAME) & (found != own[:, None])), strict=True):
            one, other = sorted((int(own[place]), int(found[place, column])))
            a, b = centres[[one, other]].astype(np.float64)
            if a @ b > (1 - SAME) * np.linalg.norm(a) * np.linalg.norm(b):
                pairs[other] = min(one, pairs.get(other, one))
    first: dict[int, int] = {}
    for twin in sorted(pairs):
        first[twin] = first.get(pairs[twin], pairs[twin])
    return first


def _renamed(owners: np.ndarray, twins: dict[int, int], concepts: int) -> np.ndarray:
    """Owners, with those of a doubled centre given to its twin."""
    names = np.arange(concepts, dtype=owners.dtype)
    names[list(twins)] = list(twins.values())
    return names[owners]


def _sums(points: Points, owners: np.ndarray, concepts: int) -> np.ndarray:
    """Sum of each cluster's points, float32 [C, F]."""
    sums = np.zeros((concepts, points.width), np.float32)
    for numbers, block in points.blocks():
        order = np.argsort(owners[numbers], kind="stable")
        clusters, starts = np.unique(owners[numbers][order], return_index=True)
        sums[clusters] += np.add.reduceat(block[order], starts)
    return sums


def _unit_or(sums: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Rows brought to unit length; those that cancel out, or are empty, keep their old direction."""
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(norms > SAME, sums / np.maximum(norms, SAME), fallback).astype(np.float32)


def _seed(points: Points, concepts: int, rng: np.random.Generator) -> np.ndarray:
    """Initial centres float32 [C, F]: different points, by k-means++."""
    chosen = rng.integers(len(points), size=1)
    _, cosines = _nearest_one(points, points.take(chosen), nearest)
    while len(chosen) < concepts:
        more = _draw(points, cosines, min(len(chosen), concepts - len(chosen)), rng)
        if not len(more):
            # No point differs from all seeds: fewer distinct points than concepts.
            more = rng.permutation(np.setdiff1d(np.arange(len(points)), chosen))[: concepts - len(chosen)]
        chosen = np.concatenate([chosen, more])
        _, fresh = _nearest_one(points, points.take(more), nearest)
        cosines = np.maximum(cosines, fresh)
    return points.take(chosen)


def _draw(points: Points, cosines: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `wanted` further centres, at least one while any point differs from all centres: int64 numbers of points.

    Candidates are drawn by their distance from the centres before this pass and then accepted with the probability by which
    those of this pass have shortened it, which is what drawing one after the other would do.
    """
    distances = 1.0 - cosines.astype(np.float64)
    distances[distances < SAME] = 0
    mass = np.cumsum(distances)
    if wanted == 0 or mass[-1] == 0:
        return np.empty(0, np.int64)
    drawn = np.searchsorted(mass, rng.random(2 * wanted) * mass[-1], side="right").clip(0, len(mass) - 1)
    chances = rng.random(len(drawn))
    return drawn[_accepted(points.take(drawn), distances[drawn], chances, wanted)]


def _accepted(candidates: np.ndarray, distances: np.ndarray, chances: np.ndarray, wanted: int) -> list[int]:
    """Up to `wanted` of the candidates [n, F], in order, each accepted with (its distance by now) / (its distance before)."""
    accepted: list[int] = []
    for start in range(0, len(candidates), _DRAWN):
        block = candidates[start : start + _DRAWN]
        near = (block @ candidates[accepted].T).max(axis=1, initial=-1.0)
        among = block @ block.T
        for place in range(len(block)):
            before = distances[start + place]
            remaining = min(before, max(0.0, 1.0 - float(near[place])))
            if remaining >= SAME and chances[start + place] * before < remaining:
                accepted.append(start + place)
                np.maximum(near, among[place], out=near)
                if len(accepted) == wanted:
                    return accepted
    return accepted
