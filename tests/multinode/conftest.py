"""The two hosts, tiny real shards, and the losses of a run that nothing disturbs: made once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.data.samples import clip_bytes, coded_frames, image_bytes, write_shard
from tests.multinode.faults import Fault, FaultTable
from tests.multinode.hosts import TwoHosts, missing
from tests.multinode.job import EVERY, STEPS, Job, losses

CLASSES = 12


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="write what was measured to this page, as benchmarks/faults.md")


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    if reason := missing():
        pytest.skip(reason)
    pair = TwoHosts(tmp_path_factory.mktemp("hosts"))
    pair.up()
    yield pair
    pair.down()


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, pictures and 16-frame clips, a checkpoint every few steps."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    pictures = [{"png": image_bytes(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))} for _ in range(40)]
    write_shard(folder / "images-0.tar", pictures, rng.integers(0, CLASSES, (40, 3)))
    clips = [{"mp4": clip_bytes(np.roll(coded_frames(16), shift, axis=2))} for shift in range(8)]
    write_shard(folder / "clips-0.tar", clips, rng.integers(0, CLASSES, (8, 3)))
    path = folder / "run.yaml"
    path.write_text(f"""\
run_dir: given by each job
model: {{hidden_size: 64, ffn_size: 128, num_layers: 1, num_heads: 2}}
heads:
  - name: image
    global_batch_size: 4
    bank: {{num_classes: {CLASSES}, positives: 2, sample_rate: 0.5}}
    source: {{kind: image, shards: ["{folder}/images-*.tar"], size: 28}}
  - name: video
    global_batch_size: 4
    bank: {{num_classes: {CLASSES}, positives: 2}}
    source: {{kind: video, shards: ["{folder}/clips-*.tar"], size: 28, clip_frames: 16, num_frames: 4, tokens: 8}}
train: {{steps: {STEPS}}}
parallel: {{device: cpu, tensor: 2, timeout_s: 60}}
data: {{workers: 1, prefetch: 2}}
checkpoint: {{every: {EVERY}}}
log: {{every: 6, tensorboard: false, bank_every: 4}}
""")
    return path


@pytest.fixture(scope="session")
def undisturbed(hosts: TwoHosts, config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, float]]:
    """Losses by step of a run on 2 hosts x 2 ranks, tensor size 2, that nothing happens to."""
    job = Job(hosts, config, tmp_path_factory.mktemp("undisturbed"))
    ended = job.run()
    assert ended.code == 0, job.output
    assert not ended.left
    return losses(job.run_dir)


@pytest.fixture(scope="session")
def fault_table(request: pytest.FixtureRequest) -> Iterator[FaultTable]:
    table = FaultTable()
    yield table
    if path := request.config.getoption("--fault-table", default=None):
        table.write(path)


@pytest.fixture
def record(fault_table: FaultTable) -> Callable[[Fault], None]:
    """Takes what a case measured into the table."""
    return fault_table.add
