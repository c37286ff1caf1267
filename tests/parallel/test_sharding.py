"""Sharding levels and accumulation change who holds what and what is sent, never the result."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode

from megatron_ovenc.config import ModelConfig, ParallelConfig
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts, random_values
from megatron_ovenc.parallel.fsdp import ShardedEncoder
from megatron_ovenc.parallel.gradients import global_norm, local, scale_gradients, sum_partial_gradients
from megatron_ovenc.parallel.topology import Launch, Topology, data_size
from tests.rank_pool import RankPool

MODEL = ModelConfig(hidden_size=64, ffn_size=128, num_layers=2, num_heads=2)
SAMPLES, TOKENS = 4, 6


def two_steps(topology: Topology, parallel: ParallelConfig) -> tuple[list[float], list[dict[str, int]], float]:
    """Two steps of two micro-batches: gradient norms, collectives of every micro-batch, bytes of local parameters."""
    encoder = Encoder(MODEL, parallel, topology)
    layouts = parameter_layouts(encoder, topology)
    fill_parameters(encoder, layouts, topology, random_values(0, 0.02))
    sharding = ShardedEncoder(encoder, encoder.block.layers, topology, parallel.zero, parallel.precision)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    mine = SAMPLES // topology.data
    rows = slice(topology.data_rank * mine * TOKENS, (topology.data_rank + 1) * mine * TOKENS)
    norms, counts = [], []
    for _ in range(2):
        for micro in range(2):
            patches = torch.randn(SAMPLES * TOKENS, 588, generator=generator)[rows]
            positions = torch.randint(0, 9, (SAMPLES * TOKENS, 3), generator=generator)[rows]
            sharding.set_last_backward(micro == 1)
            with CommDebugMode() as comm:
                output = encoder(patches, positions, torch.arange(mine + 1, dtype=torch.int32) * TOKENS)
                (output.pooled.sin().sum() / SAMPLES).backward()
            counts.append({str(op).rsplit(".", 1)[-1]: n for op, n in comm.get_comm_counts().items()})
        sum_partial_gradients([p for n, p in encoder.named_parameters() if layouts[n].partial_gradient], topology)
        split = {n for n, layout in layouts.items() if layout.split_axis is not None}
        norm = global_norm(dict(encoder.named_parameters()), split, parallel.zero == 0, topology)
        scale_gradients(encoder.parameters(), norm, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        norms.append(norm.item())
    return norms, counts, sum(local(p).numel() * 4 for p in encoder.parameters())


@pytest.fixture(scope="module")
def single(rank_pool: RankPool) -> list[float]:
    return rank_pool.run(two_steps, world=1, args=(ParallelConfig(),))[0][0]


@pytest.mark.parametrize("zero", [0, 2, 3])
@pytest.mark.parametrize(("data", "tensor", "sequence_parallel"), [(2, 1, False), (2, 2, True)])
def test_norms_equal_one_rank(
    rank_pool: RankPool, single: list[float], zero: int, data: int, tensor: int, sequence_parallel: bool
) -> None:
    parallel = ParallelConfig(tensor=tensor, sequence_parallel=sequence_parallel, zero=zero)
    for norms, _, _ in rank_pool.run(two_steps, world=data * tensor, tensor=tensor, args=(parallel,)):
        assert norms == pytest.approx(single, rel=1e-5)


def test_bf16_stays_near_fp32(rank_pool: RankPool, single: list[float]) -> None:
    norms = rank_pool.run(two_steps, world=2, args=(ParallelConfig(precision="bf16"),))[0][0]
    assert norms == pytest.approx(single, rel=2e-2)
    assert norms != pytest.approx(single, rel=1e-7), "bf16 must really be used"


def test_accumulation_skips_communication(rank_pool: RankPool) -> None:
    """Only the last micro-batch reduces gradients; zero 2 gathers parameters once a step, zero 3 as often as used."""
    groups = MODEL.num_layers + 1  # each block, and what lies around them

    def counts(zero: int) -> list[dict[str, int]]:
        return rank_pool.run(two_steps, world=2, args=(ParallelConfig(zero=zero),))[0][1][:2]

    assert counts(0) == [{}, {"allreduce_": groups}]
    assert counts(2) == [{"_allgather_base_": groups}, {"_reduce_scatter_base_": groups}]
    first, last = counts(3)
    assert "_reduce_scatter_base_" not in first
    assert last["_reduce_scatter_base_"] == groups


def test_sharding_divides_memory(rank_pool: RankPool) -> None:
    whole = rank_pool.run(two_steps, world=2, args=(ParallelConfig(zero=0),))[0][2]
    sharded = [result[2] for result in rank_pool.run(two_steps, world=2, args=(ParallelConfig(zero=2),))]
    assert sum(sharded) == whole
    assert max(sharded) < 0.52 * whole


def test_world_that_tensor_size_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"parallel\.tensor=3 does not divide the world of 4"):
        data_size(4, 3)


def test_launch_reads_the_launchers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "MASTER_ADDR",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "SLURM_STEP_ID",
        "SLURM_PROCID",
        "SLURM_NTASKS",
        "SLURM_LOCALID",
    ):
        monkeypatch.delenv(name, raising=False)
    assert Launch.from_environment() == Launch(rank=0, world_size=1, local_rank=0)
    monkeypatch.setenv("SLURM_NTASKS", "8")  # a shell inside an allocation is not a step
    assert Launch.from_environment().world_size == 1
    for name, value in (("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "5"), ("SLURM_LOCALID", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="8 ranks were started without MASTER_ADDR"):
        Launch.from_environment()
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert Launch.from_environment() == Launch(rank=5, world_size=8, local_rank=1)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="WORLD_SIZE, LOCAL_RANK"):
        Launch.from_environment()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="RANK=1 is outside the world of WORLD_SIZE=1"):
        Launch.from_environment()
