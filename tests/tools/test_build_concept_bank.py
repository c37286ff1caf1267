"""Concept banks: clustering that finds what is there, labels that belong to their samples, work that is not done twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel

from megatron_ovenc.data.dataset import HeadDataset
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage.labels import labels_path
from onevision_encoder import (
    OneVisionEncoderConfig,
    OneVisionEncoderImageProcessor,
    OneVisionEncoderModel,
    OneVisionEncoderVideoProcessor,
    save_for_hub,
)
from tests.codec.clips import encode, moving_square, panning, texture
from tests.data.samples import clip_bytes, coded_frames, image_bytes, image_head, write_shard
from tools.bank import kmeans
from tools.bank.descriptors import CLIP_WIDTH, PICTURE_WIDTH, clip_descriptor, picture_descriptor
from tools.bank.features import PROGRESS, extract
from tools.bank.kmeans import Points, flat_kmeans, lloyd, nearest
from tools.bank.spaces import FeatureSpace, open_space
from tools.bank.two_level import ProbedSearch
from tools.build_concept_bank import EXIT_BAD_SAMPLES, main

COLOURS = np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230], [230, 230, 20]], np.uint8)


def planted(
    clusters: int, each: int, width: int = 24, noise: float = 0.02, dtype: type = np.float16
) -> tuple[np.ndarray, np.ndarray]:
    """Points [clusters * each, width] of any length around random directions, and whose they are."""
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.repeat(np.arange(clusters), each))
    directions = rng.standard_normal((clusters, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points = directions[owners] + noise * rng.standard_normal((len(owners), width))
    return (points * rng.uniform(0.5, 5, (len(owners), 1))).astype(dtype), owners


def everything(matrix: np.ndarray) -> Points:
    return Points(matrix=matrix, rows=np.arange(len(matrix)))


@pytest.mark.parametrize("block", [7, kmeans.BLOCK])
def test_planted_clusters_are_recovered(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "BLOCK", block)
    matrix, owners = planted(12, 25)
    points = everything(matrix)
    found = flat_kmeans(points, 12, iterations=20, seed=0)
    assert np.allclose(np.linalg.norm(found.centres, axis=1), 1, atol=1e-5)
    assert found.sizes.tolist() == [25] * 12
    assert found.mean_cosine > 0.98
    labels = np.concatenate([near[:, 0] for _, near, _ in nearest(points, found.centres, 3)])
    assert len({(label, owner) for label, owner in zip(labels, owners, strict=True)}) == 12
    again = flat_kmeans(points, 12, iterations=20, seed=0)
    assert np.array_equal(found.centres, again.centres)


def test_centres_are_the_mean_directions_and_the_nearest_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "BLOCK", 64)
    matrix, _ = planted(5, 30, noise=0.2)
    points = everything(matrix)
    found = flat_kmeans(points, 5, iterations=100, seed=1)
    unit = points.take(np.arange(len(points)))
    cosines = unit @ found.centres.T
    for cluster in range(5):
        mean = unit[cosines.argmax(axis=1) == cluster].sum(axis=0)
        assert np.allclose(found.centres[cluster], mean / np.linalg.norm(mean), atol=1e-4)
    assert found.mean_cosine == pytest.approx(cosines.max(axis=1).mean(), abs=1e-5)
    parts = [(near, values) for _, near, values in nearest(points, found.centres, 3)]
    near, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    assert np.array_equal(near, np.argsort(-cosines, axis=1)[:, :3])
    assert np.allclose(values, -np.sort(-cosines, axis=1)[:, :3], atol=1e-5)


def test_empty_clusters_are_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, _ = planted(6, 20)

    def poor_seeds(points: Points, concepts: int, rng: np.random.Generator) -> np.ndarray:
        # Five of the six seeds are one point: most of them start empty.
        return points.take(np.array([0, 0, 0, 0, 0, 1]))

    monkeypatch.setattr(kmeans, "_seed", poor_seeds)
    found = flat_kmeans(everything(matrix), 6, iterations=20, seed=0)
    assert found.empty_repaired > 0
    assert found.sizes.tolist() == [20] * 6


@pytest.mark.parametrize("two_level", [False, True])
def test_doubled_centres_are_separated(two_level: bool) -> None:
    matrix, owners = planted(6, 20, noise=1e-6, dtype=np.float32)
    points = everything(matrix)
    # Two of the six centres share a cluster, as different points of it; one cluster has none.
    first = [int(np.flatnonzero(owners == cluster)[0]) for cluster in range(5)]
    starts = points.take(np.array([*first, np.flatnonzero(owners == 0)[1]]))
    search = ProbedSearch(cells=points.take(np.array(first[:3])), probe=3) if two_level else nearest
    found = lloyd(points, starts, search, iterations=20, rng=np.random.default_rng(0))
    assert (found.duplicates_repaired, found.duplicates) == (1, 0)
    assert found.sizes.tolist() == [20] * 6
    assert found.mean_cosine > 1 - 1e-5


def test_as_many_concepts_as_points_and_more_than_distinct_points() -> None:
    matrix, _ = planted(4, 3, noise=0.3)
    alone = flat_kmeans(everything(matrix), 12, iterations=5, seed=0)
    assert alone.sizes.tolist() == [1] * 12
    doubled = np.repeat(matrix[:3], 4, axis=0)
    few = flat_kmeans(everything(doubled), 5, iterations=5, seed=0)
    assert np.count_nonzero(few.sizes) == 3
    # Three points differ, so two of five centres must be the same as another; that is said, not hidden.
    assert few.duplicates == 2
    assert np.isfinite(few.centres).all()
    with pytest.raises(ValueError, match=r"--concepts is 13.* 12 samples"):
        flat_kmeans(everything(matrix), 13, iterations=5, seed=0)


def picture(colour: int, seed: int, side: int = 32) -> bytes:
    """A noisy picture of one colour."""
    noise = np.random.default_rng(seed).integers(-12, 12, (side, side, 3))
    return image_bytes((COLOURS[colour] + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Three shards of 8 pictures in four colours; the third sample of the second shard is no picture, the fourth has none."""
    for shard in range(3):
        samples = [{"png": picture(number % 4, 10 * shard + number)} for number in range(8)]
        if shard == 1:
            samples[2] = {"png": b"not a picture"}
            samples[3] = {"txt": b"a sample without a picture"}
        write_shard(tmp_path / f"s-{shard}.tar", samples, np.full((8, 1), -1))
    return str(tmp_path / "s-*.tar")


