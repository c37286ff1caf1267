"""The sharded, chunked loss against its definition in float64, over layouts of ranks and awkward batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_ovenc.concept_bank import BankOptimizer, ConceptBank, row_range
from megatron_ovenc.concept_bank.chunks import Problem, row_gradients, row_statistics
from megatron_ovenc.concept_bank.objectives import make_objective
from megatron_ovenc.concept_bank.sampling import BLOCK_ROWS, competitors, draw_key, drawn
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
        "loss": str(rng.choice(["cosface", "sigmoid"])),
        "learn_scale": bool(rng.choice([False, True])),
        "logit_bias": float(rng.choice([0.0, -3.0])),
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


def row_weights(case: Case) -> torch.Tensor:
    """How many rows each class stands for, told from one rank's point of view; 0 for those that do not compete."""
    key = draw_key(5, "h", "negatives", case.step)
    classes, rate = case.config.num_classes, case.config.sample_rate
    weights = drawn(classes, rate, key, 0, classes, torch.device("cpu")).double()
    if case.config.correct_sampling:
        weights = torch.cat([block * (len(block) / block.sum().clamp(min=1)) for block in weights.split(BLOCK_ROWS)])
    weights[torch.from_numpy(case.labels[case.labels >= 0])] = 1
    return weights


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
        wanted = brute_force(case, row_weights(case) if case.config.sample_rate < 1 else None)
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
    whole = brute_force(case, row_weights(case))
    for got in run_cases(rank_pool, cases, 2, 1):
        assert_close(got, whole, 1e-5)


@pytest.mark.parametrize(("rate", "correct"), [(0.01, False), (0.3, False), (0.05, True)])
@pytest.mark.parametrize("loss", ["cosface", "sigmoid"])
def test_sampled_loss_is_the_same_on_any_number_of_ranks(rank_pool, rate, correct, loss):
    case = random_case(
        8, num_classes=5001, sample_rate=rate, correct_sampling=correct, loss=loss, learn_scale=True, logit_scale=4.0
    )
    weights = row_weights(case)
    assert (weights > 0).sum() < 1.1 * rate * 5001 + case.labels.size
    wanted = brute_force(case, weights)
    for world, tensor in LAYOUTS:
        (got,) = run_cases(rank_pool, [case], world, tensor)
        # The weights of drawn rows are float32.
        assert_close(got, wanted, 1e-6 if correct else EXACT)
        assert not got.grad_weight[weights.numpy() == 0].any()


def test_corrected_sampling_estimates_the_whole_denominator(rank_pool):
    """The mean over many draws of the sum over negatives is the sum over the whole bank; uncorrected, it is a tenth."""
    case = random_case(
        3, num_classes=BLOCK_ROWS + 700, loss="sigmoid", margin=0.0, filter_threshold=0.0, logit_scale=4.0
    )
    settings = {"logit_bias": 0.0, "learn_scale": False}
    whole = replace(case, config=replace(case.config, **settings))
    draws = [
        replace(whole, step=step, config=replace(whole.config, sample_rate=0.1, correct_sampling=correct))
        for correct in (True, False)
        for step in range(30)
    ]
    losses = [got.loss for got in run_cases(rank_pool, [whole, *draws], 2, 1)]
    assert np.mean(losses[1:31]) == pytest.approx(losses[0], rel=3e-3)
    assert np.mean(losses[31:]) < 0.2 * losses[0]


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


def gradcheck_on_rank(topology: Topology) -> list[bool]:
    checks = []
    for loss_name in ("cosface", "sigmoid"):
        case = random_case(2, gradient="mean", logit_scale=4.0, sample_rate=0.6, loss=loss_name, learn_scale=True)
        bank = make_bank(topology, case)
        embeddings = torch.from_numpy(case.embeddings).requires_grad_()
        labels = torch.from_numpy(case.labels)
        names = [name for name in ("log_scale", "bias") if getattr(bank, name) is not None]

        def loss(
            embeddings: torch.Tensor, *scalars: torch.Tensor, bank=bank, labels=labels, names=names
        ) -> torch.Tensor:
            state = dict(zip(names, scalars, strict=True))
            return torch.func.functional_call(bank, state, (embeddings, labels), {"step": 1})

        checks.append(torch.autograd.gradcheck(loss, (embeddings, *(getattr(bank, name) for name in names))))
    return checks


def test_gradcheck(rank_pool):
    """What autograd hands out; the rows' gradient does not pass through it and is compared with the definition above."""
    assert rank_pool.run(gradcheck_on_rank, world=1) == [[True, True]]


def frozen_on_rank(topology: Topology) -> None:
    case = random_case(2)
    bank = make_bank(topology, case)
    bank.weight.requires_grad_(False)
    embeddings = torch.from_numpy(case.embeddings).requires_grad_()
    bank(embeddings, torch.from_numpy(case.labels), step=0).backward()
    assert bank.gradient is None
    assert embeddings.grad.abs().sum() > 0


