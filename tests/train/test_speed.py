"""What keeps a step fast: no waiting for the device inside it, compiled blocks that compute the same, timed phases."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ovenc.config import ModelConfig, ParallelConfig
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.parameters import fill_parameters, named_parameters, parameter_layouts, random_values
from megatron_ovenc.parallel.device import PhaseTimer
from megatron_ovenc.parallel.fsdp import ShardedEncoder
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.build import assemble
from tests.rank_pool import RankPool
from tests.train.sources import RecordedSource
from tests.train.test_fp8 import config, noisy_classes

WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "lift_fresh",
}
"""Operators whose result the host needs, or (lift_fresh) that send numbers from the host: a GPU would have to finish first."""


class CountWaits(TorchDispatchMode):
    """Counts operators that would make the host wait if their tensors were on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operators = 0
        self.counting = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        self.operators += 1
        if self.counting and name in WAITING:
            self.waits[name] += 1
        return function(*args, **(kwargs or {}))


class RawPixels:
    """A source whose patches are bytes, as those of files are."""

    def __init__(self, source: RecordedSource) -> None:
        self.source = source

    def next(self) -> PatchBatch:
        batch = self.source.next()
        return replace(batch, patches=(40 * batch.patches + 128).clamp(0, 255).to(torch.uint8))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


def waits_of_a_step(topology: Topology, run_dir: Path, layers: str, ask: bool) -> tuple[dict[str, int], int]:
    run = config(run_dir / f"rank{topology.rank}", layers, ParallelConfig(tensor=topology.tensor, precision="bf16"))
    Path(run.run_dir).mkdir()
    run = replace(run, log=replace(run.log, bank_every=0))  # a look at the banks may wait
    with assemble(run, topology, {"image": RawPixels(noisy_classes(4, topology))}) as trainer:
        trainer.step()
        with CountWaits() as count:
            update = trainer._update

            def not_counted(*args: Any) -> None:
                # AdamW on a CPU reads its step numbers, which are host tensors on a GPU, too.
                count.counting = False
                update(*args)
                count.counting = True

            trainer._update = not_counted  # type: ignore[method-assign]
            if ask:
                clip = trainer.sharding.set_last_backward
                trainer.sharding.set_last_backward = lambda last: clip(bool(torch.tensor(last).item()))  # type: ignore[method-assign]
            trainer.step()
    return dict(count.waits), count.operators


@pytest.mark.parametrize(("layers", "tensor"), [("sdpa", 1), ("fp8_torch", 1), ("fp8_torch", 2)])
def test_a_step_waits_nowhere_but_where_it_says(rank_pool: RankPool, tmp_path: Path, layers: str, tensor: int) -> None:
    """The one place where it does wait reads by `tolist`, which no operator shows; tests/gpu watches the real thing."""
    waits, operators = rank_pool.run(waits_of_a_step, world=tensor, tensor=tensor, args=(tmp_path, layers, False))[0]
    # What ranks tell each other over gloo are host tensors: one number of each, and a batch's header within the tensor group.
    assert waits.pop("lift_fresh") == tensor
    assert waits == {}
    assert operators > 500, "the step is seen"


def test_a_wait_would_be_seen(rank_pool: RankPool, tmp_path: Path) -> None:
    assert rank_pool.run(waits_of_a_step, world=1, args=(tmp_path, "sdpa", True))[0][0] == {
        "_local_scalar_dense": 1,
        "lift_fresh": 2,
    }


def compiled_and_not(topology: Topology, layers: str, recompute: bool) -> tuple[float, list[str], int]:
    """Largest difference of outputs and a gradient over ragged batches, names of parameters, graphs."""
    from torch._dynamo.utils import counters

    model = ModelConfig(hidden_size=64, ffn_size=128, num_layers=2, num_heads=2, layers=layers)  # type: ignore[arg-type]
    results: list[list[torch.Tensor]] = []
    torch._dynamo.reset()
    for compiled in (False, True):
        counters.clear()
        encoder = Encoder(model, ParallelConfig(recompute=recompute), topology)
        fill_parameters(encoder, parameter_layouts(encoder, topology), topology, random_values(0, 0.1))
        if compiled:
            encoder.compile_blocks("eager")
        names = list(named_parameters(encoder))
        ShardedEncoder(encoder, encoder.block.layers, topology, 2, "fp32")
        generator, outputs = torch.Generator().manual_seed(0), []
        for lengths in ([0, 5, 9], [0, 7, 14]):
            patches = torch.randn(lengths[-1], 588, generator=generator)
            positions = torch.randint(0, 9, (lengths[-1], 3), generator=generator)
            output = encoder(patches, positions, torch.tensor(lengths, dtype=torch.int32))
            output.pooled.square().sum().backward()
            outputs.append(output.pooled.detach())
        gradient: Any = encoder.block.layers[0].mlp.linear_fc1.weight.grad
        results.append([*outputs, gradient.full_tensor()])
    graphs = counters["stats"]["unique_graphs"]
    return max((a - b).abs().max().item() for a, b in zip(*results, strict=True)), names, graphs


@pytest.mark.parametrize(("layers", "recompute"), [("sdpa", False), ("fp8_torch", True)])
def test_compiled_blocks_compute_the_same(rank_pool: RankPool, layers: str, recompute: bool) -> None:
    """With dynamo's eager backend: what is traced, broken and recomputed is real, the generated code is left out."""
    difference, names, graphs = rank_pool.run(compiled_and_not, world=1, args=(layers, recompute))[0]
    assert difference < 1e-6
    assert graphs > 0, "something was compiled"
    assert "block.layers.0.mlp.linear_fc1.weight" in names


def test_phases_are_timed_until_they_are_taken() -> None:
    timer = PhaseTimer(torch.device("cpu"))
    for _ in range(2):
        with timer.phase("forward"):
            pass
    assert list(timer.take()) == ["forward"]
    assert timer.take() == {}
