"""The training loop.

    step:  for each micro-batch, for each head:  batch -> encoder -> bank -> backward
           finish gradients -> norms -> finite? -> clip -> optimizers -> metrics -> checkpoint?

One backward a head keeps one head's activations alive at a time; gradients are communicated in the last one only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from megatron_ovenc.config import HeadConfig, RunConfig
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.model.flops import training_flops
from megatron_ovenc.model.parameters import named_parameters
from megatron_ovenc.parallel.device import PhaseTimer, memory_peak_bytes
from megatron_ovenc.parallel.fsdp import ShardedEncoder
from megatron_ovenc.parallel.gradients import global_norm, scale_gradients, sum_partial_gradients
from megatron_ovenc.train.agreement import agree
from megatron_ovenc.train.bank_watch import BankWatch
from megatron_ovenc.train.checkpoint import Checkpointer
from megatron_ovenc.train.faults import StopRequests, TrainingError
from megatron_ovenc.train.guard import StepGuard
from megatron_ovenc.train.metrics import MetricsWriter, StepMetrics
from megatron_ovenc.train.profiling import StepProfiler
from megatron_ovenc.train.saver import Saver
from megatron_ovenc.train.schedule import Schedule
from megatron_ovenc.train.state import TrainState
from megatron_ovenc.train.stragglers import own_seconds
from megatron_ovenc.train.stream import BatchStream
from megatron_ovenc.train.watchdog import Heartbeat


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
    data_s: float = 0.0
    """How long this rank waited for its batches."""


class Trainer:
    """Takes a TrainState from its step to the last one of the configuration."""

    def __init__(
        self,
        config: RunConfig,
        state: TrainState,
        sharding: ShardedEncoder,
        checkpointer: Checkpointer,
        metrics: MetricsWriter,
        stop: StopRequests,
        heartbeat: Heartbeat,
        profiler: StepProfiler,
    ) -> None:
        self.config = config
        self.state = state
        self.topology = state.topology
        self.sharding = sharding
        self.metrics = metrics
        self.stop = stop
        self.profiler = profiler
        self.heartbeat = heartbeat
        if (
            config.log.profile is not None
        ):  # rank 0 writes its trace after this step, the others wait for it in the next
            heartbeat.slow_steps |= {config.log.profile.steps[1] - 1, config.log.profile.steps[1]}
        run_dir, say = Path(config.run_dir), metrics.say
        self.saver = Saver(checkpointer, state, say)
        self.guard = StepGuard(config.train, state, run_dir, say)
        self.watch = BankWatch(run_dir, config.log.bank_every, say)
        self.schedule = Schedule(config.schedule, config.optimizer.lr, config.train.steps)
        self.streams = {
            head.name: BatchStream(source=state.sources[head.name], topology=state.topology) for head in config.heads
        }
        self.timer = PhaseTimer(state.topology.device)
        self.examine: Callable[[int], Mapping[str, float]] = lambda step: {}  # set by who knows how to evaluate
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
        if self.state.step >= last:
            self.metrics.say(
                f"nothing left to train: the state is that of step {self.state.step}, the run ends at {last}"
            )
        told_to_stop = self._told_to_stop()  # while the run started
        while self.state.step < last and not told_to_stop:
            with self.profiler.step(self.state.step + 1):
                told_to_stop = self.step()
            if self.state.step % config.checkpoint.every == 0:
                self._save()
        if told_to_stop:
            self.metrics.say(f"told to stop: saving the state of step {self.state.step}")
        self._save(final=True)
        self.stop.obeyed()
        if self.guard.refused_in_a_row and self.guard.refused_in_a_row == self.state.step - self._first_step:
            raise TrainingError(
                f"none of the {self.guard.refused_in_a_row} steps of this session had a finite loss and gradient: nothing was "
                "learned; look at the initial weights and centres, the samples, and optimizer.lr"
            )
        return "finished" if self.state.step >= config.train.steps else "stopped"

    def step(self) -> bool:
        """One optimizer step. Returns whether any rank has been told to stop."""
        started = time.monotonic()
        state = self.state
        lr = self.schedule(state.step)
        state.bank_optimizer.begin(state.step)
        self.guard.begin()
        losses, consumed = self._forward_backward()
        sum_partial_gradients(self._partial, self.topology)
        encoder_norm = global_norm(
            self._parameters, self._tensor_parallel, self.config.parallel.zero == 0, self.topology
        )
        bank_norms = state.bank_optimizer.grad_norms()
        # The one host synchronisation of a step: whether to take it has to be known before the next one is fed.
        numbers = torch.cat([losses, encoder_norm[None], bank_norms]).tolist()
        heads = [head.name for head in self.config.heads]
        loss_of = dict(zip(heads, numbers, strict=False))
        norm_of = dict(zip(["encoder", *heads], numbers[len(heads) :], strict=True))
        phases = self.timer.take()
        totals, ranks = agree(
            self.topology,
            self._shares(consumed) | self.guard.votes(loss_of, list(norm_of.values())),
            (consumed.data_s, phases.get("forward", 0.0)),
        )
        taken = self.guard.judge(loss_of, totals)
        if taken:
            with self._phase("optimizer"):
                self._update(lr, encoder_norm, bank_norms)
        state.encoder_optimizer.zero_grad()
        state.bank_optimizer.zero_grad()
        state.step += 1
        seconds = time.monotonic() - started - consumed.looking_s
        examined = {} if totals["stop"] else self.examine(state.step)
        self.metrics.step(
            StepMetrics(
                step=state.step,
                losses=loss_of,
                grad_norms=norm_of,
                lr=lr,
                skipped=not taken,
                samples=int(totals["samples"]),
                tokens=int(totals["tokens"]),
                flops=totals["flops"],
                data_wait_s=totals["data_wait_s"] / self.topology.data,
                data_max_s=float(ranks[:, 0].max()),
                own_s=own_seconds(ranks[:, 0], ranks[:, 1]),
                seconds=seconds,
                memory_bytes=memory_peak_bytes(self.topology.device),
                bad_samples=int(totals["bad_samples"]),
                phases=phases,
                banks=consumed.banks,
                checkpoint=self.saver.report(),
                examined=examined,
            )
        )
        if verdict := self.guard.verdict():
            self._save(final=True)  # steps that were not taken changed no weight, so this is the last good state
            raise TrainingError(verdict)
        return totals["stop"] > 0

    def _update(self, lr: float, encoder_norm: torch.Tensor, bank_norms: torch.Tensor) -> None:
        """Clip, and let the optimizers step."""
        state, clip_norm = self.state, self.config.optimizer.clip_norm
        if clip_norm > 0:
            scale_gradients(self._parameters.values(), encoder_norm, clip_norm)
            state.bank_optimizer.clip(bank_norms, clip_norm)
        state.encoder_optimizer.step(lr)
        state.bank_optimizer.step(lr)

    def _save(self, final: bool = False) -> None:
        with self._phase("checkpoint"):
            self.saver.save(final)

    def _told_to_stop(self) -> bool:
        """Whether any rank has been. Collective."""
        return agree(self.topology, {"stop": float(self.stop.received)})[0]["stop"] > 0

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """What happens inside is timed, and looked on by the watchdog, as `name`."""
        self.heartbeat.note(name, self.state.step)
        with self.timer.phase(name):
            yield

    def _forward_backward(self) -> tuple[torch.Tensor, _Consumed]:
        """All micro-batches of all heads: gradients accumulate in the parameters. Returns mean losses [heads]."""
        state, heads = self.state, self.config.heads
        accumulation = self.config.train.grad_accumulation
        losses, consumed = torch.zeros(len(heads), device=self.topology.device), _Consumed()
        for micro in range(accumulation):
            for index, head in enumerate(heads):
                batch = self._next_batch(head.name, consumed)
                self.sharding.set_last_backward(micro == accumulation - 1 and index == len(heads) - 1)
                with self._phase("forward"):
                    embeddings = state.encoder(batch.patches, batch.positions, batch.cu_seqlens).pooled
                with self._phase("bank"):
                    loss = self._loss(head, embeddings, batch.labels, micro)
                with self._phase("backward"):
                    (loss * (head.loss_weight / accumulation)).backward()
                self.guard.note(head.name, batch, embeddings)
                losses[index] += loss.detach() / accumulation
                consumed.samples += batch.size
                consumed.tokens += batch.tokens
                consumed.flops += training_flops(self.config.model, batch.cu_seqlens.diff().tolist())
                if micro == accumulation - 1 and self.watch.due(state.step):
                    self._look(head.name, embeddings.detach(), batch.labels, micro, consumed)
        self.heartbeat.note("agreement", state.step)
        return losses, consumed

    def _next_batch(self, head: str, consumed: _Consumed) -> PatchBatch:
        """On a GPU the host waits for data while the device computes, so this is timed by the clock."""
        self.heartbeat.note("data", self.state.step)
        begun = time.monotonic()
        batch = self.streams[head].next()
        consumed.data_s += time.monotonic() - begun
        return batch

    def _look(self, head: str, embeddings: torch.Tensor, labels: torch.Tensor, micro: int, consumed: _Consumed) -> None:
        self.heartbeat.note("bank look", self.state.step)
        begun = time.monotonic()
        bank, draw = self.state.banks[head], self._draw(micro)
        consumed.banks |= self.watch.look(bank, embeddings, labels, draw, self.state.step)
        consumed.looking_s += time.monotonic() - begun

    def _loss(self, head: HeadConfig, embeddings: torch.Tensor, labels: torch.Tensor, micro: int) -> torch.Tensor:
        sizes = self.state.sources[head.name].batch_sizes
        return self.state.banks[head.name](embeddings, labels, step=self._draw(micro), batch_sizes=sizes)

    def _draw(self, micro: int) -> int:
        """Number of a micro-batch since training began; names its draw of competing rows."""
        return self.state.step * self.config.train.grad_accumulation + micro

    def _shares(self, consumed: _Consumed) -> dict[str, float]:
        """What this rank adds to numbers that are sums over all ranks."""
        loads = self.topology.tensor_rank == 0
        return {
            "stop": float(self.stop.received),
            "samples": loads * consumed.samples,
            "tokens": loads * consumed.tokens,
            "flops": loads * consumed.flops,
            "data_wait_s": sum(source.take_wait() for source in self.state.sources.values()),
            "bad_samples": sum(source.bad_samples for source in self.state.sources.values()),
        }
