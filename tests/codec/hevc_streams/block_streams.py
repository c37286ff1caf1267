"""Streams that exercise coding units, transforms, quantisation and prediction modes."""

from tests.codec.hevc_streams.coding_tree import Choices
from tests.codec.hevc_streams.groups import bipredicted, predicted, simple, stream, whole
from tests.codec.hevc_streams.parameter_sets import Pps, ScalingCode, Sps
from tests.codec.hevc_streams.sequence import IDR_W_RADL, Frame, Stream, Writer
from tests.codec.hevc_streams.slice_header import SliceHeader, Weight
from tests.codec.hevc_streams.slice_writer import SegmentPlan

RICH = Choices(split_transform=0.6, cbf_luma=0.8, cbf_chroma=0.6)


@stream
def intra_modes() -> Stream:
    """All 35 modes in all sizes of transform, NxN, mode-dependent scans."""
    sps = Sps(width=128, height=96, max_transform_hierarchy_depth_intra=2)
    writer = Writer(sps, [Pps()], Choices(split_transform=0.3))
    for seed in range(3):
        choices = Choices(split=(0.9, 0.5, 0.2)[seed], split_transform=0.3)
        writer.add(Frame(0, nal=IDR_W_RADL, choices=choices))
    return writer.finish()


@stream
def intra_strong_smoothing() -> Stream:
    """Large flat blocks, some of which pass the test for bi-linear smoothing."""
    choices = Choices(split=0.15, intra=0.5, cbf_luma=0.3, split_transform=0.1, coefficient=900)
    sps = Sps(width=160, height=96, strong_intra_smoothing=True)
    return simple(sps, choices=choices, low_delay=4, seed=1)


@stream
def ctb_16() -> Stream:
    return simple(Sps(width=80, height=48, log2_ctb=4, log2_max_tb=4))


@stream
def ctb_64() -> Stream:
    return simple(Sps(width=160, height=96, log2_ctb=6, max_transform_hierarchy_depth_inter=2), seed=1)


@stream
def odd_size() -> Stream:
    """118 x 70 shown of 120 x 72 coded samples; the picture's edges cut coding tree blocks."""
    return simple(Sps(width=120, height=72, window=(0, 1, 1, 0)), seed=2)


@stream
def ten_bit() -> Stream:
    return simple(Sps(bit_depth=10, profile=2, amp_enabled=True), Pps(qp_delta_depth=1), RICH, seed=3)


@stream
def ten_bit_negative_qp() -> Stream:
    choices = Choices(qp_range=(-12, 30), qp_delta=31, coefficient=6000)
    return simple(Sps(bit_depth=10, profile=2), Pps(qp_delta_depth=2, init_qp=14), choices, seed=4)


@stream
def main_still_picture() -> Stream:
    writer = Writer(Sps(profile=3), [Pps()], RICH, 5)
    writer.add(Frame(0, nal=IDR_W_RADL))
    return writer.finish()


@stream
def pcm() -> Stream:
    """PCM blocks of all sizes with all bits."""
    return simple(Sps(pcm_bits=(8, 8)), choices=Choices(intra=0.5), seed=6)


@stream
def pcm_fewer_bits() -> Stream:
    sps = Sps(pcm_bits=(5, 3), log2_pcm_sizes=(3, 3), pcm_loop_filter_disabled=True)
    return simple(sps, Pps(qp_delta_depth=1), Choices(intra=0.5, split=0.8), seed=7)


@stream
def pcm_ten_bit() -> Stream:
    sps = Sps(bit_depth=10, profile=2, pcm_bits=(9, 10), log2_pcm_sizes=(4, 5))
    return simple(sps, choices=Choices(intra=0.5, pcm=0.7, split=0.3), seed=8)


@stream
def bypass_some() -> Stream:
    """cu_transquant_bypass_flag on some coding units, with sign hiding, transform skip and PCM around them."""
    pps = Pps(transquant_bypass_enabled=True, sign_hiding=True, transform_skip_enabled=True, qp_delta_depth=1)
    return simple(Sps(pcm_bits=(8, 8)), pps, seed=9)


@stream
def transform_skip() -> Stream:
    return simple(pps=Pps(transform_skip_enabled=True), choices=Choices(split=0.8, split_transform=0.8), seed=10)


