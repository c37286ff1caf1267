"""A head's concept bank: a classifier of C centres whose rows are sharded over all ranks.

    bank = ConceptBank(head.bank, dim=model.hidden_size, head=head.name, seed=train.seed, topology=topology)
    loss = bank(embeddings, labels, step=step)          # collective; the same scalar on every rank
    loss.backward()                                     # gradients of embeddings; those of rows are in bank.gradient

The bank lives outside every data-parallel wrapper: no two ranks hold the same row, so there is nothing to average. The
gradient that it gives to `embeddings` is that of the global loss; what wraps the encoder must sum over data ranks, not
average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_ovenc.concept_bank.centres import random_centres, row_range, stored_centres
from megatron_ovenc.concept_bank.chunks import NORM_EPS
from megatron_ovenc.concept_bank.gather import GlobalBatch, exchange_batch_sizes
from megatron_ovenc.concept_bank.loss import BankLoss
from megatron_ovenc.concept_bank.row_gradient import RowGradient
from megatron_ovenc.concept_bank.sampling import Competitors, competitors, draw_key
from megatron_ovenc.config.tree import BankConfig
from megatron_ovenc.parallel.topology import Topology


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """A global batch as one rank sees it."""

    local: Tensor
    """[B, D] this data rank's embeddings, of length 1 and differentiable."""
    labels: Tensor
    """int64 [N, K] of all data ranks."""
    way: GlobalBatch
    """To the global batch, and back."""


