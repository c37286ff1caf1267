"""Tensor-parallel linear layers whose three products take FP8 operands: `torch._scaled_mm`, and its arithmetic on a CPU.

    forward    Y [M, N] = X [M, K] W^T        e4m3 x e4m3
    backward   dX[M, K] = dY[M, N] W          e5m2 x e4m3
               dW[N, K] = dY^T[N, M] X        e5m2 x e4m3

Current scaling: a tensor is multiplied by (largest FP8 number) / (its largest magnitude, now), so no history and no state exist,
and a checkpoint knows nothing of FP8. e4m3 (3 bits of mantissa, up to 448) for what is precise, e5m2 (2 bits, up to 57344) for
gradients, whose range is wide (Micikevicius et al., arXiv 2209.05433). Sums are accumulated in fp32.

Where tensor parallelism has cut a tensor, its ranks agree on the magnitude (one number, maximum over the tensor group). A rank
could as well scale its own slice; but then a weight's FP8 values would depend on the tensor size, and so would the training.

What is kept for backward is FP8: X and W cost half of what bf16 keeps. The `Precise...` layers make dW from dY and X as they came,
and keep X so: of the three products it is the one whose rounding training notices first.

Shape suffixes: M tokens of this rank's products, K inputs and N outputs of this rank's slice of the layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch.distributed import ProcessGroup

FORWARD, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2
"""Types of operands: of activations and weights, and of gradients."""
MULTIPLE = 16
"""`_scaled_mm` on CUDA wants inner and output dimensions that divide by this; a check of the configuration refuses others."""
_SMALLEST = 1e-30
"""Stands in for the magnitude of a tensor of zeros."""


def quantize(tensor: torch.Tensor, dtype: torch.dtype, magnitude: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An FP8 tensor and the fp32 scalar that undoes its scale: tensor ~ values * inverse.

    Args:
        tensor: any shape, float.
        dtype: an FP8 type.
        magnitude: fp32 scalar, the largest magnitude of the whole tensor. What is not finite stays so.
    """
    inverse = magnitude.clamp(min=_SMALLEST) / torch.finfo(dtype).max
    return (tensor.float() / inverse).to(dtype), inverse


def magnitudes(tensors: list[torch.Tensor], cut: list[bool], group: ProcessGroup) -> list[torch.Tensor]:
    """Largest magnitude of each tensor, fp32 scalars.

    Args:
        tensors: this rank's slices.
        cut: whether tensor parallelism has cut the tensor, so that other ranks hold the rest of it.
        group: the tensor group.
    """
    largest = torch.stack([tensor.detach().abs().amax().float() for tensor in tensors])
    if any(cut) and group.size() > 1:
        # Maximum over TENSOR: its ranks hold the other slices. Whole tensors are alike on all of them, and may come along.
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return list(largest.unbind())


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """Rows up to a multiple of MULTIPLE, with zeros: tokens are as many as a batch brings, and backward sums over them."""
    return F.pad(rows, (0, 0, 0, -rows.shape[0] % MULTIPLE))


