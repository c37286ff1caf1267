"""Parity with the reference implementation, on every layout of ranks: 1e-5 relative in float32."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from megatron_ovenc.config.tree import BankConfig
from tests.concept_bank.support import LAYOUTS, Case, Outcome, assert_close, run_cases

REFERENCE_RANKS = 2


def golden_case(path) -> tuple[Case, list[int], Outcome]:
    file = load_file(path)
    ranks = range(REFERENCE_RANKS)
    labels = np.concatenate([file[f"rank{r}.labels"] for r in ranks])
    config = BankConfig(
        num_classes=len(file["weight"]),
        margin=float(file["margin"][0]),
        filter_threshold=float(file["filter_threshold"][0]),
        logit_scale=float(file["logit_scale"][0]),
        chunk_rows=16,
    )
    case = Case(
        config=config,
        weight=file["weight"],
        embeddings=np.concatenate([file[f"rank{r}.embeddings"] for r in ranks]),
        labels=labels,
    )
    outcome = Outcome(
        loss=float(file["loss"][0]),
        grad_weight=file["grad_weight"],
        # The reference multiplies embedding gradients by its number of ranks, to cancel DDP's average.
        grad_embeddings=np.concatenate([file[f"rank{r}.grad_embeddings"] for r in ranks]) / REFERENCE_RANKS,
    )
    return case, [len(file[f"rank{r}.labels"]) for r in ranks], outcome


@pytest.mark.parametrize(("world", "tensor"), LAYOUTS)
def test_loss_and_gradients_are_the_references(rank_pool, golden, world, tensor):
    for name in ("margin_softmax_2rank.safetensors", "margin_softmax_2rank_filter.safetensors"):
        case, batches, wanted = golden_case(golden / name)
        samples = sum(batches)
        splits = {1: [samples], 2: batches, 3: [samples - 3, 1, 2], 4: [samples - 5, 1, 2, 2]}
        (got,) = run_cases(rank_pool, [case], world, tensor, [splits[world // tensor]])
        assert_close(got, wanted, 1e-5)


@pytest.mark.parametrize(
    ("threshold", "loss", "first_grad", "weight_norm"),
    [
        (0.75, 44.77473, [-51.46845, 48.68884, 51.99614, -36.72504, -11.64015, 28.42020], 209.35698),
        (0.20, 28.36310, [-5.71959, -28.46344, 40.74195, -3.47585, -24.26528, 44.75614], 202.76971),
    ],
)
def test_small_vectors_printed_by_the_reference(rank_pool, threshold, loss, first_grad, weight_norm):
    i = np.arange(72, dtype=np.float64)
    case = Case(
        config=BankConfig(num_classes=12, filter_threshold=threshold),
        weight=np.sin(0.9 * i + 0.3 * i**1.3).reshape(12, 6).astype(np.float32),
        embeddings=np.cos(1.1 * i[:18]).reshape(3, 6).astype(np.float32),
        labels=(3 * np.arange(3)[:, None] + np.arange(8)) % 12,
    )
    (got,) = run_cases(rank_pool, [case], 1, 1)
    assert got.loss == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(got.grad_embeddings[0], first_grad, rtol=2e-5, atol=2e-5)
    assert np.linalg.norm(got.grad_weight) == pytest.approx(weight_norm, rel=1e-5)
