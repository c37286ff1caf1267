"""The attentive probe: its formula, that it learns, and that validation judges every clip exactly once."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eval.probe import AttentiveProbe, LinearProbe
from eval.probe_training import FINAL_LR, Learner, ProbeConfig, ProbeRun, predict, select, train_probes
from eval.ranks import Ranks
from eval.scores import Scores
from megatron_ovenc.parallel.topology import Topology
from tests.eval.toys import features
from tests.rank_pool import RankPool

CPU = torch.device("cpu")
TOY = ProbeConfig(learning_rates=(1e-5, 3e-3), epochs=6, batch_size=8)


def test_learns_a_separable_set_and_judges_an_odd_one_exactly_once() -> None:
    train = features(np.arange(120) % 4, classes=4, seed=0, unanswered=(5, 6))
    val = features(np.arange(37) % 4, classes=4, seed=1, unanswered=(36,))
    slow, fast = train_probes(train, val, TOY, device=CPU)
    assert (slow.lr, fast.lr) == TOY.learning_rates
    for run in (slow, fast):
        assert len(run.epochs) == 6
        assert all((scores.samples, scores.unanswered) == (37, 1) for scores in run.epochs)
    assert fast.last.correct1 == 36
    assert slow.last.correct1 < 30
    assert select((slow, fast)) is fast
    assert fast.best.correct1 == max(scores.correct1 for scores in fast.epochs)
    assert fast.epochs[fast.best_epoch - 1] == fast.best


def test_same_seed_same_result_and_rates_do_not_disturb_each_other() -> None:
    train = features(np.arange(41) % 3, classes=3, seed=0)
    val = features(np.arange(13) % 3, classes=3, seed=1)
    config = ProbeConfig(learning_rates=(1e-3, 3e-3), epochs=2, batch_size=8)
    both = train_probes(train, val, config, device=CPU)
    assert train_probes(train, val, config, device=CPU) == both
    alone = train_probes(train, val, ProbeConfig(learning_rates=(3e-3,), epochs=2, batch_size=8), device=CPU)
    assert alone == both[1:]


def test_steps_are_those_of_a_plain_training_loop() -> None:
    config = ProbeConfig(learning_rates=(0.1,), clip_norm=0.01, label_smoothing=0.2)
    torch.manual_seed(0)
    probe = AttentiveProbe(16, 3)
    plain = deepcopy(probe)
    learner = Learner(probe, 0.1, 0.5, config)
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.5)
    for progress in (0.0, 0.25, 0.5, 0.75):
        tokens, labels = torch.randn(4, 5, 16), torch.tensor([0, 1, 2, 0])
        learner.update(learner.gradients((tokens, torch.full((4,), 5)), labels, 1 / 4), progress=progress)
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - progress) + FINAL_LR * progress
        logs = plain(tokens, torch.full((4,), 5)).log_softmax(dim=-1)
        targets = 0.8 * F.one_hot(labels, 3) + 0.2 / 3
        parameters = list(plain.parameters())
        gradients = torch.autograd.grad(-(targets * logs).sum() / 4, parameters)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient * (0.01 / (norm + 1e-6)).clamp(max=1)
        optimizer.step()
    for ours, theirs in zip(probe.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 13, 100])
def test_predictions_average_the_clips_and_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    val = features(np.arange(13) % 3, classes=3, seed=1, clips=2, unanswered=(0, 7))
    torch.manual_seed(0)
    probe = AttentiveProbe(16, 3)
    torch.nn.init.normal_(probe.classifier.weight)
    found = predict(probe, val, ProbeConfig(batch_size=batch_size), device=CPU)
    for row in np.flatnonzero(val.answered):
        shares = []
        for clip in range(2):
            tokens, lengths = val.tokens(np.array([row]), np.array([clip]))
            with torch.inference_mode():
                shares.append(probe(torch.from_numpy(tokens).float(), torch.from_numpy(lengths)).softmax(dim=1))
        assert np.allclose(found[row], torch.cat(shares).mean(dim=0), atol=1e-5)
    assert not found[~val.answered].any()


def on_ranks(topology: Topology, kind: str, train_size: int, val_size: int) -> tuple[tuple[ProbeRun, ...], np.ndarray]:
    ranks = Ranks.of(topology)
    config = ProbeConfig(kind=kind, learning_rates=(1e-3, 3e-3), weight_decays=(0.0, 0.1), epochs=2, batch_size=7)
    train = features(np.arange(train_size) % 4, classes=4, seed=0, unanswered=(2,), ranks=ranks)
    val = features(np.arange(val_size) % 4, classes=4, seed=1, clips=1, unanswered=(5,), ranks=ranks)
    torch.manual_seed(0)
    judge = AttentiveProbe(16, 4)
    torch.nn.init.normal_(judge.classifier.weight)
    return train_probes(train, val, config, device=CPU), predict(judge, val, ProbeConfig(), device=CPU)


@pytest.mark.parametrize(("kind", "train_size", "val_size"), [("attentive", 101, 67), ("linear", 64, 33)])
def test_any_number_of_ranks_trains_alike_and_judges_every_sample_once(
    rank_pool: RankPool, kind: str, train_size: int, val_size: int
) -> None:
    """Sizes divide by neither 2 nor 3; the third rank has none of the 33 samples' blocks."""
    alone, evidence = rank_pool.run(on_ranks, world=1, args=(kind, train_size, val_size))[0]
    assert [(run.lr, run.weight_decay) for run in alone] == [(1e-3, 0.0), (1e-3, 0.1), (3e-3, 0.0), (3e-3, 0.1)]
    for world in (2, 3):
        for runs, found in rank_pool.run(on_ranks, world=world, args=(kind, train_size, val_size)):
            assert runs == alone
            assert np.allclose(found, evidence, atol=1e-6)
            assert [scores.samples for run in runs for scores in run.epochs] == [val_size] * 8
            assert (found.sum(axis=1) > 0.99).sum() == val_size - 1


