"""Start-up checks: every wrong setting is named with its key before anything runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from megatron_ovenc.config.tree import ModesConfig
from megatron_ovenc.data import check
from megatron_ovenc.data.check import check_source
from megatron_ovenc.data.storage.labels import labels_path
from tests.data.samples import clip_head, image_head, write_images, write_shard


@pytest.fixture
def images(tmp_path) -> str:
    return write_images(tmp_path, shards=2, samples=10)


def test_a_sound_source_passes(images, tmp_path):
    assert len(check_source(image_head(images), patch_size=14)) == 20
    write_shard(tmp_path / "clips.tar", [{"mp4": b"any"}] * 3, np.arange(3)[:, None])
    assert len(check_source(clip_head(str(tmp_path / "clips.tar")), patch_size=14)) == 3


def test_pictures_are_no_clips_nor_clips_pictures(images, tmp_path):
    with pytest.raises(
        ValueError, match=r"none of the \d+ samples looked at can be used.*it has none of \.mp4.*only \.png"
    ):
        check_source(clip_head(images), patch_size=14)
    write_shard(tmp_path / "clips.tar", [{"mp4": b"any"}] * 3, np.arange(3)[:, None])
    with pytest.raises(ValueError, match=r"it has none of \.jpg.*only \.mp4"):
        check_source(image_head(str(tmp_path / "clips.tar")), patch_size=14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 30}, r"source\.size is 30; it must be a multiple of model\.patch_size = 14"),
        ({"size": 0}, r"source\.size is 0"),
        ({"tokens": 65}, r"source\.tokens is 65, but 16 frames of 4 patches have only 64"),
        ({"tokens": 0}, r"source\.tokens is 0; it must be at least 1"),
        ({"num_frames": 17}, r"source\.num_frames is 17, more than clip_frames = 16"),
        ({"modes": ModesConfig(codec=0.5, frames=0.5, collage=0.1)}, r"source\.modes are .*must sum to 1"),
        ({"modes": ModesConfig(codec=1.5, frames=-0.5, collage=0.0)}, r"source\.modes are .*not be negative"),
        ({"shards": ("/nowhere/*.tar",)}, r"source\.shards: no shard matches '/nowhere"),
    ],
)
def test_wrong_settings_name_their_key(images, changes, message):
    with pytest.raises(ValueError, match=r"heads\.clips\." + message):
        check_source(clip_head(images, **changes), patch_size=14)


@pytest.mark.parametrize("decoder", ["dali", "dali_gpu"])
def test_dali_must_be_installed_where_it_is_asked_for(images, monkeypatch, decoder):
    monkeypatch.setattr(check.dali, "installed", lambda: False)
    head = image_head(images)
    with pytest.raises(ValueError, match=rf"source\.decoder is {decoder}, but DALI is not installed; pip install"):
        check_source(replace(head, source=replace(head.source, decoder=decoder)), patch_size=14)


def test_settings_of_clips_do_not_matter_to_images(images):
    head = image_head(images)
    check_source(replace(head, source=replace(head.source, tokens=10**9)), patch_size=14)


def test_what_a_source_never_reads_is_not_judged(images, tmp_path):
    write_shard(tmp_path / "clips.tar", [{"mp4": b"any"}], np.zeros((1, 1), np.int64))
    clips = str(tmp_path / "clips.tar")
    head = image_head(images)
    check_source(replace(head, source=replace(head.source, resize="native", size=9)), patch_size=14)
    check_source(clip_head(clips, tokens=65, modes=ModesConfig(codec=0, frames=1, collage=0)), patch_size=14)


@pytest.mark.parametrize("looked_at", [10**6, 100])
def test_a_bank_smaller_than_the_labels_is_a_wrong_setting(images, monkeypatch, looked_at):
    monkeypatch.setattr(check, "LABELS_CHECKED", looked_at)
    with pytest.raises(
        ValueError, match=r"labels outside \[0, 30\), such as \d+ in .*\.labels\.npy .*heads\.images\.bank\.num_classes"
    ):
        check_source(image_head(images, num_classes=30), patch_size=14)


def test_a_stray_label_is_left_to_training(tmp_path):
    labels = np.zeros((200, 1), np.int64)
    labels[7] = 99
    write_shard(tmp_path / "a.tar", [{"png": b""}] * 200, labels)
    check_source(image_head(str(tmp_path / "a.tar")), patch_size=14)
    labels[:5] = -5
    np.save(labels_path(tmp_path / "a.tar"), labels)
    with pytest.raises(ValueError, match="6 of 200 samples have labels outside"):
        check_source(image_head(str(tmp_path / "a.tar")), patch_size=14)


def test_data_without_labels_or_samples_is_no_training_data(tmp_path):
    write_shard(tmp_path / "a.tar", [{"png": b""}] * 3, np.full((3, 2), -1))
    with pytest.raises(ValueError, match="none of the 3 samples looked at has a label"):
        check_source(image_head(str(tmp_path / "a.tar")), patch_size=14)
    write_shard(tmp_path / "b.tar", [], np.empty((0, 2), np.int64))
    with pytest.raises(ValueError, match="hold no sample"):
        check_source(image_head(str(tmp_path / "b.tar")), patch_size=14)
