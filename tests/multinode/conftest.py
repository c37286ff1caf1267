"""The two hosts, tiny real shards, and the losses of a run that nothing disturbs: made once a session."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.data.samples import clip_bytes, coded_frames, image_bytes, write_shard
from tests.multinode.case import SOON_S, Case
from tests.multinode.fault_table import FaultTable
from tests.multinode.hosts import TwoHosts, missing
from tests.multinode.job import EVERY, ROOT, STEPS, Losses, losses, run_alone

CLASSES = 12


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="write what was measured to this page, as benchmarks/faults.md")


@pytest.fixture(scope="session")
def hosts() -> Iterator[TwoHosts]:
    if reason := missing():
        pytest.skip(reason)
    state = ROOT / "output" / "two_hosts"
    state.mkdir(parents=True, exist_ok=True)
    pair = TwoHosts(state)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one session of a checkout at a time
        pair.down()  # what a session that was killed has left
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
train: {{steps: {STEPS}, hang_timeout_s: 60}}
parallel: {{device: cpu, tensor: 2, timeout_s: 120}}
data: {{workers: 1, prefetch: 2, sample_timeout_s: 10}}
checkpoint: {{every: {EVERY}}}
log: {{every: 6, tensorboard: false, bank_every: 4}}
""")
    return path


@pytest.fixture(scope="session")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    """Losses by step of a run in one process that nothing happens to. The layout does not change them."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    run_alone(config, run_dir)
    return losses(run_dir)


@pytest.fixture(scope="session")
def fault_table(request: pytest.FixtureRequest) -> Iterator[FaultTable]:
    table = FaultTable(STEPS, EVERY, SOON_S)
    yield table
    if path := request.config.getoption("--fault-table", default=None):
        table.write(path)


@pytest.fixture
def case(hosts: TwoHosts, config: Path, undisturbed: Losses, tmp_path: Path, fault_table: FaultTable) -> Case:
    return Case(hosts, config, undisturbed, tmp_path / "run", fault_table)
