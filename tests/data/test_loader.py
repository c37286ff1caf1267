"""The loader: one stream of samples, whatever the ranks, workers and stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codec.__main__ import main as analyze
from megatron_ovenc.data.storage.labels import labels_path
from tests.codec.clips import encode, panning
from tests.data.samples import (
    GRID,
    ONLY_CODEC,
    clip_bytes,
    clip_head,
    coded_frames,
    decoded_place,
    image_head,
    loading,
    write_images,
    write_shard,
)
from tests.data.streams import fingerprints, loader, records, stream


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    return write_images(tmp_path_factory.mktemp("images"), shards=3, samples=13)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("clips")
    for shard in range(2):
        samples = [{"mp4": clip_bytes(coded_frames(20 + shard))} for _ in range(6)]
        write_shard(folder / f"clips-{shard}.tar", samples, np.arange(12).reshape(6, 2))
    return str(folder / "*.tar")


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_the_stream_is_the_same_for_any_ranks_workers_and_stops(kind, images, clips, tmp_path):
    head = image_head(images) if kind == "images" else clip_head(clips, batch=16)
    log = tmp_path / "bad.jsonl"
    expected = stream(head, log, 6)
    assert len(set(expected[0])) == len(expected[0]) == 8
    assert expected[0] != expected[1]
    for ranks in (2, 4, 8, 3):
        assert stream(head, log, 4, ranks=ranks) == expected[:4]
    assert stream(head, log, 6, ranks=1, workers=1) == expected
    assert stream(head, log, 6, ranks=2, workers=2) == expected
    # Stopped after some micro-batches, resumed on other ranks and workers.
    assert stream(head, log, 3, ranks=4, consumed=3 * 8) == expected[3:]
    assert stream(head, log, 1, ranks=1, workers=2, consumed=5 * 8) == expected[5:]
    assert records(log) == []


def test_epochs_hold_every_sample_once_each_in_another_order(images, tmp_path):
    names = [one[0] for batch in stream(image_head(images, batch=26), tmp_path / "bad.jsonl", 9) for one in batch]
    epochs = [names[start : start + 39] for start in (0, 39, 78)]
    assert all(len(set(epoch)) == 39 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_next_epoch_augments_and_draws_labels_anew(images, tmp_path):
    batches = stream(image_head(images, batch=26), tmp_path / "bad.jsonl", 6)
    seen: dict[str, list] = {}
    for one in (one for batch in batches for one in batch):
        seen.setdefault(one[0], []).append(one)
    assert sum(first[1] != second[1] for first, second in seen.values()) > 30


def test_state_is_the_samples_that_all_ranks_consumed(images, tmp_path):
    one = loader(image_head(images), tmp_path / "bad.jsonl", rank=1, ranks=2, data=loading(workers=1))
    assert one.batch_sizes == (4, 4)
    for _ in range(3):
        one.next()
    assert one.state_dict() == {"consumed": 24}
    ahead = fingerprints(one.next())
    one.load_state_dict({"consumed": 24})
    assert one.worker_pids == ()
    assert fingerprints(one.next()) == ahead
    assert one.take_wait() > 0
    assert one.take_wait() == 0
    one.close()


def test_uneven_ranks(images, tmp_path):
    assert loader(image_head(images, batch=14), tmp_path / "x", ranks=3).batch_sizes == (3, 2, 2)
    with pytest.raises(ValueError, match=r"heads\.images\.global_batch_size"):
        loader(image_head(images, batch=15), tmp_path / "x")


def test_modes_are_mixed_exactly_and_positions_fit_the_pixels(clips, tmp_path):
    one = loader(clip_head(clips, batch=16, tokens=23), tmp_path / "bad.jsonl", accumulation=1)
    batch = one.next()
    kinds: list[str] = []
    for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        positions = batch.positions[a:b].numpy()
        length = 20 if "clips-0" in batch.sample_ids[len(kinds)] else 21
        seen = decoded_place(batch.patches[a:b].numpy(), length)
        if len(positions) == 23:
            kinds.append("codec")
        else:
            kinds.append("collage" if positions[:, 0].max() == 0 else "frames")
        rows = positions[:, 1] % GRID if kinds[-1] == "collage" else positions[:, 1]
        assert seen[:, 1:].tolist() == np.stack([rows, positions[:, 2]], axis=1).tolist()
    assert sorted(kinds) == ["codec"] * 8 + ["collage"] * 2 + ["frames"] * 6
    assert batch.labels.shape == (16, 2)


def test_new_labels_beside_the_shards_are_what_is_trained_on(tmp_path):
    pattern = write_images(tmp_path, shards=1, samples=8)
    np.save(labels_path(tmp_path / "images-0.tar"), np.arange(8)[:, None])
    head = image_head(pattern, batch=16)
    head = replace(head, bank=replace(head.bank, positives=1))
    batch = loader(head, tmp_path / "bad.jsonl").next()
    assert sorted(batch.labels[:, 0].tolist()) == list(range(8))
    assert [int(name[-3:]) for name in batch.sample_ids] == batch.labels[:, 0].tolist()


def test_clips_are_augmented_only_on_request(clips, tmp_path):
    def patches(augment):
        return [one[3] for one in stream(clip_head(clips, augment=augment), tmp_path / "bad", 1)[0]]

    assert patches(None) == patches(False) != patches(True) == patches(True)


CONTAINERS = {
    "3gp": ("libx264", "3gp"),
    "264": ("libx264", "h264"),
    "265": ("libx265", "hevc"),
    "flv": ("flv", "flv"),
    "m2ts": ("libx264", "mpegts"),
    "mpg": ("mpeg2video", "mpeg"),
    "wmv": ("wmv2", "asf"),
}


@pytest.mark.parametrize("extension", CONTAINERS)
def test_what_gets_a_sidecar_can_be_trained_on(tmp_path: Path, extension: str) -> None:
    encoder, container = CONTAINERS[extension]
    options = {"x265-params": "log-level=none:pools=none"} if encoder == "libx265" else {}
    content = encode(panning(20, (64, 96), (2, 1)), encoder, options, container)
    (tmp_path / f"a.{extension.upper()}").write_bytes(content)
    assert analyze(["analyze", str(tmp_path), "--processes", "1", "--frames", "16"]) == 0
    sidecar = (tmp_path / "a.saliency").read_bytes()
    write_shard(tmp_path / "a.tar", [{extension: content, "saliency": sidecar}], np.zeros((1, 1), np.int64))
    head = clip_head(str(tmp_path / "a.tar"), batch=2, modes=ONLY_CODEC)
    assert len(stream(head, tmp_path / "bad.jsonl", 2)[0]) == 1
    assert records(tmp_path / "bad.jsonl") == []
