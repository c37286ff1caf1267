"""`make gpu-check` and `make gpu-bench` run end to end: the first minutes on a rented GPU are not for typos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.forked import forked


def report(module: str, output: Path) -> tuple[dict[str, Any], str]:
    answer = forked(module, "--device", "cpu", "--tiny", "--output", str(output))
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    return json.loads(output.with_suffix(".json").read_text()), output.with_suffix(".md").read_text()


def test_check(tmp_path: Path) -> None:
    written, text = report("benchmarks.gpu_check", tmp_path / "check")
    outcomes = {row["check"]: row["outcome"] for row in written["rows"]}
    for check in ("golden, sdpa fp32", "golden, fp8_torch", "ragged attention", "loss, fp8_torch, ragged"):
        assert outcomes[check] == "ok"
    for check in ("golden, te bf16", "loss, te FP8", "waiting, sdpa bf16"):
        assert outcomes[check] == "not on this machine", "what did not run is not passed"
    assert written["versions"]["torch"] in text
    assert "| golden, sdpa fp32 | ok |" in text


def test_bench(tmp_path: Path) -> None:
    written, text = report("benchmarks.gpu_bench", tmp_path / "bench")
    rows = {(row["what"], row["side"], row["load"]): row for row in written["rows"]}
    for side in ("sdpa bf16", "fp8_torch", "reference layout eager", "reference layout sdpa"):
        row = rows[("tiny", side, "8-token clip")]
        assert row["batch"] == 2
        assert row["samples/s"] == pytest.approx(1000 * 2 / row["step_ms"])
        assert row["MFU"] == pytest.approx(row["TFLOP/s"] / rows[("matmul", "bf16", "64 squared")]["TFLOP/s"])
    assert rows[("tiny", "te FP8", "8-token clip")]["step_ms"] is None
    assert {rate for what, _, rate in rows if what.startswith("bank")} == {"rate 0.1", "rate 1.0"}
    assert "te bf16: model.layers=te needs a CUDA GPU" in text
