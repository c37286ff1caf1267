"""The encoder equals the reference on every layout, and treats a sample as a bag of positioned patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from megatron_ovenc.config import ModelConfig, ParallelConfig
from megatron_ovenc.model.encoder import Encoder, EncoderOutput
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts, random_values
from megatron_ovenc.model.published import published_values, to_published
from megatron_ovenc.model.rope import rotary_angles
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.weights import read_model, read_weights
from tests.model.golden import CASES, golden_batch
from tests.rank_pool import RankPool

TOLERANCE = 1e-5


def golden_encoder(topology: Topology, golden: Path, parallel: ParallelConfig) -> Encoder:
    model, published = read_weights(golden / "tiny")
    encoder = Encoder(model, parallel, topology)
    fill_parameters(
        encoder, parameter_layouts(encoder, topology), topology, published_values(published, model, "golden")
    )
    return encoder


def golden_errors(topology: Topology, golden: Path, parallel: ParallelConfig) -> dict[str, float]:
    cases = load_file(golden / "tiny" / "cases.safetensors")
    encoder = golden_encoder(topology, golden, parallel)
    errors = {}
    for case in CASES:
        with torch.no_grad():
            output = encoder(*golden_batch(cases, case, encoder.config.patch_size))
        tokens = (output.last_hidden - cases[f"{case}.last_hidden_state"].flatten(0, 1)).abs().max()
        pooled = (output.pooled - cases[f"{case}.pooler_output"]).abs().max()
        errors[case] = max(tokens.item(), pooled.item())
    return errors


@pytest.mark.parametrize(("tensor", "sequence_parallel"), [(1, False), (2, False), (2, True), (4, False), (4, True)])
def test_golden_outputs(rank_pool: RankPool, golden: Path, tensor: int, sequence_parallel: bool) -> None:
    parallel = ParallelConfig(tensor=tensor, sequence_parallel=sequence_parallel)
    for errors in rank_pool.run(golden_errors, world=tensor, tensor=tensor, args=(golden, parallel)):
        assert all(error <= TOLERANCE for error in errors.values()), errors


def packed(encoder: Encoder, samples: list[tuple[torch.Tensor, torch.Tensor]]) -> EncoderOutput:
    lengths = torch.tensor([0, *torch.tensor([len(p) for p, _ in samples]).cumsum(0)], dtype=torch.int32)
    return encoder(torch.cat([p for p, _ in samples]), torch.cat([q for _, q in samples]), lengths)


def bag_of_patches(topology: Topology, golden: Path, parallel: ParallelConfig) -> None:
    """Order inside a sample, company in the batch and raggedness change nothing."""
    encoder = golden_encoder(topology, golden, parallel).eval()
    generator = torch.Generator().manual_seed(1)
    samples = [
        (
            torch.randint(0, 256, (n, 588), generator=generator, dtype=torch.uint8),
            torch.randint(0, 40, (n, 3), generator=generator),
        )
        for n in (5, 5, 1, 17, 3)
    ]
    with torch.no_grad():
        together = packed(encoder, samples)
        alone = [packed(encoder, [sample]) for sample in samples]
        torch.testing.assert_close(together.last_hidden, torch.cat([o.last_hidden for o in alone]), atol=1e-5, rtol=0)
        torch.testing.assert_close(together.pooled, torch.cat([o.pooled for o in alone]), atol=1e-5, rtol=0)
        order = torch.randperm(17, generator=generator)
        shuffled = packed(encoder, [(samples[3][0][order], samples[3][1][order])])
        torch.testing.assert_close(shuffled.last_hidden, alone[3].last_hidden[order], atol=1e-5, rtol=0)
        torch.testing.assert_close(shuffled.pooled, alone[3].pooled, atol=1e-5, rtol=0)
        moved = packed(encoder, [(samples[3][0], samples[3][1] + torch.tensor([0, 1, 0]))])
        assert (moved.pooled - alone[3].pooled).abs().max() > 1e-3, "positions must matter"


@pytest.mark.parametrize(("tensor", "sequence_parallel"), [(1, False), (4, True)])
def test_a_sample_is_a_bag_of_positioned_patches(
    rank_pool: RankPool, golden: Path, tensor: int, sequence_parallel: bool
) -> None:
    parallel = ParallelConfig(tensor=tensor, sequence_parallel=sequence_parallel)
    rank_pool.run(bag_of_patches, world=tensor, tensor=tensor, args=(golden, parallel))


def raw_pixels(topology: Topology, golden: Path) -> float:
    """uint8 patches, normalised on the device, against floats normalised by hand."""
    encoder = golden_encoder(topology, golden, ParallelConfig())
    raw = torch.randint(0, 256, (12, 588), dtype=torch.uint8)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    normalised = ((raw.view(12, 3, 196) / 255.0 - mean[:, None]) / std[:, None]).flatten(1)
    return (encoder.patch_embedding(raw) - encoder.patch_embedding(normalised)).abs().max().item()


def test_normalisation_on_the_device(rank_pool: RankPool, golden: Path) -> None:
    assert rank_pool.run(raw_pixels, world=1, args=(golden,))[0] < 1e-5


def initial_values(topology: Topology, model: ModelConfig) -> dict[str, torch.Tensor]:
    encoder = Encoder(model, ParallelConfig(tensor=topology.tensor), topology)
    layouts = parameter_layouts(encoder, topology)
    for parameter in encoder.parameters():
        parameter.data.fill_(float("nan"))
    fill_parameters(encoder, layouts, topology, random_values(7, model.init_std))
    full = {}
    for name, parameter in encoder.named_parameters():
        assert parameter.isfinite().all(), f"{name} was left uninitialised"
        axis = layouts[name].split_axis
        parts = [torch.empty_like(parameter.data) for _ in range(topology.tensor)]
        dist.all_gather(parts, parameter.data, group=topology.tensor_group)
        full[name] = torch.cat(parts, dim=axis) if axis is not None else parts[0]
    return full


def test_initialisation_does_not_depend_on_the_layout(rank_pool: RankPool) -> None:
    model = ModelConfig(hidden_size=128, ffn_size=256, num_layers=2, num_heads=4)
    one, four = (rank_pool.run(initial_values, world=n, tensor=n, args=(model,))[0] for n in (1, 4))
    assert one.keys() == four.keys()
    assert all(torch.equal(one[name], four[name]) for name in one)
    assert one["block.layers.1.mlp.linear_fc1.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert one["pool.probe"].std() == pytest.approx(1.0, rel=0.3)
    assert not torch.equal(one["block.layers.0.mlp.linear_fc1.weight"], one["block.layers.1.mlp.linear_fc1.weight"])


def published_round_trip(topology: Topology, golden: Path) -> dict[str, torch.Tensor]:
    encoder = golden_encoder(topology, golden, ParallelConfig())
    return to_published({name: p.data for name, p in encoder.named_parameters()}, read_model(golden / "tiny"))


def test_published_names_round_trip_bit_for_bit(rank_pool: RankPool, golden: Path) -> None:
    theirs = load_file(golden / "tiny" / "model.safetensors")
    ours = rank_pool.run(published_round_trip, world=1, args=(golden,))[0]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_rotation_depends_on_relative_positions_only() -> None:
    """q.k after a true rotation is a function of the difference of positions; the reference's map is not one."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 64, generator=generator)

    def score(first: list[int], second: list[int], kind: str) -> float:
        angles = rotary_angles(torch.tensor([first, second]), 64, 10000.0, kind)  # type: ignore[arg-type]
        turned = []
        for vector, angle in zip((query, key), angles, strict=True):
            even, odd = vector[0::2], vector[1::2]
            cos, sin = angle.cos(), angle.sin()
            pair = (even * cos[0::2] - odd * sin[0::2], odd * cos[1::2] + even * sin[1::2])
            turned.append(torch.stack(pair, dim=1).flatten())
        return (turned[0] @ turned[1]).item()

    near, far = ([1, 2, 3], [4, 4, 9]), ([11, 22, 13], [14, 24, 19])
    assert score(*near, "rotation") == pytest.approx(score(*far, "rotation"), abs=1e-3)
    assert abs(score(*near, "reference") - score(*far, "reference")) > 0.1
