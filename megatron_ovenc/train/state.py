"""Everything that a resumed run needs, in one object. What is not here is a pure function of what is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.distributed.tensor import DTensor

from megatron_ovenc.concept_bank import BankOptimizer, ConceptBank
from megatron_ovenc.config import OptimizerConfig
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.parameters import ParameterLayout, named_parameters
from megatron_ovenc.parallel.gradients import local
from megatron_ovenc.parallel.rectangle import Rectangle
from megatron_ovenc.parallel.topology import Topology


class BatchSource(Protocol):
    """A head's endless stream of micro-batches, as one data rank sees it."""

    @property
    def bad_samples(self) -> int:
        """Samples that this rank has replaced so far."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Samples of a micro-batch on each data rank."""

    def next(self) -> PatchBatch:
        """The next micro-batch, on the host."""

    def state_dict(self) -> dict[str, int]:
        """Position in the stream, a function of what all ranks have consumed; asked of rank 0."""

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a position."""

    def take_wait(self) -> float:
        """Seconds spent waiting for samples since the last call."""

    def close(self) -> None:
        """End workers."""


class EncoderOptimizer:
    """AdamW over the encoder's shards, with state that exists from the start so that checkpoints can be read into it."""

    def __init__(self, encoder: Encoder, config: OptimizerConfig) -> None:
        decayed: list[torch.nn.Parameter] = []
        kept: list[torch.nn.Parameter] = []
        for parameter in encoder.parameters():
            (decayed if parameter.dim() > 1 or config.decay_norms_and_biases else kept).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
        )
        for parameter in encoder.parameters():
            self.adamw.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, lr: float) -> None:
        """Update every parameter with learning rate `lr`."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.adamw.zero_grad(set_to_none=True)

    @property
    def updates(self) -> int:
        """Updates made so far, the count of Adam's bias correction."""
        return int(next(iter(self.adamw.state.values()))["step"])

    @updates.setter
    def updates(self, value: int) -> None:
        for state in self.adamw.state.values():
            state["step"].fill_(value)


@dataclass(kw_only=True)
class TrainState:
    """The resumable state of a run on this rank."""

    encoder: Encoder
    layouts: Mapping[str, ParameterLayout]
    encoder_optimizer: EncoderOptimizer
    banks: Mapping[str, ConceptBank]
    bank_optimizer: BankOptimizer
    sources: Mapping[str, BatchSource]
    topology: Topology
    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    recent_losses: dict[str, list[float]] = field(default_factory=dict)
    """Losses of the last taken steps by head, the newest last, for telling a spike (train.spike)."""

    def tensors(self) -> dict[str, Rectangle]:
        """All tensors of a checkpoint, by name, as this rank's rectangles of global tensors, every bank row up to date."""
        self.bank_optimizer.settle()
        named = {}
        for name, parameter in named_parameters(self.encoder).items():
            state = self.encoder_optimizer.adamw.state[parameter]
            named[f"encoder.{name}"] = self._rectangle(name, parameter)
            for moment in ("exp_avg", "exp_avg_sq"):
                named[f"encoder_optimizer.{name}.{moment}"] = self._rectangle(name, state[moment])
        for head, bank in self.banks.items():
            shape, offset = (bank.config.num_classes, bank.weight.shape[1]), (bank.lo, 0)
            named[f"banks.{head}.weight"] = Rectangle.of(bank.weight, shape, offset)
            named[f"banks.{head}.uses"] = Rectangle.of(bank.uses, shape[:1], offset[:1])
        for key, tensor in self.bank_optimizer.state_tensors().items():
            if tensor.dim() == 0:
                named[f"bank_optimizer.{key}"] = Rectangle.of(tensor.view(1), (1,), (0,))
            else:
                bank = self.banks[key.split(".")[0]]
                named[f"bank_optimizer.{key}"] = Rectangle.of(
                    tensor, (bank.config.num_classes, tensor.shape[1]), (bank.lo, 0)
                )
        return named

    def scalars(self) -> dict[str, Any]:
        """The rest of a checkpoint: plain numbers, equal on every rank."""
        return {
            "step": self.step,
            "encoder_updates": self.encoder_optimizer.updates,
            "sources": {head: source.state_dict() for head, source in self.sources.items()},
            # copies: an asynchronous save writes them while training goes on
            "recent_losses": {head: list(losses) for head, losses in self.recent_losses.items()},
        }

    def load_scalars(self, scalars: Mapping[str, Any]) -> None:
        """Take over what `scalars` of another run returned; tensors are loaded in place through `tensors`."""
        self.step = scalars["step"]
        self.bank_optimizer.restored()
        self.encoder_optimizer.updates = scalars["encoder_updates"]
        self.recent_losses = scalars.get("recent_losses", {})  # older checkpoints have none
        for head, source in self.sources.items():
            source.load_state_dict(scalars["sources"][head])

    def _rectangle(self, name: str, tensor: torch.Tensor) -> Rectangle:
        """Place a parameter-shaped tensor: cut by tensor parallelism along its own axis, then by FSDP along axis 0."""
        layout, shard = self.layouts[name], local(tensor)
        offset = [0] * shard.dim()
        if layout.split_axis is not None:
            offset[layout.split_axis] = (
                self.topology.tensor_rank * layout.global_shape[layout.split_axis] // self.topology.tensor
            )
        if isinstance(tensor, DTensor) and shard.shape[0] != tensor.shape[0]:
            rows = -(
                -tensor.shape[0] // self.topology.data
            )  # FSDP cuts like torch.chunk: equal rows, the last ones fewer
            offset[0] += self.topology.data_rank * rows
        return Rectangle.of(shard, layout.global_shape, offset)
