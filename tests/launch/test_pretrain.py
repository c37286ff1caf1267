"""Real runs of launch.pretrain: refused at start-up, started by the deepspeed launcher, stopped by a signal, fed damaged files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import launch.pretrain
from megatron_ovenc.config import load
from megatron_ovenc.train import run_lock
from megatron_ovenc.train.run_lock import RunInUse, RunLock
from tests.data.samples import clip_bytes, coded_frames, image_bytes, write_shard
from tests.forked import forked
from tests.launch.locks import holder

ROOT = Path(__file__).parents[2]
CLASSES = 12
DEEPSPEED = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--no_local_rank", "--module"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and 16-frame clips, among them a truncated clip, an empty member and a label outside the bank."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    pictures = [{"png": image_bytes(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))} for _ in range(120)]
    labels = rng.integers(0, CLASSES, (120, 3))
    labels[7] = CLASSES
    pictures[5] = {"png": b""}
    write_shard(folder / "images-0.tar", pictures, labels)
    clips = [{"mp4": clip_bytes(np.roll(coded_frames(16), shift, axis=2))} for shift in range(12)]
    clips[3] = {"mp4": clips[3]["mp4"][:700]}
    write_shard(folder / "clips-0.tar", clips, rng.integers(0, CLASSES, (12, 3)))
    return folder


@pytest.fixture
def config(shards: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(f"""\
run_dir: {tmp_path}/run
model: {{hidden_size: 64, ffn_size: 128, num_layers: 1, num_heads: 2}}
heads:
  - name: image
    global_batch_size: 4
    bank: {{num_classes: {CLASSES}, positives: 2}}
    source: {{kind: image, shards: ["{shards}/images-*.tar"], size: 28}}
  - name: video
    global_batch_size: 4
    bank: {{num_classes: {CLASSES}, positives: 2}}
    source:
      {{kind: video, shards: ["{shards}/clips-*.tar"], size: 28, clip_frames: 16, num_frames: 4, tokens: 8}}
