"""FP8 linear layers: what they compute, how far it is from fp32, and that no layout changes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_ovenc.config import ModelConfig, ParallelConfig
from megatron_ovenc.model import fp8_linear as module
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.fp8_linear import Fp8ColumnParallelLinear, Fp8RowParallelLinear, fp8_linear, quantize
from megatron_ovenc.model.layer_specs import transformer_config
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts, random_values
from megatron_ovenc.parallel.topology import Topology
from tests.rank_pool import RankPool

MODEL = ModelConfig(hidden_size=64, ffn_size=160, num_layers=4, num_heads=2, layers="fp8_torch")
FORWARD_ERROR, GRADIENT_ERROR = 0.045, 0.07
"""Relative to the fp32 product of normal numbers: 3 bits of mantissa on either side, or 2 on one."""


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor as FP8 with one scale knows it, written down independently of the layer."""
    factor = torch.finfo(dtype).max / tensor.abs().max()
    return (tensor * factor).to(dtype).float() / factor


def products(topology: Topology, tokens: int, precise: bool = False) -> list[torch.Tensor]:
    """Inputs, weight, upstream gradient; and what the layer makes of them."""
    inputs, weight, upstream = (
        normal(tokens, 48, seed=1),
        0.02 * normal(32, 48, seed=2),
        1e-6 * normal(tokens, 32, seed=3),
    )
    inputs.requires_grad_()
    weight.requires_grad_()
    output = fp8_linear(
        inputs, weight, cut_inputs=False, cut_outputs=True, group=topology.tensor_group, precise=precise
    )
    output.backward(upstream)
    assert inputs.grad is not None and weight.grad is not None
    return [x.detach() for x in (inputs, weight, upstream, output, inputs.grad, weight.grad)]


@pytest.mark.parametrize("tokens", [32, 37])
def test_precise_layers_round_no_weight_gradient(rank_pool: RankPool, tokens: int) -> None:
    inputs, _weight, upstream, output, inputs_grad, weight_grad = rank_pool.run(products, world=1, args=(tokens, True))[
        0
    ]
    torch.testing.assert_close(weight_grad, upstream.t() @ inputs)
    *_, plain_output, plain_inputs_grad, _ = rank_pool.run(products, world=1, args=(tokens,))[0]
    assert torch.equal(output, plain_output)
    assert torch.equal(inputs_grad, plain_inputs_grad)


@pytest.mark.parametrize("tokens", [32, 37, 1])
def test_products_are_those_of_scaled_and_rounded_operands(rank_pool: RankPool, tokens: int) -> None:
    """37 tokens: rows are padded to 48 for the products and dropped again."""
    inputs, weight, upstream, *ours = rank_pool.run(products, world=1, args=(tokens,))[0]
    x, w = rounded(inputs, torch.float8_e4m3fn), rounded(weight, torch.float8_e4m3fn)
    g = rounded(upstream, torch.float8_e5m2)
    for actual, expected in zip(ours, (x @ w.t(), g @ w, g.t() @ x), strict=True):
        assert actual.shape == expected.shape
        assert relative(actual, expected) < 1e-5
    if tokens > 1:
        exact = (inputs @ weight.t(), upstream @ weight, upstream.t() @ inputs)
        for actual, expected, limit in zip(ours, exact, (FORWARD_ERROR, GRADIENT_ERROR, GRADIENT_ERROR), strict=True):
            assert relative(actual, expected) < limit


def test_a_tensor_uses_the_whole_range_and_keeps_what_is_not_finite() -> None:
    tensor = 1e-5 * normal(1000)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        values, inverse = quantize(tensor, dtype, tensor.abs().max())
        assert values.float().abs().max() == torch.finfo(dtype).max
        assert inverse.item() == pytest.approx(tensor.abs().max().item() / torch.finfo(dtype).max)
    zeros, inverse = quantize(torch.zeros(4), torch.float8_e4m3fn, torch.zeros(()))
    assert torch.equal(zeros.float() * inverse, torch.zeros(4))
    for bad in (float("inf"), float("nan")):
        values, inverse = quantize(torch.tensor([1.0, bad]), torch.float8_e5m2, torch.tensor(bad))
        assert not (values.float() * inverse)[1].isfinite()


