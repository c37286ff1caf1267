"""What AdamW would have done to a row in steps where its gradient was 0, in closed form.

Let a row have moments m, v after step t0, and no gradient in the steps s = t0 + 1 .. t, k = s - t0. AdamW (Loshchilov and
Hutter, arXiv 1711.05101) with rates lr_s, decay L and bias corrections c1_s = 1 - beta1^s, c2_s = 1 - beta2^s makes

    m_t = beta1^(t - t0) m,   v_t = beta2^(t - t0) v,
    w_s = (1 - lr_s L) w_{s-1} - lr_s / c1_s beta1^k m / (h_k sqrt(v) + eps),   h_k = beta2^(k/2) / sqrt(c2_s)

With P_s the product of (1 - lr_j L) over j = t0 + 1 .. s and g_s = lr_s / c1_s beta1^k / P_s, that is

    w_t = P_t (w - m / eps * F(sqrt(v) / eps)),   F(y) = sum over s of g_s / (h_k y + 1)

F is taken as the rational function (a y + b) / (y^2 + c y + d) that has its value and slope at y = 0 and its first two terms at
y = infinity: a two-point Pade approximant, here the same as a sum over two steps with well-chosen g and h. Its coefficients follow
from the sums of g h, g, g / h and g / h^2, which depend on t0 and t alone: a row costs the same however many steps it missed.

Exactness: weight decay and both moments are exact. F is exact for y much smaller or larger than 1, and for up to two missed
steps. Between, its relative error grows with the spread of h_k under weights that fall like beta1^k, (1 - beta2) / (2 - 2 beta1)
once bias corrections have died out. Its largest values over all y and gaps (`tests/concept_bank/test_row_adamw.py`):

    betas          rows last touched in the first steps    from step 100 on
    (0.9, 0.999)   5e-3                                    1e-6
    (0.9, 0.95)    2e-2                                    2e-3

Terms below 1e-12 of the first are dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_POWERS = (1, 0, -1, -2)
"""Of h in the sums that are kept."""
_NEGLIGIBLE = 1e-12
_ONE_STEP = 1e-9
"""Relative variance of h below which all missed steps count as one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catching:
    """How to bring rows up to date: [M, 1] each, in the weight's type."""

    keep: Tensor
    """P_t"""
    rational: tuple[Tensor, Tensor, Tensor, Tensor]
    """a, b, c, d"""
    first: Tensor
    """beta1^(t - t0)"""
    second: Tensor
    """beta2^(t - t0)"""

    def drift(self, first: Tensor, second: Tensor, eps: float) -> Tensor:
        """m / eps * F(sqrt(v) / eps) of moments [M, D]."""
        a, b, c, d = self.rational
        y = second.sqrt().div_(eps)
        return (a * y).add_(b).div_((y + c).mul_(y).add_(d)).mul_(first).div_(eps)


class MissedSteps:
    """Tables over the step t0 at which a row was last up to date, from `base` to now.

    Args:
        betas, eps, weight_decay: of AdamW.
        device: of the tables.

    Raises:
        ValueError: 1 - beta2 > 0.6 (1 - beta1): the second moment fades too quickly beside the first.
    """

    def __init__(self, betas: tuple[float, float], eps: float, weight_decay: float, device: torch.device) -> None:
        first, second = betas
        if 1 - second > 0.6 * (1 - first):
            raise ValueError(
                f"optimizer.betas={list(betas)}: a bank with `optimizer: rows` needs 1 - beta2 <= 0.6 (1 - beta1), or the closed "
                "form of what untouched rows miss is too coarse; raise beta2, lower beta1, or take `optimizer: dense`"
            )
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        ratio = first / math.sqrt(second)
        span = 1 + (math.ceil(math.log(_NEGLIGIBLE) / math.log(ratio)) if ratio > 0 else 0)
        self._ages = torch.arange(span, 0, -1, dtype=torch.float64, device=device)
        self.restart(0)

    def restart(self, now: int) -> None:
        """Every row is up to date at step `now`; earlier steps are forgotten."""
        self.base = self.now = now
        self._log_keep = self._ages.new_zeros(1024)
        self._sums = self._ages.new_zeros(len(_POWERS), 1024)

    def record(self, lr: float) -> None:
        """The next step was taken at rate `lr`.

        Raises:
            ValueError: lr * weight_decay >= 1, which would turn the centres around.
        """
        if lr * self.weight_decay >= 1:
            raise ValueError(
                f"learning rate {lr:g} x weight_decay {self.weight_decay:g} of a bank is not below 1; lower one of them"
            )
        self.now += 1
        place = self.now - self.base
        if place == len(self._log_keep):
            self._log_keep = torch.cat([self._log_keep, torch.zeros_like(self._log_keep)])
            self._sums = torch.cat([self._sums, torch.zeros_like(self._sums)], dim=1)
        self._log_keep[place] = self._log_keep[place - 1] + math.log1p(-lr * self.weight_decay)
        recent = slice(max(place - len(self._ages), 0), place)
        ages = self._ages[-place:]
        beta1, beta2 = self.betas
        g = (self._log_keep[recent] - self._log_keep[place]).exp_()
        g.mul_(beta1**ages).mul_(lr / (1 - beta1**self.now))
        h = beta2 ** (ages / 2) / math.sqrt(1 - beta2**self.now)
        for sums, power in zip(self._sums, _POWERS, strict=True):
            sums[recent] += g * h**power

    def since(self, last: Tensor, dtype: torch.dtype) -> Catching:
        """For rows that were up to date at the steps `last`, int64 [M]."""
        place = last - self.base
        missed = (self.now - last)[:, None].double()
        keep = (self._log_keep[self.now - self.base] - self._log_keep[place]).exp()[:, None]
        return Catching(
            keep=keep.to(dtype),
            rational=_rational(self._sums[:, place, None], dtype),
            first=(self.betas[0] ** missed).to(dtype),
            second=(self.betas[1] ** missed).to(dtype),
        )


def _rational(sums: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b, c, d, [M, 1] each, from the sums of g h, g, g / h and g / h^2, [4, M, 1]."""
    slope, value, far, farther = sums
    variance = slope * far - value * value
    several = variance > _ONE_STEP * value * value
    c = torch.where(several, (slope * farther - far * value) / torch.where(several, variance, 1), 0)
    b = far * c - farther
    # One step g / (h y + 1) is the same divided and multiplied by y + 1; none at all is 0.
    ratio = torch.where(value > 0, far / torch.where(value > 0, value, 1), 1)
    c, b = torch.where(several, c, 1 + ratio), torch.where(several, b, far)
    d = torch.where(several, b / torch.where(several, value, 1), ratio)
    return far.to(dtype), b.to(dtype), c.to(dtype), d.to(dtype)
