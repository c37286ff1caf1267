"""Checks across fields, made before any process group exists. Each error names the key to change."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from megatron_ovenc.config.fp8_shapes import fp8_problems
from megatron_ovenc.config.idle import idle_keys
from megatron_ovenc.config.loader import ConfigError
from megatron_ovenc.config.tree import LARGEST_LEARNED_SCALE, HeadConfig, RunConfig


def check(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError, listing every problem found, if `config` cannot run on `world_size` ranks."""
    problems = [
        *_model(config),
        *_layout(config, world_size),
        *_training(config),
        *_log(config, world_size),
        *_heads(config, world_size),
        *_bank_training(config),
        *_evaluation(config),
        *idle_keys(config),
    ]
    if problems:
        raise ConfigError("the configuration cannot run:\n" + "\n".join(f"  - {problem}" for problem in problems))


def _model(config: RunConfig) -> Iterator[str]:
    model = config.model
    for key in ("hidden_size", "ffn_size", "num_layers", "num_heads", "patch_size"):
        if getattr(model, key) < 1:
            yield f"model.{key}={getattr(model, key)} must be at least 1"
            return
    head_dim, rest = divmod(model.hidden_size, model.num_heads)
    if rest or head_dim % 32:
        yield (
            f"model.hidden_size={model.hidden_size} / model.num_heads={model.num_heads} gives a head of "
            f"{model.hidden_size / model.num_heads:g} channels; 3-D rotary positions need a multiple of 32"
        )
    if not (model.norm_eps > 0 and model.rope_theta > 1 and model.init_std > 0):
        yield "model.norm_eps and model.init_std must be positive, model.rope_theta above 1"


def _layout(config: RunConfig, world_size: int) -> Iterator[str]:
    model, tensor = config.model, config.parallel.tensor
    if tensor < 1 or world_size % tensor:
        yield (
            f"parallel.tensor={tensor} does not divide the {world_size} ranks that were started; "
            "change it or the number of slots"
        )
        return
    for key in ("num_heads", "ffn_size"):
        if getattr(model, key) % tensor:
            yield f"model.{key}={getattr(model, key)} is not divisible by parallel.tensor={tensor}"
    if config.parallel.sequence_parallel and tensor == 1:
        yield "parallel.sequence_parallel needs parallel.tensor > 1: there is no group to split tokens over"
    if config.parallel.compile and model.layers == "te":
        yield "parallel.compile has no effect with model.layers=te, whose modules are fused kernels already; remove it"
    yield from fp8_problems(model, config.parallel)
    if config.parallel.timeout_s <= 0:
        yield f"parallel.timeout_s={config.parallel.timeout_s} must be positive"


def _training(config: RunConfig) -> Iterator[str]:
    train, schedule, optimizer, data = config.train, config.schedule, config.optimizer, config.data
    for key, value in (
        ("train.steps", train.steps),
        ("train.grad_accumulation", train.grad_accumulation),
        ("train.max_skipped_steps", train.max_skipped_steps),
        ("checkpoint.every", config.checkpoint.every),
        ("data.prefetch", data.prefetch),
    ):
        if value < 1:
            yield f"{key}={value} must be at least 1"
    if train.stop_after is not None and train.stop_after < 1:
        yield f"train.stop_after={train.stop_after} must be at least 1, or absent"
    if not 0 <= schedule.warmup_steps <= train.steps:
        yield f"schedule.warmup_steps={schedule.warmup_steps} must lie between 0 and train.steps={train.steps}"
    if not 0 <= schedule.final_lr_share <= 1:
        yield f"schedule.final_lr_share={schedule.final_lr_share} must lie in [0, 1]"
    if schedule.power <= 0:
        yield f"schedule.power={schedule.power} must be positive"
    if optimizer.lr < 0 or not math.isfinite(optimizer.lr) or optimizer.clip_norm < 0 or optimizer.eps <= 0:
        yield "optimizer.lr and optimizer.clip_norm must not be negative, optimizer.eps must be positive"
    if not all(0 <= beta < 1 for beta in optimizer.betas):
        yield f"optimizer.betas={list(optimizer.betas)} must lie in [0, 1)"
    if data.workers < 0 or data.sample_timeout_s <= 0 or not 0 <= data.max_bad_share < 1:
        yield "data.workers must not be negative, data.sample_timeout_s be positive, data.max_bad_share lie in [0, 1)"
    if data.prefetch_mb < 0:
        yield f"data.prefetch_mb={data.prefetch_mb:g} must not be negative (0 sets no bound)"
    remote = any("://" in shards for head in config.heads for shards in head.source.shards)
    longest = data.sample_timeout_s if remote and data.workers else math.inf
    if data.cache_gb <= 0 or not 0 <= data.remote_retry_s < longest:
        yield (
            f"data.cache_gb={data.cache_gb:g} must be positive, data.remote_retry_s={data.remote_retry_s:g} lie between 0 and "
            f"data.sample_timeout_s={data.sample_timeout_s:g}, if shards are remote"
        )
    yield from _faults(config)


