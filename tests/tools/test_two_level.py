"""Two levels: cells share the centres fairly, the search finds what an exact one finds, errors are as small as the flat way's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.concept_bank_build import measure, mixture, table
from tools.bank import kmeans
from tools.bank.kmeans import Points, flat_kmeans, nearest
from tools.bank.labels import agreement
from tools.bank.two_level import ProbedSearch, allocate, two_level_kmeans


def clustered(samples: int = 4000, clusters: int = 150) -> Points:
    return Points(matrix=mixture(samples, clusters, 32, 0), rows=np.arange(samples))


def results(search: kmeans.Search, points: Points, centres: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    parts = [(found, cosines) for _, found, cosines in search(points, centres, count)]
    found, cosines = zip(*parts, strict=True)
    return np.concatenate(found), np.concatenate(cosines)


@pytest.mark.parametrize("count", [1, 5])
def test_a_search_of_all_cells_is_exact(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "BLOCK", 1000)
    points = clustered()
    centres = points.take(np.arange(0, 4000, 40))
    search = ProbedSearch(cells=points.take(np.arange(0, 4000, 400)), probe=10)
    found, cosines = results(search, points, centres, count)
    wanted, values = results(nearest, points, centres, count)
    assert np.allclose(cosines, values, atol=1e-6)
    assert np.array_equal(found, wanted)


def test_a_search_of_some_cells_looks_only_there_and_never_returns_too_few() -> None:
    points = clustered(400)
    cells = points.take(np.arange(0, 400, 40))
    centres = points.take(np.arange(0, 400, 13))
    home = (centres @ cells.T).argmax(axis=1)
    unit = points.take(np.arange(400))
    found, cosines = results(ProbedSearch(cells=cells, probe=1), points, centres, 3)
    assert np.allclose(cosines, np.take_along_axis(unit @ centres.T, found, 1), atol=1e-6)
    probed = np.argsort(-unit @ cells.T, axis=1)[:, :1]
    allowed = (home[None, :, None] == probed[:, None, :]).any(axis=2)
    expected = np.sort(np.where(allowed, unit @ centres.T, -2), axis=1)[:, ::-1][:, :3]
    enough = allowed.sum(axis=1) >= 3
    assert 0 < enough.sum() < 400
    assert np.allclose(cosines[enough], expected[enough], atol=1e-6)
    exact = -np.sort(-unit @ centres.T, axis=1)[:, :3]
    assert np.allclose(cosines[~enough], exact[~enough], atol=1e-6)


def test_errors_are_as_small_as_the_flat_way() -> None:
    points = clustered()
    flat = flat_kmeans(points, 100, iterations=20, seed=0)
    found, search = two_level_kmeans(points, 100, iterations=20, probe=4, seed=0)
    _, cosines = results(nearest, points, found.centres, 1)
    assert 1 - cosines.mean() <= 1.02 * (1 - flat.mean_cosine)
    assert found.sizes.sum() == len(points)
    assert found.sizes.min() > 0
    assert len(search.cells) == 10
    agreed = agreement(points, found.centres, 10, search, seed=0)
    assert agreed["points"] == 2048
    assert agreed["nearest"] > 0.98
    assert 0.8 < agreed["labels"] <= agreed["nearest"]
    again, _ = two_level_kmeans(points, 100, iterations=20, probe=4, seed=0)
    assert np.array_equal(found.centres, again.centres)


def test_agreement_is_of_the_same_points_labels() -> None:
    points = clustered(300)
    centres = points.take(np.arange(0, 300, 10))

    def shifted(points: Points, centres: np.ndarray, count: int):
        for numbers, found, cosines in nearest(points, centres, count):
            yield numbers, (found + 1) % len(centres), cosines

    assert agreement(points, centres, 3, nearest, 0) == {"points": 300, "nearest": 1, "labels": 1}
    assert agreement(points, centres, 3, shifted, 0)["nearest"] == 0


def test_as_many_centres_as_points_and_equal_points() -> None:
    few = clustered(40, 10)
    found, _ = two_level_kmeans(few, 40, iterations=5, probe=2, seed=0)
    assert found.sizes.tolist() == [1] * 40
    same = Points(matrix=np.ones((30, 4), np.float32), rows=np.arange(30))
    found, _ = two_level_kmeans(same, 9, iterations=5, probe=2, seed=0)
    assert found.duplicates == 8
    assert found.sizes.max() == 30
    with pytest.raises(ValueError, match=r"--concepts is 41.* 40 samples"):
        two_level_kmeans(few, 41, iterations=5, probe=2, seed=0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_shares_fit_their_limits(data: st.DataObject) -> None:
    limits = np.array(data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any)))
    weights = np.array(data.draw(st.lists(st.floats(0, 1e6), min_size=len(limits), max_size=len(limits))))
    total = data.draw(st.integers(int((limits > 0).sum()), int(limits.sum())))
    shares = allocate(weights, limits, total)
    assert shares.sum() == total
    assert (shares <= limits).all()
    assert (shares >= np.minimum(limits, 1)).all()


def test_shares_are_in_proportion() -> None:
    assert allocate(np.array([10.0, 20.0, 30.0]), np.array([99, 99, 99]), 12).tolist() == [2, 4, 6]
    assert allocate(np.array([10.0, 20.0, 30.0]), np.array([99, 99, 3]), 12).tolist() == [3, 6, 3]
    assert allocate(np.array([0.0, 0.0, 1.0]), np.array([5, 5, 99]), 12).tolist() == [1, 1, 10]
    assert allocate(np.array([0.0, 0.0, 1.0]), np.array([5, 5, 4]), 12).tolist() == [4, 4, 4]


def test_the_benchmark_measures_both_sides() -> None:
    result = measure(500, 20, 16, 0)
    assert 0.8 < result["error_ratio"] < 1.2
    assert result["flat"]["seconds"] > 0
    assert "500 x 16 points, 20 centres" in table(result)
