"""Layouts without annotations: a fixed order, one numbering for both splits, and clear words about what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.datasets import read_folder, read_splits


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_classes_and_clips_are_sorted_and_other_files_are_not_clips(tmp_path: Path) -> None:
    folder = fill(tmp_path, "b/2.mp4", "b/1.MKV", "a/deep/er/x.webm", "a/notes.txt", "empty/readme.md", "loose.mp4")
    dataset = read_folder(folder)
    assert dataset.classes == ("a", "b")
    found = [(str(clip.path.relative_to(folder)), clip.labels) for clip in dataset.samples]
    assert found == [("a/deep/er/x.webm", (0,)), ("b/1.MKV", (1,)), ("b/2.mp4", (1,))]


def test_pictures_in_class_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        fill(tmp_path / split, "n01440764/1.JPEG", "n01443537/2.png", "n01443537/clip.mp4")
    train, _ = read_splits("images", train=tmp_path / "train", val=tmp_path / "val")
    assert train.kind == "image"
    assert [sample.path.name for sample in train.samples] == ["1.JPEG", "2.png"]


def test_validation_is_labelled_in_the_numbering_of_training(tmp_path: Path) -> None:
    fill(tmp_path / "train", "a/1.mp4", "b/1.mp4", "c/1.mp4")
    fill(tmp_path / "val", "b/9.mp4", "c/8.mp4")
    train, val = read_splits("folder", train=tmp_path / "train", val=tmp_path / "val")
    assert val.classes == train.classes == ("a", "b", "c")
    assert [clip.labels for clip in val.samples] == [(1,), (2,)]


def test_lists_of_paths_and_class_numbers(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("deep/a b.mp4,2\nc.mp4,0\n")
    (tmp_path / "val.csv").write_text("d.mp4 2\n")
    train, val = read_splits("list", train=tmp_path / "train.csv", val=tmp_path / "val.csv", root=tmp_path / "clips")
    assert [(sample.path, sample.labels) for sample in train.samples] == [
        (tmp_path / "clips/deep/a b.mp4", (2,)),
        (tmp_path / "clips/c.mp4", (0,)),
    ]
    assert val.samples[0].labels == (2,)
    assert train.classes == ("0", "1", "2")
    (tmp_path / "val.csv").write_text("d.mp4,1\n")
    with pytest.raises(ValueError, match="has the class 1, which"):
        read_splits("list", train=tmp_path / "train.csv", val=tmp_path / "val.csv")
    (tmp_path / "val.csv").write_text("d.mp4,one\n")
    with pytest.raises(ValueError, match="is not `path,class number`"):
        read_splits("list", train=tmp_path / "train.csv", val=tmp_path / "val.csv")


def test_a_class_that_only_validation_has_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "train", "a/1.mp4")
    fill(tmp_path / "val", "a/1.mp4", "z/1.mp4")
    with pytest.raises(ValueError, match="such as 'z'"):
        read_splits("folder", train=tmp_path / "train", val=tmp_path / "val")


def test_unusable_folders_and_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        read_folder(tmp_path / "absent")
    with pytest.raises(ValueError, match="has no video in a sub-folder"):
        read_folder(fill(tmp_path, "loose.mp4"))
    with pytest.raises(ValueError, match="choose one of folder"):
        read_splits("ssv3", train=tmp_path, val=tmp_path)
    with pytest.raises(ValueError, match="needs --train and --val"):
        read_splits("folder", root=tmp_path)
    with pytest.raises(ValueError, match="in --root; give that"):
        read_splits("ssv2", train=tmp_path, val=tmp_path)
