"""The training loop.

    step:  for each micro-batch, for each head:  batch -> encoder -> bank -> backward
           finish gradients -> norms -> finite? -> clip -> optimizers -> metrics -> checkpoint?

One backward a head keeps one head's activations alive at a time; gradients are communicated in the last one only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from megatron_ovenc.config import HeadConfig, RunConfig
from megatron_ovenc.model.flops import training_flops
from megatron_ovenc.model.parameters import named_parameters
from megatron_ovenc.parallel.device import PhaseTimer, memory_peak_bytes
from megatron_ovenc.parallel.fsdp import ShardedEncoder
from megatron_ovenc.parallel.gradients import global_norm, scale_gradients, sum_partial_gradients
from megatron_ovenc.train.bank_watch import BankWatch
from megatron_ovenc.train.checkpoint import Checkpointer, CheckpointError
from megatron_ovenc.train.faults import StopSignals, TrainingError
from megatron_ovenc.train.metrics import MetricsWriter, StepMetrics
from megatron_ovenc.train.schedule import Schedule
from megatron_ovenc.train.state import TrainState
from megatron_ovenc.train.stream import BatchStream


@dataclass(slots=True)
class _Consumed:
    """What this rank's data rank fed to the encoder in a step."""

    samples: int = 0
    tokens: int = 0
    flops: float = 0.0
    banks: dict[str, float] = field(default_factory=dict)
    """What a look at the banks found, by `<head>/<name>`; empty in most steps."""
    looking_s: float = 0.0
    """How long that look took; not part of the step's time."""


