"""What a run shows besides its console: attempts, boards, profiles."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_ovenc.config import ConfigError, LogConfig, ParallelConfig, ProfileConfig, RunConfig, WandbConfig, check
from megatron_ovenc.train.boards import WeightsAndBiases
from megatron_ovenc.train.preflight import check_run
from tests.rank_pool import RankPool
from tests.train.test_resume import small_config, train


def with_log(config: RunConfig, **log: object) -> RunConfig:
    return replace(config, log=LogConfig(every=2, **log))  # type: ignore[arg-type]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_attempts_profile_and_tensorboard_of_a_resumed_run(rank_pool: RankPool, tmp_path: Path) -> None:
    """Stopped after 3 of its 6 steps, amid the steps that rank 1 records, and resumed on another layout."""
    profile = ProfileConfig(steps=(2, 6), ranks=(1,))
    config = with_log(small_config(tmp_path, ParallelConfig(), stop_after=3), profile=profile)
    rank_pool.run(train, world=2, args=(config,))
    config = with_log(small_config(tmp_path, ParallelConfig(tensor=2)), tensorboard=False)
    rank_pool.run(train, world=2, tensor=2, args=(config,))

    attempts = lines(tmp_path / "attempts.jsonl")
    assert [(a["step"], a["data"], a["tensor"]) for a in attempts] == [(0, 2, 1), (3, 1, 2)]
    times = [record["time"] for record in lines(tmp_path / "metrics.jsonl")]
    assert times == sorted(times)
    assert attempts[0]["time"] <= times[0] <= times[2] <= attempts[1]["time"] <= times[3]

    assert any((tmp_path / "tensorboard").iterdir())

    table, trace = sorted((tmp_path / "profile").iterdir())
    assert (table.name, trace.name) == ("rank0001.table.txt", "rank0001.trace.json.gz")
    assert "aten::mm" in table.read_text()
    with gzip.open(trace) as file:
        names = [str(event.get("name")) for event in json.load(file)["traceEvents"]]
    assert sum(name.startswith("Optimizer.step#AdamW.step") for name in names) == 2


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of a small .wandb file: LevelDB's log format (one block, whole records) after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place = path.read_bytes(), 7
    while place < len(content):
        _, size, kind = struct.unpack_from("<IHB", content, place)
        assert kind == 1, "a record over several blocks"
        yield Record.FromString(content[place + 7 : place + 7 + size])
        place += 7 + size


def test_weights_and_biases_continues_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, offline: two attempts, the second of which repeats a step, are one run there."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "config.yaml").write_text("train: {steps: 10}\n")
    for steps in ([1, 2, 3], [3, 4]):
        board = WeightsAndBiases(tmp_path, WandbConfig(project="ovenc", mode="offline"))
        for step in steps:
            board.add(step, {"loss/image": 1 / step})
        board.close()
        wandb.teardown()  # as the end of the attempt's process would
    run_id = (tmp_path / "wandb_id").read_text().strip()
    files = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2
    records = [record for path in files for record in wandb_records(path)]
    settings = [{i.key: i.value_json for i in r.run.config.update} for r in records if r.HasField("run")]
    assert json.loads(settings[0]["train"]) == {"steps": 10}
    points = [{".".join(i.nested_key) or i.key: i.value_json for i in r.history.item} for r in records]
    assert [json.loads(point["step"]) for point in points if "step" in point] == [1, 2, 3, 3, 4]
    assert [json.loads(point["loss/image"]) for point in points if "step" in point] == [1, 1 / 2, 1 / 3, 1 / 3, 1 / 4]


def test_a_missing_package_and_a_gpu_that_is_none_are_told_at_start_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", lambda name: [])  # stands for an environment without wandb
    config = small_config(tmp_path, ParallelConfig(device="cpu"))
    log = {"wandb": WandbConfig(project="p"), "profile": ProfileConfig(steps=(1, 2), memory=True)}
    with pytest.raises(ConfigError) as caught:
        check_run(with_log(config, **log), 1)
    assert "log.wandb needs the package wandb" in str(caught.value)
    assert "log.profile.memory records the memory of a GPU" in str(caught.value)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (ProfileConfig(steps=(0, 2)), r"log\.profile\.steps=\[0, 2\] must be a first and a last step between 1 and"),
        (ProfileConfig(steps=(3, 2)), r"log\.profile\.steps=\[3, 2\]"),
        (ProfileConfig(steps=(1, 7)), r"log\.profile\.steps=\[1, 7\].*train\.steps=6"),
        (ProfileConfig(steps=(1, 2), ranks=(2,)), r"log\.profile\.ranks=\[2\] must name ranks between 0 and 1"),
    ],
)
def test_a_profile_of_nothing_is_refused(tmp_path: Path, profile: ProfileConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(with_log(small_config(tmp_path, ParallelConfig()), profile=profile), 2)