def _faults(config: RunConfig) -> Iterator[str]:
    """What a run does when something goes wrong."""
    train, checkpoint = config.train, config.checkpoint
    if checkpoint.keep_last < 0:
        yield f"checkpoint.keep_last={checkpoint.keep_last} must not be negative (0 keeps all)"
    if checkpoint.keep_every < 0:
        yield f"checkpoint.keep_every={checkpoint.keep_every} must not be negative (0 keeps none for good)"
    if checkpoint.keep_every and checkpoint.keep_last == 0:
        yield "checkpoint.keep_every has no effect with checkpoint.keep_last=0, which keeps all; remove it"
    if train.spike.factor <= 0 or train.spike.window < 10:
        yield (
            f"train.spike.factor={train.spike.factor} must be positive, train.spike.window={train.spike.window} at least 10"
        )
    if config.data.workers and 0 < train.hang_timeout_s <= config.data.sample_timeout_s:
        yield (
            f"train.hang_timeout_s={train.hang_timeout_s:g} must lie above data.sample_timeout_s={config.data.sample_timeout_s:g}, "
            "which a slow sample may take, or be 0, which never looks"
        )


def _log(config: RunConfig, world_size: int) -> Iterator[str]:
    log = config.log
    if log.every < 1:
        yield f"log.every={log.every} must be at least 1"
    if log.bank_every < 0:
        yield f"log.bank_every={log.bank_every} must not be negative (0 never looks)"
    if log.profile is None:
        return
    first, last = log.profile.steps
    if not 1 <= first <= last <= config.train.steps:
        yield f"log.profile.steps={[first, last]} must be a first and a last step between 1 and train.steps={config.train.steps}"
    if not log.profile.ranks or not all(0 <= rank < world_size for rank in log.profile.ranks):
        yield f"log.profile.ranks={list(log.profile.ranks)} must name ranks between 0 and {world_size - 1}"


def _heads(config: RunConfig, world_size: int) -> Iterator[str]:
    if not config.heads:
        yield "heads is empty; a run needs at least one"
    names = [head.name for head in config.heads]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two heads are named {name!r}; names must differ"
    for head in config.heads:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", head.name):
            yield f"the head name {head.name!r} must consist of letters, digits, `_` and `-`"
        yield from _bank(head, world_size)
        yield from _source(head, config.model.patch_size)
        data = world_size // max(config.parallel.tensor, 1)
        micro, rest = divmod(head.global_batch_size, max(config.train.grad_accumulation, 1))
        if rest or micro < data:
            yield (
                f"heads.{head.name}.global_batch_size={head.global_batch_size} must be a multiple of "
                f"train.grad_accumulation={config.train.grad_accumulation} and give each of the {data} data ranks "
                f"a sample in every micro-batch"
            )


def _bank(head: HeadConfig, world_size: int) -> Iterator[str]:
    bank, key = head.bank, f"heads.{head.name}.bank"
    if bank.num_classes < world_size:
        yield f"{key}.num_classes={bank.num_classes} is less than the {world_size} ranks that share the rows; use fewer ranks"
    if not 0 < bank.sample_rate <= 1:
        yield f"{key}.sample_rate={bank.sample_rate} must lie in (0, 1]"
    if bank.positives < 1 or (bank.chunk_rows is not None and bank.chunk_rows < 1):
        yield f"{key}.positives and {key}.chunk_rows must be at least 1"
    if bank.logit_scale <= 0 or not 0 <= bank.margin < 2 or not 0 <= bank.filter_threshold <= 1:
        yield f"{key}: logit_scale must be positive, margin in [0, 2), filter_threshold in [0, 1]"
    if min(bank.warmup_steps, bank.freeze_steps, bank.lr_scale, bank.weight_decay) < 0:
        yield f"{key}: warmup_steps, freeze_steps, lr_scale and weight_decay must not be negative"
    if bank.learn_scale and bank.logit_scale > LARGEST_LEARNED_SCALE:
        yield f"{key}.logit_scale={bank.logit_scale} is above {LARGEST_LEARNED_SCALE:g}, where a learned scale stops; lower it"
    if bank.correct_sampling and bank.sample_rate == 1:
        yield f"{key}.correct_sampling has no effect at sample_rate=1: every row competes; lower the rate or remove the key"
    if bank.loss == "sigmoid" and bank.co_positives != "negative":
        yield f"{key}.co_positives={bank.co_positives} has no effect with loss=sigmoid: classes do not compete; remove it"
    if bank.loss == "cosface" and bank.logit_bias != 0:
        yield f"{key}.logit_bias={bank.logit_bias} has no effect with loss=cosface: a softmax ignores it; remove it"


