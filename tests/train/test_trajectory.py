"""Eight steps of the reference's own training, reproduced by the real Trainer on every small layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_ovenc.config import (
    BankConfig,
    CheckpointConfig,
    HeadConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TrainConfig,
)
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.build import assemble
from tests.rank_pool import RankPool
from tests.train.sources import RecordedSource, image_patches


def reference_config(
    golden: Path, run_dir: Path, recorded: dict[str, torch.Tensor], parallel: ParallelConfig
) -> RunConfig:
    """The recorded run as one of our configurations."""
    lr, total, warmup, decay = recorded["lr_total_warmup_wd"].tolist()
    published = json.loads((golden / "tiny" / "config.json").read_text())
    bank_file = run_dir / "bank.npy"
    np.save(bank_file, recorded["bank_weight"].numpy())
    head = HeadConfig(
        name="image",
        global_batch_size=recorded["labels"].shape[1],
        bank=BankConfig(num_classes=len(recorded["bank_weight"]), init=str(bank_file), weight_decay=decay),
        source=SourceConfig(kind="image", shards=()),
    )
    return RunConfig(
        run_dir=str(run_dir),
        model=ModelConfig(
            hidden_size=published["hidden_size"],
            ffn_size=published["intermediate_size"],
            num_layers=published["num_hidden_layers"],
            num_heads=published["num_attention_heads"],
            init=str(golden / "tiny"),
        ),
        heads=(head,),
        train=TrainConfig(steps=int(total)),
        parallel=parallel,
        optimizer=OptimizerConfig(lr=lr, weight_decay=decay),
        schedule=ScheduleConfig(kind="reference", warmup_steps=int(warmup)),
        checkpoint=CheckpointConfig(resume=False, asynchronous=False),
        log=LogConfig(every=100, tensorboard=False),
    )


def run_recorded(topology: Topology, golden: Path, run_dir: Path, parallel: ParallelConfig) -> dict[str, list[float]]:
    """Train the recorded steps; returns our metrics and the final outputs' distance from the recorded ones."""
    recorded = load_file(golden / "trajectory.safetensors")
    config = reference_config(golden, run_dir / f"rank{topology.rank}", recorded, parallel)
    source = RecordedSource(recorded["pixel_values"], recorded["labels"], config.model.patch_size, topology)
    with assemble(config, topology, {"image": source}) as trainer:
        for _ in range(len(recorded["losses"])):
            trainer.step()
        patches, positions = image_patches(recorded["pixel_values"][0], config.model.patch_size)
        count = recorded["pixel_values"].shape[1]
        with torch.no_grad():
            lengths = torch.arange(count + 1, dtype=torch.int32) * (len(patches) // count)
            pooled = trainer.state.encoder(patches.float(), positions, lengths).pooled
        bank = trainer.state.banks["image"]
        expected_rows = recorded["final_bank"][bank.lo : bank.hi]
        distances = [
            ((pooled - recorded["final_pooled"]).norm() / recorded["final_pooled"].norm()).item(),
            ((bank.weight - expected_rows).norm() / expected_rows.norm()).item(),
        ]
    lines = (run_dir / "rank0" / "metrics.jsonl").read_text().splitlines() if topology.is_main else []
    steps = [json.loads(line) for line in lines]
    return {
        "losses": [step["loss/image"] for step in steps],
        "lrs": [step["lr"] for step in steps],
        "encoder_norms": [step["grad_norm/encoder"] for step in steps],
        "bank_norms": [step["grad_norm/image"] for step in steps],
        "distances": distances,
    }


@pytest.mark.parametrize(
    ("data", "tensor", "options"),
    [
        (1, 1, {}),
        (2, 1, {"zero": 0}),
        (1, 2, {"sequence_parallel": True}),
        (2, 2, {"zero": 3, "sequence_parallel": True, "recompute": True}),
        (2, 2, {}),
    ],
)
def test_reference_trajectory(
    rank_pool: RankPool, golden: Path, tmp_path: Path, data: int, tensor: int, options: dict
) -> None:
    for rank in range(data * tensor):
        (tmp_path / f"rank{rank}").mkdir()
    parallel = ParallelConfig(tensor=tensor, **options)
    results = rank_pool.run(run_recorded, world=data * tensor, tensor=tensor, args=(golden, tmp_path, parallel))
    recorded = load_file(golden / "trajectory.safetensors")
    ours = results[0]
    assert ours["losses"] == pytest.approx(recorded["losses"].tolist(), rel=1e-3)
    assert ours["lrs"] == pytest.approx(recorded["lrs"].tolist(), rel=1e-6)
    assert ours["encoder_norms"] == pytest.approx(recorded["grad_norms"][:, 0].tolist(), rel=1e-3)
    assert ours["bank_norms"] == pytest.approx(recorded["grad_norms"][:, 1].tolist(), rel=1e-3)
    assert all(distance < 1e-3 for result in results for distance in result["distances"])
