"""A stand-in for Transformer Engine, which needs a GPU: the three modules that we use, in plain torch, and names for the rest.

    python -m tests.model.te_stand_in <JSON list of cases>        # prints a JSON list of results; see `run`

Signatures and parameter names are those of transformer_engine 2.8.0 (pytorch/module/{linear,layernorm_linear}.py,
pytorch/attention/dot_product_attention/dot_product_attention.py), so that megatron-core's own wrappers, the specification, names
and packing are exercised for real; kernels and FP8 are not. A process of its own, because megatron-core looks for Transformer
Engine once, when it is imported.
"""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import contextmanager, nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec as ImportSpec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CONTEXTS: list[str] = []
"""Recipes of the FP8 contexts that megatron-core opened."""
LAYOUTS: list[tuple[str, str]] = []
"""(layout, mask) of every attention call."""


class Linear(nn.Module):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Any = None,
        rng_tracker_name: str | None = None,
        init_method: Any = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        device: torch.device | str = "cuda",
        save_original_input: bool = False,
    ) -> None:
        super().__init__()
        assert tp_size == 1 and not fuse_wgrad_accumulation and params_dtype == torch.float32
        self.save_original_input = save_original_input
        self.in_features, self.out_features, self.return_bias = in_features, out_features, return_bias
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device))
        self.bias = nn.Parameter(torch.empty(out_features, device=device)) if bias else None

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        pass

    def forward(self, inp: torch.Tensor, is_first_microbatch: bool | None = None) -> Any:
        assert is_first_microbatch is None, "FP8 copies of weights must not outlive a forward pass"
        if self.return_bias:
            return F.linear(inp, self.weight), self.bias
        return F.linear(inp, self.weight, self.bias)


class LayerNormLinear(Linear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        normalization: str = "LayerNorm",
        return_layernorm_output: bool = False,
        zero_centered_gamma: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        assert not return_layernorm_output and not zero_centered_gamma
        self.eps, self.normalization = eps, normalization
        self.layer_norm_weight = nn.Parameter(torch.empty(in_features, device=options["device"]))
        if normalization == "LayerNorm":
            self.layer_norm_bias = nn.Parameter(torch.empty(in_features, device=options["device"]))

    def forward(self, inp: torch.Tensor, is_first_microbatch: bool | None = None) -> Any:
        shape = (self.in_features,)
        if self.normalization == "LayerNorm":
            inp = F.layer_norm(inp, shape, self.layer_norm_weight, self.layer_norm_bias, self.eps)
        else:
            inp = F.rms_norm(inp, shape, self.layer_norm_weight, self.eps)
        return super().forward(inp, is_first_microbatch)


class DotProductAttention(nn.Module):
    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        window_size: tuple[int, int] | None = None,
        sequence_parallel: bool = False,
        tp_size: int = 1,
        get_rng_state_tracker: Any = None,
        tp_group: Any = None,
        layer_number: int | None = None,
        attention_type: str = "self",
        softmax_scale: float | None = None,
    ) -> None:
        super().__init__()
        assert attention_dropout == 0 and softmax_scale is None and num_gqa_groups == num_attention_heads

    def forward(
        self,
        query_layer: torch.Tensor,
        key_layer: torch.Tensor,
        value_layer: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        qkv_format: str | None = None,
        cu_seqlens_q: torch.Tensor | None = None,
        cu_seqlens_kv: torch.Tensor | None = None,
        cu_seqlens_q_padded: torch.Tensor | None = None,
        cu_seqlens_kv_padded: torch.Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_kv: int | None = None,
        attn_mask_type: str | None = None,
    ) -> torch.Tensor:
        LAYOUTS.append((str(qkv_format), str(attn_mask_type)))
        operands = (query_layer, key_layer, value_layer)
        if qkv_format == "bshd":
            output = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in operands))
            return output.transpose(1, 2).flatten(2)
        assert qkv_format == "thd" and cu_seqlens_q is not None and cu_seqlens_q.dtype == torch.int32
        assert cu_seqlens_kv is not None and max_seqlen_q == max_seqlen_kv == int(cu_seqlens_q.diff().max())
        parts = zip(*(x.split(cu_seqlens_q.diff().tolist()) for x in operands), strict=True)
        outputs = [F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in part)) for part in parts]
        return torch.cat([output.transpose(0, 1) for output in outputs]).flatten(1)


