"""What only a GPU can say. `make gpu-check` runs these, too. Never run yet: see docs/gpu.md."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.gpu_check import ragged_attention, relative
from benchmarks.gpu_common import BF16, VARIANTS, Variant, batch, sharded_encoder
from megatron_ovenc.config import PRESETS, Fp8Config, ModelConfig, ParallelConfig
from megatron_ovenc.model.attention import Segments, attend_in_blocks, available_kernels
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.fp8_linear import fp8_linear
from megatron_ovenc.model.parameters import fill_parameters, named_parameters, parameter_layouts, random_values
from megatron_ovenc.parallel.device import PhaseTimer, refuse_synchronisation, synchronise
from megatron_ovenc.parallel.topology import Topology

pytestmark = pytest.mark.gpu
SMALL = ModelConfig(hidden_size=256, ffn_size=1024, num_layers=4, num_heads=4)


def need(variant: Variant, topology: Topology) -> None:
    if missing := variant.missing(topology.device):
        pytest.skip(missing)


def outputs(variant: Variant, topology: Topology, parallel: ParallelConfig | None = None) -> list[torch.Tensor]:
    """Pooled embeddings and the gradient of the patch embedding, ragged batch, weights not sharded."""
    encoder = Encoder(variant.model(SMALL), parallel or variant.parallel(), topology)
    fill_parameters(encoder, parameter_layouts(encoder, topology), topology, random_values(0, 0.05))
    encoder.to(topology.device, torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(96, 588, generator=generator).to(topology.device)
    positions = torch.randint(0, 16, (96, 3), generator=generator).to(topology.device)
    pooled = encoder(patches, positions, torch.tensor([0, 17, 33, 96], dtype=torch.int32)).pooled
    pooled.square().sum().backward()
    gradient = named_parameters(encoder)["patch_embedding.weight"].grad
    assert gradient is not None
    return [pooled.detach(), gradient]


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=lambda variant: variant.name)
@pytest.mark.parametrize("recompute", [False, True])
def test_layers_agree(topology: Topology, variant: Variant, recompute: bool) -> None:
    need(variant, topology)
    parallel = ParallelConfig(precision="bf16", recompute=recompute, fp8=Fp8Config(recipe=variant.recipe))
    limit = 0.03 if variant.name == "te bf16" else 0.15
    for ours, expected in zip(outputs(variant, topology, parallel), outputs(BF16, topology), strict=True):
        assert relative(ours, expected) < limit


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed", "blockwise", "mxfp8"])
def test_recipes(topology: Topology, recipe: str) -> None:
    from megatron_ovenc.parallel.device import environment
    from megatron_ovenc.parallel.requirements import requirement_problems

    parallel = ParallelConfig(precision="bf16", fp8=Fp8Config(recipe=recipe))  # type: ignore[arg-type]
    if problems := list(requirement_problems(VARIANTS[2].model(SMALL), parallel, environment("cuda"))):
        pytest.skip(problems[0])
    for ours, expected in zip(outputs(VARIANTS[2], topology, parallel), outputs(BF16, topology), strict=True):
        assert relative(ours, expected) < 0.15


def test_fp8_products_are_those_of_the_cpu(topology: Topology) -> None:
    need(VARIANTS[3], topology)
    results = []
    for device in (torch.device("cpu"), topology.device):
        generator = torch.Generator().manual_seed(0)
        x, w, g = (torch.randn(*s, generator=generator) for s in ((37, 64), (48, 64), (37, 48)))
        x, w = x.to(device).requires_grad_(), w.to(device).requires_grad_()
        y = fp8_linear(x, w, cut_inputs=False, cut_outputs=True, group=topology.tensor_group)
        y.backward(g.to(device))
        results.append([y, x.grad, w.grad])
    for ours, expected in zip(*results, strict=True):
        assert relative(ours, expected) < 1e-4  # type: ignore[arg-type]


def test_ragged_attention(topology: Topology) -> None:
    worst, limit, _ = ragged_attention(topology.device)
    assert worst is not None and limit is not None and worst < limit


@pytest.mark.parametrize("kernel", ["flash_attn", "torch_varlen"])
def test_every_ragged_kernel(topology: Topology, kernel: str) -> None:
    if kernel not in available_kernels():
        pytest.skip(f"{kernel} is not installed")
    if kernel == "flash_attn":
        from flash_attn import flash_attn_varlen_func as attention
    else:
        from torch.nn.attention.varlen import varlen_attn as attention
    segments = Segments.of(torch.tensor([0, 5, 133, 150], dtype=torch.int32), topology.device)
    q, k, v = (torch.randn(150, 4, 64, device=topology.device, dtype=torch.bfloat16) for _ in range(3))
    offsets, longest = segments.offsets, segments.longest
    expected = attend_in_blocks(q, k, v, segments.lengths, segments.lengths)
    assert relative(attention(q, k, v, offsets, offsets, longest, longest), expected) < 0.01


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_encoder_does_not_wait(topology: Topology, variant: Variant) -> None:
    need(variant, topology)
    encoder = sharded_encoder(ModelConfig(**PRESETS["tiny"]), variant, topology)
    inputs = batch(4, (2, 4, 4), 14, topology.device)
    for _ in range(2):  # what is made once may be waited for
        encoder(*inputs).pooled.sum().backward()
    with refuse_synchronisation(topology.device):
        encoder(*inputs).pooled.sum().backward()


def test_compiled_blocks(topology: Topology) -> None:
    results = []
    for compiled in (False, True):
        variant = Variant(name="sdpa", layers="sdpa", compile=compiled)
        encoder = sharded_encoder(ModelConfig(**PRESETS["tiny"]), variant, topology)
        torch.manual_seed(0)
        results.append(encoder(*batch(4, (2, 4, 4), 14, topology.device)).pooled)
    assert relative(results[1], results[0]) < 0.02


def test_collectives_of_one_rank(topology: Topology) -> None:
    """Every kind that the project uses, over NCCL."""
    x = torch.arange(8.0, device=topology.device)
    for group in (topology.world_group, topology.data_group, topology.tensor_group):
        gathered, scattered = torch.empty_like(x), torch.empty_like(x)
        dist.all_gather_into_tensor(gathered, x, group=group)
        dist.reduce_scatter_tensor(scattered, x, group=group)
        reduced = x.clone()
        dist.all_reduce(reduced, op=dist.ReduceOp.MAX, group=group)
        for result in (gathered, scattered, reduced):
            assert torch.equal(result, x)
    host = torch.ones(1)
    dist.all_reduce(host, group=topology.host_group)
    assert host.item() == 1


def test_phases_are_timed(topology: Topology) -> None:
    timer, x = PhaseTimer(topology.device), torch.randn(2048, 2048, device=topology.device)
    for _ in range(2):
        with timer.phase("product"):
            F.linear(x, x)
    synchronise(topology.device)
    assert timer.take()["product"] > 0
    assert timer.take() == {}
