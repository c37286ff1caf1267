"""Encoder weights -> a Hugging Face directory with configuration, safetensors, processor, remote code and auto_map.

    python -m tools.pack_model --checkpoint output/run --output encoder/            # newest checkpoint of a run
    python -m tools.pack_model --checkpoint output/run/checkpoints/step_00010000 --output encoder/
    python -m tools.pack_model --checkpoint backbone.pt --output encoder/           # a checkpoint of the reference
    python -m tools.pack_model --checkpoint configs/base.yaml --output untrained/   # what a run would start from

Then, anywhere: AutoModel.from_pretrained("encoder/", trust_remote_code=True). The directory is reloaded and compared with this
project's encoder on random input before it is called done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from megatron_ovenc.config import ModelConfig, ParallelConfig, load
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts, random_values
from megatron_ovenc.model.published import to_published, to_published_config
from megatron_ovenc.train.weights import read_weights
from onevision_encoder import (
    OneVisionEncoderConfig,
    OneVisionEncoderImageProcessor,
    OneVisionEncoderModel,
    save_for_hub,
)
from tools.compare import (
    LARGEST_ROUNDING,
    forward,
    forward_published,
    largest_difference,
    load_strictly,
    random_inputs,
    tell_assumed_heads,
)
from tools.solo import build_encoder, solo_topology


def initial_weights(path: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Model section and published state dict of the encoder that a run configuration starts from."""
    config = load(path)
    if config.model.init is not None:
        return read_weights(Path(config.model.init))
    with solo_topology() as topology:
        encoder = Encoder(replace(config.model, layers="sdpa"), ParallelConfig(), topology)  # initial values are alike
        values = random_values(config.train.seed, config.model.init_std)
        fill_parameters(encoder, parameter_layouts(encoder, topology), topology, values)
        return config.model, to_published({name: p.detach() for name, p in encoder.named_parameters()}, config.model)


def pack(checkpoint: Path, output: Path, image_size: int = 448, num_heads: int | None = None) -> float:
    """Write the directory; returns the largest difference of a forward pass between it and this project's encoder.

    Args:
        checkpoint: anything that `megatron_ovenc.train.weights.read_weights` reads, or a run configuration.
        output: directory to make.
        image_size: pixels to which the processor resizes and crops.
        num_heads: attention heads, where the source does not say (a `.pt` file) and has not 64 channels a head.

    Raises:
        ConfigError: the weights cannot be read or do not make an encoder.
    """
    model, published = (
        initial_weights(checkpoint) if checkpoint.suffix in (".yaml", ".yml") else read_weights(checkpoint)
    )
    if num_heads is not None:
        model = replace(model, num_heads=num_heads)
    config = OneVisionEncoderConfig(**to_published_config(model), image_size=image_size)
    packed = OneVisionEncoderModel(config)
    load_strictly(packed, published, checkpoint)
    size = {"shortest_edge": image_size}
    processor = OneVisionEncoderImageProcessor(size=size, crop_size={"height": image_size, "width": image_size})
    save_for_hub(packed, processor, output)
    with solo_topology() as topology:
        encoder = build_encoder(model, published, str(checkpoint), topology)
        inputs = random_inputs(model.patch_size)
        reloaded = OneVisionEncoderModel.from_pretrained(output)
        return largest_difference(forward(encoder, inputs), forward_published(reloaded, inputs))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Pack encoder weights for Hugging Face.")
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="checkpoint, run directory, run configuration, or reference .pt file",
    )
    parser.add_argument("--output", required=True, type=Path, help="directory to write")
    parser.add_argument("--image-size", type=int, default=448, help="side of the processor's crop in pixels")
    parser.add_argument("--num-heads", type=int, help="for .pt files without 64 channels a head")
    options = parser.parse_args(argv)
    tell_assumed_heads(options.checkpoint, options.num_heads)
    try:
        difference = pack(options.checkpoint, options.output, options.image_size, options.num_heads)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.checkpoint} -> {options.output}: largest difference of a forward pass {difference:.2e}")
    if not difference <= LARGEST_ROUNDING:
        print(
            f"error: that is more than rounding explains ({LARGEST_ROUNDING}); do not use the result", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
