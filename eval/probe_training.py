"""Training probes on frozen features, one a learning rate and weight decay, all on the same batches.

AdamW, learning rate falling linearly to almost nothing, label smoothing, clipped gradients. Validation follows every epoch and
judges every held-out sample exactly once, by the mean of its clips' probabilities. Two numbers come out and are not to be confused:
the last epoch's, and the best epoch's, which was chosen by looking at the held-out samples. So are rate and decay, where several
compete.

Ranks share the work without changing it: a batch is drawn from all training clips, each rank works on those of them whose tokens it
holds, and gradients are summed. So any number of ranks makes the same steps, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.features import Features
from eval.probe import AttentiveProbe, LinearProbe
from eval.scores import Scores, score

FINAL_LR = 1e-7
"""Learning rate that the linear decay ends at."""

ProbeKind: TypeAlias = Literal["attentive", "linear"]
"""What a probe sees of a clip: its tokens, or its pooled embedding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """How probes are trained."""

    kind: ProbeKind = "attentive"
    """Which probe."""
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Peak rates; every rate is trained with every decay, all from the same weights."""
    weight_decays: tuple[float, ...] = (0.0,)
    """AdamW's decoupled decays."""
    epochs: int = 10
    """Passes over the training clips."""
    batch_size: int = 16
    """Clips of a step, over all ranks; the last of an epoch takes what is left."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes; not where a sample has any number of classes."""
    clip_norm: float = 5.0
    """Largest gradient norm of a probe."""
    seed: int = 0
    """Of the initial weights and of the order of the clips."""

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"--lr is {list(self.learning_rates)}; give at least one rate, all above 0")
        if not self.weight_decays or min(self.weight_decays) < 0:
            raise ValueError(f"--weight-decay is {list(self.weight_decays)}; give at least one, none below 0")
        for flag, values in (("--lr", self.learning_rates), ("--weight-decay", self.weight_decays)):
            if len(set(values)) < len(values):
                raise ValueError(f"{flag} is {list(values)}; give each value once")
        for name, flag in (("epochs", "--epochs"), ("batch_size", "--probe-batch-size")):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRun:
    """The training of one learning rate and weight decay."""

    lr: float
    weight_decay: float
    epochs: tuple[Scores, ...]
    """Held-out scores after each epoch."""

    @property
    def last(self) -> Scores:
        """After the last epoch."""
        return self.epochs[-1]

    @property
    def best_epoch(self) -> int:
        """The first of the epochs, from 1, with the highest score."""
        return 1 + max(range(len(self.epochs)), key=lambda epoch: self.epochs[epoch].headline)

    @property
    def best(self) -> Scores:
        """After the best epoch."""
        return self.epochs[self.best_epoch - 1]


def select(runs: tuple[ProbeRun, ...]) -> ProbeRun:
    """The run with the highest score after its last epoch; the first among equals."""
    return max(runs, key=lambda run: run.last.headline)


