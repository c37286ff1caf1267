"""The motion benchmark: clips whose label is true, selectors that keep their budgets, and the whole way in miniature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.motion.__main__ import main
from benchmarks.motion.scenes import CLASSES, DIRECTIONS, FRAMES, SPEEDS, Scene
from benchmarks.motion.selectors import BUDGETS, GRID, PATCH_SIZE, PATCHES, SELECTORS, SHOWN_SIDE, Clip
from benchmarks.motion.training import in_a_symmetry

SEEN = [name for name in SELECTORS if name in ("codec", "pixel difference")]


def centre(picture: np.ndarray) -> np.ndarray:
    """Where the coloured pixels of uint8 [H, W, 3] are: their mean (x, y)."""
    y, x = np.nonzero(np.ptp(picture.astype(int), axis=2) > 40)
    return np.array([x.mean(), y.mean()])


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_the_object_moves_as_its_class_says(label: int) -> None:
    """Read off the pixels of a clip whose camera stands still."""
    scene = Scene(split="train", number=label)
    assert scene.label == label and not scene.panning
    places = np.array([centre(frame) for frame in scene.frames()])
    direction, speed = CLASSES[label].split()
    steps = np.diff(places, axis=0)
    moving = np.linalg.norm(steps, axis=1) > SPEEDS["slow"] / 2
    assert np.allclose(abs(steps[moving].mean(axis=0)) / SPEEDS[speed], DIRECTIONS[direction], atol=0.3)
    assert 2 < moving.sum() < FRAMES - 20, "it rests before and after"


def test_nothing_but_the_number_decides_a_clip() -> None:
    scenes = [Scene(split="val", number=number) for number in range(4 * len(CLASSES))]
    table = {(scene.label, scene.panning, scene.codec) for scene in scenes}
    assert len(table) == len(scenes), "every class has either camera in either codec"
    one, again, other = (next(Scene(split=split, number=3).frames()) for split in ("val", "val", "train"))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.read(Scene(split="val", number=0).encoded(), np.random.default_rng(0))


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_selector_spends_its_budget(clip: Clip, name: str, budget: int) -> None:
    positions = SELECTORS[name](clip, budget)
    assert positions.shape == (budget, 3)
    linear = np.ravel_multi_index(positions.T, (FRAMES, *GRID))
    assert (np.diff(linear) > 0).all(), "distinct and in order"
    if name == "uniform frames":
        assert (np.bincount(positions[:, 0])[np.unique(positions[:, 0])] == PATCHES).all()
    if name in SEEN:
        assert (positions[:PATCHES, 0] == 0).all(), "the I frame is kept whole"


def test_selectors_by_hand(clip: Clip) -> None:
    """A clip that stands still but for one patch, which flips between black and white in every frame."""
    pixels = np.full((FRAMES, SHOWN_SIDE, SHOWN_SIDE, 3), 128, np.uint8)
    pixels[::2, :PATCH_SIZE, PATCH_SIZE : 2 * PATCH_SIZE] = 0
    flicker = Clip(pixels=pixels, sidecar=clip.sidecar, rng=np.random.default_rng(0))
    moving = flicker.not_static()
    assert moving[0].all() and moving[1:, 0, 1].all() and moving.sum() == PATCHES + FRAMES - 1
    run_length = SELECTORS["run-length (RLT)"](flicker, BUDGETS[2])
    assert (moving[tuple(run_length.T)]).sum() == moving.sum(), "all that is not static, then any"
    cut = SELECTORS["run-length (RLT)"](flicker, BUDGETS[0])
    assert moving[tuple(cut.T)].all(), "more is not static than the budget holds"
    difference = SELECTORS["pixel difference"](flicker, PATCHES + 10)
    assert (difference[PATCHES:, 1:] == [0, 1]).all()


def test_a_symmetry_turns_patches_positions_and_label_alike() -> None:
    """A gradient goes across. Wherever a symmetry takes it, the label names its axis, and its slope goes its way."""
    ramp = np.broadcast_to(np.arange(PATCH_SIZE, dtype=np.uint8), (3, PATCH_SIZE, PATCH_SIZE))
    number = 64
    positions = np.zeros((number, GRID[1], 3), np.int32)
    positions[..., 0] = positions[..., 2] = np.arange(GRID[1])
    patches = np.broadcast_to(ramp, (number, GRID[1], *ramp.shape)).copy()
    labels = np.full(number, CLASSES.index("across fast"))
    ways = set()
    for shown, places, label in zip(*in_a_symmetry(patches, positions, labels, np.random.default_rng(0)), strict=True):
        direction, speed = CLASSES[label].split()
        assert speed == "fast"
        (y, x) = places[1, 1:] - places[0, 1:]
        assert (abs(x), abs(y)) == DIRECTIONS[direction]
        slope = shown[0, 0].astype(int)
        assert (slope[-1, 0] - slope[0, 0], slope[0, -1] - slope[0, 0]) == (7 * y, 7 * x)
        ways.add((int(x), int(y)))
    assert ways == {(1, 0), (-1, 0), (0, 1), (0, -1)}


def test_the_whole_way_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path), "--train-clips", "16", "--val-clips", "12", "--steps", "4", "--seeds", "1"]
    assert main(arguments) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| codec |")]
    assert len(rows) == 5 and all("±" in row for row in rows)
    results = tmp_path / "results.jsonl"
    lines = results.read_text().splitlines()
    assert len(lines) == len(SELECTORS)
    # As if the run had been stopped before its last training: that one is done again, with the same result but for the time.
    results.write_text("\n".join(lines[:-1]) + "\n")
    assert main(arguments) == 0
    assert [line.split('"seconds"')[0] for line in results.read_text().splitlines()] == [
        line.split('"seconds"')[0] for line in lines
    ]
    capsys.readouterr()
    assert main([*arguments, "--steps", "5"]) == 2
    assert "name another --output" in capsys.readouterr().err