train: {{steps: 40}}
parallel: {{device: cpu}}
data: {{workers: 1, max_bad_share: 0.3}}
checkpoint: {{every: 1000}}
log: {{every: 10, tensorboard: false}}
""")
    return path


def environment() -> dict[str, str]:
    hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    return kept | {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2", "OMP_NUM_THREADS": "1"}


def pretrain(config: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    words = [word for override in overrides for word in ("--set", override)]
    return forked("launch.pretrain", "--config", str(config), *words, cwd=ROOT, environment=environment())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=3", "`trian` is not a key of the configuration; did you mean `train`?"),
        ("heads.video.source.shards=[nowhere/*.tar]", "nowhere/*.tar"),
        ("model.hidden_size=72", "multiple of 32"),
        ("parallel.tensor=2", "parallel.tensor=2 does not divide the 1 ranks"),
        ("run_dir={file}/run", "run_dir="),
        ("model.init={file}", "cannot be read as a state dict"),
        ("heads.image.bank.init=none.npy", "heads.image.bank.init=none.npy: there is no such file"),
        ("heads.image.bank.init={file}", "is neither a .safetensors, a .npy nor a .pt file"),
        ("heads.image.bank.num_classes=5", "set heads.image.bank.num_classes"),
    ],
)
def test_refused_before_anything_starts(
    config: Path,
    override: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.distributed.init_process_group", None)
    assert launch.pretrain.main(["--config", str(config), "--set", override.format(file=config)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "message"),
    [
        (-1, 0, np.float32, "but this run needs"),
        (0, 1, np.float16, "but this run needs"),
        (0, 0, np.int32, "but centres are [C, D] of float32, float16, bfloat16"),
    ],
)
def test_another_bank_is_refused_before_anything_starts(
    config: Path,
    rows: int,
    width: int,
    dtype: type,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.distributed.init_process_group", None)
    run = load(config)
    (head,) = (head for head in run.heads if head.name == "image")
    np.save(tmp_path / "b_0.npy", np.zeros((head.bank.num_classes + rows, run.model.hidden_size + width), dtype))
    override = f"heads.image.bank.init={tmp_path}/b_%d.npy"
    assert launch.pretrain.main(["--config", str(config), "--set", override]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: heads.image.bank.init={tmp_path}/b_%d.npy")
    assert message in error


def test_refusal_is_a_sentence_and_an_exit_code(config: Path) -> None:
    command = [sys.executable, "-m", "launch.pretrain", "--config", str(config), "--set", "train.stepps=3"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=120, check=False
    )
    assert result.returncode == 2
    assert (
        result.stderr
        == "error: --set train.stepps=3: `train.stepps` is not a key of the configuration; did you mean `steps`?\n"
    )


def ranks_of(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    lines = {child: child.cmdline() for child in psutil.Process(launcher.pid).children(recursive=True)}
    return [c for c, line in lines.items() if "launch.pretrain" in line and "deepspeed.launcher.launch" not in line]


def wait_for(condition: object, seconds: float = 90) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_signal_before_torch_is_there_stops_with_a_checkpoint(config: Path) -> None:
    command = [sys.executable, "-m", "launch.pretrain", "--config", str(config), "--set", "train.steps=100000"]
    with subprocess.Popen(command, cwd=ROOT, env=environment()) as run:
        process = Path("/proc", str(run.pid))

        def handles() -> bool:
            caught = next(line for line in (process / "status").read_text().splitlines() if line.startswith("SigCgt"))
            return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

        try:
            while not handles():
                time.sleep(0.001)
            assert "libtorch" not in (process / "maps").read_text()
            run.send_signal(signal.SIGTERM)
            assert run.wait(60) == 75
        finally:
            run.kill()
    assert json.loads((config.parent / "run" / "exit_status.json").read_text())["status"] == "stopped"


def test_a_second_job_in_a_run_directory_is_refused_and_harms_nothing(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "WAIT_S", 0.3)
    run = config.parent / "run"
    run.mkdir()
    (run / "exit_status.json").write_text("the first one's")
    with holder(run, wait_s=0) as first:
        in_use = rf"run_dir={run} is in use by process {first.pid} on "
        for look in (RunLock(run).take, RunLock(run).check):
            with pytest.raises(RunInUse, match=in_use):
                look(wait_s=0)
        assert launch.pretrain.main(["--config", str(config)]) == 69
        assert re.search(in_use, capsys.readouterr().err)
        assert (run / "exit_status.json").read_text() == "the first one's"
        first.kill()
    lock = RunLock(run)
    lock.take(wait_s=15)  # a killed holder holds nothing
    lock.release()


def test_looking_at_the_lock_does_not_take_it(tmp_path: Path) -> None:
    RunLock(tmp_path).check(wait_s=0)
    with holder(tmp_path, wait_s=0) as first:
        content = (tmp_path / "lock").read_text()
        assert content.startswith(f"process {first.pid} on ")
        with pytest.raises(RunInUse):
            RunLock(tmp_path).check(wait_s=0)
        with pytest.raises(RunInUse):  # closing the looker's descriptor did not release it
            RunLock(tmp_path).check(wait_s=0)
        assert (tmp_path / "lock").read_text() == content
        first.kill()


def test_a_fresh_start_beside_old_checkpoints_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = config.parent / "run" / "checkpoints" / "step_00000020"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text("{}")
    assert launch.pretrain.main(["--config", str(config), "--set", "checkpoint.resume=false"]) == 2
    assert "has checkpoints up to step 20" in capsys.readouterr().err


def test_signal_to_one_rank_stops_all_with_a_checkpoint(config: Path) -> None:
    """Through the deepspeed launcher; the run then goes on in one process and finishes, and damaged samples are named.

    SIGUSR1 is what Slurm's batch file sends: see test_submit.
    """
    run = config.parent / "run"
    metrics = run / "metrics.jsonl"
    command = [*DEEPSPEED, "launch.pretrain", "--config", str(config), "--set", "train.steps=100000"]
    port = ["--master_port", "29615"]
    with subprocess.Popen([DEEPSPEED[0], *port, *command[1:]], cwd=ROOT, env=environment()) as launcher:
        try:
            wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 5)
            family = psutil.Process(launcher.pid).children(recursive=True)
            ranks_of(launcher)[-1].send_signal(signal.SIGTERM)
            assert launcher.wait(60) == 75
        finally:
            launcher.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, "nothing of a stopped run survives"
    stopped = json.loads((run / "exit_status.json").read_text())
    assert stopped["status"] == "stopped"
    checkpoint = run / "checkpoints" / f"step_{stopped['step']:08d}"
    assert (checkpoint / "manifest.json").is_file()
    result = pretrain(config, f"train.steps={stopped['step'] + 60}")
    assert result.returncode == 0, result.stderr
    assert f"resumed from {checkpoint}" in result.stdout.replace("\n", "")
    assert json.loads((run / "exit_status.json").read_text())["status"] == "finished"
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, stopped["step"] + 61))
    named = [json.loads(line) for line in (run / "bad_samples.jsonl").read_text().splitlines()]
    reasons = {record["sample_id"].split("#")[-1]: record["reason"] for record in named}
    assert set(reasons) == {"images-0-005", "images-0-007", "clips-0-003"}
    assert all(reasons.values())
