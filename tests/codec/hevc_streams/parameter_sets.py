"""Video, sequence and picture parameter sets (H.265 clauses 7.3.2.1 to 7.3.2.3 and 7.3.4), as dataclasses that write
themselves. Fields have the standard's names and meanings; sizes are stored as their log2."""

from dataclasses import dataclass, field

from tests.codec.hevc_streams.bits import BitWriter
from tests.codec.hevc_streams.reference_sets import ShortTermSet, write_short_term_set
from tests.codec.hevc_streams.transform import ScalingLists, default_list
from tests.codec.hevc_streams.usability import write_profile_tier_level, write_usability


def write_vps(sps: "Sps") -> bytes:
    """The video parameter set that `sps` refers to."""
    temporal_layers = sps.temporal_layers
    bits = BitWriter()
    bits.u(sps.vps_id, 4)
    bits.u(3, 2)
    bits.u(0, 6)
    bits.u(temporal_layers - 1, 3)
    bits.u(1)
    bits.u(0xFFFF, 16)
    write_profile_tier_level(bits, sps.profile, temporal_layers, sps.sub_layer_profiles)
    bits.u(int(sps.sub_layer_ordering))
    for _ in range(temporal_layers if sps.sub_layer_ordering else 1):
        bits.ue(15)
        bits.ue(4)
        bits.ue(0)
    bits.u(0, 6)
    bits.ue(0)
    bits.u(0)
    bits.u(0)
    bits.trail()
    return bits.to_bytes()


