"""The plan against what real steps of the real Trainer take, every recipe's plan, and the command line."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from megatron_ovenc.concept_bank import chunks, row_adamw
from megatron_ovenc.config import (
    BankConfig,
    CheckpointConfig,
    HeadConfig,
    LogConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    check,
    dump,
    load,
)
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.data.order import micro_batch_slices
from megatron_ovenc.parallel.gradients import local
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.build import assemble
from megatron_ovenc.train.trainer import Trainer
from tests.rank_pool import RankPool
from tools.plan.__main__ import arguments, main
from tools.plan.hardware import GPUS, Assumptions, assume
from tools.plan.memory import memory
from tools.plan.speed import estimate, message
from tools.plan.step import trace_step

ROOT = Path(__file__).parents[2]
TOKENS = 64


class RandomSource:
    """Micro-batches of TOKENS patches a sample; with `ragged` half of the samples lend some to the other half."""

    bad_samples = 0

    def __init__(self, head: HeadConfig, accumulation: int, topology: Topology, ragged: int) -> None:
        slices = micro_batch_slices(head.global_batch_size, accumulation, topology.data, head=head.name)
        self.batch_sizes = tuple(part.stop - part.start for part in slices)
        self.samples, self.head, self.ragged = self.batch_sizes[topology.data_rank], head, ragged

    def next(self) -> PatchBatch:
        lengths = torch.tensor([TOKENS + self.ragged * (-1) ** index for index in range(self.samples)])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
        bank = self.head.bank
        return PatchBatch(
            patches=torch.randint(0, 256, (int(offsets[-1]), 588), dtype=torch.uint8),
            positions=torch.randint(0, 8, (int(offsets[-1]), 3), dtype=torch.int32),
            cu_seqlens=offsets,
            labels=torch.randint(0, bank.num_classes, (self.samples, bank.positives)),
            sample_ids=("",) * self.samples,
        )

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        pass

    def take_wait(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


def configuration(
    run_dir: Path, parallel: ParallelConfig, accumulation: int = 1, heads: int = 1, batch: int = 32
) -> RunConfig:
    # All rows compete: a GPU's lists of sampled rows are padded, as the plan has it, a CPU's are not.
    bank = BankConfig(num_classes=2000, positives=2)
    source = SourceConfig(kind="image", shards=(), size=112)
    return RunConfig(
        run_dir=str(run_dir),
        model=ModelConfig(hidden_size=128, ffn_size=512, num_layers=4, num_heads=4),
        heads=tuple(
            HeadConfig(name=f"head{index}", global_batch_size=batch * accumulation, bank=bank, source=source)
            for index in range(heads)
        ),
        train=TrainConfig(steps=10, grad_accumulation=accumulation),
        parallel=parallel,
        checkpoint=CheckpointConfig(resume=False, asynchronous=False),
        log=LogConfig(every=100, tensorboard=False, bank_every=0),
    )


def resident_bytes(trainer: Trainer) -> int:
    """Storages of all that lives from step to step."""
    state = trainer.state
    tensors = [local(p) for p in state.encoder.parameters()]
    tensors += [local(t) for s in state.encoder_optimizer.adamw.state.values() for t in s.values() if t.dim()]
    tensors += [t for bank in state.banks.values() for t in bank.state_dict().values()]
    tensors += state.bank_optimizer.state_tensors().values()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def measure(topology: Topology, config: RunConfig, ragged: int) -> tuple[int, int]:
    """Bytes that live from step to step, and most that a step adds to them, as the allocator tells."""
    torch.manual_seed(topology.rank)
    config = replace(config, run_dir=f"{config.run_dir}/rank{topology.rank}")
    Path(config.run_dir).mkdir(parents=True)
    sources = {h.name: RandomSource(h, config.train.grad_accumulation, topology, ragged) for h in config.heads}
    with assemble(config, topology, sources) as trainer:
        trainer.step()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            trainer.step()
        added = peak = 0
        for event in profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                added += event.nbytes()
                peak = max(peak, added)
        return resident_bytes(trainer), peak


CASES = [  # world, parallel, accumulation, heads, batch, ragged; small batches are where weights and gradients show
    (1, {"zero": 2}, 1, 1, 32, 0),
    (1, {"zero": 2, "precision": "bf16"}, 1, 1, 4, 0),
    (1, {"zero": 0, "precision": "bf16", "recompute": True}, 2, 1, 32, 4),
    (2, {"zero": 2, "precision": "bf16"}, 2, 2, 4, 0),
    (2, {"zero": 3, "recompute": True}, 1, 2, 4, 0),
    (2, {"zero": 3, "precision": "bf16"}, 1, 1, 32, 4),
    (2, {"zero": 0}, 1, 1, 4, 0),
    (2, {"tensor": 2, "precision": "bf16"}, 1, 1, 32, 0),
    (2, {"tensor": 2, "sequence_parallel": True, "recompute": True}, 1, 1, 32, 0),
]


@pytest.mark.parametrize(("world", "options", "accumulation", "heads", "batch", "ragged"), CASES)
def test_memory_is_within_a_tenth_of_a_real_step(
    rank_pool: RankPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    world: int,
    options: dict,
    accumulation: int,
    heads: int,
    batch: int,
    ragged: int,
) -> None:
    parallel = ParallelConfig(**options)
    config = configuration(tmp_path, parallel, accumulation, heads, batch)
    measured = rank_pool.run(measure, world=world, tensor=parallel.tensor, args=(config, ragged))
    resident = measured[0][0]
    added = max(peak for _, peak in measured)  # ranks are equal; when messages arrive is chance
    monkeypatch.setitem(chunks._NUMBERS, "meta", chunks._NUMBERS["cpu"])
    monkeypatch.setitem(row_adamw._BLOCK, "meta", row_adamw._BLOCK["cpu"])
    plan = trace_step(config, world)
    assert plan.resident.total() == resident
    assert plan.peak - plan.resident.total() == pytest.approx(added, rel=0.1)


def planned_commands() -> list[str]:
    """Every command of tools.plan in the recipes' headers and on the page."""
    pages = [*sorted(ROOT.glob("configs/*.yaml")), ROOT / "docs" / "plan.md"]
    found = [re.findall(r"^#? *python -m tools\.plan (configs/.*)$", page.read_text(), re.MULTILINE) for page in pages]
    return list(dict.fromkeys(command.split("  #")[0].strip() for commands in found for command in commands))