class ConceptBank(nn.Module):
    """This rank's rows of a bank, and the loss against the whole of it.

    Args:
        config: size, loss and initial centres of the bank.
        dim: width D of an embedding.
        head: name of the head; together with `seed` it names the bank's random draws.
        seed: seed of the run.
        topology: ranks and groups; `weight` is made on its device.

    Attributes:
        weight: float32 parameter [hi - lo, D], the centres of the classes [lo, hi). Its `grad` stays empty.
        gradient: what backward passes have said about rows of `weight` since it was last taken; None when nothing.
        log_scale, bias: scalar parameters, the same on every rank, where `config.learn_scale` has them learned; else None.
        uses: int64 [hi - lo], how often samples have named each centre in training, steps that were skipped included.
        before_read: called with the rows (int64 positions in `weight`, or None for all) that a forward pass is about to read;
            for optimizers that leave untouched rows for later.

    Raises:
        ValueError: `config.init` names a file that does not hold this bank.
    """

    uses: Tensor

    def __init__(self, config: BankConfig, *, dim: int, head: str, seed: int, topology: Topology) -> None:
        super().__init__()
        self.config = config
        self.dim = dim
        self.head = head
        self.seed = seed
        self.topology = topology
        self.lo, self.hi = row_range(config.num_classes, topology.world, topology.rank)
        if topology.device.type == "meta":  # a plan wants shapes only
            centres = torch.empty(self.hi - self.lo, dim, device="meta")
        elif config.init is None:
            centres = random_centres(config.num_classes, dim, seed, head, self.lo, self.hi)
        else:
            centres = stored_centres(config.init, config.num_classes, dim, head, self.lo, self.hi)
        self.weight = nn.Parameter(centres.to(topology.device))
        self.register_buffer("uses", torch.zeros(self.hi - self.lo, dtype=torch.int64, device=topology.device))
        self.log_scale = self.bias = None
        if config.learn_scale:
            self.log_scale = _scalar(math.log(config.logit_scale), topology.device)
            self.bias = _scalar(config.logit_bias, topology.device) if config.loss == "sigmoid" else None
        self.gradient: RowGradient | None = None
        self.before_read: Callable[[Tensor | None], None] | None = None

    def scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """What the logits are made with: two scalars, differentiable where they are learned."""
        scale, bias = (
            self.weight.new_full((), self.config.logit_scale),
            self.weight.new_full((), self.config.logit_bias),
        )
        if self.log_scale is not None:
            scale = self.log_scale.exp()
        return scale, bias if self.bias is None else self.bias

    def forward(
        self, embeddings: Tensor, labels: Tensor, *, step: int, batch_sizes: Sequence[int] | None = None
    ) -> Tensor:
        """Loss of the global batch. Collective over the world.

        Args:
            embeddings: float [B, D] of this data rank's samples, equal on its tensor ranks; normalised here, in float32.
            labels: int64 [B, K], classes in [0, C) or -1 for none. K is the same on every rank. Another value stops all
                ranks with an error that names the head; a GPU raises it at its next synchronisation.
            step: names the step's draw of competing rows; the same on every rank.
            batch_sizes: the B of every data rank, for callers who know them; otherwise they are exchanged.

        Returns:
            Scalar float32: the mean over all labels (see `loss.py`), the same on every rank.

        Raises:
            ValueError: shapes do not fit the bank, each other, or `batch_sizes`.
        """
        # Whatever precision surrounds the bank, its softmax is of the weight's type, and its cosines of the configured one.
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss(embeddings, labels, step=step, batch_sizes=batch_sizes)

    def loss(
        self, embeddings: Tensor, labels: Tensor, *, step: int, batch_sizes: Sequence[int] | None = None
    ) -> Tensor:
        """As `forward`, outside of any autocast. On the meta device, which knows no autocast, a plan calls this one."""
        batch = self.gather_batch(embeddings, labels, batch_sizes)
        among = self.competitors(batch.labels, step)
        if self.before_read is not None:
            self.before_read(among.rows)
        if torch.is_grad_enabled():
            self._count(batch.labels)
        scale, bias = self.scale_and_bias()
        return BankLoss.apply(
            batch.local, self.weight, scale, bias, batch.labels, among, self.config, batch.way, self._deposit
        )

    def gather_batch(self, embeddings: Tensor, labels: Tensor, batch_sizes: Sequence[int] | None = None) -> Gathered:
        """Bring the data ranks' batches together. Collective over the data group; arguments and errors as in `forward`."""
        self._check_shapes(embeddings, labels)
        topology = self.topology
        sizes = exchange_batch_sizes(len(labels), topology) if batch_sizes is None else list(batch_sizes)
        if len(sizes) != topology.data or sizes[topology.data_rank] != len(labels):
            raise ValueError(
                f"batch_sizes={sizes} must have one entry for each of {topology.data} data ranks, "
                f"and {len(labels)} for data rank {topology.data_rank}"
            )
        way = GlobalBatch(sizes=sizes, topology=topology)
        labels = way.gather(labels)
        in_range = ((labels >= -1) & (labels < self.config.num_classes)).all()
        torch._assert_async(in_range, f"head {self.head}: a label is outside [-1, {self.config.num_classes})")
        local = F.normalize(embeddings.to(self.weight.dtype), dim=1, eps=NORM_EPS)
        return Gathered(local=local, labels=labels, way=way)

    def competitors(self, labels: Tensor, step: int) -> Competitors:
        """This rank's rows that compete in the draw `step` against a global batch with these labels [N, K]."""
        return competitors(
            labels,
            num_classes=self.config.num_classes,
            rate=self.config.sample_rate,
            key=draw_key(self.seed, self.head, "negatives", step),
            lo=self.lo,
            hi=self.hi,
            static=labels.device.type != "cpu",
            correct=self.config.correct_sampling,
        )

    def _count(self, labels: Tensor) -> None:
        """Note which of this rank's centres the batch names."""
        local = (labels >= self.lo) & (labels < self.hi)
        if len(self.uses):
            places = torch.where(local, labels - self.lo, 0).flatten()
            self.uses.index_add_(0, places, local.flatten().to(self.uses.dtype))

    def _deposit(self, gradient: RowGradient) -> None:
        self.gradient = gradient if self.gradient is None else self.gradient.add(gradient)

    def _check_shapes(self, embeddings: Tensor, labels: Tensor) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ValueError(
                f"head {self.head}: embeddings are {list(embeddings.shape)}, the bank needs [B, {self.dim}]"
            )
        if labels.ndim != 2 or len(labels) != len(embeddings) or labels.dtype != torch.int64:
            raise ValueError(
                f"head {self.head}: labels are {labels.dtype} {list(labels.shape)}, "
                f"but {len(embeddings)} embeddings need int64 [{len(embeddings)}, K]"
            )


def _scalar(value: float, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.full((), value, device=device))