def build(shards: str, output: Path, *more: str) -> int:
    common = ["--shards", shards, "--output", str(output), "--kind", "image", "--workers", "1", "--labels", "2"]
    return main([*common, *more])


def test_labels_belong_to_their_samples(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bank"
    assert build(shards, output, "--concepts", "4") == EXIT_BAD_SAMPLES
    opened = ShardSet.open([shards])
    tables = [opened.labels(shard) for shard in opened.shards]
    assert all(table.shape == (8, 2) for table in tables)
    colours: dict[int, set[int]] = {}
    for shard, table in enumerate(tables):
        for row, labels in enumerate(table):
            if shard == 1 and row in (2, 3):
                assert labels.tolist() == [-1, -1]
            else:
                colours.setdefault(row % 4, set()).add(int(labels[0]))
                assert len(set(labels)) == 2
                assert min(labels) >= 0
                assert max(labels) < 4
    assert sorted(len(found) for found in colours.values()) == [1] * 4
    assert len(set.union(*colours.values())) == 4
    centres = np.load(output / "centres.npy")
    assert centres.dtype == np.float32
    assert centres.shape == (4, PICTURE_WIDTH)
    report = json.loads((output / "report.json").read_text())
    assert (report["samples"], report["bad_samples"], report["empty_clusters"]) == (24, 2, 0)
    assert report["cluster_size"] == {"min": 5, "median": 5.5, "max": 6}
    named = [json.loads(line) for line in (output / "bad_samples.jsonl").read_text().splitlines()]
    assert [line["sample_id"].rsplit("#")[1] for line in named] == ["s-1-002", "s-1-003"]
    assert "s-1-002" in capsys.readouterr().err


def test_a_run_trains_on_the_labels(shards: str, tmp_path: Path) -> None:
    build(shards, tmp_path / "bank", "--concepts", "4")
    dataset = HeadDataset(
        image_head(shards, num_classes=4), ShardSet.open([shards]), patch_size=14, seed=0, micro_batch=4
    )
    assert (dataset.fetch(0).labels >= -1).all()  # type: ignore[union-attr]


def test_processes_find_the_same_features(shards: str, tmp_path: Path) -> None:
    opened = ShardSet.open([shards])
    space = open_space("descriptor", "image", frames=1, size=None, device="cpu")
    stores = [
        extract(opened, "image", space, tmp_path / str(workers), workers=workers, batch_size=5) for workers in (1, 2)
    ]
    assert np.array_equal(stores[0].matrix, stores[1].matrix)
    assert stores[0].bad.keys() == stores[1].bad.keys() == {10, 11}
    assert stores[0].good.tolist() == [row for row in range(24) if row not in (10, 11)]


def test_finished_shards_are_not_computed_again(shards: str, tmp_path: Path) -> None:
    opened, folder = ShardSet.open([shards]), tmp_path / "features"
    seen: list[bytes] = []

    def prepare(content: bytes) -> np.ndarray:
        seen.append(content)
        return np.array([len(content), 1.0, content[-1]])

    def interrupted(content: bytes) -> np.ndarray:
        if len(seen) == 11:
            raise KeyboardInterrupt
        return prepare(content)

    space = FeatureSpace(identity="test", width=3, prepare=prepare, finish=np.stack)
    with pytest.raises(KeyboardInterrupt):
        extract(opened, "image", replace(space, prepare=interrupted), folder, workers=1, batch_size=3)
    # As a crash in the middle of writing a line would leave it.
    with (folder / PROGRESS).open("a") as file:
        file.write('{"shard": "cut o')
    seen.clear()
    resumed = extract(opened, "image", space, folder, workers=1, batch_size=3)
    # The second and the third shard, all but the sample that holds no picture.
    assert seen == [raw.members["png"] for raw in map(opened.read, range(8, 24)) if "png" in raw.members]
    seen.clear()
    again = extract(opened, "image", space, folder, workers=1, batch_size=3)
    assert not seen
    fresh = extract(opened, "image", space, tmp_path / "fresh", workers=1, batch_size=8)
    for store in (resumed, again):
        assert np.array_equal(store.matrix, fresh.matrix)
        assert store.bad == fresh.bad
    assert list(fresh.bad) == [11]
    with pytest.raises(ValueError, match="other features than this call's"):
        extract(opened, "image", replace(space, identity="other"), folder, workers=1, batch_size=3)


def test_features_are_unit_vectors_and_useless_ones_are_bad(shards: str, tmp_path: Path) -> None:
    values = iter([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [3e5, 4e5]] + [[0.0, 1.0]] * 18)
    space = FeatureSpace(identity="test", width=2, prepare=lambda content: np.array(next(values)), finish=np.stack)
    store = extract(ShardSet.open([shards]), "image", space, tmp_path / "f", workers=1, batch_size=4)
    assert store.matrix[[0, 4]] == pytest.approx(np.array([[0.6, 0.8], [0.6, 0.8]]), abs=1e-3)
    assert sorted(store.bad) == [1, 2, 3, 11]
    assert not store.matrix[[1, 2, 3, 11]].any()


def test_real_labels_are_not_lost(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(labels_path(tmp_path / "s-1.tar"))
    before = np.arange(8).reshape(8, 1)
    np.save(path, before)
    assert build(shards, tmp_path / "bank", "--concepts", "4") == 2
    assert "--overwrite-labels" in capsys.readouterr().err
    assert np.array_equal(np.load(path), before)
    assert not (tmp_path / "bank").exists()
    assert build(shards, tmp_path / "bank", "--concepts", "4", "--overwrite-labels") == EXIT_BAD_SAMPLES
    assert np.load(path).shape == (8, 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--concepts", "25"), "the 3 shards hold only 24 samples"),
        (("--concepts", "23"), "the 22 samples that have features"),
        (("--concepts", "1"), "--labels is 2, more than --concepts = 1"),
        (("--concepts", "4", "--features", "hog"), "--features is 'hog'"),
        (("--concepts", "4", "--features", "hf:absent"), "absent is not a Hugging Face model directory"),
        (("--concepts", "4", "--shards", "none-*.tar"), "no shard matches"),
    ],
)
def test_what_is_wrong_is_said(
    more: tuple[str, ...], message: str, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(shards, tmp_path / "bank", *more) == 2
    assert message in capsys.readouterr().err
    assert not (np.load(labels_path(tmp_path / "s-0.tar")) != -1).any()


@pytest.fixture(scope="module")
def our_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = OneVisionEncoderConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=28
    )
    return save_for_hub(
        OneVisionEncoderModel(config),
        OneVisionEncoderImageProcessor(),
        OneVisionEncoderVideoProcessor(),
        tmp_path_factory.mktemp("ours"),
    )


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    folder = tmp_path_factory.mktemp("other")
    ViTModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}')
    return folder