def small_gradients(topology: Topology) -> torch.Tensor:
    """One huge gradient must not wipe out those a million times smaller: the reason for e5m2."""
    weight, inputs = torch.eye(16).requires_grad_(), torch.ones(2, 16, requires_grad=True)
    upstream = torch.full((2, 16), 1e-6)
    upstream[0, 0] = 1.0
    fp8_linear(inputs, weight, cut_inputs=False, cut_outputs=True, group=topology.tensor_group).backward(upstream)
    assert inputs.grad is not None
    return inputs.grad


def test_gradients_have_a_wide_range(rank_pool: RankPool) -> None:
    gradient = rank_pool.run(small_gradients, world=1)[0]
    assert gradient[1] == pytest.approx(torch.full((16,), 1e-6), rel=0.15)


def column_then_row(topology: Topology, sequence_parallel: bool, tokens: int) -> dict[str, torch.Tensor]:
    """An MLP's two layers without what is between; whole inputs, gradients and outputs, by name."""
    parallel = ParallelConfig(tensor=topology.tensor, sequence_parallel=sequence_parallel)
    config, group, rank = transformer_config(MODEL, parallel), topology.tensor_group, topology.tensor_rank
    options: dict[str, Any] = {"config": config, "init_method": None, "bias": False, "tp_group": group}
    column = Fp8ColumnParallelLinear(64, 160, gather_output=False, **options)
    row = Fp8RowParallelLinear(160, 64, input_is_parallel=True, skip_bias_add=True, **options)
    # Magnitudes grow along what is cut, so that ranks disagree about the largest.
    growing = torch.linspace(1, 9, 160)
    whole = (normal(160, 64, seed=4) * growing[:, None], normal(64, 160, seed=5) * growing)
    column.weight.data = whole[0].chunk(topology.tensor, 0)[rank].contiguous()
    row.weight.data = whole[1].chunk(topology.tensor, 1)[rank].contiguous()

    def mine(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.chunk(topology.tensor, 0)[rank].clone() if sequence_parallel else tensor.clone()

    inputs = mine(normal(tokens, 1, 64, seed=6)).requires_grad_()
    middle = column(inputs)[0]
    middle.retain_grad()
    output = row(middle)[0]
    output.backward(mine(normal(tokens, 1, 64, seed=7)))

    def gathered(tensor: torch.Tensor | None, axis: int | None) -> torch.Tensor:
        assert tensor is not None
        if axis is None:
            return tensor.detach()
        parts = [torch.empty_like(tensor) for _ in range(topology.tensor)]
        dist.all_gather(parts, tensor.detach().contiguous(), group=group)
        return torch.cat(parts, axis)

    tokens_axis = 0 if sequence_parallel else None
    return {
        "output": gathered(output, tokens_axis),
        "inputs": gathered(inputs.grad, tokens_axis),
        "middle": gathered(middle.grad, 2),
        "column": gathered(column.weight.grad, 0),
        "row": gathered(row.weight.grad, 1),
    }


@pytest.mark.parametrize(("tensor", "sequence_parallel"), [(2, False), (2, True)])
def test_tensor_parallelism_changes_nothing(rank_pool: RankPool, tensor: int, sequence_parallel: bool) -> None:
    """Ranks agree on magnitudes of what is cut, so even the FP8 values are those of one rank."""
    one = rank_pool.run(column_then_row, world=1, args=(False, 36))[0]
    for many in rank_pool.run(column_then_row, world=tensor, tensor=tensor, args=(sequence_parallel, 36)):
        for name, expected in one.items():
            # The order of sums differs between layouts, and may push a value in ten thousand over a rounding edge.
            assert relative(many[name], expected) < 1e-3, name


def encoder_outputs(topology: Topology, layers: str, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Pooled embeddings and all gradients of a small encoder on a ragged batch."""
    torch.manual_seed(0)
    model = ModelConfig(hidden_size=64, ffn_size=160, num_layers=4, num_heads=2, layers=layers)  # type: ignore[arg-type]
    encoder = Encoder(model, ParallelConfig(tensor=topology.tensor, **options), topology)
    layouts = parameter_layouts(encoder, topology)
    fill_parameters(encoder, layouts, topology, random_values(1, 0.1))
    lengths = torch.tensor([0, 5, 22, 31], dtype=torch.int32)
    patches, positions = normal(31, 588), torch.arange(93).view(31, 3) % 7
    output = encoder(patches, positions, lengths)
    output.pooled.square().sum().backward()
    result = {"pooled": output.pooled.detach()}
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        if layouts[name].split_axis is None and not layouts[name].partial_gradient:
            result[name] = parameter.grad
    return result


@pytest.mark.parametrize(
    ("tensor", "options"), [(1, {}), (1, {"recompute": True}), (2, {}), (2, {"sequence_parallel": True})]
)
def test_encoder_in_fp8_is_near_the_one_in_fp32(rank_pool: RankPool, tensor: int, options: dict[str, Any]) -> None:
    exact = rank_pool.run(encoder_outputs, world=1, args=("sdpa", {}))[0]
    for ours in rank_pool.run(encoder_outputs, world=tensor, tensor=tensor, args=("fp8_torch", options)):
        assert 1e-4 < relative(ours["pooled"], exact["pooled"]) < 0.05, "FP8 is used, and near"
        for name, gradient in ours.items():
            assert relative(gradient, exact[name]) < 0.2, name


def first_and_last(topology: Topology, kept: int) -> tuple[list[str], list[str]]:
    from megatron_ovenc.config import Fp8Config

    encoder = Encoder(MODEL, ParallelConfig(fp8=Fp8Config(first_last_bf16=kept)), topology)
    kinds = [type(layer.mlp.linear_fc1).__name__ for layer in encoder.block.layers]
    others = [
        type(m).__name__ for n, m in encoder.named_modules() if not n.startswith("block.") and "Fp8" in str(type(m))
    ]
    return kinds, others


def test_first_and_last_blocks_and_the_rest_stay_out_of_fp8(rank_pool: RankPool) -> None:
    kinds, others = rank_pool.run(first_and_last, world=1, args=(1,))[0]
    assert kinds == ["ColumnParallelLinear", *["Fp8ColumnParallelLinear"] * 2, "ColumnParallelLinear"]
    assert others == []


def product_shapes(topology: Topology, tokens: int) -> list[tuple[int, ...]]:
    """Shapes of all operands of products in forward and backward of a layer; a GPU's reach `_scaled_mm` alike."""
    seen, original = [], module.scaled_mm_on_cpu

    def spy(left: torch.Tensor, right: torch.Tensor, **options: Any) -> torch.Tensor:
        # cuBLAS's rules, which the CPU does not enforce.
        assert left.is_contiguous() and right.t().is_contiguous()
        assert (left.dtype, right.dtype) != (torch.float8_e5m2, torch.float8_e5m2)
        assert options["use_fast_accum"] is False
        seen.extend([tuple(left.shape), tuple(right.shape)])
        return original(left, right, **options)

    module.scaled_mm_on_cpu = spy  # type: ignore[assignment]
    try:
        products(topology, tokens)
    finally:
        module.scaled_mm_on_cpu = original
    return seen


def test_products_have_the_shapes_that_cublas_takes(rank_pool: RankPool) -> None:
    shapes = rank_pool.run(product_shapes, world=1, args=(37,))[0]
    assert len(shapes) == 6
    assert all(size % 16 == 0 for shape in shapes for size in shape), shapes


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("left", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_cpu_products_are_those_of_scaled_mm(left: torch.dtype, out: torch.dtype) -> None:
    a, b = (normal(32, 48, seed=1) * 50).to(left), (normal(16, 48, seed=2) * 50).to(torch.float8_e4m3fn)
    options = {"scale_a": torch.tensor(0.3), "scale_b": torch.tensor(0.07), "out_dtype": out, "use_fast_accum": False}
    ours, expected = module.scaled_mm_on_cpu(a, b.t(), **options), torch._scaled_mm(a, b.t(), **options)
    assert ours.dtype == out
    tolerance = 1e-6 if out == torch.float32 else 2**-7  # sums in another order; bf16 may round the other way
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=1e-3)
