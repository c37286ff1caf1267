"""Training attentive probes on frozen features, one a learning rate, all on the same batches.

AdamW without decay, learning rate falling linearly to almost nothing, label smoothing, clipped gradients. Validation follows
every epoch and judges every held-out clip exactly once. Two numbers come out and are not to be confused: the last epoch's, and
the best epoch's, which was chosen by looking at the held-out clips. So is the learning rate, where several compete.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.features import Features
from eval.probe import AttentiveProbe
from eval.scores import Scores, score

FINAL_LR = 1e-7
"""Learning rate that the linear decay ends at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """How probes are trained."""

    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Peak rates, one probe each; all start from the same weights."""
    epochs: int = 10
    """Passes over the training clips."""
    batch_size: int = 16
    """Clips of a step; the last of an epoch takes what is left."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""
    clip_norm: float = 5.0
    """Largest gradient norm of a probe."""
    seed: int = 0
    """Of the initial weights and of the order of the clips."""

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"--lr is {list(self.learning_rates)}; give at least one rate, all above 0")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError(f"--lr is {list(self.learning_rates)}; give each rate once")
        for name, flag in (("epochs", "--epochs"), ("batch_size", "--probe-batch-size")):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRun:
    """One learning rate's training."""

    lr: float
    epochs: tuple[Scores, ...]
    """Held-out scores after each epoch."""

    @property
    def last(self) -> Scores:
        """After the last epoch."""
        return self.epochs[-1]

    @property
    def best_epoch(self) -> int:
        """The first of the epochs, from 1, with the highest top-1."""
        return 1 + max(range(len(self.epochs)), key=lambda epoch: self.epochs[epoch].correct1)

    @property
    def best(self) -> Scores:
        """After the best epoch."""
        return self.epochs[self.best_epoch - 1]


def train_probes(
    train: Features,
    val: Features,
    config: ProbeConfig,
    *,
    device: torch.device,
    on_epoch: Callable[[], object] | None = None,
) -> tuple[ProbeRun, ...]:
    """Train a probe a learning rate; training clips without features are left out.

    Args:
        train, val: features of the same encoder and view.
        config: how.
        device: where to compute.
        on_epoch: called after each epoch.

    Raises:
        ValueError: no training clip has features.
    """
    usable = np.flatnonzero(train.answered)
    if not len(usable):
        raise ValueError("no training clip could be read; a probe needs at least one")
    rng = np.random.default_rng(config.seed)
    learners = _learners(train, config, device)
    history: list[list[Scores]] = [[] for _ in learners]
    steps = config.epochs * -(-len(usable) // config.batch_size)
    step = 0
    for _ in range(config.epochs):
        order = rng.permutation(usable)
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size]
            batch = _batch(train, rows, device)
            labels = torch.from_numpy(train.labels[rows]).to(device)
            for learner in learners:
                learner.step(*batch, labels, progress=step / steps)
            step += 1
        for learner, scores in zip(learners, history, strict=True):
            evidence = predict(learner.probe, val, batch_size=config.batch_size, device=device)
            scores.append(score(evidence, val.labels, val.answered))
        if on_epoch is not None:
            on_epoch()
    return tuple(
        ProbeRun(lr=learner.lr, epochs=tuple(scores)) for learner, scores in zip(learners, history, strict=True)
    )


@torch.inference_mode()
def predict(probe: AttentiveProbe, features: Features, *, batch_size: int, device: torch.device) -> np.ndarray:
    """Logits float32 [N, classes] of every clip; zeros for those without features."""
    probe.eval()
    logits = np.zeros((len(features.labels), len(features.classes)), np.float32)
    usable = np.flatnonzero(features.answered)
    for start in range(0, len(usable), batch_size):
        rows = usable[start : start + batch_size]
        logits[rows] = probe(*_batch(features, rows, device)).float().cpu().numpy()
    return logits


class Learner:
    """One probe, its learning rate and its optimizer."""

    def __init__(self, probe: AttentiveProbe, lr: float, config: ProbeConfig) -> None:
        self.probe, self.lr, self._config = probe, lr, config
        self._optimizer = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=0.0)

    def step(self, tokens_BLD: Tensor, lengths_B: Tensor, labels_B: Tensor, *, progress: float) -> None:
        """Learn from a batch, `progress` in [0, 1) through the training."""
        self.probe.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr + (FINAL_LR - self.lr) * progress
        logits = self.probe(tokens_BLD, lengths_B)
        loss = F.cross_entropy(logits, labels_B, label_smoothing=self._config.label_smoothing)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.probe.parameters(), self._config.clip_norm)
        self._optimizer.step()


def _learners(train: Features, config: ProbeConfig, device: torch.device) -> list[Learner]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        first = AttentiveProbe(train.tokens.shape[-1], len(train.classes))
    return [Learner(deepcopy(first).to(device), lr, config) for lr in config.learning_rates]


def _batch(features: Features, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens float32 [B, L, D] and lengths [B], L being the longest of the batch."""
    lengths = features.lengths[rows]
    tokens = features.tokens[rows, : lengths.max()]
    return torch.from_numpy(tokens).to(device).float(), torch.from_numpy(lengths).to(device)
