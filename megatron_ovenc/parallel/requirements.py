"""What FP8 and Transformer Engine ask of the machine: pure functions of facts that `device.py` and the package index tell.

FP8 units: compute capability 8.9 (Ada) and later. Blockwise scaling: 9.0 and CUDA 12.9. MXFP8: 10.0 (data-centre Blackwell; 12.x
has none in Transformer Engine). Source: transformer_engine/pytorch/fp8.py of version 2.8 (which of them it refuses where).

    python -m megatron_ovenc.parallel.requirements      # do the packages installed here belong together? (end of the Dockerfile)
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from packaging.version import InvalidVersion, Version

from megatron_ovenc.config import ModelConfig, ParallelConfig

Recipe = Literal["tensorwise", "delayed", "blockwise", "mxfp8"]
OLDEST_TE = Version("2.4")
"""First release whose recipes megatron-core 0.16 knows all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """A machine, as far as FP8 cares."""

    capability: tuple[int, int] | None
    """Compute capability of the GPU; None without one."""
    cuda: str | None
    """Version of CUDA that torch was built with; None for a CPU build."""
    transformer_engine: str | None
    """Installed version; None when it is not installed."""


def installed_transformer_engine() -> str | None:
    """Version of Transformer Engine here, or None. Does not import it: that loads CUDA libraries."""
    try:
        return importlib.metadata.version("transformer-engine")
    except importlib.metadata.PackageNotFoundError:
        return None


def resolve_recipe(recipe: str | None, capability: tuple[int, int] | None) -> Recipe | None:
    """`auto` for a device: mxfp8 where it exists (10.x), else current scaling, which keeps no state."""
    if recipe == "auto":
        return "mxfp8" if capability is not None and capability[0] == 10 else "tensorwise"
    return recipe  # type: ignore[return-value]


def requirement_problems(model: ModelConfig, parallel: ParallelConfig, here: Environment) -> Iterator[str]:
    """What this machine lacks for `model.layers` and `parallel.fp8`, each with the remedy."""
    if model.layers == "te":
        yield from _transformer_engine_problems(here)
        if here.capability is not None and parallel.fp8.recipe is not None:
            yield from _recipe_problems(resolve_recipe(parallel.fp8.recipe, here.capability), here)
    elif model.layers == "fp8_torch" and here.capability is not None:
        yield from _recipe_problems("tensorwise", here)


def _transformer_engine_problems(here: Environment) -> Iterator[str]:
    elsewhere = "or set model.layers to sdpa (any device) or fp8_torch (FP8 by torch itself)"
    if here.capability is None:
        yield f"model.layers=te needs a CUDA GPU, and torch sees none (or parallel.device=cpu); use one, {elsewhere}"
    if here.transformer_engine is None:
        yield (
            "model.layers=te needs Transformer Engine, which is not installed; use the Dockerfile's image, or "
            f"`pip install --no-build-isolation transformer-engine[pytorch]` on the GPU machine, {elsewhere}"
        )
    elif _version(here.transformer_engine) < OLDEST_TE:
        yield f"model.layers=te needs Transformer Engine {OLDEST_TE}, not {here.transformer_engine}; update it, {elsewhere}"


def _recipe_problems(recipe: Recipe | None, here: Environment) -> Iterator[str]:
    assert here.capability is not None
    name = ".".join(map(str, here.capability))
    if here.capability < (8, 9):
        yield (
            f"FP8 needs compute capability 8.9 or later (Ada, Hopper, Blackwell), this GPU has {name}; set model.layers=sdpa, or "
            "model.layers=te without parallel.fp8.recipe"
        )
        return
    if recipe == "blockwise" and (here.capability < (9, 0) or here.capability[0] == 12):
        yield f"parallel.fp8.recipe=blockwise needs Hopper or later data-centre GPUs, this one has {name}; take tensorwise"
    if recipe == "blockwise" and (here.cuda is None or _version(here.cuda) < Version("12.9")):
        yield f"parallel.fp8.recipe=blockwise needs CUDA 12.9, torch was built with {here.cuda}; take tensorwise"
    if recipe == "mxfp8" and here.capability[0] != 10:
        yield f"parallel.fp8.recipe=mxfp8 needs a GPU of capability 10.x (Blackwell), this one has {name}; take tensorwise"


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def image_problems(torch: str, cuda: str | None, transformer_engine: str | None, megatron: str) -> Iterator[str]:
    """What keeps a set of versions from being a GPU image that can run every recipe."""
    if _version(torch).release < (2, 10):
        yield f"torch {torch} lacks torch.nn.attention.varlen; 2.10 has it"
    if cuda is None or _version(cuda) < Version("12.9"):
        yield f"torch was built with CUDA {cuda}; parallel.fp8.recipe=blockwise needs 12.9"
    if transformer_engine is None or _version(transformer_engine) < OLDEST_TE:
        yield f"Transformer Engine is {transformer_engine or 'missing'}; {OLDEST_TE} or later is needed"
    if _version(megatron) < Version("0.16"):
        yield f"megatron-core is {megatron}; 0.16 or later is needed"


def main() -> None:
    """Exit with what is wrong with the packages installed here, for a GPU."""
    import torch

    problems = list(
        image_problems(
            torch.__version__,
            torch.version.cuda,
            installed_transformer_engine(),
            importlib.metadata.version("megatron-core"),
        )
    )
    sys.exit("\n".join(problems) or None)


if __name__ == "__main__":
    main()