def test_our_encoder_gives_pooled_embeddings(our_model: Path) -> None:
    model = OneVisionEncoderModel.from_pretrained(our_model).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3)).astype(np.uint8)
    space = open_space(f"hf:{our_model}", "image", frames=1, size=None, device="cpu")
    with torch.inference_mode():
        expected = model(
            OneVisionEncoderImageProcessor(do_resize=False, do_center_crop=False)(
                pixels, return_tensors="pt"
            ).pixel_values
        )
    found = space.finish([space.prepare(image_bytes(pixels))])
    assert space.width == 32
    assert np.allclose(found, expected.pooler_output, atol=1e-5)
    clips = open_space(f"hf:{our_model}", "video", frames=4, size=None, device="cpu")
    view = clips.prepare(clip_bytes(coded_frames(20)))
    # The middles of four fifths of 20 frames: 2, 7, 11 and 16.
    assert sorted(set(view.positions[:, 0])) == [7, 23, 36, 53]
    assert clips.finish([view, view]).shape == (2, 32)


def test_another_model_is_averaged_or_joined_over_frames(other_model: Path, our_model: Path) -> None:
    space = open_space(f"hf:{other_model}", "video", frames=3, size=None, device="cpu")
    samples = [np.random.default_rng(seed).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8) for seed in (0, 1)]
    model = ViTModel.from_pretrained(other_model).eval()
    with torch.inference_mode():
        for sample, found in zip(samples, space.finish(samples), strict=True):
            pixels = (torch.from_numpy(sample).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
            assert np.allclose(found, model(pixels).pooler_output.mean(dim=0), atol=1e-5)
    assert space.prepare(clip_bytes(coded_frames(20))).shape == (3, 32, 32, 3)
    pictures = open_space(f"hf:{other_model}", "image", frames=3, size=None, device="cpu")
    assert pictures.prepare(picture(0, 0)).shape == (1, 32, 32, 3)
    joined = open_space(f"hf:{other_model}", "video", frames=3, size=None, device="cpu", pool="concat")
    assert joined.width == 3 * space.width
    frames = np.stack([space.finish([frame[None] for frame in sample]) for sample in samples])
    expected = frames / np.linalg.norm(frames, axis=2, keepdims=True)
    assert np.allclose(joined.finish(samples), expected.reshape(2, -1), atol=1e-5)
    assert joined.identity != space.identity
    for kind, name in (("image", f"hf:{other_model}"), ("video", f"hf:{our_model}"), ("video", "descriptor")):
        with pytest.raises(ValueError, match="--pool is concat, but"):
            open_space(name, kind, frames=3, size=None, device="cpu", pool="concat")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot encode a picture of 64 x 64"):
        open_space(f"hf:{other_model}", "image", frames=3, size=64, device="cpu")


def test_a_rewritten_model_does_not_continue_old_features(our_model: Path) -> None:
    before = open_space(f"hf:{our_model}", "image", frames=1, size=None, device="cpu").identity
    assert before == open_space(f"hf:{our_model}", "image", frames=1, size=None, device="cpu").identity
    assert before != open_space(f"hf:{our_model}", "image", frames=1, size=56, device="cpu").identity
    (our_model / "model.safetensors").touch()
    assert before != open_space(f"hf:{our_model}", "image", frames=1, size=None, device="cpu").identity


def test_clips_are_described_by_their_motion() -> None:
    """Squares that move the same way are nearer than squares at the same place, in either codec and over a panning camera."""

    def clip(
        velocity: tuple[int, int], start: tuple[int, int], encoder: str = "libx264", pan: tuple[int, int] = (0, 0)
    ) -> np.ndarray:
        frames = panning(12, (96, 96), pan)
        for frame, (x, y) in zip(frames, moving_square(12, (96, 96), velocity, start=start)[1], strict=True):
            frame[y : y + 32, x : x + 32] = texture(32, 32, seed=1)
        described = clip_descriptor(encode(frames, encoder))
        return described / np.linalg.norm(described)

    right, right_below = clip((3, 0), (4, 10)), clip((3, 0), (8, 50))
    down, down_beside = clip((0, 3), (4, 10)), clip((0, 3), (50, 8))
    assert right.shape == (CLIP_WIDTH,)
    same = min(right @ right_below, down @ down_beside)
    assert same > 0.8
    for one in (right, right_below):
        for other in (down, down_beside):
            assert one @ other < 0.5 * same
    assert right @ clip((3, 0), (8, 50), "libx265") > 0.7
    # On the screen this square moves down; over the background it moves to the right.
    over_pan = clip((0, 3), (30, 4), pan=(-3, 3))
    assert right @ over_pan > down @ over_pan


def test_still_clips_and_grey_pictures_have_a_direction() -> None:
    still = clip_descriptor(encode([np.full((64, 64), 128, np.uint8)] * 5))
    one = clip_descriptor(encode([np.full((64, 64), 128, np.uint8)]))
    grey = picture_descriptor(image_bytes(np.full((40, 30, 3), 128, np.uint8)))
    for described in (still, one, grey):
        assert np.isfinite(described).all()
        assert described.any()
    assert np.array_equal(np.sign(still), np.sign(one))
