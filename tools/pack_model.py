"""Encoder weights -> a Hugging Face directory: configuration, safetensors, processors, remote code, auto_map, model card.

    python -m tools.pack_model --checkpoint output/run --output encoder/            # newest checkpoint of a run
    python -m tools.pack_model --checkpoint output/run/checkpoints/step_00010000 --output encoder/
    python -m tools.pack_model --checkpoint backbone.pt --output encoder/           # a checkpoint of the reference
    python -m tools.pack_model --checkpoint configs/base_images.yaml --output untrained/   # what a run would start from

Then, anywhere: AutoModel.from_pretrained("encoder/", trust_remote_code=True). Tensors keep their bytes and types. The directory
is reloaded and compared with this project's encoder on random input before it is called done.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from megatron_ovenc.config import ConfigError, HeadConfig, ModelConfig, ParallelConfig, load
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts, random_values
from megatron_ovenc.model.published import to_published
from megatron_ovenc.train.checkpoint import CheckpointError
from megatron_ovenc.train.weights import read_weights
from onevision_encoder import (
    OneVisionEncoderImageProcessor,
    OneVisionEncoderModel,
    OneVisionEncoderVideoProcessor,
    save_for_hub,
)
from tools.arguments import check_makeable
from tools.compare import (
    LARGEST_ROUNDING,
    forward,
    forward_published,
    largest_difference,
    published_model,
    random_inputs,
    tell_assumed_heads,
)
from tools.model_card import find_origin, model_card
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


def pack(
    checkpoint: Path,
    output: Path,
    *,
    image_size: int | None = None,
    num_heads: int | None = None,
    max_shard_size: str = "5GB",
    probe: Path | None = None,
    licence: str | None = None,
) -> float:
    """Write the directory; returns the largest difference of a forward pass between it and this project's encoder.

    Args:
        checkpoint: anything that `megatron_ovenc.train.weights.read_weights` reads, or a run configuration.
        output: directory to make.
        image_size: pixels to which the image processor resizes and crops; by default what the run was trained on, or 448.
        num_heads: attention heads, where the source does not say (a `.pt` file) and has not 64 channels a head.
        max_shard_size: largest file of weights, for instance 500MB.
        probe, licence: as in `tools.model_card.model_card`.

    Raises:
        ConfigError: the weights cannot be read or do not make an encoder, or `output` holds something else.
    """
    _check_output(output, checkpoint)
    if checkpoint.suffix in (".yaml", ".yml"):
        (model, published), origin = initial_weights(checkpoint), None
    else:
        (model, published), origin = read_weights(checkpoint), find_origin(checkpoint)
    if num_heads is not None:
        model = replace(model, num_heads=num_heads)
    heads = origin.config.heads if origin else ()
    packed = published_model(model, published, checkpoint, _image_size(heads) if image_size is None else image_size)
    card = model_card(packed, output.resolve().name, origin, probe, licence)
    side = packed.config.image_size
    image_processor = OneVisionEncoderImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    save_for_hub(packed, image_processor, _video_processor(model, heads), output, max_shard_size)
    (output / "README.md").write_text(card)
    with solo_topology() as topology:
        encoder = build_encoder(model, published, str(checkpoint), topology)
        inputs = random_inputs(model.patch_size)
        reloaded = OneVisionEncoderModel.from_pretrained(output, dtype=torch.float32)
        return largest_difference(forward(encoder, inputs), forward_published(reloaded, inputs))


def _check_output(output: Path, checkpoint: Path) -> None:
    """A README.md and a config.json that are not an earlier export's must not be written over, nor the weights being read."""
    check_makeable(output)
    if output.resolve() == checkpoint.resolve():
        raise ConfigError(f"--output {output} is the directory that is read: give another one")
    if output.is_dir() and any(output.iterdir()) and not (output / "config.json").is_file():
        raise ConfigError(f"--output {output} holds files, but no exported model: give a new directory")


def _image_size(heads: Sequence[HeadConfig]) -> int:
    return max((head.source.size for head in heads if head.source.kind == "image"), default=448)


def _video_processor(model: ModelConfig, heads: Sequence[HeadConfig]) -> OneVisionEncoderVideoProcessor:
    """What the run's first video head saw, or else a clip as in the reference's recipe: frames of 16 x 16 patches."""
    source = next((head.source for head in heads if head.source.kind == "video"), None)
    if source is None:
        side = 16 * model.patch_size
        return OneVisionEncoderVideoProcessor(size={"height": side, "width": side}, patch_size=model.patch_size)
    return OneVisionEncoderVideoProcessor(
        size={"height": source.size, "width": source.size},
        patch_size=model.patch_size,
        num_tokens=source.tokens,
        num_frames=source.num_frames,
        virtual_frames=source.clip_frames,
        i_frames=source.i_frames,
    )


def _shard_size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size of a file: give a number and KB, MB, GB or TB, as in 500MB"
        )
    return text


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
    parser.add_argument(
        "--image-size", type=int, help="side of the image processor's crop in pixels (default: the run's, or 448)"
    )
    parser.add_argument("--num-heads", type=int, help="for .pt files without 64 channels a head")
    parser.add_argument(
        "--max-shard-size", default="5GB", type=_shard_size, help="largest file of weights, for instance 500MB"
    )
    parser.add_argument("--probe", type=Path, help="JSON of eval.attentive_probe or eval.knn, for the model card")
    parser.add_argument("--licence", help="of the weights, for the model card, for instance apache-2.0")
    options = parser.parse_args(argv)
    tell_assumed_heads(options.checkpoint, options.num_heads)
    try:
        difference = pack(
            options.checkpoint,
            options.output,
            image_size=options.image_size,
            num_heads=options.num_heads,
            max_shard_size=options.max_shard_size,
            probe=options.probe,
            licence=options.licence,
        )
    except (ValueError, OSError, CheckpointError) as error:
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