def _product(
    left: torch.Tensor, left_scale: torch.Tensor, right: torch.Tensor, right_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """left [m, k] @ right [n, k]^T in `dtype`; both row-major, as Hopper's FP8 units want them."""
    multiply = scaled_mm_on_cpu if left.device.type == "cpu" else torch._scaled_mm
    return multiply(
        left.contiguous(),
        right.contiguous().t(),
        scale_a=left_scale,
        scale_b=right_scale,
        out_dtype=dtype,
        use_fast_accum=False,
    )


def scaled_mm_on_cpu(
    left: torch.Tensor,
    right: torch.Tensor,
    *,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    out_dtype: torch.dtype,
    use_fast_accum: bool,
) -> torch.Tensor:
    """What `torch._scaled_mm` computes of FP8 operands [m, k], [k, n], which are exact in fp32, in whose sums it adds them too.

    torch has a CPU kernel, but few CPUs multiply FP8: on one that does not, it took a thousand times as long for e4m3 x e4m3.
    """
    assert not use_fast_accum
    return (left.float() @ right.float()).mul_(scale_a * scale_b).to(out_dtype)


class _Fp8Linear(torch.autograd.Function):
    """Y = X W^T, without collectives on tensors: only magnitudes are agreed upon."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs_MK: torch.Tensor,
        weight_NK: torch.Tensor,
        cut_inputs: bool,
        cut_outputs: bool,
        precise: bool,
        group: ProcessGroup,
    ) -> torch.Tensor:
        largest = magnitudes([inputs_MK, weight_NK], [cut_inputs, cut_inputs or cut_outputs], group)
        inputs, inputs_scale = quantize(_padded(inputs_MK), FORWARD, largest[0])
        weight, weight_scale = quantize(weight_NK, FORWARD, largest[1])
        ctx.save_for_backward(inputs_MK if precise else inputs, inputs_scale, weight, weight_scale)
        ctx.precise, ctx.cut_outputs, ctx.group, ctx.weight_dtype = precise, cut_outputs, group, weight_NK.dtype
        return _product(inputs, inputs_scale, weight, weight_scale, inputs_MK.dtype)[: inputs_MK.shape[0]]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient_MN,) = gradients
        inputs, inputs_scale, weight, weight_scale = ctx.saved_tensors
        (largest,) = magnitudes([gradient_MN], [ctx.cut_outputs], ctx.group)
        gradient, gradient_scale = quantize(_padded(gradient_MN), GRADIENT, largest)
        inputs_gradient = _product(gradient, gradient_scale, weight.t(), weight_scale, gradient_MN.dtype)
        if ctx.precise:
            weight_gradient = (gradient_MN.t() @ inputs).to(ctx.weight_dtype)
        else:
            weight_gradient = _product(gradient.t(), gradient_scale, inputs.t(), inputs_scale, ctx.weight_dtype)
        return inputs_gradient[: gradient_MN.shape[0]], weight_gradient, None, None, None, None


def fp8_linear(
    inputs: torch.Tensor,
    weight_NK: torch.Tensor,
    *,
    cut_inputs: bool,
    cut_outputs: bool,
    group: ProcessGroup,
    precise: bool = False,
) -> torch.Tensor:
    """inputs @ weight^T in FP8, differentiable.

    Args:
        inputs: [..., K] in fp32 or bf16; the result and its gradient have this type.
        weight_NK: this rank's slice of the weight.
        cut_inputs: K is a slice of the layer's inputs (row-parallel).
        cut_outputs: N is a slice of the layer's outputs (column-parallel).
        group: the tensor group, over which magnitudes of what is cut are agreed upon.
        precise: make the weight's gradient in the inputs' type.

    Returns:
        [..., N]; a partial sum where inputs are cut.
    """
    flat: torch.Tensor = _Fp8Linear.apply(inputs.flatten(0, -2), weight_NK, cut_inputs, cut_outputs, precise, group)
    return flat.unflatten(0, inputs.shape[:-1])


class Fp8ColumnParallelLinear(ColumnParallelLinear):
    """megatron-core's column-parallel layer (same parameters, same collectives on tensors) with FP8 products."""

    precise = False

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[s, b, input] -> [s, b, output / tensor] and the bias if the caller adds it."""
        assert weight is None and not runtime_gather_output and not self.gather_output
        if self.sequence_parallel:
            # Backward takes the sum over TENSOR of what its outputs say about each token, and this rank's tokens of it.
            inputs = gather_from_sequence_parallel_region(input_, tensor_parallel_output_grad=True, group=self.tp_group)
        else:
            inputs = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        output = fp8_linear(
            inputs, self.weight, cut_inputs=False, cut_outputs=True, group=self.tp_group, precise=self.precise
        )
        if self.skip_bias_add or self.bias is None:
            return output, self.bias
        return output + self.bias, None


class Fp8RowParallelLinear(RowParallelLinear):
    """megatron-core's row-parallel layer (same parameters, same collectives on tensors) with FP8 products."""

    precise = False

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[s, b, input / tensor] -> [s, b, output] and the bias if the caller adds it."""
        assert self.input_is_parallel
        partial = fp8_linear(
            input_, self.weight, cut_inputs=True, cut_outputs=False, group=self.tp_group, precise=self.precise
        )
        reduce = (
            reduce_scatter_to_sequence_parallel_region
            if self.sequence_parallel
            else reduce_from_tensor_model_parallel_region
        )
        output = reduce(partial, group=self.tp_group)
        if self.skip_bias_add or self.bias is None:
            return output, self.bias
        return output + self.bias, None


class PreciseFp8ColumnParallelLinear(Fp8ColumnParallelLinear):
    """The same with weight gradients that FP8 has not rounded."""

    precise = True


class PreciseFp8RowParallelLinear(Fp8RowParallelLinear):
    """The same with weight gradients that FP8 has not rounded."""

    precise = True
