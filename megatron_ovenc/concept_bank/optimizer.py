"""AdamW for the banks: one instance for all heads, apart from the encoder's optimizer.

Every rank steps the rows that it owns, all of them: a row that did not compete still decays and still moves with its
momentum, as in the reference. Only gradient norms cross ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ovenc.concept_bank.bank import ConceptBank

CLIP_EPS = 1e-6
"""Added to a norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does."""


class BankOptimizer:
    """Steps the weights of all heads' banks.

    Args:
        banks: head name -> bank, in the same order on every rank. Each brings its own `lr_scale` and `weight_decay`.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        world_group: all ranks that own rows.
    """

    def __init__(
        self,
        banks: Mapping[str, ConceptBank],
        *,
        betas: tuple[float, float],
        eps: float,
        world_group: dist.ProcessGroup,
    ) -> None:
        self._banks = dict(banks)
        self._world_group = world_group
        groups = [
            {"params": [bank.weight], "weight_decay": bank.config.weight_decay, "lr_scale": bank.config.lr_scale}
            for bank in self._banks.values()
        ]
        # Fused: one pass over memory, and no temporaries the size of the bank.
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)
        for bank in self._banks.values():
            # AdamW makes these at its first step; a checkpoint is loaded into them before.
            self._adamw.state[bank.weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=bank.weight.device),
                "exp_avg": torch.zeros_like(bank.weight),
                "exp_avg_sq": torch.zeros_like(bank.weight),
            }

    def grad_norms(self) -> Tensor:
        """L2 norm of each bank's whole gradient: float32 [heads]. Collective. A bank without a gradient has norm 0."""
        device = next(iter(self._banks.values())).weight.device
        squares = torch.zeros(len(self._banks), device=device)
        for index, bank in enumerate(self._banks.values()):
            if bank.weight.grad is not None:
                squares[index] = torch.linalg.vector_norm(bank.weight.grad).square()
        # Over the WORLD: each rank has the gradient of its own rows.
        dist.all_reduce(squares, group=self._world_group)
        return squares.sqrt_()

    def clip(self, norms: Tensor, max_norm: float) -> None:
        """Shorten each bank's gradient to at most `max_norm` (> 0), given the result of `grad_norms`."""
        factors = (max_norm / (norms + CLIP_EPS)).clamp(max=1.0)
        for factor, bank in zip(factors, self._banks.values(), strict=True):
            if bank.weight.grad is not None:
                bank.weight.grad.mul_(factor)

    def step(self, lr: float) -> None:
        """Update all banks that have a gradient, each at `lr` times its own scale."""
        for group in self._adamw.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._adamw.step()

    def zero_grad(self) -> None:
        """Forget all gradients and free their memory."""
        self._adamw.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """The optimizer's whole state, live: loading into these tensors, in place, is loading the optimizer.

        Returns:
            `<head>.exp_avg` and `<head>.exp_avg_sq`, shaped and split over the ranks like the bank's weight, and
            `<head>.step`, a scalar that is the same on every rank.
        """
        return {
            f"{head}.{name}": tensor
            for head, bank in self._banks.items()
            for name, tensor in self._adamw.state[bank.weight].items()
        }
