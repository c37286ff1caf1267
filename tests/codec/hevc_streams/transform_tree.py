"""transform_tree() and transform_unit() (H.265 clauses 7.3.8.8 to 7.3.8.10) with reconstruction of luma."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from tests.codec.hevc_streams import intra
from tests.codec.hevc_streams.picture import INTRA
from tests.codec.hevc_streams.residual_coding import encode_residual
from tests.codec.hevc_streams.transform import dequantise, inverse_transform, transform_skip

if TYPE_CHECKING:
    from tests.codec.hevc_streams.coding_tree import CodingUnit, TreeCoder


@dataclass
class _Node:
    """A node of the transform tree; `chroma` are its cbf_cb and cbf_cr."""

    x: int
    y: int
    log2: int
    depth: int
    index: int  # blkIdx
    chroma: tuple[int, int]
    base: tuple[int, int]


def code_transform_tree(tree: TreeCoder, cu: CodingUnit) -> None:
    _code_node(tree, cu, _Node(cu.x, cu.y, cu.log2, 0, 0, (1, 1), (cu.x, cu.y)))


def _is_split(tree: TreeCoder, cu: CodingUnit, node: _Node) -> bool:
    sps = tree.sps
    is_intra = cu.mode == INTRA
    intra_split = is_intra and cu.part_mode == "NxN"
    depth = (
        sps.max_transform_hierarchy_depth_intra + intra_split if is_intra else sps.max_transform_hierarchy_depth_inter
    )
    inter_split = depth == 0 and not is_intra and cu.part_mode != "2Nx2N" and node.depth == 0
    if sps.log2_min_tb < node.log2 <= sps.log2_max_tb and node.depth < depth and not (intra_split and node.depth == 0):
        split = tree.chance(tree.choices.split_transform)
        tree.cabac.decision("split_transform_flag", 5 - node.log2, int(split))
        return split
    return node.log2 > sps.log2_max_tb or (intra_split and node.depth == 0) or inter_split


def _code_node(tree: TreeCoder, cu: CodingUnit, node: _Node) -> None:
    split = _is_split(tree, cu, node)
    if node.log2 > 2:
        flags = []
        for parent in node.chroma:
            flag = int(parent and tree.chance(tree.choices.cbf_chroma))
            if parent:
                tree.cabac.decision("cbf_chroma", node.depth, flag)
            flags.append(flag)
        node.chroma = flags[0], flags[1]
    if split:
        half = 1 << (node.log2 - 1)
        for index in range(4):
            x, y = node.x + (index & 1) * half, node.y + (index >> 1) * half
            _code_node(tree, cu, _Node(x, y, node.log2 - 1, node.depth + 1, index, node.chroma, (node.x, node.y)))
        return
    luma = True
    if cu.mode == INTRA or node.depth or any(node.chroma):
        luma = tree.chance(tree.choices.cbf_luma)
        tree.cabac.decision("cbf_luma", int(node.depth == 0), int(luma))
    _code_unit(tree, cu, node, luma)


def _code_unit(tree: TreeCoder, cu: CodingUnit, node: _Node, luma: bool) -> None:
    if luma or any(node.chroma):
        tree.code_qp_delta(cu)
    size, picture = 1 << node.log2, tree.picture
    place = slice(node.y, node.y + size), slice(node.x, node.x + size)
    if cu.mode == INTRA:
        mode = cu.intra_mode_at(node.x, node.y)
        edge = intra.neighbours(picture.samples, node.x, node.y, size, tree.usable_for_intra, tree.sps.bit_depth)
        picture.samples[place] = intra.predict(edge, mode, size, tree.sps.strong_intra_smoothing, tree.sps.bit_depth)
    if luma:
        scan = scan_index(cu.intra_mode_at(node.x, node.y), node.log2 <= 3) if cu.mode == INTRA else 0
        residual = _code_luma(tree, cu, size, scan)
        picture.residual[place] = residual
        picture.samples[place] = np.clip(picture.samples[place] + residual, 0, (1 << tree.sps.bit_depth) - 1)
    if cu.mode == INTRA:
        picture.coded[node.y >> 2 : (node.y + size) >> 2, node.x >> 2 : (node.x + size) >> 2] = True
    if node.log2 > 2 or node.index == 3:
        log2 = max(node.log2 - 1, 2)
        for component, flag in enumerate(node.chroma, 1):
            if flag:
                scan = scan_index(cu.chroma_mode, log2 == 2) if cu.mode == INTRA else 0
                levels = random_levels(tree.random, 1 << log2, 4)
                _code_levels(tree, cu, levels, component, scan)


def scan_index(mode: int, small: bool) -> int:
    """scanIdx of an intra block (7.4.9.11)."""
    if not small:
        return 0
    return 2 if 6 <= mode <= 14 else 1 if 22 <= mode <= 30 else 0


def random_levels(random: Random, size: int, largest: int) -> np.ndarray:
    """Levels [size, size], not all zero: few or many, near the mean or anywhere, small or up to `largest`."""
    levels = np.zeros((size, size), np.int64)
    draw = random.random
    reach = min(random.choice((1, 2, 4, size)), size)
    for _ in range(random.choice((1, 2, 4, 10, 30))):
        limit = (1, 1, 2, 4, largest)[int(5 * draw())]
        level = 1 + int(min(limit, largest) * draw())
        levels[int(reach * draw()), int(reach * draw())] = level if draw() < 0.5 else -level
    return levels


def _code_levels(tree: TreeCoder, cu: CodingUnit, levels: np.ndarray, component: int, scan: int) -> bool:
    """Code one block; returns transform_skip_flag."""
    skip = None
    if tree.pps.transform_skip_enabled and not cu.bypass and levels.shape[0] == 4:
        skip = int(tree.chance(tree.choices.transform_skip))
    hiding = tree.pps.sign_hiding and not cu.bypass
    encode_residual(tree.cabac, levels, component, scan, skip, hiding)
    return bool(skip)


def _code_luma(tree: TreeCoder, cu: CodingUnit, size: int, scan: int) -> np.ndarray:
    """Code random levels of a luma block and return its residual samples."""
    depth, log2 = tree.sps.bit_depth, size.bit_length() - 1
    qp = tree.qp + tree.sps.qp_offset
    factor: np.ndarray | int = 16
    if tree.scaling is not None:
        factor = tree.scaling.factor(log2, 0 if cu.mode == INTRA else 3)
    if cu.bypass:
        levels = random_levels(tree.random, size, 12)
        _code_levels(tree, cu, levels, 0, scan)
        return levels
    one = np.ones((size, size), np.int64)
    step = int(dequantise(one, qp, depth, factor).max())
    levels = random_levels(tree.random, size, max(1, min(tree.choices.coefficient // max(step, 1), 3000)))
    skipped = _code_levels(tree, cu, levels, 0, scan)
    coefficients = dequantise(levels, qp, depth, factor)
    if skipped:
        return transform_skip(coefficients, depth)
    return inverse_transform(coefficients, depth, cu.mode == INTRA and size == 4)