@stream
def sign_hiding() -> Stream:
    return simple(pps=Pps(sign_hiding=True), choices=RICH, seed=11)


@stream
def large_levels() -> Stream:
    """Low QP: escape codes with long suffixes and all Rice parameters."""
    choices = Choices(coefficient=20000, cbf_luma=0.9)
    return simple(pps=Pps(init_qp=4, sign_hiding=True), first=(SegmentPlan(0, SliceHeader(qp=2)),), choices=choices,
                  slices=lambda n: whole("B", 2, qp=5), seed=12)  # fmt: skip


@stream
def qp_groups() -> Stream:
    """Quantisation groups smaller than the coding tree block, differences of both signs over the whole range."""
    choices = Choices(qp_range=(0, 51), qp_delta=25, skip=0.4)
    return simple(Sps(width=128, height=64), Pps(qp_delta_depth=2), choices, seed=13)


@stream
def qp_group_whole_ctb() -> Stream:
    return simple(Sps(log2_ctb=6, width=128), Pps(qp_delta_depth=0, chroma_qp_offsets=(3, -5)), seed=14)


@stream
def qp_group_64_in_8() -> Stream:
    sps = Sps(log2_ctb=6, width=128, max_transform_hierarchy_depth_inter=3)
    pps = Pps(qp_delta_depth=3, slice_chroma_qp_offsets=True)
    slices = lambda n: whole("B", 2, qp=30, chroma_qp_offsets=(-2, 4))  # noqa: E731
    return simple(sps, pps, Choices(split=0.6), slices=slices, seed=15)


def _transform_depth(depth: int) -> Stream:
    sps = Sps(
        width=128, log2_ctb=6, max_transform_hierarchy_depth_inter=depth, max_transform_hierarchy_depth_intra=depth,
        amp_enabled=True,
    )  # fmt: skip
    return simple(sps, choices=Choices(split_transform=0.7, parts=0.7, root_cbf=0.9), seed=16 + depth)


@stream
def transform_depth_0() -> Stream:
    """interSplitFlag: partitioned coding units split their transform once, uncoded."""
    return _transform_depth(0)


@stream
def transform_depth_1() -> Stream:
    return _transform_depth(1)


@stream
def transform_depth_2() -> Stream:
    return _transform_depth(2)


@stream
def transform_depth_3() -> Stream:
    return _transform_depth(3)


@stream
def transform_sizes_8_to_16() -> Stream:
    sps = Sps(log2_min_cb=4, log2_min_tb=3, log2_max_tb=4, width=96, height=64, max_transform_hierarchy_depth_inter=0)
    return simple(sps, choices=Choices(parts=0.7), seed=20)


@stream
def inter_nxn() -> Stream:
    """Minimum coding block 16: inter NxN with four 8x8 blocks."""
    sps = Sps(log2_min_cb=4, amp_enabled=True)
    return simple(sps, choices=Choices(parts=0.9, split=0.8, skip=0.1), seed=21)


@stream
def small_partitions() -> Stream:
    """8x4 and 4x8 blocks: no bi-prediction, coded or merged."""
    return simple(choices=Choices(split=0.95, parts=0.9, skip=0.15, intra=0.1), seed=22)


@stream
def amp() -> Stream:
    sps = Sps(width=128, amp_enabled=True, log2_ctb=6)
    return simple(sps, choices=Choices(split=0.5, parts=0.95, skip=0.1, intra=0.1), seed=23)


@stream
def constrained_intra() -> Stream:
    return simple(pps=Pps(constrained_intra_pred=True), choices=Choices(intra=0.5, split=0.7), seed=24, groups=2)


def _lists(seed: int, keys: list[tuple[int, int]]) -> dict[tuple[int, int], tuple[list[int], int]]:
    return {
        (size, matrix): (
            [16 + (7 * i + 5 * matrix + 3 * size + seed) % 40 for i in range(16 if size == 0 else 64)],
            16 if size < 2 else 20 + matrix,
        )
        for size, matrix in keys
    }


@stream
def scaling_default() -> Stream:
    return simple(Sps(scaling_list_enabled=True), choices=RICH, seed=25)