class Trainer:
    """Takes a TrainState from its step to the last one of the configuration."""

    def __init__(
        self,
        config: RunConfig,
        state: TrainState,
        sharding: ShardedEncoder,
        checkpointer: Checkpointer,
        metrics: MetricsWriter,
        stop: StopSignals,
    ) -> None:
        self.config = config
        self.state = state
        self.topology = state.topology
        self.sharding = sharding
        self.checkpointer = checkpointer
        self.metrics = metrics
        self.stop = stop
        self.schedule = Schedule(config.schedule, config.optimizer.lr, config.train.steps)
        self.streams = {
            head.name: BatchStream(source=state.sources[head.name], topology=state.topology) for head in config.heads
        }
        self.watch = BankWatch(Path(config.run_dir), config.log.bank_every, metrics.say)
        self.timer = PhaseTimer(state.topology.device)
        self.examine: Callable[[int], Mapping[str, float]] = lambda step: {}  # set by who knows how to evaluate
        self._saved_step = state.step or None  # a resumed state is on disk already
        self._skipped_in_a_row = 0
        self._first_step = state.step
        self._parameters = named_parameters(state.encoder)
        self._partial = [p for n, p in self._parameters.items() if state.layouts[n].partial_gradient]
        self._tensor_parallel = {n for n, layout in state.layouts.items() if layout.split_axis is not None}

    def train(self) -> Literal["finished", "stopped"]:
        """Run to the last step, or until told to stop; either way the state is saved.

        Raises:
            TrainingError: too many steps in a row were not finite. The state before them has been saved.
        """
        config = self.config
        last = min(config.train.steps, config.train.stop_after or config.train.steps)
        told_to_stop = False
        while self.state.step < last and not told_to_stop:
            told_to_stop = self.step()
            if self.state.step % config.checkpoint.every == 0:
                self.save()
        self.save(final=True)
        if self._skipped_in_a_row and self._skipped_in_a_row == self.state.step - self._first_step:
            raise TrainingError(
                f"none of the {self._skipped_in_a_row} steps of this session had a finite loss and gradient: nothing was learned; "
                "look at the initial weights and centres, the samples, and optimizer.lr"
            )
        return "finished" if self.state.step >= config.train.steps else "stopped"

    def step(self) -> bool:
        """One optimizer step. Returns whether any rank has been told to stop."""
        started = time.monotonic()
        state = self.state
        lr = self.schedule(state.step)
        state.bank_optimizer.begin(state.step)
        losses, consumed = self._forward_backward()
        sum_partial_gradients(self._partial, self.topology)
        encoder_norm = global_norm(
            self._parameters, self._tensor_parallel, self.config.parallel.zero == 0, self.topology
        )
        bank_norms = state.bank_optimizer.grad_norms()
        # The one host synchronisation of a step: whether to take it has to be known before the next one is fed.
        numbers = torch.cat([losses, encoder_norm[None], bank_norms]).tolist()
        totals = self._agree(consumed, finite=all(abs(x) < float("inf") for x in numbers))
        if totals["not_finite"] == 0:
            with self.timer.phase("optimizer"):
                self._update(lr, encoder_norm, bank_norms)
        state.encoder_optimizer.zero_grad()
        state.bank_optimizer.zero_grad()
        state.step += 1
        heads = [head.name for head in self.config.heads]
        seconds = time.monotonic() - started - consumed.looking_s
        examined = {} if totals["stop"] else self.examine(state.step)
        self.metrics.step(
            StepMetrics(
                step=state.step,
                losses=dict(zip(heads, numbers, strict=False)),
                grad_norms=dict(zip(["encoder", *heads], numbers[len(heads) :], strict=True)),
                lr=lr,
                skipped=totals["not_finite"] > 0,
                samples=int(totals["samples"]),
                tokens=int(totals["tokens"]),
                flops=totals["flops"],
                data_wait_s=totals["data_wait_s"] / self.topology.data,
                seconds=seconds,
                memory_bytes=memory_peak_bytes(self.topology.device),
                bad_samples=int(totals["bad_samples"]),
                phases=self.timer.take(),
                banks=consumed.banks,
                examined=examined,
            )
        )
        self._count_skipped(totals["not_finite"] > 0)
        return totals["stop"] > 0

    def _update(self, lr: float, encoder_norm: torch.Tensor, bank_norms: torch.Tensor) -> None:
        """Clip, and let the optimizers step."""
        state, clip_norm = self.state, self.config.optimizer.clip_norm
        if clip_norm > 0:
            scale_gradients(self._parameters.values(), encoder_norm, clip_norm)
            state.bank_optimizer.clip(bank_norms, clip_norm)
        state.encoder_optimizer.step(lr)
        state.bank_optimizer.step(lr)

    def save(self, final: bool = False) -> None:
        """Checkpoint the state unless this step already is; a final save waits until it is on disk.

        A failed save of a running job is loud but not fatal: the next one may succeed. A failed final save raises.
        """
        if not self._loudly(self.checkpointer.wait):  # a save in the background has failed since
            self._saved_step = None
        if self._saved_step != self.state.step:
            tensors, scalars = self.state.tensors(), self.state.scalars()
            if self._loudly(lambda: self.checkpointer.save(tensors, scalars)):
                self._saved_step = self.state.step
                self.metrics.say(f"checkpoint of step {self.state.step} -> {self.checkpointer.directory}")
        if final:
            self.checkpointer.wait()
            if self._saved_step != self.state.step:
                raise CheckpointError(
                    f"the last checkpoint, of step {self.state.step}, could not be written; see above"
                )

    def _loudly(self, write: Callable[[], None]) -> bool:
        """Whether `write` succeeded; if not, say so and go on."""
        try:
            write()
        except CheckpointError as error:
            self.metrics.say(f"[bold red]CHECKPOINT FAILED[/] {error}; training goes on")
            return False
        return True

    def _forward_backward(self) -> tuple[torch.Tensor, _Consumed]:
        """All micro-batches of all heads: gradients accumulate in the parameters. Returns mean losses [heads]."""
        state, heads = self.state, self.config.heads
        accumulation = self.config.train.grad_accumulation
        losses, consumed = torch.zeros(len(heads), device=self.topology.device), _Consumed()
        for micro in range(accumulation):
            for index, head in enumerate(heads):
                batch = self.streams[head.name].next()
                self.sharding.set_last_backward(micro == accumulation - 1 and index == len(heads) - 1)
                with self.timer.phase("forward"):
                    embeddings = state.encoder(batch.patches, batch.positions, batch.cu_seqlens).pooled
                with self.timer.phase("bank"):
                    loss = self._loss(head, embeddings, batch.labels, micro)
                with self.timer.phase("backward"):
                    (loss * (head.loss_weight / accumulation)).backward()
                losses[index] += loss.detach() / accumulation
                consumed.samples += batch.size
                consumed.tokens += batch.tokens
                consumed.flops += training_flops(self.config.model, batch.cu_seqlens.diff().tolist())
                if micro == accumulation - 1 and self.watch.due(state.step):
                    begun, bank = time.monotonic(), state.banks[head.name]
                    draw = self._draw(micro)
                    consumed.banks |= self.watch.look(bank, embeddings.detach(), batch.labels, draw, state.step)
                    consumed.looking_s += time.monotonic() - begun
        return losses, consumed

    def _loss(self, head: HeadConfig, embeddings: torch.Tensor, labels: torch.Tensor, micro: int) -> torch.Tensor:
        sizes = self.state.sources[head.name].batch_sizes
        return self.state.banks[head.name](embeddings, labels, step=self._draw(micro), batch_sizes=sizes)

    def _draw(self, micro: int) -> int:
        """Number of a micro-batch since training began; names its draw of competing rows."""
        return self.state.step * self.config.train.grad_accumulation + micro

    def _agree(self, consumed: _Consumed, finite: bool) -> Mapping[str, float]:
        """Sum over all ranks of what each knows alone, so that no rank stops or skips a step by itself."""
        loads = self.topology.tensor_rank == 0
        mine = {
            "stop": float(self.stop.received),
            "not_finite": float(not finite),
            "samples": loads * consumed.samples,
            "tokens": loads * consumed.tokens,
            "flops": loads * consumed.flops,
            "data_wait_s": sum(source.take_wait() for source in self.state.sources.values()),
            "bad_samples": sum(source.bad_samples for source in self.state.sources.values()),
        }
        summed = torch.tensor(list(mine.values()), dtype=torch.float64)
        dist.all_reduce(summed, group=self.topology.host_group)  # over all ranks, on the host
        return dict(zip(mine, summed.tolist(), strict=True))

    def _count_skipped(self, skipped: bool) -> None:
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        limit = self.config.train.max_skipped_steps
        if self._skipped_in_a_row >= limit:
            self.save(final=True)  # skipped steps changed no weight, so this is the last good state
            raise TrainingError(
                f"{limit} steps in a row had a non-finite loss or gradient (train.max_skipped_steps); the state before them is "
                f"saved as step {self.state.step}. Lower optimizer.lr or look at the samples of these steps."
            )