def train_probes(
    train: Features,
    val: Features,
    config: ProbeConfig,
    *,
    device: torch.device,
    on_epoch: Callable[[], object] | None = None,
) -> tuple[ProbeRun, ...]:
    """Train a probe for every pair of rate and decay, rates outermost; training samples without features are left out.

    Collective over the ranks that share the features.

    Args:
        train, val: features of the same encoder and view.
        config: how.
        device: where to compute.
        on_epoch: called after each epoch.

    Raises:
        ValueError: no training sample has features.
    """
    clips = np.argwhere(np.repeat(train.answered[:, None], train.lengths.shape[1], axis=1))
    if not len(clips):
        raise ValueError("no training sample could be read; a probe needs at least one")
    rng = np.random.default_rng(config.seed)
    learners = _learners(train, config, device)
    history: list[list[Scores]] = [[] for _ in learners]
    steps = config.epochs * -(-len(clips) // config.batch_size)
    step, mine = 0, train.mine
    for _ in range(config.epochs):
        order = rng.permutation(clips)
        for start in range(0, len(order), config.batch_size):
            batch = order[start : start + config.batch_size]
            _step(learners, train, batch, batch[mine[batch[:, 0]]], config, device, step / steps)
            step += 1
        for learner, scores in zip(learners, history, strict=True):
            evidence = predict(learner.probe, val, config, device=device)
            scores.append(score(evidence, val.labels, val.answered))
        if on_epoch is not None:
            on_epoch()
    return tuple(
        ProbeRun(lr=learner.lr, weight_decay=learner.weight_decay, epochs=tuple(scores))
        for learner, scores in zip(learners, history, strict=True)
    )


@torch.inference_mode()
def predict(probe: nn.Module, features: Features, config: ProbeConfig, *, device: torch.device) -> np.ndarray:
    """Mean probabilities float32 [N, classes] over each sample's clips, of all ranks' samples; zeros for those without features."""
    probe.eval()
    count, clips = features.lengths.shape
    mine = np.flatnonzero(features.answered & features.mine)
    found = np.zeros((len(mine), len(features.classes)), np.float32)
    for start in range(0, len(mine), config.batch_size):
        features.ranks.progress()
        samples = mine[start : start + config.batch_size]
        for clip in range(clips):
            logits = probe(*_inputs(config.kind, features, samples, np.full(len(samples), clip), device)).float()
            shares = logits.softmax(dim=1) if features.labels.ndim == 1 else logits.sigmoid()
            found[start : start + len(samples)] += shares.cpu().numpy() / clips
    evidence = np.zeros((count, len(features.classes)), np.float32)
    for rows, part in features.ranks.gather((mine, found)):
        evidence[rows] = part
    return evidence


class Learner:
    """One probe, its learning rate, weight decay and optimizer."""

    def __init__(self, probe: nn.Module, lr: float, weight_decay: float, config: ProbeConfig) -> None:
        self.probe, self.lr, self.weight_decay, self._config = probe, lr, weight_decay, config
        self.parameters = list(probe.parameters())
        self._optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=weight_decay)

    def loss(self, inputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Summed over the clips."""
        self.probe.train()
        logits = self.probe(*inputs)
        if labels.ndim == 2:
            return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=1).sum()
        return F.cross_entropy(logits, labels, label_smoothing=self._config.label_smoothing, reduction="sum")

    def gradients(self, inputs: tuple[Tensor, ...], labels: Tensor, share: float) -> list[Tensor]:
        """Of `share` times the loss; zeros if there is no clip."""
        if not len(labels):
            return [torch.zeros_like(parameter) for parameter in self.parameters]
        return list(torch.autograd.grad(self.loss(inputs, labels) * share, self.parameters))

    def update(self, gradients: list[Tensor], *, progress: float) -> None:
        """Clip and step, `progress` in [0, 1) through the training."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr + (FINAL_LR - self.lr) * progress
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.parameters, self._config.clip_norm)
        self._optimizer.step()


def _step(
    learners: list[Learner],
    train: Features,
    batch: np.ndarray,
    mine: np.ndarray,
    config: ProbeConfig,
    device: torch.device,
    progress: float,
) -> None:
    """One step of all learners on the clips int [n, 2] (sample, clip) of `batch`, of which this rank holds `mine`."""
    inputs = _inputs(config.kind, train, mine[:, 0], mine[:, 1], device) if len(mine) else ()
    labels = torch.from_numpy(train.labels[mine[:, 0]]).to(device)
    gradients = [learner.gradients(inputs, labels, 1 / len(batch)) for learner in learners]
    train.ranks.sum_([gradient for of_one in gradients for gradient in of_one])
    for learner, summed in zip(learners, gradients, strict=True):
        learner.update(summed, progress=progress)


def _inputs(
    kind: ProbeKind, features: Features, samples: np.ndarray, clips: np.ndarray, device: torch.device
) -> tuple[Tensor, ...]:
    """What a probe's forward takes: tokens float32 [n, L, D] and lengths [n], or embeddings float32 [n, D]."""
    if kind == "linear":
        return (torch.from_numpy(features.pooled[samples, clips]).to(device),)
    tokens, lengths = features.tokens(samples, clips)
    return torch.from_numpy(tokens).to(device).float(), torch.from_numpy(lengths).to(device)


def _learners(train: Features, config: ProbeConfig, device: torch.device) -> list[Learner]:
    width, classes = train.pooled.shape[2], len(train.classes)
    if config.kind == "linear":
        known = train.pooled[train.answered].reshape(-1, width)
        mean, deviation = torch.from_numpy(known.mean(axis=0)), torch.from_numpy(known.std(axis=0))
        first: nn.Module = LinearProbe(mean, deviation, classes)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            first = AttentiveProbe(width, classes)
    grid = product(config.learning_rates, config.weight_decays)
    return [Learner(deepcopy(first).to(device), lr, decay, config) for lr, decay in grid]