@contextmanager
def fp8_autocast(enabled: bool = True, fp8_recipe: Any = None, fp8_group: Any = None) -> Any:
    CONTEXTS.append(type(fp8_recipe).__name__)
    yield


def checkpoint(function: Any, *args: Any, use_reentrant: bool = True, **options: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=use_reentrant, **options)


class _Name(nn.Module):
    """Whatever else is imported by name, and a recipe when it is called."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()


def get_cpu_offload_context(*args: Any) -> Any:
    return nullcontext(), lambda tensor: tensor


class _SplitAlongDim:
    @staticmethod
    def apply(tensor: torch.Tensor, dim: int, sizes: list[int]) -> tuple[torch.Tensor, ...]:
        return torch.split(tensor, sizes, dim=dim)


KNOWN: dict[str, Any] = {
    x.__name__: x
    for x in (
        Linear,
        LayerNormLinear,
        DotProductAttention,
        fp8_autocast,
        checkpoint,
        get_cpu_offload_context,
        _SplitAlongDim,
    )
}


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = KNOWN.get(name)
        if known is not None:
            return known
        if name.islower():
            return importlib.import_module(f"{self.__name__}.{name}")
        return type(name, (_Name,), {"E4M3": "E4M3", "HYBRID": "HYBRID"})


class StandIn(MetaPathFinder, Loader):
    """Answers every import of transformer_engine and what is below it."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ImportSpec | None:
        if fullname.split(".")[0] != "transformer_engine":
            return None
        return ImportSpec(fullname, self, is_package=True)

    def create_module(self, spec: ImportSpec) -> ModuleType:
        module = _Module(spec.name)
        module.__version__ = "2.8.0"  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Build the same encoder of both kinds of layers, and compare.

    Args:
        case: keys `model` and `fp8` (of those sections), `recompute`, `lengths` (tokens of each sample).
    """
    CONTEXTS.clear()
    LAYOUTS.clear()
    from dataclasses import replace

    from megatron_ovenc.config import Fp8Config, ModelConfig, ParallelConfig
    from megatron_ovenc.model.encoder import Encoder
    from megatron_ovenc.model.parameters import fill_parameters, named_parameters, parameter_layouts, random_values
    from tools.solo import solo_topology

    model = ModelConfig(hidden_size=64, ffn_size=128, num_layers=3, num_heads=2, layers="te", **case["model"])
    fp8 = Fp8Config(**case["fp8"])
    with solo_topology() as topology:
        encoders = []
        for layers, parallel in (
            ("sdpa", ParallelConfig()),
            ("te", ParallelConfig(precision="bf16", fp8=fp8, recompute=case["recompute"])),
        ):
            encoder = Encoder(replace(model, layers=layers), parallel, topology)  # type: ignore[arg-type]
            layouts = parameter_layouts(encoder, topology)
            values = random_values(0, 0.1)
            fill_parameters(encoder, layouts, topology, lambda n, s, v=values: v(n, s) + 0.1 * ("norm" in n))
            encoders.append((encoder, layouts))
        generator = torch.Generator().manual_seed(0)
        lengths = torch.tensor([0, *case["lengths"]], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        count = int(lengths[-1])
        patches = torch.randn(count, 588, generator=generator)
        positions = torch.randint(0, 9, (count, 3), generator=generator)
        outputs, gradients = [], []
        for encoder, _ in encoders:
            output = encoder(patches, positions, lengths)
            output.pooled.square().sum().backward()
            outputs.append(output)
            gradients.append({n: p.grad for n, p in named_parameters(encoder).items()})
    te = encoders[1][0]
    return {
        "outputs": (outputs[0].last_hidden - outputs[1].last_hidden).abs().max().item(),
        "pooled": (outputs[0].pooled - outputs[1].pooled).abs().max().item(),
        "gradients": max((g - gradients[1][n]).abs().max().item() for n, g in gradients[0].items()),
        "layouts": encoders[0][1] == encoders[1][1],
        "state": sorted(te.state_dict()),
        "modules": {n: type(m).__name__ for n, m in te.block.layers[0].named_modules() if n},
        "contexts": list(CONTEXTS),
        "attention": list(LAYOUTS),
    }


if __name__ == "__main__":
    sys.meta_path.insert(0, StandIn())
    torch.set_num_threads(1)
    print(json.dumps([run(case) for case in json.loads(sys.argv[1])]))
