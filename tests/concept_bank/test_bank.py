"""The module: which rows a rank gets and from where, what it refuses, and that precision around it does not matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from megatron_ovenc.concept_bank import ConceptBank, row_range
from megatron_ovenc.concept_bank.centres import INIT_STD, random_centres
from megatron_ovenc.concept_bank.sampling import BLOCK_ROWS
from megatron_ovenc.config.tree import BankConfig
from megatron_ovenc.parallel.topology import Topology
from tests.concept_bank.support import row_gradient


@pytest.mark.parametrize(("classes", "world"), [(10, 4), (9, 4), (5, 4), (1, 4), (4096, 3), (7, 1), (2_000_000, 128)])
def test_row_ranges_tile_the_classes_as_shard_0_does(classes, world):
    ranges = [row_range(classes, world, rank) for rank in range(world)]
    chunks = [len(chunk) for chunk in torch.empty(classes, 0).chunk(world)]
    assert [hi - lo for lo, hi in ranges] == chunks + [0] * (world - len(chunks))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == classes
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))


@pytest.mark.parametrize("world", [2, 3, 5, 64])
def test_random_centres_do_not_depend_on_the_number_of_ranks(world):
    classes = 2 * BLOCK_ROWS + 100
    whole = random_centres(classes, 6, 1, "h", 0, classes)
    parts = [random_centres(classes, 6, 1, "h", *row_range(classes, world, rank)) for rank in range(world)]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.std().item() == pytest.approx(INIT_STD, rel=0.02)
    assert whole.mean().abs().item() < 1e-3
    assert len(whole[:, 0].unique()) > 0.99 * classes  # blocks do not repeat each other


def test_random_centres_differ_by_seed_and_head():
    one, two, three = (random_centres(10, 4, seed, head, 0, 10) for seed, head in [(1, "a"), (2, "a"), (1, "b")])
    assert not torch.equal(one, two)
    assert not torch.equal(one, three)


@pytest.fixture
def centres(tmp_path):
    weight = np.arange(35, dtype=np.float32).reshape(7, 5)
    np.save(tmp_path / "bank.npy", weight)
    return weight, tmp_path


def init_on_rank(topology: Topology, init: str | None) -> np.ndarray:
    bank = ConceptBank(BankConfig(num_classes=7, init=init), dim=5, head="h", seed=1, topology=topology)
    assert list(bank.state_dict()) == ["weight", "uses"]
    return bank.weight.detach().numpy()


def test_a_bank_starts_from_its_file_or_at_random(rank_pool, centres):
    weight, folder = centres
    random = random_centres(7, 5, 1, "h", 0, 7).numpy()
    for init, wanted in [(None, random), (str(folder / "bank.npy"), weight)]:
        for world, tensor in [(1, 1), (4, 2)]:
            parts = rank_pool.run(init_on_rank, world=world, tensor=tensor, args=(init,))
            np.testing.assert_array_equal(np.concatenate(parts), wanted)


def refusals_on_rank(topology: Topology) -> None:
    bank = ConceptBank(BankConfig(num_classes=10), dim=4, head="ocr", seed=1, topology=topology)
    embeddings, labels = torch.randn(3, 4), torch.zeros(3, 2, dtype=torch.int64)
    for wrong in (torch.randn(3, 5), torch.randn(4)):
        with pytest.raises(ValueError, match=r"head ocr: embeddings .* needs \[B, 4\]"):
            bank(wrong, labels, step=0)
    for wrong in (labels[:2], labels[0], labels.int()):
        with pytest.raises(ValueError, match=r"head ocr: labels are .* need int64 \[3, K\]"):
            bank(embeddings, wrong, step=0)
    for sizes in ([3], [3, 3, 3], [2, 2]):
        with pytest.raises(ValueError, match="one entry for each of 2 data ranks"):
            bank(embeddings, labels, step=0, batch_sizes=sizes)
    # One rank's bad label stops both, so none waits for the other.
    for bad in (10, -2):
        mine = labels.clone()
        mine[1, 1] = bad if topology.rank == 1 else 0
        with pytest.raises(RuntimeError, match=r"head ocr: a label is outside \[-1, 10\)"):
            bank(embeddings, mine, step=0)


def test_what_a_bank_refuses(rank_pool):
    rank_pool.run(refusals_on_rank, world=2)


def precision_on_rank(topology: Topology) -> None:
    """Autocast around the bank does not reach it, and gradients come back in the embeddings' type."""
    bank = ConceptBank(BankConfig(num_classes=50), dim=16, head="h", seed=1, topology=topology)
    embeddings = torch.randn(4, 16, generator=torch.Generator().manual_seed(topology.rank)).bfloat16().requires_grad_()
    labels = torch.arange(8).view(4, 2)
    plain = bank(embeddings.float(), labels, step=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = bank(embeddings, labels, step=0)
    loss.backward()
    grad_embeddings, grad_weight = embeddings.grad, row_gradient(bank)
    assert loss.dtype == torch.float32
    assert loss.item() == plain.item()
    assert grad_embeddings.dtype == torch.bfloat16
    assert grad_weight.dtype == torch.float32


def test_precision_around_the_bank(rank_pool):
    rank_pool.run(precision_on_rank, world=2)


def steps_on_rank(topology: Topology) -> list[float]:
    """Loss of one batch: twice head a, head b, then head a at steps 1 and 0."""
    config = BankConfig(num_classes=2000, sample_rate=0.1)
    banks = [ConceptBank(config, dim=8, head=head, seed=1, topology=topology) for head in ("a", "a", "b")]
    banks[2].load_state_dict(banks[0].state_dict())
    embeddings = torch.linspace(-1, 1, 24).sin().view(3, 8)
    labels = torch.arange(6).view(3, 2)
    losses = [bank(embeddings, labels, step=step) for bank, step in zip(banks, (0, 0, 0), strict=True)]
    losses += [banks[0](embeddings, labels, step=step) for step in (1, 0)]
    losses[0].backward()
    once = row_gradient(banks[0])
    losses[4].backward()
    torch.testing.assert_close(row_gradient(banks[0]), 2 * once)
    banks[0].gradient = None
    losses[3].backward()  # another draw: the union of both is touched
    other = row_gradient(banks[0])
    again = banks[0](embeddings, labels, step=0)
    again.backward()
    torch.testing.assert_close(row_gradient(banks[0]), once + other)
    return [loss.item() for loss in losses]


def test_step_and_head_name_the_draw_and_gradients_accumulate(rank_pool):
    losses, _ = rank_pool.run(steps_on_rank, world=2)
    assert losses[0] == losses[1] == losses[4]
    assert losses[0] != losses[2]
    assert losses[0] != losses[3]
