"""The reference's way to train a sharded classifier, written plainly: the other side of `benchmarks.concept_bank`.

K slots a sample, and for each of them a draw of negatives of its own (random numbers for every local class, top-k, sort), a
gather and a normalisation of the drawn centres, a product, a filter, a margin and a softmax whose probabilities are kept for
backward; a dense gradient of the whole shard; AdamW over every row. The algorithm is that of OneVision-Encoder's released training
code; nothing of it is tuned, and nothing is slower than it has to be (its `.item()` calls and device copies are left out).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class _GatherBatch(torch.autograd.Function):
    """All-gather with a gradient: one reduce a rank."""

    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        parts = list(grad.contiguous().chunk(dist.get_world_size()))
        for rank, part in enumerate(parts):
            dist.reduce(part, dst=rank)
        return parts[dist.get_rank()]


class _ShardedCrossEntropy(torch.autograd.Function):
    """Mean cost of one slot; keeps the probabilities [N, S]."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor) -> Tensor:
        top = logits.max(dim=1, keepdim=True).values
        dist.all_reduce(top, op=dist.ReduceOp.MAX)
        shares = (logits - top).exp_()
        total = shares.sum(dim=1, keepdim=True)
        dist.all_reduce(total)
        shares.div_(total)
        here = labels >= 0
        target = torch.zeros(len(labels))
        target[here] = shares[here, labels[here]]
        dist.all_reduce(target)
        ctx.save_for_backward(shares, labels)
        return -target.clamp(min=1e-30).log().mean()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        shares, labels = ctx.saved_tensors
        here = labels >= 0
        onehot = torch.zeros_like(shares)
        onehot[here, labels[here]] = 1
        return (shares - onehot) * (grad / len(labels)), None


class ReferenceBank(nn.Module):
    """Rows of one rank, split evenly; `num_classes` must be a multiple of the world size.

    Args:
        weight: [C / world, D] initial rows.
    """

    def __init__(self, weight: Tensor, *, sample_rate: float, margin: float, threshold: float, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.sample_rate, self.margin, self.threshold, self.scale = sample_rate, margin, threshold, scale
        self.lo = dist.get_rank() * len(weight)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean over K slots; embeddings [B, D], labels int64 [B, K], equal B on all ranks."""
        gathered = [torch.empty_like(labels) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, labels)
        everyone, everyones = _GatherBatch.apply(embeddings), torch.cat(gathered)
        losses = [self._slot(everyone, everyones[:, slot]) for slot in range(everyones.shape[1])]
        # The gradient is that of the sum of the slots: the released code's.
        total = torch.stack(losses).sum()
        return total - (total - torch.stack(losses).mean()).detach()

    def _slot(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        owned = len(self.weight)
        labels = torch.where((labels >= self.lo) & (labels < self.lo + owned), labels - self.lo, -1)
        weight: Tensor = self.weight
        if self.sample_rate < 1:
            positives = labels[labels >= 0].unique()
            order = torch.rand(owned)
            order[positives] = 2.0
            index = order.topk(int(self.sample_rate * owned)).indices.sort().values
            labels = torch.where(labels >= 0, torch.searchsorted(index, labels), -1)
            weight = weight[index]
        cosines = (F.normalize(embeddings) @ F.normalize(weight).T).clamp(-1, 1)
        here = (labels >= 0).nonzero().squeeze(1)
        target = cosines[here, labels[here]]
        keep = cosines <= self.threshold
        keep[here, labels[here]] = True
        logits = cosines * keep
        logits[here, labels[here]] = target - self.margin
        return _ShardedCrossEntropy.apply(logits * self.scale, labels)
