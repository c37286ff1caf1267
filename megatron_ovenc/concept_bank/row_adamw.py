"""AdamW over the rows of one rank's share of a bank, from gradients that name the rows they touch.

`dense` steps every row every time: a row without a gradient still decays and moves with its momentum, as in the reference.
`rows` reads and writes only what is touched, and lets a row catch up with what it missed (`missed_steps.py`) when a forward pass
is about to read it. Both make the same trajectory, to the exactness told there.

All work goes in blocks of rows that fit a cache, through torch's fused AdamW. Numbers are kept in float32; moments may be
stored in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from megatron_ovenc.concept_bank.bank import ConceptBank
from megatron_ovenc.concept_bank.missed_steps import MissedSteps
from megatron_ovenc.concept_bank.rounding import round_stochastically
from megatron_ovenc.concept_bank.row_gradient import RowGradient
from megatron_ovenc.concept_bank.sampling import draw_key

_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 25, "meta": 1 << 25}
"""Numbers of a block: a core's cache, or 128 MiB of a GPU's memory (and of the GPU that a plan without one is made for)."""


class RowAdamW:
    """Steps one bank.

    Args:
        bank: the rows.
        betas, eps: of AdamW.

    Attributes:
        exp_avg, exp_avg_sq: [R, D], the moments.
        updates: steps taken; the same on every rank.

    Raises:
        ValueError: betas for which `rows` has no closed form.
    """

    def __init__(self, bank: ConceptBank, *, betas: tuple[float, float], eps: float) -> None:
        self.bank, self.betas, self.eps = bank, betas, eps
        weight, config = bank.weight, bank.config
        self._compact = config.moments == "bf16"
        kept = torch.bfloat16 if self._compact else weight.dtype
        self.exp_avg = torch.zeros_like(weight, dtype=kept, requires_grad=False)
        self.exp_avg_sq = torch.zeros_like(weight, dtype=kept, requires_grad=False)
        self.updates = 0
        self._missed: MissedSteps | None = None
        if config.optimizer == "rows" and config.sample_rate < 1:  # where every row competes, none misses anything
            self._missed = MissedSteps(betas, eps, config.weight_decay, weight.device)
            self._last = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
            bank.before_read = self.catch_up

    @torch.no_grad()
    def step(self, gradient: RowGradient, lr: float) -> None:
        """Update at rate `lr`."""
        rows = gradient.rows
        before = self.updates
        self.updates += 1
        if rows is None:
            for block in self._blocks(None):
                self._update(block, gradient.values[block], before, lr)
        elif self._missed is not None:
            for place, block in zip(self._places(len(rows)), self._blocks(rows), strict=True):
                self._update(block, gradient.values[place], before, lr)
        else:
            self._update_all(rows, gradient.values, before, lr)
        if self._missed is not None:
            self._missed.record(lr)
            self._mark(rows)

    @torch.no_grad()
    def catch_up(self, rows: Tensor | None) -> None:
        """Bring rows (positions, maybe padded with numbers >= R; None for all) to where `dense` would have them now."""
        if self._missed is None or self._missed.now == self._missed.base:
            return
        if rows is not None and not self._may_be_padded(rows):
            rows = rows[self._last[rows] < self.updates]
        for block in self._blocks(rows):
            last = self._last[block] if isinstance(block, slice) else self._last.index_select(0, self._real(block))
            catching = self._missed.since(last, self.bank.weight.dtype)
            weight, first, second = old = self._read(block)
            moved = (weight - catching.drift(first, second, self.eps)).mul_(catching.keep)
            new = (moved, first * catching.first, second * catching.second)
            # Padding brings the last row up to date, as its own entry would; in a later block it finds that done.
            self._write(block, old, new, "catch up", hold=False)
            if isinstance(block, slice):
                self._last[block] = self.updates
            else:
                self._last.index_fill_(0, self._real(block), self.updates)

    def settle(self) -> None:
        """Bring every row up to date: what the weight and moments hold afterwards is what `dense` would hold."""
        if self._missed is not None:
            self.catch_up(None)
            self._missed.restart(self.updates)

    def restored(self, updates: int) -> None:
        """Weight and moments were loaded, as they stood after `updates` steps."""
        self.updates = updates
        if self._missed is not None:
            self._missed.restart(updates)
            self._last.fill_(updates)

    def _update_all(self, rows: Tensor, values: Tensor, before: int, lr: float) -> None:
        """Every row, of which only `rows` have a gradient: those first, aside, since the others' step runs over them."""
        touched = []
        for place, block in zip(self._places(len(rows)), self._blocks(rows), strict=True):
            state = self._read(block)
            self._adamw(state, values[place], before, lr)
            touched.append(state)
        nothing = torch.zeros(self._block_rows, values.shape[1], dtype=values.dtype, device=values.device)
        for place in self._places(len(self.bank.weight)):
            self._update(place, nothing[: place.stop - place.start], before, lr)
        for block, state in zip(self._blocks(rows), touched, strict=True):
            self._write(block, self._read(block), state, "step")

    def _update(self, block: Tensor | slice, gradient: Tensor, before: int, lr: float) -> None:
        state = self._read(block)
        if isinstance(block, slice) and not self._compact:
            self._adamw(state, gradient, before, lr)  # the state is the rows themselves
            return
        old = tuple(part.clone() for part in state) if self._may_be_padded(block) else state
        self._adamw(state, gradient, before, lr)
        self._write(block, old, state, "step")

    def _adamw(self, state: tuple[Tensor, Tensor, Tensor], gradient: Tensor, before: int, lr: float) -> None:
        weight, first, second = state
        adamw(
            [weight],
            [gradient],
            [first],
            [second],
            [],
            [torch.full((), before, dtype=torch.float32, device=weight.device)],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=self.bank.config.weight_decay,
            eps=self.eps,
            maximize=False,
        )

    def _read(self, block: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """Weight and moments of a block: views where they can be, else copies."""
        weight, first, second = (
            part[block] if isinstance(block, slice) else part.index_select(0, self._real(block))
            for part in self._parts()
        )
        return weight, first.to(weight.dtype), second.to(weight.dtype)

    def _write(
        self, block: Tensor | slice, old: tuple[Tensor, ...], new: tuple[Tensor, ...], what: str, hold: bool = True
    ) -> None:
        """Write weight and moments of a block. `what` names the noise of their rounding; `hold`: padding changes nothing."""
        for number, (part, before, after) in enumerate(zip(self._parts(), old, new, strict=True)):
            if part.dtype != after.dtype:
                ids = (
                    torch.arange(block.start, block.stop, device=part.device)
                    if isinstance(block, slice)
                    else self._real(block)
                )
                key = draw_key(self.bank.seed, self.bank.head, what, number, self.updates)
                after = round_stochastically(after, ids + self.bank.lo, key)
            if isinstance(block, slice):
                part[block] = after
            elif hold and self._may_be_padded(block):
                part.index_copy_(0, self._real(block), self._hold_padding(block, before.to(part.dtype), after))
            else:
                part.index_copy_(0, self._real(block), after)

    def _hold_padding(self, block: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Padding points at the last row: have it write there what the row's own entry writes, or what is there already."""
        last = len(self.bank.weight) - 1
        own = (block == last)[:, None]
        value = torch.where(own.any(), torch.where(own, after, 0).sum(dim=0, dtype=after.dtype), before)
        return torch.where((block > last)[:, None], value, after)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.bank.weight.data, self.exp_avg, self.exp_avg_sq

    def _mark(self, rows: Tensor | None) -> None:
        """These rows are up to date; padding says nothing."""
        if rows is None:
            self._last.fill_(self.updates)
        else:
            known = torch.where(rows < len(self._last), self.updates, 0)
            self._last.scatter_reduce_(0, self._real(rows), known, "amax")

    def _may_be_padded(self, block: Tensor | slice) -> bool:
        """Whether rows may end in padding. On a host they never do."""
        return not isinstance(block, slice) and block.device.type != "cpu"

    def _real(self, rows: Tensor) -> Tensor:
        """Rows with padding pointed at the last one."""
        return rows.clamp(max=max(len(self.bank.weight) - 1, 0)) if rows.device.type != "cpu" else rows

    @property
    def _block_rows(self) -> int:
        return max(_BLOCK.get(self.bank.weight.device.type, 1 << 20) // max(self.bank.weight.shape[1], 1), 16)

    def _places(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self._block_rows):
            yield slice(start, min(start + self._block_rows, count))

    def _blocks(self, rows: Tensor | None) -> Iterator[Tensor | slice]:
        """All rows in slices, or the given ones in pieces."""
        if rows is None:
            yield from self._places(len(self.bank.weight))
        else:
            yield from (rows[place] for place in self._places(len(rows)))
