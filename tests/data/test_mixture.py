"""Modes: exact shares, no shortage of the small ones, places that mean nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from megatron_ovenc.config.tree import ModesConfig
from megatron_ovenc.data.mixture import MODES, counts, mode_at

DEFAULT = ModesConfig()


def modes(
    first: int, count: int, micro_batch: int, config: ModesConfig = DEFAULT, seed: int = 0, head: str = "a"
) -> list[str]:
    return [mode_at(position, config, micro_batch, seed=seed, head=head) for position in range(first, first + count)]


def test_shares_are_exact_in_every_micro_batch_that_they_divide():
    for block in range(20):
        assert Counter(modes(block * 16, 16, 16)) == {"codec": 8, "frames": 6, "collage": 2}


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7, 10, 100])
@pytest.mark.parametrize("shares", [(0.5, 0.375, 0.125), (0.1, 0.2, 0.7), (0.98, 0.01, 0.01), (0.0, 1.0, 0.0)])
def test_counts_are_the_quota_rounded_and_right_on_average(micro_batch, shares):
    found = np.array([counts(block, micro_batch, shares, purpose="mode", seed=0, head="a") for block in range(600)])
    quota = np.array(shares) * micro_batch
    assert (found.sum(axis=1) == micro_batch).all()
    assert (found >= np.floor(quota + 1e-9)).all()
    assert (found <= np.ceil(quota - 1e-9)).all()
    assert found.mean(axis=0) == pytest.approx(quota, abs=0.02)


def test_a_batch_of_two_still_sees_every_mode():
    assert set(modes(0, 32, 2)) == set(MODES)


def test_places_differ_between_batches_seeds_and_heads_but_not_between_calls():
    assert modes(0, 64, 64) == modes(0, 64, 64)
    others = [modes(64, 64, 64), modes(0, 64, 64, seed=1), modes(0, 64, 64, head="b")]
    assert all(modes(0, 64, 64) != other for other in others)
    # No place in the batch belongs to a mode.
    always_codec = np.mean([[mode == "codec" for mode in modes(block * 16, 16, 16)] for block in range(200)], axis=0)
    assert always_codec.min() > 0.3
    assert always_codec.max() < 0.7
