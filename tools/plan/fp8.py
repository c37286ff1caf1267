"""Which FP8 recipes a model's shapes suit on a rank, and how many tokens would be added to its batches."""

from __future__ import annotations

from megatron_ovenc.config import RunConfig
from megatron_ovenc.config.fp8_shapes import MULTIPLES, local_dimensions
from tools.plan.step import HeadLoad


def fp8_fitness(config: RunConfig, heads: tuple[HeadLoad, ...]) -> dict[str, str]:
    """Recipe -> `fits`, with the tokens that are added to a batch, or the dimensions that it does not divide."""
    tensor = config.parallel.tensor
    dimensions = local_dimensions(config.model, tensor)
    split = tensor if config.parallel.sequence_parallel else 1
    fitness = {}
    for recipe, multiple in MULTIPLES.items():
        wrong = [f"{name} = {size}" for name, size in dimensions.items() if size % multiple]
        added = [f"{h.name} {-h.samples * h.longest % (multiple * split)}" for h in heads]
        fitness[recipe] = (
            f"{', '.join(wrong)}: no multiple of {multiple}" if wrong else f"fits; tokens added: {', '.join(added)}"
        )
    return fitness