@pytest.mark.parametrize("command", planned_commands())
def test_recipes_fit(command: str) -> None:
    options = arguments(shlex.split(command))
    config = load(ROOT / options.config, options.overrides)
    check(config, options.world)
    step = trace_step(config, options.world)
    assumed = assume(options.assume)
    needed = memory(config, step, options.world, GPUS[options.gpu], assumed)
    assert needed.fits
    speed = estimate(config, step, options.world, GPUS[options.gpu], assumed)
    assert 0 < speed.mfu < 1


def test_every_recipe_tells_its_plan() -> None:
    recipes = {path.name for path in ROOT.glob("configs/*.yaml")} - {"demo_cpu.yaml"}
    assert recipes == {Path(command.split()[0]).name for command in planned_commands()}


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump(configuration(tmp_path, ParallelConfig(precision="bf16"))))
    assert main([str(path), "--world", "2"]) == 0
    assert "fits" in capsys.readouterr().out
    assert main([str(path), "--world", "2", "--set", "parallel.tensor=3"]) == 2
    assert "parallel.tensor=3 does not divide the 2 ranks" in capsys.readouterr().err
    assert main([str(path), "--world", "2", "--assume", "bf17=1"]) == 2
    assert "there is no assumption `bf17`" in capsys.readouterr().err


def test_what_does_not_fit_is_told_what_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    config = configuration(tmp_path, ParallelConfig(precision="bf16"))
    large = replace(config.heads[0], global_batch_size=1 << 15)
    path.write_text(dump(replace(config, heads=(large,))))
    # A GPU of which almost all is taken: what remains is less than this batch's activations.
    words = [str(path), "--world", "2", "--assume", "context_gib=68"]
    assert main([*words, "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    first = plan["remedies"][0]["settings"]
    assert first == ["parallel.recompute=true"]
    assert main([*words, *(word for setting in first for word in ("--set", setting))]) == 0


def test_traffic_of_zero_3_and_tensor_parallel(tmp_path: Path) -> None:
    """Counted by hand: FSDP gathers twice a pass; each block sends its [N, D] twice forward and twice backward."""
    parallel = ParallelConfig(precision="bf16", zero=3, tensor=2)
    config = configuration(tmp_path, parallel, accumulation=3)
    step = trace_step(config, 8)
    assert step.phases["optimizer"]["gradients"] < 4 * step.parameters / 3  # a quarter, each unit rounded up
    assert step.sent["all-gather", "sharding"] == 2 * 3 * 2 * step.parameters
    assert step.sent["reduce-scatter", "sharding"] == 4 * step.parameters
    rows, width, blocks = 8 * TOKENS, 128, 4
    # The bank's gradient with respect to a rank's 8 embeddings crosses the tensor group, too.
    assert step.sent["all-reduce", "tensor"] == 3 * (4 * blocks * rows * width * 2 + 8 * width * 4)


def test_links() -> None:
    """All of 8 ranks in a node talk over NVLink; 16 ranks in two nodes over 8 ports a node; 8 tensor ranks leave one port each."""
    gpu, assumed = GPUS["h100-80g"], Assumptions(nvlink=1, network=1)
    assert message("all-gather", "sharding", 8.0, 1, 8, gpu, assumed) == (7.0, "NVLink", 450e9)
    assert message("all-reduce", "sharding", 16.0, 1, 16, gpu, assumed) == (30.0, "network", 400e9)
    assert message("reduce-scatter", "sharding", 2.0, 8, 16, gpu, assumed) == (1.0, "network", 50e9)
    assert message("all-reduce", "tensor", 8.0, 8, 16, gpu, assumed) == (14.0, "NVLink", 450e9)
