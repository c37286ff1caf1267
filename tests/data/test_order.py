"""Order is a function: of nothing but seed, head and position."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from megatron_ovenc.data.order import generator, micro_batch_slices, replacement_index, sample_indices, unit_hash


def epoch(number: int, n: int, seed: int = 0, head: str = "a") -> list[int]:
    return sample_indices(np.arange(number * n, (number + 1) * n), n, seed=seed, head=head).tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 100, 1023, 1025, 5000])
def test_every_epoch_has_every_sample_once(n):
    for number in (0, 1, 2, 10**9):
        assert sorted(epoch(number, n)) == list(range(n))


def test_epochs_seeds_and_heads_have_orders_of_their_own():
    orders = [epoch(0, 200), epoch(1, 200), epoch(0, 200, seed=1), epoch(0, 200, head="b"), epoch(1, 200, seed=1)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 10  # a fixed point or two come by chance


def test_all_orders_of_a_small_set_are_equally_likely():
    counts = Counter(tuple(epoch(number, 4)) for number in range(4800))
    assert len(counts) == 24
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 60  # 23 degrees of freedom: exceeded once in 40,000 seeds


def test_neighbours_do_not_stay_neighbours():
    order = np.array(epoch(0, 4096))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06
    assert abs(np.corrcoef(np.arange(4096), order)[0, 1]) < 0.06


def test_one_position_or_many_across_epochs_of_a_large_set():
    n = 10**10 + 19
    positions = np.array([[0, 1, n - 1], [n, 7 * n + 5, 10**15]])
    many = sample_indices(positions, n, seed=3, head="x")
    assert many.shape == positions.shape
    assert many.tolist() == [[int(sample_indices(int(p), n, seed=3, head="x")) for p in row] for row in positions]
    assert (many >= 0).all()
    assert (many < n).all()


def test_the_order_never_changes_between_versions():
    assert epoch(0, 10, seed=1234, head="video") == [2, 0, 6, 1, 9, 5, 7, 8, 4, 3]


def test_hashes_are_uniform_and_reproducible():
    values = [unit_hash("x", number) for number in range(2000)]
    assert min(values) >= 0
    assert max(values) < 1
    assert abs(np.mean(values) - 0.5) < 0.03
    assert generator("a", 1).random() == generator("a", 1).random() != generator("a", 2).random()
    assert generator("a", 11).random() != generator("a1", 1).random()
    replacements = [replacement_index(position, 1, 10, seed=0, head="a") for position in range(500)]
    assert set(replacements) == set(range(10))


@pytest.mark.parametrize(("batch", "accumulation", "ranks"), [(8, 1, 8), (24, 3, 4), (14, 2, 3), (7, 1, 2)])
def test_ranks_share_a_micro_batch_evenly_and_in_order(batch, accumulation, ranks):
    slices = micro_batch_slices(batch, accumulation, ranks, head="a")
    sizes = [part.stop - part.start for part in slices]
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(batch // accumulation))
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("batch", "accumulation", "ranks"), [(10, 3, 1), (4, 1, 5), (8, 4, 3)])
def test_batches_that_do_not_divide_name_the_key(batch, accumulation, ranks):
    with pytest.raises(ValueError, match=r"heads\.ocr\.global_batch_size is"):
        micro_batch_slices(batch, accumulation, ranks, head="ocr")
