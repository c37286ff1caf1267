"""The sharded, chunked loss against its definition in float64, over layouts of ranks and awkward batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ovenc.concept_bank import ConceptBank, row_range
from megatron_ovenc.concept_bank.loss import MarginSoftmax
from megatron_ovenc.concept_bank.sampling import competitors, draw_key, drawn
from megatron_ovenc.config.tree import BankConfig
from megatron_ovenc.parallel.topology import Topology
from tests.concept_bank.support import LAYOUTS, Case, assert_close, brute_force, make_bank, run_cases

EXACT = 1e-11
"""Relative tolerance in float64."""


def random_case(seed: int, dtype: type = np.float64, **settings: Any) -> Case:
    """A batch with duplicated labels, labels of -1, a sample without any, and cosines on both sides of the filter."""
    rng = np.random.default_rng(seed)
    classes = int(settings.pop("num_classes", rng.integers(7, 60)))
    samples, slots, dim = int(rng.integers(9, 14)), int(rng.integers(1, 6)), int(rng.integers(3, 9))
    weight: np.ndarray = rng.normal(size=(classes, dim)).astype(dtype)
    labels = rng.integers(-1, classes, (samples, slots))
    labels[0] = 0
    labels[1] = -1
    labels[2:4, -1] = classes - 1
    embeddings = rng.normal(size=(samples, dim)) * 3 + weight[labels[:, 0]]
    drawn_config = {
        "margin": float(rng.choice([0.0, 0.3])),
        "filter_threshold": float(rng.choice([0.0, 0.2, 0.75])),
        "logit_scale": float(rng.choice([4.0, 64.0])),
        "gradient": str(rng.choice(["sum", "mean"])),
        "co_positives": str(rng.choice(["negative", "ignore"])),
        "chunk_rows": int(rng.integers(1, 20)),
    }
    config = BankConfig(num_classes=classes, **{**drawn_config, **settings})
    return Case(
        config=config, weight=weight, embeddings=embeddings.astype(dtype), labels=labels, tell_sizes=seed % 2 == 0
    )


def drawn_or_named(case: Case) -> torch.Tensor:
    """The classes that compete, told from one rank's point of view."""
    key = draw_key(5, "h", "negatives", case.step)
    classes = case.config.num_classes
    mask = drawn(classes, case.config.sample_rate, key, 0, classes, torch.device("cpu"))
    mask[torch.from_numpy(case.labels[case.labels >= 0])] = True
    return mask


@pytest.mark.parametrize(("world", "tensor"), LAYOUTS)
def test_random_cases_equal_the_definition(rank_pool, world, tensor):
    cases = [random_case(seed) for seed in range(24)]
    for seed, (case, got) in enumerate(zip(cases, run_cases(rank_pool, cases, world, tensor), strict=True)):
        try:
            assert_close(got, brute_force(case), EXACT)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {case.config}") from error


