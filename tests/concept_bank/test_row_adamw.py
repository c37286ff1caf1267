"""Rows that are stepped only when touched, against the same rows stepped every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_ovenc.concept_bank import BankOptimizer, ConceptBank
from megatron_ovenc.concept_bank.missed_steps import MissedSteps
from megatron_ovenc.concept_bank.rounding import round_stochastically
from megatron_ovenc.concept_bank.row_adamw import RowAdamW
from megatron_ovenc.concept_bank.row_gradient import RowGradient
from megatron_ovenc.config.tree import BankConfig
from megatron_ovenc.parallel.topology import Topology

CLASSES, DIM = 60, 7
CONFIG = BankConfig(num_classes=CLASSES, sample_rate=0.2, weight_decay=0.3, logit_scale=16.0)
BETAS, EPS = (0.9, 0.999), 1e-8


class PaddedRowAdamW(RowAdamW):
    """Believes that row lists may be padded, as they are on an accelerator."""

    def _may_be_padded(self, block):
        return not isinstance(block, slice)

    def _real(self, rows):
        return rows.clamp(max=len(self.bank.weight) - 1)


def bank_of(topology: Topology, config: BankConfig, dtype: torch.dtype = torch.float64) -> ConceptBank:
    bank = ConceptBank(config, dim=DIM, head="h", seed=1, topology=topology)
    bank.to(dtype)
    bank.weight.data.mul_(30)
    return bank


def sequence(steps: int, size: float, rows: int) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
    """A rate, the touched rows and their gradients for each step; gaps of 1 to 300 steps."""
    generator = torch.Generator().manual_seed(3)
    plan = []
    for step in range(steps):
        mask = torch.rand(rows, generator=generator) < 0.1
        mask[0], mask[1], mask[2] = True, step % 97 == 0, step == 5
        touched = mask.nonzero().squeeze(1)
        gradient = torch.randn(len(touched), DIM, generator=generator, dtype=torch.float64) * size
        plan.append((0.01 * (1 + step % 7) / (1 + step / 50), touched, gradient))
    return plan


def follow(bank: ConceptBank, optimizer: RowAdamW, plan, pad: int = 0) -> list[torch.Tensor]:
    """Catch up, step, once a checkpoint on the way; what each step reads of the weight, and at the end everything."""
    read = []
    for number, (lr, rows, gradient) in enumerate(plan):
        if number == 30:
            optimizer.settle()
        if pad:
            rows = torch.cat([rows, torch.full((pad,), len(bank.weight))])
            gradient = torch.cat([gradient, torch.zeros(pad, DIM, dtype=gradient.dtype)])
        optimizer.catch_up(rows)
        read.append(bank.weight.data[rows[: len(rows) - pad]].clone())
        optimizer.step(RowGradient(rows=rows, values=gradient.to(bank.weight.dtype), total=CLASSES), lr)
    optimizer.settle()
    return [*read, bank.weight.data.clone(), optimizer.exp_avg.clone(), optimizer.exp_avg_sq.clone()]


def both_on_rank(topology: Topology, size: float, eps: float, betas: tuple[float, float]) -> list[float]:
    """Largest relative difference of what is read, of the final weight, and of the two moments."""
    plan = sequence(320, size, CLASSES)
    results = []
    for kind in ("dense", "rows"):
        bank = bank_of(topology, replace(CONFIG, optimizer=kind))
        results.append(follow(bank, RowAdamW(bank, betas=betas, eps=eps), plan))
    errors = [((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*results, strict=True)]
    return [max(errors[:-3]), *errors[-3:]]


@pytest.mark.parametrize(
    ("size", "eps", "betas", "drift"),
    [
        (1.0, 1e-8, (0.9, 0.999), 1e-9),  # sqrt(v) far above eps
        (1e-8, 1.0, (0.9, 0.999), 1e-12),  # far below
        (1e-3, 1e-3, (0.9, 0.999), 1e-3),  # as large as eps, where the closed form is least exact
        (1e-3, 1e-3, (0.9, 0.95), 1e-3),
        (1.0, 1e-8, (0.0, 0.99), 1e-9),
    ],
)
def test_rows_follow_the_dense_trajectory(rank_pool, size, eps, betas, drift):
    ((read, weight, first, second),) = rank_pool.run(both_on_rank, world=1, args=(size, eps, betas))
    assert max(first, second) < 1e-13
    assert max(read, weight) < drift


def padded_on_rank(topology: Topology, moments: str) -> None:
    """Padding changes nothing, whether or not the last row, at which it points, is touched. (Torch's fused AdamW rounds an
    element by where it stands in a vector register, so a few of them differ in their last bit.)"""
    plan = sequence(40, 1.0, CLASSES)
    assert {CLASSES - 1 in rows for _, rows, _ in plan} == {True, False}
    for kind in ("dense", "rows"):
        config = replace(CONFIG, optimizer=kind, moments=moments)
        exact, padded = bank_of(topology, config, torch.float32), bank_of(topology, config, torch.float32)
        wanted = follow(exact, RowAdamW(exact, betas=BETAS, eps=EPS), plan)
        got = follow(padded, PaddedRowAdamW(padded, betas=BETAS, eps=EPS), plan, pad=5)
        for mine, theirs in zip(got, wanted, strict=True):
            # Stored as bfloat16, a last bit now and then tips a rounding, and the last row is rounded anew more often.
            tolerance = 1e-5 if moments == "fp32" else 0.03
            near = torch.isclose(mine.float(), theirs.float(), rtol=tolerance, atol=tolerance)
            assert near.float().mean() >= (1.0 if moments == "fp32" else 0.98), kind


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_padding_changes_nothing(rank_pool, moments):
    rank_pool.run(padded_on_rank, world=1, args=(moments,))


def untouched_on_rank(topology: Topology) -> None:
    bank = bank_of(topology, replace(CONFIG, optimizer="rows"))
    optimizer = RowAdamW(bank, betas=BETAS, eps=EPS)
    before = bank.weight.data.clone()
    rows = torch.tensor([3, 40])
    optimizer.catch_up(rows)
    optimizer.step(RowGradient(rows=rows, values=torch.ones(2, DIM, dtype=torch.float64), total=CLASSES), 0.1)
    changed = (bank.weight.data != before).any(dim=1).nonzero().squeeze(1)
    assert changed.tolist() == [3, 40]
    optimizer.settle()
    assert (bank.weight.data != before).any(dim=1).all()


def test_untouched_rows_are_not_written(rank_pool):
    rank_pool.run(untouched_on_rank, world=1)


def train_on_rank(topology: Topology, configs: list[BankConfig], steps: int) -> list[tuple[list[float], np.ndarray]]:
    """Losses, and the whole weight of this rank, of banks trained on the same batches with two draws a step."""
    results = []
    for config in configs:
        bank = ConceptBank(config, dim=DIM, head="h", seed=1, topology=topology)
        optimizer = BankOptimizer({"h": bank}, betas=BETAS, eps=EPS, world_group=topology.world_group)
        losses = []
        for step in range(steps):
            optimizer.begin(step)
            for micro in range(2):
                generator = torch.Generator().manual_seed(1000 * step + 10 * micro)
                embeddings, labels = (
                    torch.randn(12, DIM, generator=generator),
                    torch.randint(CLASSES, (12, 2), generator=generator),
                )
                own = slice(topology.data_rank * 12 // topology.data, (topology.data_rank + 1) * 12 // topology.data)
                loss = bank(embeddings[own], labels[own], step=2 * step + micro)
                if loss.requires_grad:
                    loss.backward()
                losses.append(loss.item())
            optimizer.clip(optimizer.grad_norms(), 5.0)
            optimizer.step(0.02)
            optimizer.zero_grad()
        optimizer.settle()
        results.append((losses, bank.weight.detach().numpy()))
    return results


def test_training_with_rows_is_training_with_dense_on_any_ranks(rank_pool):
    base = replace(CONFIG, num_classes=CLASSES)
    configs = [base, replace(base, optimizer="rows"), replace(base, optimizer="rows", moments="bf16")]
    (dense, rows, compact), *_ = rank_pool.run(train_on_rank, world=1, args=(configs, 15))
    assert np.mean(dense[0][:4]) - np.mean(dense[0][-4:]) > 0.5
    np.testing.assert_allclose(rows[0], dense[0], rtol=1e-5)
    np.testing.assert_allclose(rows[1], dense[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(compact[0][-10:], dense[0][-10:], rtol=0.05)
    assert not np.array_equal(compact[1], rows[1])
    for world, tensor in ((3, 1), (2, 2)):
        parts = rank_pool.run(train_on_rank, world=world, tensor=tensor, args=(configs, 15))
        for number, whole in enumerate((dense, rows, compact)):
            got = np.concatenate([part[number][1] for part in parts])
            # The stochastic rounding of a row is the same on any number of ranks; a sum in another order may tip it.
            np.testing.assert_allclose(got, whole[1], rtol=1e-3, atol=1e-3 if number == 2 else 1e-4)


def schedule_on_rank(topology: Topology) -> list[list[float]]:
    """How far two banks move in each step: one frozen for three and then warming up over four, and a plain one."""
    plain = replace(CONFIG, weight_decay=0.0)
    configs = {"late": replace(plain, freeze_steps=3, warmup_steps=4, lr_scale=0.5), "plain": plain}
    banks = {head: ConceptBank(c, dim=DIM, head="h", seed=1, topology=topology) for head, c in configs.items()}
    optimizer = BankOptimizer(banks, betas=(0.0, 0.0), eps=EPS, world_group=topology.world_group)
    moved = []
    for step in range(9):
        optimizer.begin(step)
        before = {head: bank.weight.detach().clone() for head, bank in banks.items()}
        for bank in banks.values():
            if bank.weight.requires_grad:
                bank.gradient = RowGradient(rows=None, values=torch.ones_like(bank.weight), total=CLASSES)
        optimizer.step(0.1)
        optimizer.zero_grad()
        moved.append([(bank.weight - before[head]).abs().mean().item() for head, bank in banks.items()])
    return moved


def test_freezing_and_warm_up(rank_pool):
    (moved,) = rank_pool.run(schedule_on_rank, world=1)
    late, plain = zip(*moved, strict=True)
    assert late[:3] == (0, 0, 0)
    # betas of 0 make every step lr in size
    np.testing.assert_allclose(late[3:], np.array([0, 0.25, 0.5, 0.75, 1, 1]) * 0.05, rtol=1e-5)
    np.testing.assert_allclose(plain, 0.1, rtol=1e-5)


def learned_on_rank(topology: Topology) -> tuple[list[float], list[float]]:
    """A learned scale and bias over training, and again from a restored state."""
    config = replace(CONFIG, loss="sigmoid", learn_scale=True, logit_bias=-2.0, lr_scale=10.0)

    def run(bank: ConceptBank, optimizer: BankOptimizer, steps: range) -> None:
        for step in steps:
            embeddings = torch.linspace(-1, 1, 4 * DIM).add(step).sin().view(4, DIM)
            labels = torch.tensor([[0, 5], [7, -1], [9, 9], [58, 3]])
            optimizer.begin(step)
            bank(embeddings, labels, step=step).backward()
            optimizer.step(0.01)
            optimizer.zero_grad()

    def make() -> tuple[ConceptBank, BankOptimizer]:
        bank = ConceptBank(config, dim=DIM, head="h", seed=1, topology=topology)
        return bank, BankOptimizer({"h": bank}, betas=BETAS, eps=EPS, world_group=topology.world_group)

    bank, optimizer = make()
    run(bank, optimizer, range(4))
    saved = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    weight = bank.weight.detach().clone()
    assert {"h.log_scale", "h.bias.exp_avg", "h.bias.step"} <= set(saved)
    run(bank, optimizer, range(4, 8))

    other, restored = make()
    other.weight.data.copy_(weight)
    for name, tensor in restored.state_tensors().items():
        tensor.copy_(saved[name])
    restored.restored()
    run(other, restored, range(4, 8))
    assert torch.equal(other.weight, bank.weight)
    assert (
        other.log_scale is not None and other.bias is not None and bank.log_scale is not None and bank.bias is not None
    )
    return [bank.log_scale.item(), bank.bias.item()], [other.log_scale.item(), other.bias.item()]


def test_a_learned_scale_moves_alike_on_all_ranks_and_resumes(rank_pool):
    results = rank_pool.run(learned_on_rank, world=3)
    assert all(result == results[0] for result in results)
    once, again = results[0]
    assert once == again
    assert abs(once[0] - np.log(16.0)) > 0.1
    assert abs(once[1] + 2.0) > 0.1


def test_refusals():
    for betas in ((0.99, 0.9), (0.95, 0.95), (0.9, 0.82)):
        with pytest.raises(ValueError, match=r"1 - beta2 <= 0.6 \(1 - beta1\)"):
            MissedSteps(betas, 1e-8, 0.0, torch.device("cpu"))
    with pytest.raises(ValueError, match="not below 1"):
        MissedSteps((0.9, 0.99), 1e-8, 10.0, torch.device("cpu")).record(0.1)


def test_stochastic_rounding_is_right_on_average_and_belongs_to_the_row():
    values = torch.full((20_000, 3), 1.0) + torch.tensor([0.0, 1 / 512, -1 / 1024])
    ids = torch.arange(20_000)
    rounded = round_stochastically(values, ids, key=5)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded[:, 0].float(), values[:, 0])
    np.testing.assert_allclose(rounded.double().mean(dim=0), values[0], atol=1e-4)
    assert len(rounded[:, 1].unique()) == 2
    assert torch.equal(round_stochastically(values[7000:], ids[7000:], key=5), rounded[7000:])
    assert not torch.equal(round_stochastically(values, ids, key=6), rounded)


@pytest.mark.parametrize("rows", [[1, 4, 9], [], [4]])
def test_gradients_add_up(rows):
    def mine() -> RowGradient:
        return RowGradient(rows=torch.tensor([0, 4, 5]), values=torch.arange(3.0).view(3, 1) + 1, total=10)

    theirs = RowGradient(rows=torch.tensor(rows, dtype=torch.int64), values=torch.ones(len(rows), 1) * 10, total=10)
    whole = RowGradient(rows=None, values=torch.ones(10, 1), total=10)
    total = mine().add(theirs)
    assert total.rows is not None
    assert total.rows.tolist() == sorted({0, 4, 5, *rows})
    torch.testing.assert_close(total.dense(), mine().dense() + theirs.dense())
    wanted = whole.dense() + theirs.dense()
    torch.testing.assert_close(theirs.add(whole).dense(), wanted)
    torch.testing.assert_close(whole.add(whole).dense(), 2 * wanted)


def test_sums_of_padded_gradients_do_not_outgrow_the_bank(monkeypatch):
    """As on an accelerator, where what is beyond the distinct rows stays as padding."""
    monkeypatch.setattr("megatron_ovenc.concept_bank.row_gradient._on_host", lambda rows: False)
    total = RowGradient(rows=torch.tensor([2, 7, 8, 8]), values=torch.tensor([[1.0], [2.0], [0.0], [0.0]]), total=8)
    for number in range(5):
        rows = torch.tensor([number, 7, 8])
        total = total.add(RowGradient(rows=rows, values=torch.tensor([[10.0], [100.0], [0.0]]), total=8))
    assert total.rows is not None
    assert len(total.rows) == 8
    assert total.dense().flatten().tolist() == [10, 10, 11, 10, 10, 0, 0, 502]


@pytest.mark.parametrize(("betas", "early", "late"), [((0.9, 0.999), 6e-3, 2e-6), ((0.9, 0.95), 2.5e-2, 2.5e-3)])
def test_the_drift_of_missed_steps_is_as_exact_as_told(betas, early, late):
    """The drift alone against AdamW step by step, relative to the drift, over sizes of sqrt(v) from far below to far above eps."""
    eps, decay, span = 1e-3, 0.1, 60
    second = torch.logspace(-18, 10, 113, dtype=torch.float64) * eps**2
    first = torch.ones_like(second)
    for start, bound in ((0, early), (2, early), (100, late), (300, late)):
        missed = MissedSteps(betas, eps, decay, torch.device("cpu"))
        for step in range(start):
            missed.record(0.01 / (1 + step))
        drift, m, v = torch.zeros_like(first), first.clone(), second.clone()
        worst = 0.0
        for step in range(start + 1, start + 1 + span):
            lr = 0.01 * (1 + step % 5)
            missed.record(lr)
            m, v = m * betas[0], v * betas[1]
            root = (v / (1 - betas[1] ** step)).sqrt()
            drift = drift * (1 - lr * decay) + lr * m / (1 - betas[0] ** step) / (root + eps)
            catching = missed.since(torch.tensor([start]), torch.float64)
            got = catching.drift(first[None], second[None], eps) * catching.keep
            worst = max(worst, ((got[0] - drift).abs() / drift).max().item())
        assert worst < bound, start