def test_a_frozen_bank_teaches_and_does_not_learn(rank_pool):
    rank_pool.run(frozen_on_rank, world=2)


def static_rows_on_rank(topology: Topology, loss: str) -> None:
    """Padding changes nothing, and the padded path asks the device no question."""
    case = random_case(3, num_classes=9000, sample_rate=0.1, chunk_rows=700, loss=loss, learn_scale=True)
    bank = make_bank(topology, case)
    units = torch.nn.functional.normalize(torch.from_numpy(case.embeddings))
    labels = torch.from_numpy(case.labels)

    def run(static: bool) -> tuple[int, list[torch.Tensor]]:
        among = competitors(
            labels, num_classes=9000, rate=0.1, key=17, lo=bank.lo, hi=bank.hi, static=static, correct=True
        )
        assert among.rows is not None
        scale, bias = (x.detach() for x in bank.scale_and_bias())
        problem = StaticProblem if static else Problem
        given = problem(
            units=units,
            weight=bank.weight.detach(),
            among=among,
            objective=make_objective(case.config),
            scale=scale,
            bias=bias,
        )
        seen, positives = row_statistics(given)
        sent: list[torch.Tensor] = []
        gradient = row_gradients(
            given,
            per_sample=torch.linspace(-2, -1, len(units), dtype=units.dtype),
            pulls=torch.where(labels >= 0, -0.5, 0.0).double(),
            factor=torch.tensor(2.0),
            weight_too=True,
            units_done=lambda grad: sent.append(grad.clone()),
        )
        assert len(sent) == 1
        return len(among.rows), [seen.mass, seen.tilt, seen.lift, positives, *sent, gradient.dense()]

    counted, wanted = run(static=False)
    with Recorder() as recorder:
        padded, got = run(static=True)
    assert padded > counted
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    asking = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}
    # The test's own `dense` asks; nothing else does.
    assert recorder.operators & asking <= {"nonzero"}
    assert "nonzero_static" in recorder.operators


class StaticProblem(Problem):
    """A problem that hides from the passes that they run on a host."""

    padded = True


@pytest.mark.parametrize("loss", ["cosface", "sigmoid"])
def test_padded_rows_and_no_synchronisation(rank_pool, loss):
    rank_pool.run(static_rows_on_rank, world=2, args=(loss,))


class Recorder(TorchDispatchMode):
    """Names of the operators that ran, and the size of the largest new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operators.add(func.overloadpacket.__name__)
        outputs = [item for item in tree_leaves(out) if isinstance(item, torch.Tensor)]
        given = {
            item.untyped_storage().data_ptr() for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)
        }
        fresh = [item for item in outputs if item.untyped_storage().data_ptr() not in given]
        self.largest = max([self.largest, *(item.numel() for item in fresh)])
        return out


SAMPLES, SLOTS, DIM, CLASSES = 96, 4, 8, 20_000


def memory_on_rank(topology: Topology, config: BankConfig) -> tuple[int, int]:
    """Numbers kept for backward besides the weight, and the largest tensor that two steps of two micro-batches make."""
    bank = ConceptBank(config, dim=DIM, head="h", seed=1, topology=topology)
    optimizer = BankOptimizer({"h": bank}, betas=(0.9, 0.999), eps=1e-8, world_group=topology.world_group)
    kept = []
    with Recorder() as recorder:
        for step in range(2):
            for micro in range(2):
                embeddings = torch.randn(SAMPLES, DIM, requires_grad=True)
                loss = bank(embeddings, torch.randint(CLASSES, (SAMPLES, SLOTS)), step=2 * step + micro)
                saved = [x for x in loss.grad_fn.saved_tensors if x is not None]
                kept.append(sum(x.numel() for x in saved if x.data_ptr() != bank.weight.data_ptr()))
                loss.backward()
            optimizer.clip(optimizer.grad_norms(), 5.0)
            optimizer.step(1e-3)
            optimizer.zero_grad()
    return max(kept), recorder.largest


@pytest.mark.parametrize(("rate", "moments"), [(1.0, "fp32"), (0.05, "fp32"), (0.05, "bf16")])
def test_no_logits_are_kept_and_nothing_has_the_size_of_the_bank(rank_pool, rate, moments):
    config = BankConfig(
        num_classes=CLASSES,
        sample_rate=rate,
        chunk_rows=200,
        optimizer="rows" if rate < 1 else "dense",
        moments=moments,
    )
    (kept, largest), *_ = rank_pool.run(memory_on_rank, world=1, args=(config,))
    rows = 0 if rate == 1 else rate * CLASSES + SAMPLES * SLOTS
    assert kept <= SAMPLES * (DIM + 2 * SLOTS + 1) + rows + 10
    # With all rows, their gradient is the largest; all logits would be SAMPLES * CLASSES. Of a few rows, two gradients before
    # they are added up, a chunk of logits, or the mask that is one byte a row.
    few = max(2 * rows * DIM, SAMPLES * 200, CLASSES + 1)
    assert largest <= (CLASSES * DIM if rate == 1 else few)