@dataclass
class ScalingCode:
    """How scaling_list_data() codes each list: absent keys are predicted from the default list.

    `explicit` maps (size, matrix) to (values, dc); `copied` maps (size, matrix) to the matrix it copies.
    """

    explicit: dict[tuple[int, int], tuple[list[int], int]] = field(default_factory=dict)
    copied: dict[tuple[int, int], int] = field(default_factory=dict)

    def lists(self) -> ScalingLists:
        """What a decoder makes of it."""
        result = ScalingLists()
        for size in range(4):
            for matrix in range(0, 6, 3 if size == 3 else 1):
                key = size, matrix
                if key in self.explicit:
                    result.lists[key], result.dc[key] = self.explicit[key]
                elif key in self.copied:
                    source = size, self.copied[key]
                    result.lists[key], result.dc[key] = result.lists[source], result.dc[source]
                else:
                    result.lists[key], result.dc[key] = default_list(size, matrix), 16
        return result

    def write(self, bits: BitWriter) -> None:
        for size in range(4):
            step = 3 if size == 3 else 1
            for matrix in range(0, 6, step):
                key = size, matrix
                bits.u(int(key in self.explicit))
                if key not in self.explicit:
                    bits.ue((matrix - self.copied.get(key, matrix)) // step)
                    continue
                values, dc = self.explicit[key]
                previous = 8
                if size > 1:
                    bits.se(dc - 8)
                    previous = dc
                for value in values:
                    bits.se((value - previous + 128) % 256 - 128)
                    previous = value


@dataclass
class Sps:
    width: int = 144  # coded luma samples: multiples of the minimum coding block
    height: int = 80
    window: tuple[int, int, int, int] = (0, 0, 0, 0)  # conformance window in chroma samples: left, right, top, bottom
    profile: int = 1
    bit_depth: int = 8
    log2_max_poc_lsb: int = 8
    reorder: int = 2
    temporal_layers: int = 1
    log2_min_cb: int = 3
    log2_ctb: int = 5
    log2_min_tb: int = 2
    log2_max_tb: int = 5
    max_transform_hierarchy_depth_inter: int = 1
    max_transform_hierarchy_depth_intra: int = 1
    scaling_list_enabled: bool = False
    scaling: ScalingCode | None = None
    amp_enabled: bool = False
    sao_enabled: bool = False
    pcm_bits: tuple[int, int] | None = None  # luma and chroma; None turns PCM off
    log2_pcm_sizes: tuple[int, int] = (3, 5)
    pcm_loop_filter_disabled: bool = False
    short_term_sets: list[ShortTermSet] = field(default_factory=list)
    predict_sets: bool = False  # code the sets from one another where that is possible
    long_term_present: bool = False
    long_term_lsbs: list[tuple[int, bool]] = field(default_factory=list)  # (POC lsb, used by current)
    temporal_mvp_enabled: bool = True
    strong_intra_smoothing: bool = False
    vps_id: int = 0
    sps_id: int = 0
    usability: bool = False
    sub_layer_profiles: bool = False
    sub_layer_ordering: bool = True

    @property
    def qp_offset(self) -> int:
        return 6 * (self.bit_depth - 8)

    @property
    def ctbs(self) -> tuple[int, int]:
        """(columns, rows) of coding tree blocks."""
        size = 1 << self.log2_ctb
        return -(-self.width // size), -(-self.height // size)

    def write(self) -> bytes:
        bits = BitWriter()
        bits.u(self.vps_id, 4)
        bits.u(self.temporal_layers - 1, 3)
        bits.u(1)
        write_profile_tier_level(bits, self.profile, self.temporal_layers, self.sub_layer_profiles)
        bits.ue(self.sps_id)
        bits.ue(1)
        bits.ue(self.width)
        bits.ue(self.height)
        bits.u(int(any(self.window)))
        if any(self.window):
            for offset in self.window:
                bits.ue(offset)
        bits.ue(self.bit_depth - 8)
        bits.ue(self.bit_depth - 8)
        bits.ue(self.log2_max_poc_lsb - 4)
        bits.u(int(self.sub_layer_ordering))
        for _ in range(self.temporal_layers if self.sub_layer_ordering else 1):
            bits.ue(15)
            bits.ue(self.reorder)
            bits.ue(0)
        bits.ue(self.log2_min_cb - 3)
        bits.ue(self.log2_ctb - self.log2_min_cb)
        bits.ue(self.log2_min_tb - 2)
        bits.ue(self.log2_max_tb - self.log2_min_tb)
        bits.ue(self.max_transform_hierarchy_depth_inter)
        bits.ue(self.max_transform_hierarchy_depth_intra)
        self._write_tools(bits)
        bits.trail()
        return bits.to_bytes()

    def _write_tools(self, bits: BitWriter) -> None:
        bits.u(int(self.scaling_list_enabled))
        if self.scaling_list_enabled:
            bits.u(int(self.scaling is not None))
            if self.scaling is not None:
                self.scaling.write(bits)
        bits.u(int(self.amp_enabled))
        bits.u(int(self.sao_enabled))
        bits.u(int(self.pcm_bits is not None))
        if self.pcm_bits is not None:
            bits.u(self.pcm_bits[0] - 1, 4)
            bits.u(self.pcm_bits[1] - 1, 4)
            bits.ue(self.log2_pcm_sizes[0] - 3)
            bits.ue(self.log2_pcm_sizes[1] - self.log2_pcm_sizes[0])
            bits.u(int(self.pcm_loop_filter_disabled))
        bits.ue(len(self.short_term_sets))
        for index in range(len(self.short_term_sets)):
            write_short_term_set(bits, self.short_term_sets, index, self.predict_sets)
        bits.u(int(self.long_term_present))
        if self.long_term_present:
            bits.ue(len(self.long_term_lsbs))
            for lsb, used in self.long_term_lsbs:
                bits.u(lsb, self.log2_max_poc_lsb)
                bits.u(int(used))
        bits.u(int(self.temporal_mvp_enabled))
        bits.u(int(self.strong_intra_smoothing))
        bits.u(int(self.usability))
        if self.usability:
            write_usability(bits, self.temporal_layers)
        bits.u(0)  # sps_extension_present_flag


@dataclass
class Pps:
    dependent_slices_enabled: bool = False
    output_flag_present: bool = False
    extra_slice_header_bits: int = 0
    sign_hiding: bool = False
    cabac_init_present: bool = False
    default_refs: tuple[int, int] = (1, 1)
    init_qp: int = 26
    constrained_intra_pred: bool = False
    transform_skip_enabled: bool = False
    qp_delta_depth: int | None = None  # diff_cu_qp_delta_depth; None turns cu_qp_delta off
    chroma_qp_offsets: tuple[int, int] = (0, 0)
    slice_chroma_qp_offsets: bool = False
    weighted_pred: bool = False
    weighted_bipred: bool = False
    transquant_bypass_enabled: bool = False
    tiles: tuple[list[int], list[int]] | None = None  # column widths and row heights in coding tree blocks
    tiles_uniform: bool = False
    entropy_coding_sync: bool = False
    loop_filter_across_slices: bool = False
    deblocking_override: bool = False
    deblocking_disabled: bool = True
    scaling: ScalingCode | None = None
    lists_modification: bool = False
    log2_parallel_merge_level: int = 2
    slice_header_extension: bool = False
    pps_id: int = 0
    sps_id: int = 0

    def write(self) -> bytes:
        bits = BitWriter()
        bits.ue(self.pps_id)
        bits.ue(self.sps_id)
        bits.u(int(self.dependent_slices_enabled))
        bits.u(int(self.output_flag_present))
        bits.u(self.extra_slice_header_bits, 3)
        bits.u(int(self.sign_hiding))
        bits.u(int(self.cabac_init_present))
        bits.ue(self.default_refs[0] - 1)
        bits.ue(self.default_refs[1] - 1)
        bits.se(self.init_qp - 26)
        bits.u(int(self.constrained_intra_pred))
        bits.u(int(self.transform_skip_enabled))
        bits.u(int(self.qp_delta_depth is not None))
        if self.qp_delta_depth is not None:
            bits.ue(self.qp_delta_depth)
        bits.se(self.chroma_qp_offsets[0])
        bits.se(self.chroma_qp_offsets[1])
        bits.u(int(self.slice_chroma_qp_offsets))
        bits.u(int(self.weighted_pred))
        bits.u(int(self.weighted_bipred))
        bits.u(int(self.transquant_bypass_enabled))
        bits.u(int(self.tiles is not None))
        bits.u(int(self.entropy_coding_sync))
        if self.tiles is not None:
            self._write_tiles(bits, *self.tiles)
        bits.u(int(self.loop_filter_across_slices))
        bits.u(1)  # deblocking_filter_control_present_flag
        bits.u(int(self.deblocking_override))
        bits.u(int(self.deblocking_disabled))
        if not self.deblocking_disabled:
            bits.se(0)
            bits.se(0)
        bits.u(int(self.scaling is not None))
        if self.scaling is not None:
            self.scaling.write(bits)
        bits.u(int(self.lists_modification))
        bits.ue(self.log2_parallel_merge_level - 2)
        bits.u(int(self.slice_header_extension))
        bits.u(0)
        bits.trail()
        return bits.to_bytes()

    def _write_tiles(self, bits: BitWriter, columns: list[int], rows: list[int]) -> None:
        bits.ue(len(columns) - 1)
        bits.ue(len(rows) - 1)
        bits.u(int(self.tiles_uniform))
        if not self.tiles_uniform:
            for length in columns[:-1] + rows[:-1]:
                bits.ue(length - 1)
        bits.u(1)  # loop_filter_across_tiles_enabled_flag
