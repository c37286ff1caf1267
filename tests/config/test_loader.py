"""The configuration is strict: what it does not know, it names."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import typing
from pathlib import Path

import pytest

from megatron_ovenc.config import PRESETS, ConfigError, RunConfig, check, dump, load, parse
from megatron_ovenc.config import tree as tree_module
from megatron_ovenc.config.schema import field_docstrings, schema

ROOT = Path(__file__).parents[2]
TEXT = """\
run_dir: output/x
model:
  preset: tiny
heads:
  - name: image
    global_batch_size: 8
    bank: {num_classes: 100, sample_rate: 1e-1}
    source: {kind: image, shards: [a.tar]}
  - name: video
    global_batch_size: 8
    bank: {num_classes: 10}
    source: {kind: video, shards: [b.tar], modes: {codec: 1, frames: 0, collage: 0}}
train: {steps: 10}
"""
NO_CODEC = "heads.video.source.modes={codec: 0, frames: 1, collage: 0}"


def config_classes() -> list[type]:
    return [c for c in vars(tree_module).values() if isinstance(c, type) and dataclasses.is_dataclass(c)]


def test_values_defaults_and_preset() -> None:
    config = parse(TEXT)
    assert config.model.hidden_size == PRESETS["tiny"]["hidden_size"]
    assert config.heads[0].bank.sample_rate == 0.1  # YAML 1.1 reads 1e-1 as a string
    assert config.heads[1].source.modes.codec == 1.0
    assert parse(TEXT.replace("preset: tiny", "preset: tiny\n  num_layers: 7")).model.num_layers == 7
    assert parse(dump(config)) == config


def test_overrides() -> None:
    overrides = ["train.steps=5", "heads.video.source.tokens=64", "heads.0.loss_weight=2", "optimizer.betas=[0.8, 0.9]"]
    config = parse(TEXT, overrides)
    assert config.train.steps == 5
    assert config.heads[1].source.tokens == 64
    assert config.heads[0].loss_weight == 2
    assert config.optimizer.betas == (0.8, 0.9)
    assert parse(TEXT, ["train.stop_after=null"]).train.stop_after is None


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (TEXT.replace("preset", "prest"), [], r"line 3: `model.prest` is not a key.*did you mean `preset`"),
        (TEXT.replace("tiny", "tinny"), [], r"line 3: `model.preset` is 'tinny'; it must be one of .*`tiny`"),
        (TEXT.replace("steps: 10", "steps: ten"), [], r"line 13: `train.steps` is 'ten'; it must be a whole number"),
        (TEXT.replace("steps: 10", "steps: 1.5"), [], r"`train.steps` is '1.5'; it must be a whole number"),
        (TEXT.replace("train: {steps: 10}", "train: {}"), [], r"line 13: `train` needs the key `steps`"),
        (TEXT.replace("train: {steps: 10}\n", ""), [], r"the key `train` is missing"),
        (TEXT + "train: {steps: 3}\n", [], r"line 14: `train` appears twice"),
        (TEXT.replace("[a.tar]", "a.tar"), [], r"`heads.0.source.shards` must be a list"),
        (TEXT.replace("name: image", "name:"), [], r"`heads.0.name` is empty"),
        ("heads: [", [], r"line 1: not valid YAML"),
        ("", [], r"expected a mapping"),
        (TEXT, ["train.step=3"], r"--set train.step=3: `train.step` is not a key.*`steps`"),
        (TEXT, ["optimiser.lr=3"], r"--set optimiser.lr=3: `optimiser` is not a key.*`optimizer`"),
        (TEXT, ["heads.audio.loss_weight=3"], r"`heads.audio` names nothing"),
        (TEXT, ["train.steps"], r"expected key=value"),
        (TEXT, ["data.workers=yes please"], r"--set data.workers.*'yes please'; it must be a whole number"),
        (TEXT, ["optimizer.lr=nan"], r"`optimizer.lr` is 'nan'; it must be a finite number"),
        (TEXT, ["optimizer.lr=.inf"], r"`optimizer.lr` is '.inf'; it must be a finite number"),
        (TEXT, ["parallel.zero=1"], r"`parallel.zero` is '1'; it must be one of 0, 2, 3"),
        (TEXT, ["log.tensorboard=1"], r"`log.tensorboard` is '1'; it must be true or false"),
    ],
)
def test_what_is_wrong_is_named(text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text, overrides)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*none\.yaml"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "world", "message"),
    [
        ("model.num_heads=4", 1, "multiple of 32"),
        ("model.hidden_size=65", 1, "model.hidden_size=65"),
        ("parallel.tensor=3", 4, "parallel.tensor=3 does not divide the 4 ranks"),
        ("parallel.tensor=4", 4, "model.num_heads=2 is not divisible by parallel.tensor=4"),
        ("model.ffn_size=255", 2, "model.ffn_size=255 is not divisible"),
        ("parallel.sequence_parallel=true", 1, "needs parallel.tensor > 1"),
        ("heads.video.bank.num_classes=3", 4, "heads.video.bank.num_classes=3 is less than the 4 ranks"),
        ("heads.image.global_batch_size=9", 4, None),
        ("heads.image.global_batch_size=3", 4, "heads.image.global_batch_size=3"),
        ("train.grad_accumulation=3", 1, "multiple of train.grad_accumulation=3"),
        ("heads.video.name=image", 1, "two heads are named 'image'"),
        ("heads.image.source.size=225", 1, "heads.image.source.size=225 must be a multiple of model.patch_size=14"),
        ("heads.video.source.modes.frames=0.5", 1, "they sum to 1.5"),
        ("heads.video.source.resize=native", 1, "heads.video.source.resize=native is for pictures"),
        ("heads.video.source.decoder=dali", 1, "heads.video.source.decoder=dali is for pictures"),
        ("heads.video.source.decoder=dali_gpu", 1, "heads.video.source.decoder=dali_gpu is for pictures"),
        ("heads.video.source.tokens=20000", 1, "between 1 and the 16384 patches"),
        ("schedule.warmup_steps=11", 1, "schedule.warmup_steps=11"),
        ("train.hang_timeout_s=120", 1, "train.hang_timeout_s=120 must lie above data.sample_timeout_s=120"),
        ("data.sample_timeout_s=60", 1, None),
        ("train.hang_timeout_s=0", 1, None),
        ("data.prefetch_mb=-1", 1, "data.prefetch_mb=-1 must not be negative"),
        ("data.prefetch_mb=0", 1, None),
        ("heads.image.source.num_frames=4", 1, "heads.image.source.num_frames has no effect with .*kind=image"),
        ("heads.image.source.clip_frames=4", 1, "heads.image.source.clip_frames has no effect"),
        ("heads.image.source.i_frames=free", 1, "heads.image.source.i_frames has no effect"),
        ("heads.image.source.modes={codec: 1, frames: 0, collage: 0}", 1, "heads.image.source.modes has no effect"),
        ("heads.image.source.tokens=64", 1, "heads.image.source.tokens has no effect with .*resize=square"),
        ("heads.image.source.tokens=64 heads.image.source.resize=native heads.image.source.size=9", 1, None),
        (f"heads.video.source.tokens=64 {NO_CODEC}", 1, "heads.video.source.tokens has no effect with .*modes.codec=0"),
        (f"heads.video.source.i_frames=free {NO_CODEC}", 1, "heads.video.source.i_frames has no effect"),
        (f"heads.video.source.size=28 heads.video.source.clip_frames=16 {NO_CODEC}", 1, None),
        ("data.cache_gb=9", 1, "data.cache_gb has no effect with no data.cache_dir"),
        ("data.cache_gb=9 data.cache_dir=x", 1, None),
        ("data.workers=0", 1, None),
        ("data.workers=0 data.prefetch=9 data.prefetch_mb=9 data.sample_timeout_s=9", 1, None),
        ("data.workers=0 train.hang_timeout_s=9", 1, None),
        ("train.spike.window=9", 1, "train.spike.window=9 at least 10"),
        ("checkpoint.keep_every=-1", 1, "checkpoint.keep_every=-1 must not be negative"),
        ("heads.image.bank.sample_rate=0", 1, "sample_rate=0.0 must lie in"),
    ],
)
def test_checks_name_the_key(override: str, world: int, message: str | None) -> None:
    overrides = re.split(r" (?=\w+\.)", override) if "tensor=4" not in override else [override, "model.ffn_size=256"]
    if override == "model.ffn_size=255":
        overrides.append("parallel.tensor=2")
    if message is None:
        check(parse(TEXT, overrides), world)
        return
    with pytest.raises(ConfigError, match=message):
        check(parse(TEXT, overrides), world)


def test_retries_of_remote_reads_end_before_the_sample_is_given_up() -> None:
    remote = parse(TEXT.replace("a.tar", "s3://bucket/a.tar"), ["data.sample_timeout_s=60"])
    with pytest.raises(
        ConfigError, match=r"data\.remote_retry_s=60 lie between 0 and data\.sample_timeout_s=60, if shards are"
    ):
        check(remote, 1)


def test_every_field_is_documented_and_in_the_schema() -> None:
    for kind in config_classes():
        assert set(field_docstrings(kind)) == {f.name for f in dataclasses.fields(kind)}, kind
    committed = json.loads((ROOT / "configs" / "schema.json").read_text())
    fresh = {"$schema": committed["$schema"], **schema()}
    assert committed == fresh, "run: python -m megatron_ovenc.config.schema > configs/schema.json"


def test_every_field_is_read_somewhere() -> None:
    """A field that nothing reads is a promise that nothing keeps."""
    rooms = ("megatron_ovenc", "eval")
    sources = [p for room in rooms for p in (ROOT / room).rglob("*.py") if p.parent.name != "config"]
    nodes = (node for path in sources for node in ast.walk(ast.parse(path.read_text())))
    # `_SHAPE_KEYS` and the published names are read through getattr, by name.
    read = {
        n.attr if isinstance(n, ast.Attribute) else n.value
        for n in nodes
        if isinstance(n, ast.Attribute | ast.Constant)
    }
    wanted = {f"{kind.__name__}.{f.name}": f.name for kind in config_classes() for f in dataclasses.fields(kind)}
    unread = [dotted for dotted, name in wanted.items() if name not in read and dotted != "ModelConfig.preset"]
    assert unread == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_load(path: Path) -> None:
    config = load(path)
    check(config, max(config.parallel.tensor, 1) * 2)
    assert path.read_text().startswith("# "), "a recipe opens with its command, hardware and expected result"
    assert typing.cast(RunConfig, config).run_dir
