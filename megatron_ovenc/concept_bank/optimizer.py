"""The banks' optimizer: AdamW for all heads, apart from the encoder's. Only gradient norms cross ranks.

optimizer.begin(step)                  # which banks learn in this step
... forward, backward ...
norms = optimizer.grad_norms();  optimizer.clip(norms, 5.0);  optimizer.step(lr);  optimizer.zero_grad()
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_ovenc.concept_bank.bank import ConceptBank
from megatron_ovenc.concept_bank.row_adamw import RowAdamW
from megatron_ovenc.config.tree import LARGEST_LEARNED_SCALE

CLIP_EPS = 1e-6
"""Added to a norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does."""


class BankOptimizer:
    """Steps the weights of all heads' banks, and their scales where they are learned.

    Args:
        banks: head name -> bank, in the same order on every rank. Each brings its own rates, decay, kind of optimizer and
            type of moments.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        world_group: all ranks that own rows.

    Raises:
        ValueError: betas that a bank's kind of optimizer cannot work with.
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
        self._rows = {head: RowAdamW(bank, betas=betas, eps=eps) for head, bank in self._banks.items()}
        self._updates = {
            head: torch.zeros((), dtype=torch.float32, device=bank.weight.device) for head, bank in self._banks.items()
        }
        self._scalars = {head: _scalar_adamw(bank, betas, eps) for head, bank in self._banks.items()}
        self._step = 0

    def begin(self, step: int) -> None:
        """Tell the optimizer step that is about to be taken, counted from 0: a frozen bank asks for no gradient."""
        self._step = step
        for bank in self._banks.values():
            for parameter in bank.parameters():
                parameter.requires_grad_(step >= bank.config.freeze_steps)

    def grad_norms(self) -> Tensor:
        """L2 norm of each bank's whole gradient of centres: float32 [heads]. Collective. Without a gradient it is 0.

        A learned scale and bias do not count, and are not clipped: Adam makes their steps as large as the learning rate.
        """
        device = next(iter(self._banks.values())).weight.device
        squares = torch.zeros(len(self._banks), device=device)
        for index, bank in enumerate(self._banks.values()):
            if bank.gradient is not None:
                squares[index] = torch.linalg.vector_norm(bank.gradient.values).square()
        # Over the WORLD: each rank has the gradient of its own rows.
        dist.all_reduce(squares, group=self._world_group)
        return squares.sqrt_()

    def clip(self, norms: Tensor, max_norm: float) -> None:
        """Shorten each bank's gradient of centres to at most `max_norm` (> 0), given the result of `grad_norms`."""
        factors = (max_norm / (norms + CLIP_EPS)).clamp(max=1.0)
        for factor, bank in zip(factors, self._banks.values(), strict=True):
            if bank.gradient is not None:
                bank.gradient.scale_(factor)

    def step(self, lr: float) -> None:
        """Update all banks that have a gradient, each at `lr` times its own scale and warm-up."""
        for head, bank in self._banks.items():
            rate = lr * bank.config.lr_scale * self._warmth(bank)
            if bank.gradient is not None:
                self._rows[head].step(bank.gradient, rate)
                self._updates[head].fill_(self._rows[head].updates)
            scalars = self._scalars[head]
            if scalars is not None:
                scalars.param_groups[0]["lr"] = rate
                scalars.step()
                assert bank.log_scale is not None
                bank.log_scale.data.clamp_(max=math.log(LARGEST_LEARNED_SCALE))

    def zero_grad(self) -> None:
        """Forget all gradients and free their memory."""
        for bank in self._banks.values():
            bank.gradient = None
            bank.zero_grad(set_to_none=True)

    def settle(self) -> None:
        """Bring every row of every bank up to date, before all rows are read: for a checkpoint or an export."""
        for rows in self._rows.values():
            rows.settle()

    def state_tensors(self) -> dict[str, Tensor]:
        """The optimizer's whole state, live: loading into these tensors, in place, and then calling `restored`, is loading it.

        Returns:
            `<head>.exp_avg` and `<head>.exp_avg_sq`, shaped and split over the ranks like the bank's weight; and scalars that are
            the same on every rank: `<head>.step`, and for what is learned `<head>.log_scale` and `<head>.bias` with their moments.
        """
        state: dict[str, Tensor] = {}
        for head, bank in self._banks.items():
            rows, scalars = self._rows[head], self._scalars[head]
            state |= {f"{head}.exp_avg": rows.exp_avg, f"{head}.exp_avg_sq": rows.exp_avg_sq}
            state[f"{head}.step"] = self._updates[head]
            if scalars is None:
                continue
            for name, parameter in _learned(bank).items():
                state[f"{head}.{name}"] = parameter.data
                state |= {f"{head}.{name}.{key}": tensor for key, tensor in scalars.state[parameter].items()}
        return state

    def restored(self) -> None:
        """Take over what was loaded into `state_tensors`."""
        for head, updates in self._updates.items():
            self._rows[head].restored(int(updates))

    def _warmth(self, bank: ConceptBank) -> float:
        steps = bank.config.warmup_steps
        return min((self._step - bank.config.freeze_steps) / steps, 1.0) if steps else 1.0


def _learned(bank: ConceptBank) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in bank.named_parameters() if name != "weight"}


def _scalar_adamw(bank: ConceptBank, betas: tuple[float, float], eps: float) -> torch.optim.AdamW | None:
    """For the learned scale and bias, with state that exists before the first step; None where nothing is learned."""
    parameters = list(_learned(bank).values())
    if not parameters:
        return None
    adamw = torch.optim.AdamW(parameters, lr=0.0, betas=betas, eps=eps, weight_decay=0.0)
    for parameter in parameters:
        adamw.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return adamw
