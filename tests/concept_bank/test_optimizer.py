"""The banks' optimizer against AdamW on the unsharded bank, and its state as a checkpoint uses it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_ovenc.concept_bank import BankOptimizer, ConceptBank
from megatron_ovenc.concept_bank.row_gradient import RowGradient
from megatron_ovenc.config.tree import BankConfig
from megatron_ovenc.parallel.topology import Topology

CONFIGS = {
    "image": BankConfig(num_classes=13, weight_decay=0.3, lr_scale=0.5, logit_scale=16.0),
    "ocr": BankConfig(num_classes=3, weight_decay=0.0, logit_scale=16.0),
}
"""On four ranks the second bank leaves the last without rows."""

DIM = 6
BETAS, EPS = (0.9, 0.95), 1e-6


def make(topology: Topology) -> tuple[dict[str, ConceptBank], BankOptimizer]:
    banks = {head: ConceptBank(c, dim=DIM, head=head, seed=1, topology=topology) for head, c in CONFIGS.items()}
    return banks, BankOptimizer(banks, betas=BETAS, eps=EPS, world_group=topology.world_group)


def gradient(head: str, step: int) -> torch.Tensor:
    """Of the whole bank; large in some steps and small in others."""
    generator = torch.Generator().manual_seed(100 * step + len(head))
    return torch.randn(CONFIGS[head].num_classes, DIM, generator=generator) * 3.0 ** (step - 2)


def train(banks: dict[str, ConceptBank], optimizer: BankOptimizer, steps: range) -> np.ndarray:
    """Step with given gradients, clipped at 5; returns the norms [steps, heads]."""
    norms = []
    for step in steps:
        optimizer.zero_grad()
        for head, bank in banks.items():
            assert bank.gradient is None
            bank.gradient = RowGradient(
                rows=None, values=gradient(head, step)[bank.lo : bank.hi].clone(), total=bank.hi - bank.lo
            )
        norms.append(optimizer.grad_norms())
        optimizer.clip(norms[-1], 5.0)
        optimizer.step(0.1 * (step + 1))
    return torch.stack(norms).numpy()


def whole_bank(head: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight after `steps`, and the norms, by torch's own AdamW and clipping on one tensor."""
    from megatron_ovenc.concept_bank.centres import random_centres

    config = CONFIGS[head]
    weight = random_centres(config.num_classes, DIM, 1, head, 0, config.num_classes).requires_grad_()
    adamw = torch.optim.AdamW([weight], betas=BETAS, eps=EPS, weight_decay=config.weight_decay, foreach=False)
    norms = []
    for step in range(steps):
        weight.grad = gradient(head, step)
        norms.append(torch.nn.utils.clip_grad_norm_([weight], 5.0).item())
        adamw.param_groups[0]["lr"] = 0.1 * (step + 1) * config.lr_scale
        adamw.step()
    return weight.detach().numpy(), np.array(norms)


def train_on_rank(topology: Topology) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    banks, optimizer = make(topology)
    norms = train(banks, optimizer, range(4))
    return norms, {head: bank.weight.detach().numpy() for head, bank in banks.items()}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_equals_adamw_on_the_whole_bank(rank_pool, world):
    results = rank_pool.run(train_on_rank, world=world)
    for index, head in enumerate(CONFIGS):
        weight, norms = whole_bank(head, 4)
        assert norms[0] < 5 < norms[-1]  # one step is clipped, another is not
        for got_norms, _ in results:
            np.testing.assert_allclose(got_norms[:, index], norms, rtol=1e-6)
        got = np.concatenate([weights[head] for _, weights in results])
        np.testing.assert_allclose(got, weight, rtol=1e-5, atol=1e-6)


def restore_on_rank(topology: Topology) -> None:
    banks, optimizer = make(topology)
    train(banks, optimizer, range(2))
    saved = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    weights = {head: bank.weight.detach().clone() for head, bank in banks.items()}
    train(banks, optimizer, range(2, 4))

    fresh_banks, fresh = make(topology)
    for head, bank in fresh_banks.items():
        bank.weight.data.copy_(weights[head])
    for name, tensor in fresh.state_tensors().items():
        tensor.copy_(saved[name])
    fresh.restored()
    train(fresh_banks, fresh, range(2, 4))
    for head, bank in banks.items():
        assert torch.equal(bank.weight, fresh_banks[head].weight)
    for name, tensor in optimizer.state_tensors().items():
        assert torch.equal(tensor, fresh.state_tensors()[name]), name


def test_a_restored_optimizer_continues_bit_for_bit(rank_pool):
    rank_pool.run(restore_on_rank, world=4)


def state_on_rank(topology: Topology) -> None:
    banks, optimizer = make(topology)
    state = optimizer.state_tensors()
    assert set(state) == {f"{head}.{name}" for head in CONFIGS for name in ("exp_avg", "exp_avg_sq", "step")}
    for head, bank in banks.items():
        assert state[f"{head}.exp_avg"].shape == state[f"{head}.exp_avg_sq"].shape == bank.weight.shape
        assert state[f"{head}.step"].shape == ()
    train(banks, optimizer, range(1))
    for name, tensor in optimizer.state_tensors().items():
        assert tensor is state[name]
    assert state["image.step"] == 1
    # A bank that had no gradient this step stays as it is, and the others do not.
    optimizer.zero_grad()
    before = {head: bank.weight.detach().clone() for head, bank in banks.items()}
    banks["image"].gradient = RowGradient(
        rows=None, values=torch.ones_like(banks["image"].weight), total=len(banks["image"].weight)
    )
    norms = optimizer.grad_norms()
    assert norms.tolist() == [pytest.approx((13 * DIM) ** 0.5), 0.0]
    optimizer.clip(norms, 1.0)
    optimizer.step(0.1)
    assert torch.equal(banks["ocr"].weight, before["ocr"])
    assert not torch.equal(banks["image"].weight, before["image"]) or len(before["image"]) == 0
    assert [state[f"{head}.step"].item() for head in CONFIGS] == [2, 1]


def test_state_exists_before_the_first_step_and_stays_the_same_tensors(rank_pool):
    rank_pool.run(state_on_rank, world=2)


def infinite_on_rank(topology: Topology) -> list[float]:
    banks, optimizer = make(topology)
    for bank in banks.values():
        bank.gradient = RowGradient(rows=None, values=torch.zeros_like(bank.weight), total=len(bank.weight))
        if topology.rank == 1 and bank.head == "image":
            bank.gradient.values[0, 0] = torch.nan
    return optimizer.grad_norms().tolist()


def test_every_rank_sees_one_ranks_bad_gradient(rank_pool):
    for image, ocr in rank_pool.run(infinite_on_rank, world=2):
        assert np.isnan(image)
        assert ocr == 0