def test_samples_of_several_classes_are_learned_and_judged_by_average_precision() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((60, 3)) < 0.3
    labels[~labels.any(axis=1), 0] = True
    # Only the first class of a sample shows; that much can be learned.
    labels[:, 1:] &= ~labels[:, :1]
    train, val = features(labels, classes=3, seed=0), features(labels[:31], classes=3, seed=1)
    run = train_probes(train, val, ProbeConfig(learning_rates=(3e-3,), epochs=4, batch_size=8), device=CPU)[0]
    assert run.last.mean_ap is not None
    assert run.last.mean_ap > 85
    assert run.epochs[run.best_epoch - 1].mean_ap == max(scores.headline for scores in run.epochs)


def test_the_best_epoch_and_the_selected_run_are_those_of_the_headline_score() -> None:
    def scores(correct: int) -> Scores:
        return Scores(samples=10, unanswered=0, correct1=correct, correct5=10)

    early = ProbeRun(lr=1.0, weight_decay=0.0, epochs=(scores(9), scores(3)))
    late = ProbeRun(lr=2.0, weight_decay=0.0, epochs=(scores(1), scores(5), scores(5)))
    assert (early.best_epoch, early.best.top1, early.last.top1) == (1, 90.0, 30.0)
    assert late.best_epoch == 2
    assert select((early, late)) is late


def test_linear_probe_sees_standardised_embeddings() -> None:
    probe = LinearProbe(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0]), 2)
    torch.nn.init.eye_(probe.classifier.weight)
    assert torch.allclose(probe(torch.tensor([[5.0, 2.0]])), torch.tensor([[2.0, 0.0]]))


def test_forward_is_the_published_formula() -> None:
    torch.manual_seed(0)
    probe = AttentiveProbe(128, 3)
    assert probe.attention.num_heads == 2
    assert probe.mlp[0].out_features == 512
    tokens = torch.randn(2, 4, 128)
    attention = probe.attention
    q, k, v = (
        part.unflatten(-1, (2, 64)).transpose(1, 2)
        for part in (
            F.linear(x, weight, bias)
            for x, weight, bias in zip(
                (probe.probe.expand(2, -1, -1), tokens, tokens),
                attention.in_proj_weight.chunk(3),
                attention.in_proj_bias.chunk(3),
                strict=True,
            )
        )
    )
    weights = (q @ k.transpose(2, 3) / 8).softmax(dim=-1)
    pooled = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))[:, 0]
    normed = pooled * (pooled.square().mean(dim=-1, keepdim=True) + torch.finfo(torch.float32).eps).rsqrt()
    hidden = pooled + probe.mlp[2](F.gelu(probe.mlp[0](normed)))
    expected = probe.classifier(F.layer_norm(hidden, (128,)))
    assert torch.allclose(probe(tokens, torch.tensor([4, 4])), expected, atol=1e-6)


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (64, 1), (96, 1), (160, 2), (224, 2), (1024, 16)])
def test_heads_divide_the_width(width: int, heads: int) -> None:
    assert AttentiveProbe(width, 2).attention.num_heads == heads


def test_the_first_answer_is_nearly_uniform() -> None:
    logits = AttentiveProbe(64, 5)(torch.randn(3, 7, 64), torch.full((3,), 7))
    assert logits.abs().max() < 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": ()}, "--lr"),
        ({"learning_rates": (0.0,)}, "--lr"),
        ({"learning_rates": (1e-3, 1e-3)}, "each value once"),
        ({"weight_decays": (-0.1,)}, "--weight-decay"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"batch_size": 0}, "--probe-batch-size is 0"),
    ],
)
def test_wrong_settings(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeConfig(**changes)


def test_nothing_to_learn_from() -> None:
    broken = features(np.arange(2), classes=2, seed=0, unanswered=(0, 1))
    with pytest.raises(ValueError, match="no training sample"):
        train_probes(broken, broken, TOY, device=CPU)
