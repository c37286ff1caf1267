"""Transformer Engine's layers, as far as a machine without a GPU can tell.

What is real here: megatron-core's wrappers, our specification, configuration, names, packing. What is not: Transformer Engine,
for which `te_stand_in.py` computes in plain torch. tests/gpu does the rest.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from megatron_ovenc.config import Fp8Config, ModelConfig, ParallelConfig
from megatron_ovenc.model.layer_specs import transformer_config

ROOT = Path(__file__).parents[2]
CASES: dict[str, dict[str, Any]] = {
    "ragged": {"model": {}, "fp8": {}, "recompute": False, "lengths": [3, 7, 7]},
    "alike": {"model": {"norm": "rms_norm"}, "fp8": {}, "recompute": True, "lengths": [8, 8]},
    "tanh": {"model": {"gelu": "tanh"}, "fp8": {}, "recompute": False, "lengths": [8, 8]},
    "tensorwise": {
        "model": {"rope": "rotation"},
        "fp8": {"recipe": "tensorwise", "first_last_bf16": 1},
        "recompute": False,
        "lengths": [9, 9, 2],
    },
    "delayed": {"model": {}, "fp8": {"recipe": "delayed"}, "recompute": False, "lengths": [16]},
}


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    # Without dynamo, megatron-core's fused GELU is its plain formula.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.model.te_stand_in", json.dumps(list(CASES.values()))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return dict(zip(CASES, json.loads(answer.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_same_function_same_names(results: dict[str, dict[str, Any]], case: str) -> None:
    result = results[case]
    limit = 1e-4 if case == "tanh" else 1e-5  # the fused formula has its constants to seven digits
    assert result["outputs"] < limit
    assert result["pooled"] < limit
    assert result["gradients"] < 10 * limit
    assert result["layouts"], "every parameter has the name, shape and cut that it has with sdpa"


def test_module_tree(results: dict[str, dict[str, Any]]) -> None:
    modules = results["ragged"]["modules"]
    assert modules["self_attention.linear_qkv"] == modules["mlp.linear_fc1"] == "TELayerNormColumnParallelLinear"
    assert modules["self_attention.linear_proj"] == modules["mlp.linear_fc2"] == "TERowParallelLinear"
    assert modules["self_attention.core_attention"] == "TEPackedAttention"
    assert modules["input_layernorm"] == modules["pre_mlp_layernorm"] == "IdentityOp"


def test_attention_is_never_causal_and_packs_only_what_is_ragged(results: dict[str, dict[str, Any]]) -> None:
    assert results["ragged"]["attention"] == [["thd", "padding"]] * 3
    assert results["tanh"]["attention"] == [["bshd", "no_mask"]] * 3
    assert results["tensorwise"]["attention"] == [["thd", "padding"]] * 3


def test_which_layers_run_in_fp8(results: dict[str, dict[str, Any]]) -> None:
    assert results["ragged"]["contexts"] == []
    assert results["tensorwise"]["contexts"] == ["Float8CurrentScaling"], "the middle one of three layers"
    assert results["delayed"]["contexts"] == ["TEDelayedScaling"], "once around all layers"


def test_extra_state_exists_and_is_not_saved(results: dict[str, dict[str, Any]]) -> None:
    """`layouts` (equal to sdpa's, above) is what checkpoints are made of."""
    assert any(name.endswith("_extra_state") for name in results["tensorwise"]["state"])


@pytest.mark.parametrize(
    ("recipe", "capability", "fp8", "chosen"),
    [
        ("auto", (9, 0), "hybrid", "tensorwise"),
        ("auto", (10, 0), "e4m3", "mxfp8"),
        ("tensorwise", (9, 0), "hybrid", "tensorwise"),
        ("delayed", (9, 0), "hybrid", "delayed"),
        ("blockwise", (9, 0), "e4m3", "blockwise"),
        ("mxfp8", (10, 0), "e4m3", "mxfp8"),
        (None, (9, 0), None, None),
    ],
)
def test_configuration(recipe: Any, capability: tuple[int, int], fp8: str | None, chosen: str | None) -> None:
    model = ModelConfig(hidden_size=256, ffn_size=1024, num_layers=6, num_heads=4, layers="te")
    kept = 0 if recipe in (None, "delayed") else 2
    parallel = ParallelConfig(precision="bf16", fp8=Fp8Config(recipe=recipe, first_last_bf16=kept))
    config = transformer_config(model, parallel, capability)
    assert config.fp8 == fp8
    if chosen is not None:
        assert config.fp8_recipe == chosen
        assert config.first_last_layers_bf16 is (kept > 0)
        assert config.num_layers_at_start_in_bf16 == config.num_layers_at_end_in_bf16 == kept
    assert not config.fp8_param, "weights are fp32 and sharded; FP8 lives inside products"
    assert config.disable_parameter_transpose_cache, "nobody would tell it that weights have changed"
    assert not config.apply_rope_fusion, "the fused kernel knows no angles per token"
    assert config.layernorm_epsilon == 1e-6
    assert not config.bias_activation_fusion, "the fused GELU is not erf"
    tanh = transformer_config(ModelConfig(gelu="tanh", layers="te"), parallel, capability)
    assert tanh.bias_activation_fusion


def test_wrappers_have_the_signatures_that_we_call() -> None:
    """Read from megatron-core's source: the classes are mocks where Transformer Engine is missing."""
    spec = find_spec("megatron.core")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "extensions" / "transformer_engine.py"
    classes = {node.name: node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)}
    for name, wanted in {
        "TELayerNormColumnParallelLinear": {"input_size", "output_size", "config", "skip_bias_add", "tp_group"},
        "TERowParallelLinear": {"input_size", "output_size", "config", "input_is_parallel", "tp_group"},
        "TEDotProductAttention": {"config", "layer_number", "attn_mask_type", "attention_type", "pg_collection"},
    }.items():
        init = next(x for x in classes[name].body if isinstance(x, ast.FunctionDef) and x.name == "__init__")
        assert wanted <= {x.arg for x in (*init.args.args, *init.args.kwonlyargs)}, name
    forward = next(
        x for x in classes["TEDotProductAttention"].body if isinstance(x, ast.FunctionDef) and x.name == "forward"
    )
    names = [x.arg for x in forward.args.args]
    assert names[:6] == ["self", "query", "key", "value", "attention_mask", "attn_mask_type"]
    assert "packed_seq_params" in names


def test_transformer_engine_is_imported_for_te_only() -> None:
    importers = [
        path.name
        for path in (ROOT / "megatron_ovenc").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformer_engine"))
        or (isinstance(node, ast.Import) and any(a.name.startswith("transformer_engine") for a in node.names))
    ]
    assert importers == ["te_layers.py"]
