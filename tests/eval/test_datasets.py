"""Folders of classes: a fixed order, one numbering for both splits, and clear words about what is wrong."""

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
    found = [(str(clip.path.relative_to(folder)), clip.label) for clip in dataset.clips]
    assert found == [("a/deep/er/x.webm", 0), ("b/1.MKV", 1), ("b/2.mp4", 1)]


def test_validation_is_labelled_in_the_numbering_of_training(tmp_path: Path) -> None:
    fill(tmp_path / "train", "a/1.mp4", "b/1.mp4", "c/1.mp4")
    fill(tmp_path / "val", "b/9.mp4", "c/8.mp4")
    train, val = read_splits(tmp_path / "train", tmp_path / "val")
    assert val.classes == train.classes == ("a", "b", "c")
    assert [clip.label for clip in val.clips] == [1, 2]


def test_a_class_that_only_validation_has_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "train", "a/1.mp4")
    fill(tmp_path / "val", "a/1.mp4", "z/1.mp4")
    with pytest.raises(ValueError, match="such as 'z'"):
        read_splits(tmp_path / "train", tmp_path / "val")


def test_unusable_folders_and_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        read_folder(tmp_path / "absent")
    with pytest.raises(ValueError, match="has no clip in a sub-folder"):
        read_folder(fill(tmp_path, "loose.mp4"))
    with pytest.raises(ValueError, match="choose one of folder"):
        read_splits(tmp_path, tmp_path, "ssv2")
