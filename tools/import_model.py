"""Published encoder weights -> a checkpoint of ours, which `model.init` takes on any layout.

    python -m tools.import_model --input encoder/ --output imported/          # a Hugging Face directory
    python -m tools.import_model --input backbone.pt --output imported/       # a checkpoint of the reference

The checkpoint holds the encoder alone, in the type of its source: banks and optimizer start with the run. It is read back and
compared with the Hugging Face model on random input. Packing it again gives the source's tensors, bit for bit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_ovenc.config import CheckpointConfig, ConfigError, RunConfig, TrainConfig, dump
from megatron_ovenc.model.published import published_values
from megatron_ovenc.parallel.rectangle import Rectangle
from megatron_ovenc.train.checkpoint import Checkpointer, checkpoint_path
from megatron_ovenc.train.checkpoint_reader import CheckpointError
from megatron_ovenc.train.weights import read_weights
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
from tools.solo import build_encoder, solo_topology


def import_model(source: Path, output: Path, num_heads: int | None = None) -> tuple[Path, float]:
    """Write the checkpoint of step 0 under `output`.

    Returns:
        Its path, and the largest difference of a forward pass between what it holds and the Hugging Face model.

    Raises:
        ConfigError: the weights cannot be read or do not make an encoder, or `output` is taken or cannot be written.
    """
    _check_output(output)
    model, published = read_weights(source)
    if num_heads is not None:
        model = replace(model, num_heads=num_heads)
    described = RunConfig(run_dir=str(output), model=model, heads=(), train=TrainConfig(steps=1))
    hugging_face = published_model(model, published, source)
    values = published_values(published, model, str(source))
    with solo_topology() as topology:
        encoder = build_encoder(model, published, str(source), topology)
        # The source's own tensors, not the encoder's copies: those are all float32.
        tensors = {
            f"encoder.{name}": Rectangle.of(values(name, tuple(p.shape)), p.shape, [0] * p.dim())
            for name, p in encoder.named_parameters()
        }
        writer = Checkpointer(output, CheckpointConfig(keep_last=0, asynchronous=False), dump(described))
        writer.save(tensors, {"step": 0})
        written = checkpoint_path(output, 0)
        read_back = build_encoder(model, read_weights(written)[1], str(written), topology)
        inputs = random_inputs(model.patch_size)
        return written, largest_difference(forward(read_back, inputs), forward_published(hugging_face.float(), inputs))


def _check_output(output: Path) -> None:
    """A checkpoint of step 0 beside a run's own would be taken for its beginning."""
    check_makeable(output)
    if output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"--output {output} is not empty: give a new directory, or remove it first")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Import published encoder weights.")
    parser.add_argument(
        "--input", required=True, type=Path, help="Hugging Face directory (sharded or not) or reference .pt file"
    )
    parser.add_argument("--output", required=True, type=Path, help="directory for the checkpoint")
    parser.add_argument("--num-heads", type=int, help="for .pt files without 64 channels a head")
    options = parser.parse_args(argv)
    tell_assumed_heads(options.input, options.num_heads)
    try:
        written, difference = import_model(options.input, options.output, options.num_heads)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.input} -> {written}: largest difference of a forward pass {difference:.2e}")
    if not difference <= LARGEST_ROUNDING:
        print(
            f"error: that is more than rounding explains ({LARGEST_ROUNDING}); do not use the result", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
