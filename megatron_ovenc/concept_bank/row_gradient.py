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

    def __add__(self, other: RowGradient) -> RowGradient:
        """The sum of two gradients of the same weight. On an accelerator no size depends on data, so nothing waits for it."""
        if self.rows is None and other.rows is None:
            return RowGradient(rows=None, values=self.values + other.values)
        if self.rows is None or other.rows is None:
            whole, part = (self, other) if self.rows is None else (other, self)
            assert part.rows is not None
            places = part.rows.clamp(max=max(len(whole.values) - 1, 0))  # padding adds zeros to the last row
            return RowGradient(rows=None, values=whole.values.index_add(0, places, part.values))
        rows, order = torch.cat([self.rows, other.rows]).sort()
        starts = torch.ones_like(rows, dtype=torch.bool)
        starts[1:] = rows[1:] != rows[:-1]
        places = starts.cumsum(0) - 1
        values = torch.cat([self.values, other.values]).index_select(0, order)
        values = torch.zeros_like(values).index_add_(0, places, values)
        rows = torch.full_like(rows, _PADDING).index_copy_(0, places, rows)
        if rows.device.type == "cpu":
            count = int(starts.sum())
            rows, values = rows[:count], values[:count]
        return RowGradient(rows=rows, values=values)

    def scale_(self, factor: Tensor) -> None:
        """Multiply in place by a scalar tensor."""
        self.values.mul_(factor)

    def dense(self, total: int) -> Tensor:
        """[R, D] for R = `total`; for tests and small banks."""
        if self.rows is None:
            return self.values
        real = self.rows < total
        return self.values.new_zeros(total, self.values.shape[1]).index_copy_(0, self.rows[real], self.values[real])
