"""What a machine lacks for FP8 is told in a sentence, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_ovenc.config import ConfigError, Fp8Config, ModelConfig, ParallelConfig, parse
from megatron_ovenc.parallel.device import environment
from megatron_ovenc.parallel.requirements import Environment, image_problems, requirement_problems, resolve_recipe
from megatron_ovenc.train.preflight import check_run

CPU = Environment(capability=None, cuda=None, transformer_engine=None)


def gpu(major: int, minor: int, cuda: str = "13.0", te: str | None = "2.8.0") -> Environment:
    return Environment(capability=(major, minor), cuda=cuda, transformer_engine=te)


@pytest.mark.parametrize(
    ("layers", "recipe", "here", "message"),
    [
        ("sdpa", None, CPU, None),
        ("sdpa", None, gpu(7, 0), None),
        ("fp8_torch", None, CPU, None),
        ("fp8_torch", None, gpu(8, 9), None),
        ("fp8_torch", None, gpu(8, 0), "FP8 needs compute capability 8.9 .* this GPU has 8.0; set model.layers=sdpa"),
        ("te", None, CPU, "needs a CUDA GPU, and torch sees none"),
        ("te", None, CPU, "needs Transformer Engine, which is not installed"),
        ("te", None, gpu(9, 0, te=None), "pip install .*transformer-engine.*or set model.layers to sdpa"),
        ("te", None, gpu(9, 0, te="1.13.0"), "needs Transformer Engine 2.4, not 1.13.0"),
        ("te", None, gpu(8, 0), None),
        ("te", "tensorwise", gpu(9, 0), None),
        ("te", "delayed", gpu(8, 9), None),
        ("te", "tensorwise", gpu(8, 6), "FP8 needs compute capability 8.9"),
        ("te", "blockwise", gpu(9, 0, "12.9"), None),
        ("te", "blockwise", gpu(9, 0, "12.8"), "blockwise needs CUDA 12.9, torch was built with 12.8; take tensorwise"),
        ("te", "blockwise", gpu(8, 9), "blockwise needs Hopper"),
        ("te", "mxfp8", gpu(10, 0), None),
        ("te", "mxfp8", gpu(9, 0), r"mxfp8 needs a GPU of capability 10.x \(Blackwell\), this one has 9.0"),
        ("te", "mxfp8", gpu(12, 0), "mxfp8 needs a GPU of capability 10.x"),
        ("te", "auto", gpu(9, 0), None),
        ("te", "auto", gpu(10, 0), None),
        ("te", "auto", gpu(12, 0), None),
    ],
)
def test_what_is_missing_is_named(layers: Any, recipe: Any, here: Environment, message: str | None) -> None:
    import re

    problems = list(
        requirement_problems(ModelConfig(layers=layers), ParallelConfig(fp8=Fp8Config(recipe=recipe)), here)
    )
    if message is None:
        assert problems == []
    else:
        assert any(re.search(message, problem) for problem in problems), problems


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((8, 9), "tensorwise"), ((9, 0), "tensorwise"), ((10, 0), "mxfp8"), ((10, 3), "mxfp8"), ((12, 0), "tensorwise")],
)
def test_auto_is_what_the_gpu_does_best(capability: tuple[int, int], expected: str) -> None:
    assert resolve_recipe("auto", capability) == expected
    assert resolve_recipe("delayed", capability) == "delayed"
    assert resolve_recipe(None, capability) is None


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (("2.10.0a0+b4e4ee81d3.nv25.12", "13.1", "2.10.0+769ed77", "0.19.2"), None),
        (("2.9.0", "13.0", "2.8.0", "0.19.2"), "torch 2.9.0 lacks torch.nn.attention.varlen"),
        (("2.13.0+cpu", None, None, "0.16.1"), "built with CUDA None"),
        (("2.13.0", "12.8", "2.8.0", "0.16.1"), "blockwise needs 12.9"),
        (("2.13.0", "13.0", "2.2.0", "0.16.1"), "Transformer Engine is 2.2.0; 2.4 or later"),
        (("2.13.0", "13.0", "2.8.0", "0.15.0"), "megatron-core is 0.15.0"),
    ],
)
def test_versions_that_belong_together(versions: tuple[Any, Any, Any, Any], message: str | None) -> None:
    problems = list(image_problems(*versions))
    assert (problems == []) if message is None else any(message in problem for problem in problems)


def test_te_without_gpu_is_one_clear_error_and_not_a_mock(tmp_path: Path) -> None:
    assert environment("cpu").capability is None
    config = parse(
        f"""
run_dir: {tmp_path}
model: {{preset: tiny, layers: te}}
parallel: {{precision: bf16, device: cpu}}
heads:
  - {{name: a, global_batch_size: 8, bank: {{num_classes: 9}}, source: {{kind: image, shards: [a.tar]}}}}
train: {{steps: 1}}
"""
    )
    with pytest.raises(ConfigError, match=r"this machine cannot run[\s\S]*model\.layers=te needs a CUDA GPU"):
        check_run(config, 1)
