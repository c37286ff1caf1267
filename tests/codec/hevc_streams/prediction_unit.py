"""Prediction units of inter coding units (H.265 clauses 7.3.8.5, 7.3.8.6 and 7.3.8.9), and their prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.codec.hevc_streams import inter
from tests.codec.hevc_streams.motion import ZERO, Block, Vector
from tests.codec.hevc_streams.picture import Motion

if TYPE_CHECKING:
    from tests.codec.hevc_streams.coding_tree import CodingUnit, TreeCoder

# Part modes as (x, y, width, height) in quarters of the coding block.
PARTS = {
    "2Nx2N": ((0, 0, 4, 4),),
    "2NxN": ((0, 0, 4, 2), (0, 2, 4, 2)),
    "Nx2N": ((0, 0, 2, 4), (2, 0, 2, 4)),
    "NxN": ((0, 0, 2, 2), (2, 0, 2, 2), (0, 2, 2, 2), (2, 2, 2, 2)),
    "2NxnU": ((0, 0, 4, 1), (0, 1, 4, 3)),
    "2NxnD": ((0, 0, 4, 3), (0, 3, 4, 1)),
    "nLx2N": ((0, 0, 1, 4), (1, 0, 3, 4)),
    "nRx2N": ((0, 0, 3, 4), (3, 0, 1, 4)),
}


def _blocks(cu: CodingUnit) -> list[Block]:
    quarter = cu.size // 4
    return [
        Block(cu.x + x * quarter, cu.y + y * quarter, w * quarter, h * quarter, i, cu.part_mode, cu.x, cu.y, cu.size)
        for i, (x, y, w, h) in enumerate(PARTS[cu.part_mode])
    ]


def code_skipped(tree: TreeCoder, cu: CodingUnit) -> None:
    block = _blocks(cu)[0]
    _finish(tree, block, _code_merge(tree, block))


def code_prediction_units(tree: TreeCoder, cu: CodingUnit) -> bool:
    """Code part mode, prediction units and rqt_root_cbf; returns the last."""
    _code_part_mode(tree, cu)
    merged = False
    for block in _blocks(cu):
        merged = tree.chance(tree.choices.merge)
        tree.cabac.decision("merge_flag", 0, int(merged))
        _finish(tree, block, _code_merge(tree, block) if merged else _code_motion(tree, cu, block))
    if merged and cu.part_mode == "2Nx2N":
        return True
    root = tree.chance(tree.choices.root_cbf)
    tree.cabac.decision("rqt_root_cbf", 0, int(root))
    return root


def _code_part_mode(tree: TreeCoder, cu: CodingUnit) -> None:
    smallest = cu.log2 == tree.sps.log2_min_cb
    modes = ["2NxN", "Nx2N"]
    if smallest and cu.log2 > 3:
        modes.append("NxN")
    amp = tree.sps.amp_enabled and not smallest
    if amp:
        modes += ["2NxnU", "2NxnD", "nLx2N", "nRx2N"]
    cu.part_mode = tree.random.choice(modes) if tree.chance(tree.choices.parts) else "2Nx2N"
    mode, cabac = cu.part_mode, tree.cabac
    cabac.decision("part_mode", 0, int(mode == "2Nx2N"))
    if mode == "2Nx2N":
        return
    horizontal = mode in ("2NxN", "2NxnU", "2NxnD")
    cabac.decision("part_mode", 1, int(horizontal))
    if smallest:
        if cu.log2 > 3 and not horizontal:
            cabac.decision("part_mode", 2, int(mode == "Nx2N"))
    elif amp:
        halves = mode in ("2NxN", "Nx2N")
        cabac.decision("part_mode", 3, int(halves))
        if not halves:
            cabac.bypass(int(mode in ("2NxnD", "nRx2N")))


def _code_merge(tree: TreeCoder, block: Block) -> Motion:
    candidates = tree.motion.merge_candidates(block)
    index = tree.random.randrange(len(candidates))
    for n in range(len(candidates) - 1):
        bit = int(n < index)
        if n == 0:
            tree.cabac.decision("merge_idx", 0, bit)
        else:
            tree.cabac.bypass(bit)
        if not bit:
            break
    return candidates[index]


def _code_motion(tree: TreeCoder, cu: CodingUnit, block: Block) -> Motion:
    """Direction, references, vector differences and predictors of a block that is not merged."""
    used = (True, False)
    small = block.width + block.height == 12
    if tree.header.type == "B":
        both = not small and tree.chance(tree.choices.bi)
        second = tree.chance(0.5)
        if not small:
            tree.cabac.decision("inter_pred_idc", cu.depth, int(both))
        if not both:
            tree.cabac.decision("inter_pred_idc", 4, int(second))
        used = (True, True) if both else (not second, second)
    mvs, refs = [ZERO, ZERO], [0, 0]
    for side in range(2):
        if not used[side]:
            continue
        refs[side] = _code_reference(tree, len(tree.lists[side]))
        predictors = tree.motion.vector_candidates(block, side, refs[side])
        choice = tree.random.getrandbits(1)
        difference = ZERO
        if not (side == 1 and all(used) and tree.header.mvd_l1_zero):
            difference = _draw_difference(tree, predictors[choice])
            _code_difference(tree, difference)
        tree.cabac.decision("mvp_flag", 0, choice)
        mvs[side] = _wrap(predictors[choice][0] + difference[0]), _wrap(predictors[choice][1] + difference[1])
    return Motion(used, (mvs[0], mvs[1]), (refs[0], refs[1]))


def _wrap(value: int) -> int:
    return (value + 32768) % 65536 - 32768


def _code_reference(tree: TreeCoder, count: int) -> int:
    index = tree.random.randrange(count)
    for n in range(count - 1):
        bit = int(n < index)
        if n < 2:
            tree.cabac.decision("ref_idx", n, bit)
        else:
            tree.cabac.bypass(bit)
        if not bit:
            break
    return index


def _draw_difference(tree: TreeCoder, predictor: Vector) -> Vector:
    """Small differences, none, and now and then one that brings a far vector home."""
    kind = tree.random.randrange(6)
    reach = (0, 1, 4, tree.choices.vector, tree.choices.vector, 8)[kind]
    x, y = (tree.random.randint(-reach, reach) for _ in range(2))
    if max(abs(predictor[0]), abs(predictor[1])) > 4 * tree.choices.vector:
        x, y = x - predictor[0], y - predictor[1]
    return _wrap(x), _wrap(y)


def _code_difference(tree: TreeCoder, difference: Vector) -> None:
    cabac, sizes = tree.cabac, [abs(component) for component in difference]
    for size in sizes:
        cabac.decision("abs_mvd_greater0_flag", 0, int(size > 0))
    for size in sizes:
        if size:
            cabac.decision("abs_mvd_greater1_flag", 0, int(size > 1))
    for component, size in zip(difference, sizes, strict=True):
        if size > 1:
            cabac.exp_golomb(size - 2, 1)
        if size:
            cabac.bypass(int(component < 0))


def _finish(tree: TreeCoder, block: Block, motion: Motion) -> None:
    """Store the motion for later candidates and predict the block's samples."""
    picture = tree.picture
    rows, cols = slice(block.y >> 2, (block.y + block.height) >> 2), slice(block.x >> 2, (block.x + block.width) >> 2)
    cell = picture.motion[rows, cols]
    for index in range(cell.size):
        cell[divmod(index, cell.shape[1])] = motion
    picture.coded[rows, cols] = True
    place = block.x, block.y, block.width, block.height
    weighted = tree.header.is_weighted(tree.pps)
    picture.samples[block.y : block.y + block.height, block.x : block.x + block.width] = inter.predict(
        tree.lists, motion, place, tree.sps.bit_depth, tree.header.weights if weighted else None,
        tree.header.weight_denominators[0],
    )  # fmt: skip