def _bank_training(config: RunConfig) -> Iterator[str]:
    """What a bank needs whose untouched rows are left for later, or that begins late."""
    first, second = config.optimizer.betas
    for head in config.heads:
        bank, key = head.bank, f"heads.{head.name}.bank"
        if bank.freeze_steps + bank.warmup_steps >= config.train.steps:
            yield (
                f"{key}.freeze_steps={bank.freeze_steps} and warmup_steps={bank.warmup_steps} together reach beyond "
                f"train.steps={config.train.steps}: the bank would never learn at its full rate"
            )
        if bank.optimizer != "rows":
            continue
        if bank.sample_rate == 1:
            yield f"{key}.optimizer=rows saves nothing at sample_rate=1: every row is touched; take dense or lower the rate"
        if 1 - second > 0.6 * (1 - first):
            yield (
                f"{key}.optimizer=rows needs 1 - beta2 <= 0.6 (1 - beta1), but optimizer.betas={list(config.optimizer.betas)}: the "
                "closed form of what untouched rows miss would be too coarse; raise beta2, lower beta1, or take dense"
            )
        if config.optimizer.lr * bank.lr_scale * bank.weight_decay >= 1:
            yield f"optimizer.lr x {key}.lr_scale x {key}.weight_decay must be below 1"


def _evaluation(config: RunConfig) -> Iterator[str]:
    wanted, patch_size = config.eval, config.model.patch_size
    if min(wanted.every, wanted.k - 1, wanted.batch_size - 1, wanted.tokens - 1) < 0:
        yield "eval.every must not be negative, eval.k, eval.batch_size and eval.tokens be at least 1"
    if wanted.every < 1 or patch_size < 1:
        return
    if wanted.train is None or wanted.val is None:
        yield f"eval.every={wanted.every} needs eval.train and eval.val, folders that have one sub-folder a class"
    if wanted.size < patch_size or wanted.size % patch_size:
        yield f"eval.size={wanted.size} must be a multiple of model.patch_size={patch_size}"
    elif wanted.kind == "video" and wanted.view == "frames" and wanted.tokens < (wanted.size // patch_size) ** 2:
        yield f"eval.tokens={wanted.tokens} does not hold a frame of eval.size={wanted.size}; raise it, or take view=codec"
    if wanted.kind == "image" and wanted.view == "codec":
        yield "eval.view=codec is for clips, but eval.kind is image"


def _source(head: HeadConfig, patch_size: int) -> Iterator[str]:
    source, key = head.source, f"heads.{head.name}.source"
    if patch_size < 1:
        return  # told by _model
    native = source.kind == "image" and source.resize == "native"
    if not native and (source.size < patch_size or source.size % patch_size):
        yield f"{key}.size={source.size} must be a multiple of model.patch_size={patch_size}"
    if source.weights and (
        len(source.weights) != len(source.shards) or not all(0 < w < math.inf for w in source.weights)
    ):
        yield (
            f"{key}.weights={list(source.weights)} must be a positive number for each of the {len(source.shards)} entries of "
            f"{key}.shards"
        )
    if native and source.tokens < 1:
        yield f"{key}.tokens={source.tokens} must be at least 1: it is the budget of a picture with resize=native"
    if source.kind == "video" and source.resize == "native":
        yield f"{key}.resize=native is for pictures, but {key}.kind is video; leave it at square"
    if source.kind == "video" and source.decoder != "pillow":
        yield f"{key}.decoder={source.decoder} is for pictures, but {key}.kind is video; remove it"
    if source.kind == "video":
        shares = (source.modes.codec, source.modes.frames, source.modes.collage)
        if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            yield f"{key}.modes must not be negative and sum to 1; they sum to {sum(shares):g}"
        if not 1 <= source.num_frames <= source.clip_frames:
            yield f"{key}.num_frames={source.num_frames} must lie between 1 and clip_frames={source.clip_frames}"
        available = source.clip_frames * (source.size // patch_size) ** 2
        if source.modes.codec > 0 and not 1 <= source.tokens <= available:
            yield f"{key}.tokens={source.tokens} must lie between 1 and the {available} patches of a clip"
