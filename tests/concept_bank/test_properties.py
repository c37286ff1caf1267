"""Any number of classes, ranks, labels and samples: the sharded loss is the definition's, and the draw is what it promises."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ovenc.concept_bank.sampling import competitors, draw_key, drawn
from megatron_ovenc.config.tree import BankConfig
from tests.concept_bank.support import Case, assert_close, brute_force, run_cases

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@st.composite
def cases(draw) -> Case:
    """Up to three classes a rank with duplicated and missing labels, or many; positives may outnumber the draw."""
    classes = draw(st.integers(1, 40))
    samples, slots, dim = draw(st.integers(0, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    pool = rng.integers(-1, classes, max(1, draw(st.integers(1, 12))))
    config = BankConfig(
        num_classes=classes,
        sample_rate=draw(st.sampled_from([0.01, 0.3, 1.0])),
        loss=draw(st.sampled_from(["cosface", "sigmoid"])),
        margin=draw(st.sampled_from([0.0, 0.3])),
        filter_threshold=draw(st.sampled_from([0.0, 0.5])),
        logit_scale=draw(st.sampled_from([1.0, 10.0])),
        learn_scale=draw(st.booleans()),
        gradient=draw(st.sampled_from(["sum", "mean"])),
        co_positives=draw(st.sampled_from(["negative", "ignore"])),
        chunk_rows=draw(st.sampled_from([None, 1, 7])),
    )
    return Case(
        config=config,
        weight=rng.normal(size=(classes, dim)),
        embeddings=rng.normal(size=(samples, dim)),
        labels=rng.choice(pool, (samples, slots)),
        tell_sizes=draw(st.booleans()),
        step=draw(st.integers(0, 3)),
    )


@settings(SETTINGS, max_examples=10)
@given(
    several=st.lists(st.tuples(cases(), st.integers(0, 9)), min_size=8, max_size=8),
    layout=st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (4, 2), (4, 4)]),
)
def test_the_loss_is_the_definitions(rank_pool, several, layout):
    """Several cases at a time: joining the ranks takes longer than any of them."""
    (world, tensor), sizes = layout, []
    for case, split in several:
        samples, data = len(case.labels), world // tensor
        first = min(split, samples)
        sizes.append([first] + [0] * (data - 1))
        sizes[-1][-1] += samples - first
    results = run_cases(rank_pool, [case for case, _ in several], world, tensor, sizes)
    for (case, _), got in zip(several, results, strict=True):
        wanted = brute_force(case, competing(case))
        scale = 1 + np.linalg.norm(wanted.grad_weight) + np.linalg.norm(wanted.grad_embeddings)
        assert abs(got.loss - wanted.loss) <= 1e-10 * (1 + abs(wanted.loss)), case
        for name in ("grad_weight", "grad_embeddings"):
            assert np.linalg.norm(getattr(got, name) - getattr(wanted, name)) <= 1e-9 * scale, (name, case)


def competing(case: Case) -> torch.Tensor:
    """1 for each class that competes, 0 for the others."""
    config, key = case.config, draw_key(5, "h", "negatives", case.step)
    weights = drawn(config.num_classes, config.sample_rate, key, 0, config.num_classes, torch.device("cpu")).double()
    weights[torch.from_numpy(case.labels[case.labels >= 0])] = 1
    return weights


@SETTINGS
@given(
    classes=st.integers(1, 20_000),
    rate=st.floats(0.001, 0.999),
    bounds=st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)),
    key=st.integers(0, 2**64 - 1),
    labels=st.lists(st.integers(-1, 19_999), min_size=1, max_size=60),
    correct=st.booleans(),
)
def test_any_slice_draws_what_the_whole_draws(classes, rate, bounds, key, labels, correct):
    lo, hi = sorted(min(bound, classes) for bound in bounds)
    whole = drawn(classes, rate, key, 0, classes, torch.device("cpu"))
    assert whole.sum() == int(np.floor(rate * classes))
    named = torch.tensor([label if label < classes else -1 for label in labels])[:, None]
    settings_ = {"num_classes": classes, "rate": rate, "key": key, "correct": correct}
    exact, padded = (competitors(named, lo=lo, hi=hi, static=static, **settings_) for static in (False, True))
    wanted = whole[lo:hi].clone()
    wanted[named[(named >= lo) & (named < hi)] - lo] = True
    assert exact.rows is not None and padded.rows is not None
    assert torch.equal(exact.rows, wanted.nonzero().squeeze(1))
    assert torch.equal(padded.rows[: len(exact.rows)], exact.rows)
    assert (padded.rows[len(exact.rows) :] == hi - lo).all()
    assert torch.equal(exact.places, padded.places)
    if correct:
        assert exact.log_weights is not None and padded.log_weights is not None
        assert torch.equal(padded.log_weights[: len(exact.rows)], exact.log_weights)
        assert (exact.log_weights >= 0).all()


def test_positives_do_not_take_a_drawn_rows_place(rank_pool):
    """More positives than the draw has rows: all of them compete, and so does the draw."""
    rng = np.random.default_rng(0)
    config = BankConfig(num_classes=100, sample_rate=0.05)
    labels = rng.permutation(100)[:40].reshape(8, 5)
    case = Case(config=config, weight=rng.normal(size=(100, 4)), embeddings=rng.normal(size=(8, 4)), labels=labels)
    weights = competing(case)
    assert weights.sum() > 40
    for world, tensor in ((1, 1), (3, 1)):
        (got,) = run_cases(rank_pool, [case], world, tensor)
        assert_close(got, brute_force(case, weights), 1e-11)
