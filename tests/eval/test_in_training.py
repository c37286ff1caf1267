"""k-NN while training: the same on every layout, the same losses with and without, and no harm from a damaged clip."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.datasets import Dataset
from eval.in_training import TrainingExaminer
from eval.in_training_data import evaluation_data
from eval.shared_knn import Share
from megatron_ovenc.config import ConfigError, DataConfig, EvalConfig, ParallelConfig, RunConfig, check
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.build import assemble
from megatron_ovenc.train.checkpoint import checkpoint_steps
from tests.data.samples import NUM_CLASSES, SIDE, clip_bytes, coded_frames, image_bytes, write_images
from tests.forked import forked
from tests.rank_pool import RankPool
from tests.train.sources import RecordedSource
from tests.train.test_resume import BATCH, CLASSES, STEPS, small_config

EVERY = 4
"""So that step 4 is examined, and step 6, the last."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven clips of two classes, one of them cut off in the middle."""
    root = tmp_path_factory.mktemp("judged")
    for number, (name, length) in enumerate([("a", 4), ("a", 9), ("a", 6), ("b", 5), ("b", 7), ("b", 8), ("b", 3)]):
        (root / name).mkdir(exist_ok=True)
        frames = coded_frames(length)
        content = clip_bytes(frames if name == "a" else 255 - frames)
        (root / name / f"{number}.mp4").write_bytes(content[: len(content) // 2] if number == 2 else content)
    return root


def judged(run_dir: Path, folder: Path, parallel: ParallelConfig, every: int = EVERY) -> RunConfig:
    wanted = EvalConfig(every=every, train=str(folder), val=str(folder), tokens=8, size=SIDE, k=1, batch_size=2)
    return replace(small_config(run_dir, parallel), eval=wanted, data=DataConfig(workers=0))


def train(topology: Topology, config: RunConfig) -> float:
    """Trains, and returns what the random state gives afterwards."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2 * STEPS, BATCH, 3, 42, 56, generator=generator)
    labels = torch.randint(0, CLASSES, (2 * STEPS, BATCH, 2), generator=generator)
    torch.manual_seed(0)
    with assemble(config, topology, {"image": RecordedSource(pixels, labels, 14, topology)}) as trainer:
        trainer.examine = TrainingExaminer(
            config, trainer.state.encoder, trainer.sharding, topology, trainer.metrics.say, alive=lambda: None
        )
        trainer.train()
    return float(torch.rand(()))


def train_and_signal(topology: Topology, config: RunConfig, at: int) -> str:
    """SIGTERM reaches the last rank while it embeds, after `at` steps."""
    embed = TrainingExaminer._embed

    def signalled(self: TrainingExaminer, dataset: Dataset) -> tuple[Share, torch.Tensor]:
        if trainer.state.step == at and topology.rank == topology.world - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return embed(self, dataset)

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2 * STEPS, BATCH, 3, 42, 56, generator=generator)
    labels = torch.randint(0, CLASSES, (2 * STEPS, BATCH, 2), generator=generator)
    source = RecordedSource(pixels, labels, 14, topology)
    with pytest.MonkeyPatch.context() as patch, assemble(config, topology, {"image": source}) as trainer:
        patch.setattr(TrainingExaminer, "_embed", signalled)
        trainer.examine = TrainingExaminer(
            config, trainer.state.encoder, trainer.sharding, topology, trainer.metrics.say, alive=lambda: None
        )
        return trainer.train()


def test_a_stop_during_an_evaluation_is_obeyed_after_it(rank_pool: RankPool, folder: Path, tmp_path: Path) -> None:
    config = judged(tmp_path, folder, ParallelConfig(), every=2)
    assert set(rank_pool.run(train_and_signal, world=2, args=(config, 2))) == {"stopped"}
    (step,) = checkpoint_steps(tmp_path / "checkpoints")
    assert step == 3  # the step after the evaluation is where all ranks learn of it
    assert "eval/knn_top1" in lines(tmp_path)[1]
    assert set(rank_pool.run(train_and_signal, world=2, args=(config, 0))) == {"finished"}


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("world", "tensor", "zero"), [(3, 1, 3), (2, 1, 2), (2, 2, 0)])
def test_losses_do_not_change_and_every_layout_finds_the_same(
    rank_pool: RankPool, folder: Path, tmp_path: Path, world: int, tensor: int, zero: int
) -> None:
    """Three ranks for seven clips: the last of them has fewer, and one rank's clip is damaged."""
    parallel = ParallelConfig(tensor=tensor, zero=zero)
    states = []
    for every in (0, EVERY):
        config = judged(tmp_path / str(every), folder, parallel, every)
        check(config, world)
        Path(config.run_dir).mkdir()
        states.append(rank_pool.run(train, world=world, tensor=tensor, args=(config,)))
    without, with_it = lines(tmp_path / "0"), lines(tmp_path / str(EVERY))
    for key in ("loss/image", "grad_norm/encoder", "grad_norm/image"):
        assert [line[key] for line in without] == [line[key] for line in with_it]
    assert states[0] == states[1]
    examined = {line["step"]: line for line in with_it if "eval/knn_top1" in line}
    assert sorted(examined) == [4, 6]
    assert not any("eval/knn_top1" in line for line in without)
    # Every clip is its own nearest neighbour, but for the one that cannot be read.
    assert all(line["eval/knn_top1"] == pytest.approx(100 * 6 / 7) for line in examined.values())
    assert all(line["eval/bad_samples"] == 2 for line in examined.values())


def test_the_command_evaluates_pictures_too(tmp_path: Path) -> None:
    """launch.pretrain itself, with several workers and TensorBoard."""
    for number, label in enumerate("aabb"):
        path = tmp_path / "judged" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(np.full((SIDE, SIDE, 3), 60 * number, np.uint8)))
    (tmp_path / "run.yaml").write_text(f"""\
run_dir: {tmp_path}/run
model: {{hidden_size: 64, ffn_size: 128, num_layers: 1, num_heads: 2}}
heads:
  - name: image
    global_batch_size: 4
    bank: {{num_classes: {NUM_CLASSES}, positives: 2}}
    source: {{kind: image, shards: ["{write_images(tmp_path, 1, 12)}"], size: {SIDE}}}
train: {{steps: 2}}
parallel: {{device: cpu}}
data: {{workers: 2}}
log: {{every: 1}}
eval: {{every: 2, kind: image, train: {tmp_path}/judged, val: {tmp_path}/judged, size: {SIDE}, k: 1}}
""")
    command = ("launch.pretrain", "--config", str(tmp_path / "run.yaml"))
    absent = forked(*command, "--set", "eval.val=absent")
    assert absent.returncode == 2
    assert "eval.val=absent: absent is not a directory" in absent.stderr
    forked(*command).check_returncode()
    first, last = lines(tmp_path / "run")
    assert "eval/knn_top1" not in first
    assert (last["eval/knn_top1"], last["eval/bad_samples"]) == (100, 0)
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"eval/knn_top1" in events.read_bytes()


def test_wrong_settings_are_told_before_training(folder: Path, tmp_path: Path) -> None:
    good = judged(tmp_path, folder, ParallelConfig())
    for changes, message in (
        ({"train": None}, "eval.every=4 needs eval.train and eval.val"),
        ({"size": 30}, "eval.size=30 must be a multiple"),
        ({"tokens": 3}, "eval.tokens=3 does not hold a frame"),
        ({"kind": "image", "view": "codec"}, "eval.view=codec is for clips"),
        ({"k": 0}, "eval.every must not be negative, eval.k"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(replace(good, eval=replace(good.eval, **changes)), 1)
    with pytest.raises(ConfigError, match="absent is not a directory"):
        evaluation_data(replace(good, eval=replace(good.eval, train="absent")))
    with pytest.raises(ConfigError, match=r"has 7 samples, fewer than eval\.k=8"):
        evaluation_data(replace(good, eval=replace(good.eval, k=8)))
    assert evaluation_data(replace(good, eval=EvalConfig())) is None
