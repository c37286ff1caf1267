"""Learning rates, among them the table recorded from the reference."""

from __future__ import annotations

import pytest

from megatron_ovenc.config import ScheduleConfig
from megatron_ovenc.train.schedule import Schedule

RECORDED = {
    0: 1.0,
    1: 0.01,
    50: 0.50,
    100: 1.0,
    101: 0.99889,
    200: 0.888951,
    325: 0.750139,
    550: 0.500278,
    775: 0.250417,
    900: 0.111606,
    990: 0.011674,
    999: 0.001774,
    1000: 0.000887,
    5000: 0.000887,
}


def test_reference_schedule() -> None:
    schedule = Schedule(ScheduleConfig(kind="reference", warmup_steps=100), 1.0, 1000)
    assert {step: schedule(step) for step in RECORDED} == pytest.approx(RECORDED, abs=1.1e-6)


@pytest.mark.parametrize("kind", ["cosine", "polynomial"])
def test_warmup_from_zero_and_decay_to_the_floor(kind: str) -> None:
    config = ScheduleConfig(kind=kind, warmup_steps=10, final_lr_share=0.1)  # type: ignore[arg-type]
    schedule = Schedule(config, 2.0, 110)
    assert [schedule(step) for step in (0, 5, 10)] == [0.0, 1.0, 2.0]
    rates = [schedule(step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)
    assert schedule(110) == schedule(1000) == pytest.approx(0.2)
    assert schedule(60) == pytest.approx(0.2 + 1.8 * {"cosine": 0.5, "polynomial": 0.25}[kind])


def test_no_warmup_starts_at_the_peak() -> None:
    assert Schedule(ScheduleConfig(kind="cosine"), 3.0, 10)(0) == 3.0
