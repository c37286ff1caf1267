"""The gradient of a bank's rows as (rows, values): what was touched, never a tensor of the size of the bank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PADDING = torch.iinfo(torch.int64).max


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGradient:
    """Gradients of some rows of a rank's weight [R, D]."""

    rows: Tensor | None
    """int64 [M], ascending and distinct, padded at the end with numbers >= R; None when all R rows have a gradient."""
    values: Tensor
    """[M, D]; 0 where `rows` is padding."""
    total: int
    """R."""

    def add(self, other: RowGradient) -> RowGradient:
        """The sum of two gradients of the same weight, which may reuse the memory of either.

        On an accelerator no size depends on data, so nothing waits for it: the sum has as many rows as both together, at most R.
        """
        if self.rows is None or other.rows is None:
            whole, part = (self, other) if self.rows is None else (other, self)
            if part.rows is None:
                whole.values.add_(part.values)
            else:  # padding adds zeros to the last row
                whole.values.index_add_(0, part.rows.clamp(max=max(self.total - 1, 0)), part.values)
            return whole
        rows, order = torch.cat([self.rows, other.rows]).sort()
        starts = torch.ones_like(rows, dtype=torch.bool)
        starts[1:] = rows[1:] != rows[:-1]
        places = starts.cumsum(0) - 1
        size = min(len(rows), self.total)
        if _on_host(rows):
            size = int(starts.sum())
        # Padding sorts last: what falls beyond the end is nothing but that, and adds zeros to the last place.
        last = max(size - 1, 0)
        summed = torch.full((size + 1,), _PADDING, device=rows.device).index_copy_(0, places.clamp(max=size), rows)[
            :size
        ]
        values = self.values.new_zeros(size, self.values.shape[1])
        where = torch.empty_like(places).index_copy_(0, order, places).clamp_(max=last)
        values.index_add_(0, where[: len(self.rows)], self.values)
        values.index_add_(0, where[len(self.rows) :], other.values)
        return RowGradient(rows=summed, values=values, total=self.total)

    def scale_(self, factor: Tensor) -> None:
        """Multiply in place by a scalar tensor."""
        self.values.mul_(factor)

    def dense(self) -> Tensor:
        """[R, D]; for tests and small banks."""
        if self.rows is None:
            return self.values
        real = self.rows < self.total
        return self.values.new_zeros(self.total, self.values.shape[1]).index_copy_(
            0, self.rows[real], self.values[real]
        )


def _on_host(rows: Tensor) -> bool:
    """Whether numbers of `rows` can be asked for without stalling."""
    return rows.device.type == "cpu"