@pytest.mark.parametrize("classes", [5, 3, 1])
def test_ranks_with_fewer_rows_or_none(rank_pool, classes):
    """5 rows on 4 ranks are 2, 2, 1, 0; 1 row leaves three ranks empty."""
    assert row_range(classes, 4, 3) == (classes, classes)
    full = random_case(1, num_classes=classes)
    cases = [
        replace(full, config=replace(full.config, co_positives=role, logit_scale=64.0, sample_rate=rate))
        for role in ("negative", "ignore")
        for rate in (1.0, 0.5)
    ]
    for case, got in zip(cases, run_cases(rank_pool, cases, 4, 2), strict=True):
        competing = drawn_or_named(case) if case.config.sample_rate < 1 else None
        wanted = brute_force(case, competing)
        assert got.loss == pytest.approx(wanted.loss, rel=1e-11, abs=1e-11)
        np.testing.assert_allclose(got.grad_weight, wanted.grad_weight, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(got.grad_embeddings, wanted.grad_embeddings, rtol=1e-9, atol=1e-11)


def test_a_rank_without_samples_and_a_batch_without_labels(rank_pool):
    case = random_case(4)
    (got,) = run_cases(rank_pool, [case], 2, 1, [[len(case.labels), 0]])
    assert_close(got, brute_force(case), EXACT)
    (got,) = run_cases(rank_pool, [replace(case, labels=np.full_like(case.labels, -1))], 2, 1)
    assert got.loss == 0
    assert not got.grad_weight.any()
    assert not got.grad_embeddings.any()


def test_chunk_size_is_a_matter_of_memory_only(rank_pool):
    case = random_case(6, dtype=np.float32, sample_rate=0.5, logit_scale=64.0)
    sizes = [1, 3, 8192]
    cases = [replace(case, config=replace(case.config, chunk_rows=size)) for size in sizes]
    whole = brute_force(case, drawn_or_named(case))
    for got in run_cases(rank_pool, cases, 2, 1):
        assert_close(got, whole, 1e-5)


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_sampled_loss_is_the_same_on_any_number_of_ranks(rank_pool, rate):
    case = random_case(8, num_classes=9001, sample_rate=rate, chunk_rows=512, filter_threshold=0.75)
    competing = drawn_or_named(case)
    assert competing.sum() < 1.1 * rate * 9001 + case.labels.size
    wanted = brute_force(case, competing)
    for world, tensor in LAYOUTS:
        (got,) = run_cases(rank_pool, [case], world, tensor)
        assert_close(got, wanted, EXACT)
        assert not got.grad_weight[~competing.numpy()].any()


def test_float32_survives_logits_that_outweigh_each_other_by_e128(rank_pool):
    """Samples that all negatives oppose or all resemble, whose positive does either, with nothing in between."""
    embeddings = np.eye(4, dtype=np.float32)[:2]
    tilt = np.linspace(0, 0.01, 10, dtype=np.float32)[:, None]
    weight = np.concatenate([tilt - embeddings[0], embeddings[0] - tilt, tilt - embeddings[1]])
    config = BankConfig(num_classes=len(weight), filter_threshold=0.0, chunk_rows=2)
    cases = [
        Case(
            config=replace(config, co_positives=role, num_classes=classes),
            weight=weight[:classes],
            embeddings=embeddings,
            labels=np.array(labels),
        )
        for role in ("negative", "ignore")
        for classes, labels in [(30, [[0, 11], [25, 12]]), (10, [[3, 4], [5, 6]]), (20, [[1, 2], [15, 18]])]
    ]
    for world in (1, 4):
        for case, got in zip(cases, run_cases(rank_pool, cases, world, 1), strict=True):
            # Between vectors this parallel the gradient is a small difference: float32 keeps four digits of it.
            assert_close(got, brute_force(case), 1e-4)


def gradcheck_on_rank(topology: Topology) -> bool:
    case = random_case(2, gradient="mean", logit_scale=4.0, sample_rate=0.6)
    bank = make_bank(topology, case)
    embeddings = torch.from_numpy(case.embeddings).requires_grad_()
    labels = torch.from_numpy(case.labels)

    def loss(embeddings: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(bank, {"weight": weight}, (embeddings, labels), {"step": 1})

    return torch.autograd.gradcheck(loss, (embeddings, bank.weight))


def test_gradcheck(rank_pool):
    assert rank_pool.run(gradcheck_on_rank, world=1) == [True]


def static_rows_on_rank(topology: Topology) -> None:
    """Padding changes nothing, and the padded path asks the device no question."""
    case = random_case(3, num_classes=9000, sample_rate=0.1, chunk_rows=700)
    bank = make_bank(topology, case)
    units = torch.nn.functional.normalize(torch.from_numpy(case.embeddings)).requires_grad_()
    labels = torch.from_numpy(case.labels)

    def run(static: bool) -> tuple[int, list[torch.Tensor]]:
        among = competitors(labels, num_classes=9000, rate=0.1, key=17, lo=bank.lo, hi=bank.hi, static=static)
        assert among.rows is not None
        loss = MarginSoftmax.apply(units, bank.weight, labels, among, case.config, topology.world_group)
        return len(among.rows), [loss.detach(), *torch.autograd.grad(loss, (units, bank.weight))]

    counted, wanted = run(static=False)
    with Recorder() as recorder:
        padded, got = run(static=True)
    assert padded > counted
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    asking = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}
    assert not asking & recorder.operators, asking & recorder.operators
    assert "nonzero_static" in recorder.operators


class Recorder(TorchDispatchMode):
    """Names of the operators that ran, and the size of the largest new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operators.add(func.overloadpacket.__name__)
        outputs = out if isinstance(out, (tuple, list)) else [out]
        self.largest = max([self.largest, *(item.numel() for item in outputs if isinstance(item, torch.Tensor))])
        return out


def test_padded_rows_and_no_synchronisation(rank_pool):
    rank_pool.run(static_rows_on_rank, world=2)


def memory_on_rank(topology: Topology, rate: float) -> tuple[int, int]:
    """Numbers kept for backward besides the weight, and the largest tensor that either pass makes."""
    samples, slots, dim, classes = 96, 4, 8, 20_000
    config = BankConfig(num_classes=classes, sample_rate=rate, chunk_rows=256)
    bank = ConceptBank(config, dim=dim, head="h", seed=1, topology=topology)
    embeddings = torch.randn(samples, dim, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() != bank.weight.data_ptr():
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with Recorder() as recorder:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = bank(embeddings, torch.randint(classes, (samples, slots)), step=0)
        loss.backward()
    return sum(kept.values()), recorder.largest


@pytest.mark.parametrize("rate", [1.0, 0.05])
def test_no_logits_are_kept_and_none_exist_beyond_a_chunk(rank_pool, rate):
    (kept, largest), *_ = rank_pool.run(memory_on_rank, world=1, args=(rate,))
    samples, slots, dim, classes = 96, 4, 8, 20_000
    rows = 0 if rate == 1 else rate * classes + samples * slots
    assert kept <= samples * (3 * dim + 3 * slots + 4) + rows
    assert largest <= classes * dim  # the gradient of the weight; all logits would be samples * classes
