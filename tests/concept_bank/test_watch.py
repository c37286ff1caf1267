"""What a look at a bank finds, on banks where one knows what is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megatron_ovenc.concept_bank import ConceptBank
from megatron_ovenc.concept_bank.watch import look, snapshot
from megatron_ovenc.config.tree import BankConfig
from megatron_ovenc.parallel.topology import Topology

CLASSES, DIM = 200, 16
CONFIG = BankConfig(num_classes=CLASSES, filter_threshold=0.6, logit_scale=10.0)


def batch(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """12 samples near the centres they name first."""
    labels = torch.stack([torch.arange(12) * 3, torch.full((12,), -1)], dim=1)
    return weight[labels[:, 0]] + 0.1 * torch.linspace(-1, 1, 12 * DIM).view(12, DIM), labels


def bank_on_rank(topology: Topology) -> tuple[dict[str, float], dict[str, np.ndarray], np.ndarray]:
    bank = ConceptBank(CONFIG, dim=DIM, head="h", seed=1, topology=topology)
    whole = F.normalize(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0)))
    whole[100:] = whole[:100]  # every centre has a twin, mostly on another rank
    bank.weight.data.copy_(whole[bank.lo : bank.hi])
    embeddings, labels = batch(whole)
    own = slice(topology.data_rank * 12 // topology.data, (topology.data_rank + 1) * 12 // topology.data)
    embeddings, labels = embeddings[own], labels[own]
    for _ in range(2):
        bank(embeddings.requires_grad_(), labels, step=0).backward()
    picture = {name: tensor.numpy() for name, tensor in snapshot(bank, embeddings, labels).items()}
    return look(bank, embeddings, labels, step=0), picture, whole.numpy()


@pytest.mark.parametrize(("world", "tensor"), [(1, 1), (3, 1), (4, 2)])
def test_numbers_are_those_of_the_whole_bank(rank_pool, world, tensor):
    results = rank_pool.run(bank_on_rank, world=world, tensor=tensor)
    numbers, picture, whole = results[0]
    assert all(result[0] == pytest.approx(numbers) for result in results)
    embeddings, labels = batch(torch.from_numpy(whole))
    cosines = F.normalize(embeddings) @ torch.from_numpy(whole).T
    right = cosines.gather(1, labels[:, :1])
    cosines.scatter_(1, labels[:, :1], -2)
    over = cosines > 0.6
    logits = torch.where(over, 0, cosines * 10).masked_fill(cosines == -2, -torch.inf)
    shares = logits.softmax(dim=1)
    entropy = -torch.special.xlogy(shares, shares).sum(dim=1)
    assert over.any()
    assert numbers == pytest.approx(
        {
            "positive_cosine": right.mean().item(),
            "hardest_negative_cosine": cosines.masked_fill(over, -1).amax(dim=1).mean().item(),
            "filtered_share": over.sum().item() / (12 * (CLASSES - 1)),
            "effective_negatives": entropy.exp().mean().item(),
            "used_share": 12 / CLASSES,
            "use_evenness": 12 / CLASSES,
            "duplicate_share": 1.0,
        },
        rel=1e-4,
    )
    assert picture["classes"].tolist() == labels[:, 0].tolist() == picture["labels"].tolist()
    np.testing.assert_allclose(picture["centres"], whole[labels[:, 0]], atol=1e-6)
    np.testing.assert_allclose(picture["embeddings"], F.normalize(embeddings), atol=1e-6)


def apart_on_rank(topology: Topology) -> dict[str, float]:
    bank = ConceptBank(BankConfig(num_classes=CLASSES, sample_rate=0.5), dim=64, head="h", seed=1, topology=topology)
    return look(bank, torch.randn(3, 64), torch.full((3, 2), -1), step=4)


def test_a_fresh_bank_and_a_batch_without_labels(rank_pool):
    numbers, _ = rank_pool.run(apart_on_rank, world=2)
    assert numbers["positive_cosine"] == numbers["used_share"] == numbers["duplicate_share"] == 0
    assert 0 < numbers["effective_negatives"] <= CLASSES / 2