@stream
def scaling_in_sps() -> Stream:
    """Every list explicit, with DC values, and transform skip under scaling lists."""
    keys = [(size, matrix) for size in range(3) for matrix in range(6)] + [(3, 0), (3, 3)]
    sps = Sps(scaling_list_enabled=True, scaling=ScalingCode(_lists(1, keys)), max_transform_hierarchy_depth_intra=2)
    return simple(sps, Pps(transform_skip_enabled=True), RICH, seed=26)


@stream
def scaling_predicted() -> Stream:
    """Some lists explicit, others copied from a reference list (with its DC) or from the default."""
    explicit = _lists(2, [(0, 0), (1, 1), (2, 0), (3, 0)])
    copied = {(0, 3): 0, (0, 4): 3, (1, 3): 1, (2, 3): 0, (2, 5): 3, (3, 3): 0}
    sps = Sps(scaling_list_enabled=True, scaling=ScalingCode(explicit, copied))
    return simple(sps, choices=RICH, seed=27)


@stream
def scaling_in_pps() -> Stream:
    """A PPS's lists replace the SPS's; the second PPS has none of its own."""
    sps = Sps(scaling_list_enabled=True, scaling=ScalingCode(_lists(3, [(1, 0), (2, 3), (3, 3)])))
    pps = Pps(scaling=ScalingCode(_lists(4, [(0, 0), (1, 3), (2, 0)]), {(1, 4): 3}))
    writer = Writer(sps, [pps, Pps()], RICH, 28)
    writer.add(Frame(0, nal=IDR_W_RADL))
    for poc in range(1, 5):
        writer.add(Frame(poc, predicted(1), before=(poc - 1,), pps=poc // 2 % 2))
    return writer.finish()


@stream
def weighted_p() -> Stream:
    weights = [Weight((70, 3), ((2, -5), (-3, 6))), Weight(), Weight((-20, -90))]
    pps = Pps(weighted_pred=True)

    def slices(n: int) -> tuple[SegmentPlan, ...]:
        return whole("P", n, weights=(weights[:n], []), weight_denominators=(6, 5))

    return simple(pps=pps, slices=slices, low_delay=4, seed=29)


@stream
def weighted_b() -> Stream:
    weights = ([Weight((5, 10)), Weight((-2, -4), ((1, 1), (0, 9)))], [Weight(), Weight((8, 127))])
    pps = Pps(weighted_bipred=True)
    slices = lambda n: whole("B", 2, weights=weights, weight_denominators=(2, 3))  # noqa: E731
    return simple(pps=pps, slices=slices, seed=30)


@stream
def weighted_b_ten_bit() -> Stream:
    weights = ([Weight((1, 40)), Weight((2, -128))], [Weight((0, 12)), Weight((-1, 100))])
    sps, pps = Sps(bit_depth=10, profile=2), Pps(weighted_bipred=True, weighted_pred=True)
    slices = lambda n: whole("B", 2, weights=weights, weight_denominators=(0, 0))  # noqa: E731
    return simple(sps, pps, slices=slices, seed=31)


@stream
def sao_syntax() -> Stream:
    """SAO of all types and with merging, its luma offsets zero so that luma stays as predicted."""
    slices = lambda n: whole("B", 2, sao=(True, n > 1))  # noqa: E731
    first = (SegmentPlan(0, SliceHeader(sao=(False, True))),)
    return simple(Sps(sao_enabled=True, log2_ctb=4, log2_max_tb=4), slices=slices, first=first, seed=32)


@stream
def cabac_init_flag() -> Stream:
    def slices(n: int) -> tuple[SegmentPlan, ...]:
        return whole("P" if n == 1 else "B", n, cabac_init=True)

    return simple(pps=Pps(cabac_init_present=True), slices=slices, seed=33)


@stream
def everything_on() -> Stream:
    sps = Sps(
        width=128, height=72, amp_enabled=True, pcm_bits=(7, 7), scaling_list_enabled=True, sao_enabled=True,
        strong_intra_smoothing=True, max_transform_hierarchy_depth_inter=2, max_transform_hierarchy_depth_intra=2,
    )  # fmt: skip
    pps = Pps(
        sign_hiding=True, transform_skip_enabled=True, qp_delta_depth=2, transquant_bypass_enabled=True,
        constrained_intra_pred=True, log2_parallel_merge_level=3, cabac_init_present=True,
    )  # fmt: skip
    return simple(sps, pps, slices=bipredicted, groups=2, seed=34)
