"""Selection: exact budgets, policies, ties, static clips."""

import numpy as np
import pytest

import codec
from codec.select import Policy
from tests.codec.clips import P_ONLY, encode, moving_square

POLICIES: tuple[Policy, ...] = ("keep", "anchor", "free")


def maps(frames: int = 64, rows: int = 16, cols: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((frames, rows, cols), np.float32)


def types(frames: int, gop: int = 16) -> str:
    return "".join("P" if t % gop else "I" for t in range(frames))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("share", [0.03125, 0.0625, 0.125, 0.25, 1.0])
@pytest.mark.parametrize("shape", [(64, 16, 16), (64, 7, 3), (13, 21, 12), (1, 3, 7)])
def test_budgets_are_exact_and_positions_distinct_and_sorted(
    policy: Policy, share: float, shape: tuple[int, int, int]
) -> None:
    saliency = maps(*shape)
    for budget in {max(1, round(share * saliency.size)), max(1, round(share * saliency.size) - 1)}:
        positions = codec.select(saliency, budget, policy, frame_types=types(shape[0]))
        assert positions.dtype == np.int32
        assert positions.shape == (budget, 3)
        linear = codec.visible_indices(positions, shape[1:])
        assert (np.diff(linear) > 0).all()
        assert (positions >= 0).all()
        assert (positions < shape).all()
        again = codec.select(saliency.copy(), budget, policy, frame_types=types(shape[0]))
        assert np.array_equal(positions, again)


def test_free_takes_the_most_salient_patches() -> None:
    saliency = maps()
    positions = codec.select(saliency, 700, "free")
    taken = saliency[tuple(positions.T)]
    assert taken.min() >= np.sort(saliency.ravel())[-700]


def test_keep_takes_intra_frames_whole_and_the_best_of_the_rest() -> None:
    saliency = maps()
    saliency[::16] = 0
    positions = codec.select(saliency, 2048, "keep", frame_types=types(64))
    per_frame = np.bincount(positions[:, 0], minlength=64)
    assert per_frame[::16].tolist() == [256] * 4
    rest = positions[positions[:, 0] % 16 != 0]
    assert len(rest) == 1024
    assert saliency[tuple(rest.T)].min() >= np.sort(saliency.ravel())[-1024]


@pytest.mark.parametrize(("budget", "whole"), [(512, [0, 48]), (800, [0, 32, 48]), (300, [0]), (1024, [0, 16, 32, 48])])
def test_keep_spaces_intra_frames_evenly_when_they_do_not_all_fit(budget: int, whole: list[int]) -> None:
    positions = codec.select(maps(), budget, "keep", frame_types=types(64))
    per_frame = np.bincount(positions[:, 0], minlength=64)
    assert np.flatnonzero(per_frame == 256).tolist() == whole


def test_anchor_takes_the_first_frame_whole() -> None:
    saliency = maps()
    positions = codec.select(saliency, 512, "anchor")
    rest = positions[positions[:, 0] > 0]
    assert len(rest) == 256
    assert saliency[tuple(rest.T)].min() >= np.sort(saliency[1:].ravel())[-256]


@pytest.mark.parametrize("policy", ["keep", "anchor"])
def test_a_budget_below_one_frame_keeps_no_frame(policy: Policy) -> None:
    positions = codec.select(maps(8, 4, 4), 15, policy, frame_types=types(8))
    assert np.array_equal(positions, codec.select(maps(8, 4, 4), 15, "free"))


def test_equal_patches_are_taken_in_order() -> None:
    saliency = np.zeros((4, 3, 5), np.float32)
    saliency[1:] = 0.5
    positions = codec.select(saliency, 17, "free")
    assert codec.visible_indices(positions, (3, 5)).tolist() == list(range(15, 32))
    top = saliency.copy()
    top[3, 2, 4] = 0.75
    assert codec.select(top, 17, "free").tolist() == [*positions.tolist()[:-1], [3, 2, 4]]


@pytest.mark.parametrize("policy", ["anchor", "free"])
def test_a_static_clip_is_shown_as_evenly_spaced_frames(policy: Policy) -> None:
    still = np.zeros((64, 16, 16), np.float32)
    per_frame = np.bincount(codec.select(still, 8 * 256, policy)[:, 0], minlength=64)
    whole = np.flatnonzero(per_frame)
    assert (per_frame[whole] == 256).all()
    assert len(whole) == 8
    assert whole[0] == 0
    assert whole[-1] == 63
    assert np.ptp(np.diff(whole)) <= 1


def test_zero_patches_come_after_all_others_and_spread_in_time() -> None:
    saliency = np.zeros((16, 4, 4), np.float32)
    saliency[3, 1] = 0.1
    positions = codec.select(saliency, 36, "free")
    assert {(3, 1, col) for col in range(4)} <= {tuple(position) for position in positions.tolist()}
    per_frame = np.bincount(positions[:, 0], minlength=16)
    assert per_frame[[0, 15]].tolist() == [16, 16]


def test_bytes_and_floats_select_alike() -> None:
    stored = np.rint(maps(8) * 255).astype(np.uint8)
    assert np.array_equal(codec.select(stored, 300, "free"), codec.select(stored / np.float32(255), 300, "free"))


def test_the_moving_square_is_selected() -> None:
    frames, corners = moving_square(16, (112, 168), (4, 2), side=28, start=(14, 14), textured_floor=True)
    signals = list(codec.signals(encode(frames, options=P_ONLY)))
    grid = (8, 12)
    positions = codec.select(codec.saliency(signals, grid), 15 * 4, "free")
    hits = sum(
        corners[t][0] - 14 < col * 14 < corners[t][0] + 28 and corners[t][1] - 14 < row * 14 < corners[t][1] + 28
        for t, row, col in positions.tolist()
    )
    assert hits >= 0.95 * len(positions)
    assert len(set(positions[:, 0].tolist())) == 15


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget": 0}, "budget=0"),
        ({"budget": 8 * 16 + 1}, "lower the budget"),
        ({"policy": "hold"}, "policy='hold'"),
        ({"policy": "keep"}, "frame_types has none"),
        ({"policy": "keep", "frame_types": "IPP"}, "frame_types has 3"),
        ({"saliency": np.full((8, 4, 4), np.nan, np.float32)}, "finite"),
        ({"saliency": np.full((8, 4, 4), -1.0, np.float32)}, "not negative"),
        ({"saliency": np.zeros((4, 4), np.float32)}, "shape"),
    ],
)
def test_bad_requests_are_refused(change: dict, says: str) -> None:
    request = {"saliency": maps(8, 4, 4), "budget": 9, "policy": "free"} | change
    with pytest.raises(ValueError, match=says):
        codec.select(**request)
