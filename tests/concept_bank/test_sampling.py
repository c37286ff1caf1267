"""The draw of competing rows: exact counts, fair, independent of who evaluates it."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_ovenc.concept_bank.centres import row_range
from megatron_ovenc.concept_bank.sampling import BLOCK_ROWS, Competitors, competitors, draw_key, drawn, scramble

CPU = torch.device("cpu")


def rows_of(among: Competitors) -> torch.Tensor:
    assert among.rows is not None
    return among.rows


def test_scramble_is_a_bijection_and_depends_on_the_whole_key():
    ids = torch.cat([torch.arange(200_000), torch.arange(2**32 - 1000, 2**32)])
    seen = set()
    for key in (0, 1, 1 << 40, draw_key(1, "a", 2)):
        scrambled = scramble(ids, key)
        assert scrambled.min() >= 0
        assert scrambled.max() < 2**32
        assert len(scrambled.unique()) == len(ids)
        seen.add(scrambled[12345].item())
    assert len(seen) == 4


def test_keys_are_those_of_every_machine():
    """Frozen: another value would change the negatives of every resumed run."""
    assert draw_key(0, "image", "negatives", 7) == 0x52A37EECAFB16DB2
    assert scramble(torch.tensor([0, 1, 4095]), 0x0123456789ABCDEF).tolist() == [476226723, 4113150310, 906514537]
    rows = drawn(10_000, 0.002, 0x52A37EECAFB16DB2, 0, 10_000, CPU).nonzero().flatten().tolist()
    assert rows[:8] == [192, 500, 643, 1251, 1486, 2862, 3600, 4029]
    assert rows[-4:] == [8659, 8956, 9527, 9625]  # in the bank's short last block


@pytest.mark.parametrize("classes", [1, 9, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS - 5])
@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.999])
def test_exact_count_and_equal_share_of_every_block(classes, rate):
    mask = drawn(classes, rate, 77, 0, classes, CPU)
    assert mask.shape == (classes,)
    assert mask.sum() == math.floor(rate * classes)
    for block in mask.split(BLOCK_ROWS):
        assert abs(block.sum().item() - rate * len(block)) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 16, 100])
def test_ranks_agree_on_the_draw(world):
    classes = 2 * BLOCK_ROWS + 77
    whole = drawn(classes, 0.2, 5, 0, classes, CPU)
    parts = [drawn(classes, 0.2, 5, *row_range(classes, world, rank), CPU) for rank in range(world)]
    assert torch.equal(torch.cat(parts), whole)


def test_every_row_is_drawn_equally_often_and_steps_are_independent():
    classes, rate, steps = 5000, 0.1, 600
    draws = torch.stack([drawn(classes, rate, draw_key(3, "h", "negatives", s), 0, classes, CPU) for s in range(steps)])
    deviations = (draws.sum(0) - rate * steps) / math.sqrt(rate * (1 - rate) * steps)
    assert deviations.abs().max() < 5.5
    assert deviations.square().mean().item() == pytest.approx(1, abs=0.1)
    together = (draws[1:] & draws[:-1]).float().mean().item()
    assert together == pytest.approx(rate**2, rel=0.03)
    # Neighbouring rows do not come together either.
    assert (draws[:, 1:] & draws[:, :-1]).float().mean().item() == pytest.approx(rate**2, rel=0.03)


def test_seed_head_and_step_name_different_draws():
    keys = {draw_key(0, "a", 1), draw_key(1, "a", 1), draw_key(0, "b", 1), draw_key(0, "a", 2), draw_key(0, "a", 1, 1)}
    assert len(keys) == 5
    masks = {tuple(drawn(3000, 0.1, key, 0, 3000, CPU).tolist()) for key in keys}
    assert len(masks) == 5


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("bounds", [(0, 6000), (100, 4500), (5990, 6000), (6000, 6000)])
def test_positives_always_compete_and_are_found(bounds, static):
    lo, hi = bounds
    labels = torch.randint(-1, 6000, (40, 5), generator=torch.Generator().manual_seed(0))
    labels[0] = torch.tensor([lo, hi - 1, hi, lo - 1, -1])
    among = competitors(labels, num_classes=6000, rate=0.02, key=9, lo=lo, hi=hi, static=static)
    rows = rows_of(among)
    local = (labels >= lo) & (labels < hi)
    expected = drawn(6000, 0.02, 9, lo, hi, CPU)
    expected[labels[local] - lo] = True
    assert torch.equal(rows[rows < hi - lo], expected.nonzero().squeeze(1))
    assert torch.equal(rows[among.places[local]], labels[local] - lo)
    assert (among.places[~local] == -1).all()


def test_padded_size_does_not_depend_on_the_labels():
    spread, same = torch.arange(0, 40_000, 100).view(-1, 4), torch.zeros(100, 4, dtype=torch.int64)
    sizes = {
        len(rows_of(competitors(labels, num_classes=50_000, rate=0.02, key=key, lo=1000, hi=40_000, static=True)))
        for key, labels in enumerate((spread, same))
    }
    assert len(sizes) == 1


def test_rate_one_draws_nothing():
    among = competitors(torch.tensor([[3, 7, -1]]), num_classes=10, rate=1.0, key=0, lo=5, hi=10, static=False)
    assert among.rows is None
    assert among.places.tolist() == [[-1, 2, -1]]


def test_positives_beyond_the_budget_all_compete():
    labels = torch.arange(1000).view(-1, 4)
    among = competitors(labels, num_classes=1000, rate=0.01, key=0, lo=0, hi=1000, static=True)
    assert torch.equal(rows_of(among), torch.arange(1000))
