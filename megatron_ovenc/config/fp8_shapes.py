"""Which shapes FP8 products accept, checked on the configuration alone.

A layer's product has three dimensions: tokens, inputs, outputs, the last two cut by tensor parallelism. cuBLAS wants 16 bytes
at a time; MXFP8 scales runs of 32 numbers, the blockwise recipe tiles of 128 x 128 (Transformer Engine's documentation).
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_ovenc.config.tree import ModelConfig, ParallelConfig

MULTIPLES = {"tensorwise": 16, "delayed": 16, "mxfp8": 32, "blockwise": 128}
"""Recipe -> number that must divide inputs and outputs of a rank's products."""


def multiple_of(model: ModelConfig, parallel: ParallelConfig) -> int:
    """Number that must divide inputs and outputs of a rank's products; 1 without FP8. `auto` must suit either choice."""
    if model.layers == "fp8_torch":
        return MULTIPLES["tensorwise"]
    if model.layers == "te" and parallel.fp8.recipe is not None:
        return MULTIPLES["mxfp8" if parallel.fp8.recipe == "auto" else parallel.fp8.recipe]
    return 1


def token_multiple(model: ModelConfig, parallel: ParallelConfig) -> int:
    """Number that must divide a batch's tokens on all tensor ranks together; the encoder adds what is missing.

    Sequence parallelism deals tokens out evenly. Transformer Engine's FP8 layers want each rank's share to be a multiple, too
    (those of `fp8_torch` see to it themselves).
    """
    per_rank = multiple_of(model, parallel) if model.layers == "te" else 1
    return per_rank * (parallel.tensor if parallel.sequence_parallel else 1)


def local_dimensions(model: ModelConfig, tensor: int) -> dict[str, int]:
    """Inputs and outputs of the blocks' products on one of `tensor` ranks, by the expression that gives them."""
    return {
        "model.hidden_size": model.hidden_size,
        "model.hidden_size / parallel.tensor": model.hidden_size // tensor,
        "3 x model.hidden_size / parallel.tensor": 3 * model.hidden_size // tensor,
        "model.ffn_size / parallel.tensor": model.ffn_size // tensor,
    }


def fp8_problems(model: ModelConfig, parallel: ParallelConfig) -> Iterator[str]:
    """What keeps this configuration from running in FP8, each with the key to change."""
    recipe, kept = parallel.fp8.recipe, parallel.fp8.first_last_bf16
    if model.layers == "sdpa" and (recipe is not None or kept):
        yield "parallel.fp8 has no effect with model.layers=sdpa; set model.layers to te or fp8_torch, or remove the section"
        return
    if parallel.fp8.weight_gradient != "fp8" and model.layers == "te":
        yield "parallel.fp8.weight_gradient=high is known to model.layers=fp8_torch only; remove it, or change model.layers"
    if model.layers == "fp8_torch" and recipe not in (None, "tensorwise"):
        yield f"parallel.fp8.recipe={recipe} is not one that model.layers=fp8_torch knows; take tensorwise, or layers=te"
    if model.layers == "te" and parallel.precision != "bf16":
        yield f"model.layers=te computes in bf16; set parallel.precision=bf16 (it is {parallel.precision})"
    if model.layers == "te" and recipe is None and kept:
        yield f"parallel.fp8.first_last_bf16={kept} has no effect without parallel.fp8.recipe; set one, or remove it"
    if kept < 0 or 2 * kept > model.num_layers:
        yield f"parallel.fp8.first_last_bf16={kept} must lie between 0 and half of model.num_layers={model.num_layers}"
    if recipe == "delayed" and kept:
        yield "parallel.fp8.recipe=delayed cannot leave blocks out (first_last_bf16): its scales are kept for all; take tensorwise"
    multiple = multiple_of(model, parallel)
    for name, size in local_dimensions(model, parallel.tensor).items():
        if size % multiple:
            key = name.split(" x ")[-1].split(" / ")[0]
            yield (
                f"{name} = {size} is no multiple of {multiple}, which model.layers={model.layers}"
                f"{f' with parallel.fp8.recipe={recipe}' if recipe else ''} needs; change {key} or parallel.tensor"
                f"{', or take a recipe with smaller tiles' if multiple > 16 else ''}"
            )
