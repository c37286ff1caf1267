"""Which steps are not taken, who spoiled them, and when to give up.

A step whose loss or gradient is not finite changes no weight. So, if `train.spike.action` says so, does one whose loss lies far
above those before. Either is named, one line a step, in

    <run_dir>/bad_steps.jsonl
    {"step": 4, "reason": "non-finite", "losses": {"image": null}, "ranks": [1],
     "samples": {"image": ["clips/7.tar#000042"]}, "weights": []}

ranks      whose encoder gave non-finite embeddings, or who hold non-finite weights; [] where no rank stands out: then the
           encoder's backward pass overflowed, or the loss is a finite spike
samples    whose embeddings were not finite; all of the step where none was
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ovenc.config import SpikeConfig, TrainConfig
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.parallel.gradients import local
from megatron_ovenc.train.json_lines import JsonLines
from megatron_ovenc.train.say import Say
from megatron_ovenc.train.state import TrainState

NAMED = 3
"""Samples that a message names before it counts the rest."""


def is_spike(loss: float, recent: Sequence[float], spike: SpikeConfig) -> bool:
    """Whether `loss` lies more than `factor` robust deviations above the median of a whole window of losses before it.

    The deviation is the median distance from the median, scaled to be that of a normal distribution, and at least 1 % of the
    median, so that a loss that hardly moves does not make every wobble a spike.
    """
    if spike.action == "none" or len(recent) < spike.window:
        return False
    median = statistics.median(recent)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in recent)
    return loss > median + spike.factor * max(deviation, 0.01 * abs(median))


class StepGuard:
    """One for a run.

    Args:
        config: the run's `train` section.
        state: its `recent_losses` are kept here; its weights are looked through after a bad step.
        run_dir: where bad steps are listed; written by the main rank.
        say: tells a person.
    """

    def __init__(self, config: TrainConfig, state: TrainState, run_dir: Path, say: Say) -> None:
        self.config, self.state, self.path, self._say = config, state, run_dir / "bad_steps.jsonl", say
        self._list = JsonLines(self.path, say)
        self.refused_in_a_row = 0
        self._reason = ""
        self._seen: list[tuple[str, tuple[str, ...], torch.Tensor]] = []

    def begin(self) -> None:
        """A step begins."""
        self._seen.clear()

    def note(self, head: str, batch: PatchBatch, embeddings: torch.Tensor) -> None:
        """Remember a micro-batch and which of its embeddings [B, D] are finite; the host does not wait to know."""
        self._seen.append((head, batch.sample_ids, embeddings.detach().isfinite().all(dim=1)))

    def votes(self, losses: Mapping[str, float], norms: Sequence[float]) -> dict[str, float]:
        """What this rank thinks of the step, to be summed over the ranks."""
        finite = all(map(math.isfinite, (*losses.values(), *norms)))
        recent = self.state.recent_losses
        spikes = any(is_spike(loss, recent.get(head, ()), self.config.spike) for head, loss in losses.items())
        return {"not_finite": float(not finite), "spike": float(finite and spikes)}

    def judge(self, losses: Mapping[str, float], votes: Mapping[str, float]) -> bool:
        """Whether the step is taken, given the sum of all ranks' votes. Collective if it is bad."""
        if votes["not_finite"]:
            self._reason, taken = "non-finite", False
        elif votes["spike"]:
            self._reason, taken = "spike", self.config.spike.action == "warn"
        else:
            self._reason, taken = "", True
        if self._reason:
            self._tell(losses, taken)
        if taken:
            self._remember(losses)
        self.refused_in_a_row = 0 if taken else self.refused_in_a_row + 1
        return taken

    def verdict(self) -> str | None:
        """Why the run must end now, if it must. The weights are those before the refused steps."""
        train = self.config
        saved = f"the state before is saved as step {self.state.step}; see {self.path}"
        if self._reason == "spike" and train.spike.action == "stop":
            return f"the loss spiked in step {self.state.step} (train.spike.action=stop); {saved}"
        if self.refused_in_a_row >= train.max_skipped_steps:
            what = "a non-finite loss or gradient" if self._reason == "non-finite" else "a loss spike (train.spike)"
            return (
                f"{train.max_skipped_steps} steps in a row, the last with {what}, were not taken (train.max_skipped_steps); "
                f"{saved}. Lower optimizer.lr or look at the samples of these steps."
            )
        return None

    def _remember(self, losses: Mapping[str, float]) -> None:
        if self.config.spike.action != "none":
            for head, loss in losses.items():
                recent = self.state.recent_losses.setdefault(head, [])
                recent.append(loss)
                del recent[: -self.config.spike.window]

    def _tell(self, losses: Mapping[str, float], taken: bool) -> None:
        """Find out whose fault it is, and write that down. Collective over the world."""
        topology = self.state.topology
        everyone: list[dict[str, Any]] = [{}] * topology.world
        dist.all_gather_object(everyone, self._evidence(), group=topology.host_group)  # all ranks: any may be the one
        spoiled = [rank for rank, evidence in enumerate(everyone) if evidence["spoiled"] or evidence["weights"]]
        kind = "spoiled" if any(evidence["spoiled"] for evidence in everyone) else "samples"
        samples: dict[str, list[str]] = {}
        for evidence in everyone[:: topology.tensor]:  # tensor ranks see the same samples
            for head, name in evidence[kind]:
                samples.setdefault(head, []).append(name)
        weights = sorted({name for evidence in everyone for name in evidence["weights"]})
        shown = {head: loss if math.isfinite(loss) else None for head, loss in losses.items()}
        step = self.state.step + 1
        record = {"step": step, "reason": self._reason, "losses": shown, "ranks": spoiled, "samples": samples}
        if topology.is_main:
            self._list.append(record | {"weights": weights})
        names = [f"{head} {name}" for head, part in samples.items() for name in part]
        who = f"ranks {', '.join(map(str, spoiled))}, " if spoiled else ""
        what = f"weights {', '.join(weights[:NAMED])}" if weights else f"samples {', '.join(names[:NAMED])}"
        more = f" and {len(names) - NAMED} more" if not weights and names[NAMED:] else ""
        self._say(
            f"step {step}: {self._reason}; {who}{what}{more}; see {self.path}",
            alarm="LOSS SPIKE" if taken else "STEP NOT TAKEN",
        )

    def _evidence(self) -> dict[str, Any]:
        """What this rank saw: samples, those with non-finite embeddings, and non-finite weights, all by name."""
        seen = [(head, names, finite.tolist()) for head, names, finite in self._seen]
        named = [(head, name, good) for head, names, finite in seen for name, good in zip(names, finite, strict=True)]
        weights = [
            *self.state.encoder.named_parameters(),
            *((f"banks.{h}", b.weight) for h, b in self.state.banks.items()),
        ]
        return {
            "samples": [(head, name) for head, name, _ in named],
            "spoiled": [(head, name) for head, name, good in named if not good],
            "weights": [name for name, weight in weights if not local(weight).isfinite().all()],
        }
