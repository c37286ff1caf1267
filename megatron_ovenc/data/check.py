"""What can be known of a head's data to be wrong before any process starts."""

from __future__ import annotations

import math

import numpy as np

from megatron_ovenc.config.tree import DataConfig, HeadConfig, SourceConfig
from megatron_ovenc.data import dali
from megatron_ovenc.data.dataset import HeadDataset
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.shards import ShardSet, storage_of
from megatron_ovenc.data.storage.base import Shard, printable
from megatron_ovenc.data.storage.labels import labels_path

LABELS_CHECKED = 4_000_000
"""Labels read at the start; of larger sets evenly spaced rows."""
RECORDS_CHECKED = 2_000
"""As many samples whose labels are inside of their shard, where each costs a read."""
SAMPLES_CHECKED = 8
"""Samples that are read whole."""
STRAY_SHARE = 0.01
"""Share of samples with labels outside the bank from which the configuration is wrong rather than the data damaged."""


def check_source(head: HeadConfig, data: DataConfig | None = None, *, patch_size: int) -> ShardSet:
    """Check a head's source against itself, its shards and its bank.

    Args:
        head: the head.
        data: how remote shards are read; default: as `DataConfig` has it.
        patch_size: `model.patch_size`.

    Returns:
        The head's shards.

    Raises:
        ValueError: what is wrong, and the key to change.
    """
    source, key = head.source, f"heads.{head.name}.source"
    native = source.kind == "image" and source.resize == "native"
    if not native and (source.size < patch_size or source.size % patch_size):
        raise ValueError(f"{key}.size is {source.size}; it must be a multiple of model.patch_size = {patch_size}")
    if source.decoder != "pillow" and not dali.installed():
        raise ValueError(
            f"{key}.decoder is {source.decoder}, but DALI is not installed; pip install 'megatron-ovenc[dali]', or set it to pillow"
        )
    if source.kind == "video":
        _check_clips(source, key, patches=(source.size // patch_size) ** 2)
    try:
        shards = ShardSet.open(source.shards, storage_of(data or DataConfig()))
    except ValueError as error:
        raise ValueError(f"{key}.shards: {error}") from error
    if len(shards) == 0:
        raise ValueError(f"{key}.shards: the {len(shards.shards)} shards of {list(source.shards)} hold no sample")
    _check_weights(shards, source, key)
    _check_labels(shards, head)
    _check_samples(shards, head, key, patch_size)
    return shards


def _check_weights(shards: ShardSet, source: SourceConfig, key: str) -> None:
    if not source.weights:
        return
    if len(source.weights) != len(source.shards) or not all(0 < weight < math.inf for weight in source.weights):
        raise ValueError(
            f"{key}.weights are {list(source.weights)}; give a positive number for each of the {len(source.shards)} entries of "
            f"{key}.shards"
        )
    for pattern, length in zip(source.shards, shards.entry_lengths, strict=True):
        if length == 0:
            raise ValueError(f"{key}.shards: {pattern!r} has a weight but holds no sample; remove both")


def _check_samples(shards: ShardSet, head: HeadConfig, key: str, patch_size: int) -> None:
    """Refuse a source of which not one of a few samples can be read, or names patches that it could be trained on."""
    dataset = HeadDataset(head, shards, patch_size=patch_size, seed=0, micro_batch=1)
    numbers = np.unique(np.linspace(0, len(shards) - 1, SAMPLES_CHECKED).astype(int)).tolist()
    reasons = []
    for number in numbers:
        try:
            raw = shards.read(number)
            dataset.content(raw)
            if head.source.kind == "video" and head.source.modes.codec > 0:
                dataset.selection(raw)
        except BadSample as error:
            reasons.append(f"{shards.sample_id(number)}: {error}")
    if len(reasons) == len(numbers):
        raise ValueError(
            f"{key}.shards: none of the {len(numbers)} samples looked at can be used, such as {reasons[0]}"
        )


def _check_clips(source: SourceConfig, key: str, *, patches: int) -> None:
    for name in ("num_frames", "clip_frames", "tokens"):
        if getattr(source, name) < 1:
            raise ValueError(f"{key}.{name} is {getattr(source, name)}; it must be at least 1")
    if source.num_frames > source.clip_frames:
        raise ValueError(
            f"{key}.num_frames is {source.num_frames}, more than clip_frames = {source.clip_frames}; lower num_frames"
        )
    available = source.clip_frames * patches
    if source.modes.codec > 0 and source.tokens > available:
        raise ValueError(
            f"{key}.tokens is {source.tokens}, but {source.clip_frames} frames of {patches} patches have only {available}; "
            f"lower tokens"
        )
    shares = {name: getattr(source.modes, name) for name in ("codec", "frames", "collage")}
    if min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"{key}.modes are {shares}; shares must not be negative and must sum to 1")


def _check_labels(shards: ShardSet, head: HeadConfig) -> None:
    """A few stray labels are bad samples, met and named in training; many mean that labels and bank do not belong together."""
    inside = sum(shard.length for shard in shards.shards if shard.labels is None)
    width = max(1, *(shard.label_width for shard in shards.shards))
    strides = {
        False: max(1, math.ceil((len(shards) - inside) * width / LABELS_CHECKED)),
        True: max(1, math.ceil(inside / RECORDS_CHECKED)),
    }
    looked_at, labelled, stray, example = 0, 0, 0, ""
    for shard in shards.shards:
        labels = shards.labels(shard, strides[shard.labels is None])
        outside = (labels < -1) | (labels >= head.bank.num_classes)
        looked_at += len(labels)
        labelled += int((labels != -1).any(axis=1).sum())
        stray += int(outside.any(axis=1).sum())
        if outside.any() and not example:
            example = f"{labels[outside][0]} in {_labels_of(shard)}"
    if labelled == 0:
        raise ValueError(
            f"heads.{head.name}.source.shards: none of the {looked_at} samples looked at has a label; write them into the "
            f".labels.npy beside each shard (tools.make_shards does for labelled inputs, tools.build_concept_bank for clusters)"
        )
    if stray > STRAY_SHARE * looked_at:
        raise ValueError(
            f"heads.{head.name}.source.shards: {stray} of {looked_at} samples have labels outside [0, {head.bank.num_classes}), "
            f"such as {example} (-1 = none); set heads.{head.name}.bank.num_classes to the number of centres that the labels "
            f"were made for, or correct the labels"
        )


def _labels_of(shard: Shard) -> str:
    """The file that a shard's labels are in."""
    return printable(shard.path if shard.labels is None else labels_path(shard.path))
