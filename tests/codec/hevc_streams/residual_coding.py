"""The syntax residual_coding() (H.265 clause 7.3.8.11) and its contexts (9.3.4.2.3 to 9.3.4.2.7)."""

import numpy as np

from tests.codec.hevc_streams.cabac_encoder import CabacEncoder
from tests.codec.hevc_streams.syntax_tables import SCAN, SIGNIFICANCE_4X4


def encode_residual(
    cabac: CabacEncoder, levels: np.ndarray, component: int, scan: int, skip: int | None, sign_hiding: bool
) -> None:
    """Code the levels [n, n] (y, x) of one block; at least one is not zero.

    `skip` is transform_skip_flag, or None where it is not coded. Where sign hiding applies, the sign of the lowest
    coefficient of a sub-block follows from the sum of its levels: `levels` is changed to what a decoder will read.
    """
    log2 = levels.shape[0].bit_length() - 1
    luma = component == 0
    if skip is not None:
        cabac.decision("transform_skip_flag", 0 if luma else 1, skip)
    sub_blocks, inner = SCAN[log2 - 2, scan], SCAN[2, scan]
    values = [[int(levels[sy * 4 + y, sx * 4 + x]) for x, y in inner] for sx, sy in sub_blocks]
    last_block = max(i for i, block in enumerate(values) if any(block))
    last = max(n for n in range(16) if values[last_block][n])
    (sx, sy), (x, y) = sub_blocks[last_block], inner[last]
    _last_position(cabac, sx * 4 + x, sy * 4 + y, log2, luma, scan)
    coded = np.zeros((9, 9), int)  # coded_sub_block_flag by [x, y], with a border
    greater1_state = 1
    for i in range(last_block, -1, -1):
        block, (sx, sy) = values[i], sub_blocks[i]
        beside, below = int(coded[sx + 1, sy]), int(coded[sx, sy + 1])
        flag = int(any(block))
        infer_dc = False
        if 0 < i < last_block:
            cabac.decision("coded_sub_block_flag", min(beside + below, 1) + (0 if luma else 2), flag)
            infer_dc = True
        else:
            flag = 1
        coded[sx, sy] = flag
        if not flag:
            continue
        for n in range(last - 1 if i == last_block else 15, -1, -1):
            if n == 0 and infer_dc:
                break  # the sub-block's only coefficient
            context = _significance(inner[n], (sx, sy), beside | below << 1, log2, luma, scan)
            cabac.decision("sig_coeff_flag", context if luma else 27 + context, int(block[n] != 0))
            infer_dc = infer_dc and block[n] == 0
        if any(block):
            context_set = (0 if i == 0 or not luma else 2) + int(greater1_state == 0)
            greater1_state = _levels(cabac, block, context_set, luma, sign_hiding)
            for n, (x, y) in enumerate(inner):
                levels[sy * 4 + y, sx * 4 + x] = block[n]


def _last_position(cabac: CabacEncoder, x: int, y: int, log2: int, luma: bool, scan: int) -> None:
    if scan == 2:
        x, y = y, x
    offset, shift = (3 * (log2 - 2) + ((log2 - 1) >> 2), (log2 + 1) >> 2) if luma else (15, log2 - 2)
    suffixes = []
    for name, position in (("last_sig_coeff_x_prefix", x), ("last_sig_coeff_y_prefix", y)):
        prefix = position
        if position > 3:
            top = position.bit_length() - 1
            prefix = 2 * top + ((position >> (top - 1)) & 1)
            length = (prefix >> 1) - 1
            suffixes.append((position & ((1 << length) - 1), length))
        for n in range(prefix):
            cabac.decision(name, (n >> shift) + offset, 1)
        if prefix < (log2 << 1) - 1:
            cabac.decision(name, (prefix >> shift) + offset, 0)
    for value, length in suffixes:
        cabac.bypass_bits(value, length)


def _significance(
    place: tuple[int, int], sub_block: tuple[int, int], neighbours: int, log2: int, luma: bool, scan: int
) -> int:
    """sigCtx (9.3.4.2.5); `neighbours` has the flags of the sub-blocks at the right (1) and below (2)."""
    x, y = place
    if log2 == 2:
        return SIGNIFICANCE_4X4[(y << 2) + x]
    if place == (0, 0) and sub_block == (0, 0):
        return 0
    if neighbours == 0:
        context = 2 if x + y == 0 else 1 if x + y < 3 else 0
    elif neighbours == 1:
        context = 2 if y == 0 else 1 if y == 1 else 0
    elif neighbours == 2:
        context = 2 if x == 0 else 1 if x == 1 else 0
    else:
        context = 2
    if not luma:
        return context + (9 if log2 == 3 else 12)
    if sub_block != (0, 0):
        context += 3
    return context + ((9 if scan == 0 else 15) if log2 == 3 else 21)


def _levels(cabac: CabacEncoder, block: list[int], context_set: int, luma: bool, sign_hiding: bool) -> int:
    """Greater-than flags, signs and remainders of one sub-block; returns the last greater1 state for the next one."""
    places = [n for n in range(15, -1, -1) if block[n]]
    state, first_greater = 1, None
    for n in places[:8]:
        greater = int(abs(block[n]) > 1)
        cabac.decision("greater1_flag", context_set * 4 + state + (0 if luma else 16), greater)
        if greater:
            state = 0
            if first_greater is None:
                first_greater = n
        elif state:
            state = min(state + 1, 3)
    if first_greater is not None:
        cabac.decision("greater2_flag", context_set + (0 if luma else 4), int(abs(block[first_greater]) > 2))
    hidden = sign_hiding and places[0] - places[-1] > 3
    if hidden:
        size = abs(block[places[-1]])
        block[places[-1]] = -size if sum(map(abs, block)) & 1 else size
    for n in places[: len(places) - int(hidden)]:
        cabac.bypass(int(block[n] < 0))
    rice = 0
    for index, n in enumerate(places):
        size = abs(block[n])
        base = (3 if n == first_greater else 2) if index < 8 else 1
        # Before the first greater1_flag of one all levels are 1; after it greater2_flag is coded no more.
        if size < base:
            continue
        _remaining(cabac, size - base, rice)
        if size > 3 << rice:
            rice = min(rice + 1, 4)
    return state


def _remaining(cabac: CabacEncoder, value: int, rice: int) -> None:
    """coeff_abs_level_remaining (9.3.3.11)."""
    prefix = value >> rice
    if prefix < 4:
        cabac.bypass_bits((1 << (prefix + 1)) - 2, prefix + 1)
        cabac.bypass_bits(value & ((1 << rice) - 1), rice)
        return
    cabac.bypass_bits(15, 4)
    cabac.exp_golomb(value - (4 << rice), rice + 1)
