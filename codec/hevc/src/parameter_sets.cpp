#include "parameter_sets.h"

#include <algorithm>

#include "vui.h"

namespace hevc {

namespace {

// Level 6.2, the largest of H.265's first versions: 8192x4320, either way up to 16888 a side. It also bounds memory.
constexpr std::uint32_t kMaxSide = 16888;
constexpr std::int64_t kMaxSamples = 35651584;

void unsupported_if(bool uses, const char* what) {
    if (uses) throw Unsupported(what);
}

void skip_profile_tier_level(BitReader& bits, int max_sub_layers_minus1) {
    constexpr int kProfile = 88;
    constexpr int kLevel = 8;
    bits.skip(kProfile + kLevel);
    if (max_sub_layers_minus1 == 0) return;
    const std::uint32_t present = bits.u(16);  // two flags for each of eight sub-layers
    for (int layer = 0; layer < max_sub_layers_minus1; ++layer) {
        if (present >> (15 - 2 * layer) & 1) bits.skip(kProfile);
        if (present >> (14 - 2 * layer) & 1) bits.skip(kLevel);
    }
}

void read_picture_size(BitReader& bits, Sps& sps) {
    const std::uint32_t chroma_format = bits.ue(3);
    unsupported_if(chroma_format > 1, "chroma format 4:2:2 or 4:4:4");
    sps.chroma_format = int(chroma_format);
    sps.width = int(bits.ue(kMaxSide));
    sps.height = int(bits.ue(kMaxSide));
    require(sps.width > 0 && sps.height > 0, "a sequence has pictures without pixels");
    require(std::int64_t{sps.width} * sps.height <= kMaxSamples, "a sequence has pictures larger than level 6.2 allows");
    if (bits.flag()) {
        const int unit = chroma_format == 1 ? 2 : 1;
        sps.crop_left = unit * int(bits.ue(kMaxSide));
        sps.crop_right = unit * int(bits.ue(kMaxSide));
        sps.crop_top = unit * int(bits.ue(kMaxSide));
        sps.crop_bottom = unit * int(bits.ue(kMaxSide));
        require(sps.crop_left + sps.crop_right < sps.width && sps.crop_top + sps.crop_bottom < sps.height,
                "a sequence's conformance window is empty");
    }
    const std::uint32_t luma = bits.ue(8);
    const std::uint32_t chroma = bits.ue(8);
    unsupported_if(luma > 2 || chroma > 2, "more than 10 bits a sample");
    sps.bit_depth_luma = 8 + int(luma);
    sps.bit_depth_chroma = 8 + int(chroma);
}

void read_dpb_size(BitReader& bits, Sps& sps, int max_sub_layers_minus1) {
    const bool each = bits.flag();
    for (int layer = each ? 0 : max_sub_layers_minus1; layer <= max_sub_layers_minus1; ++layer) {
        sps.max_dec_pic_buffering = int(bits.ue(kMaxReferences - 1)) + 1;
        sps.max_num_reorder = int(bits.ue(std::uint32_t(sps.max_dec_pic_buffering - 1)));
        bits.ue(0xFFFFFFFEU);  // sps_max_latency_increase_plus1
    }
}

void read_block_sizes(BitReader& bits, Sps& sps) {
    sps.log2_min_cb = 3 + int(bits.ue(3));
    sps.log2_ctb = sps.log2_min_cb + int(bits.ue(3));
    require(sps.log2_ctb >= 4 && sps.log2_ctb <= 6, "a sequence's coding tree blocks are not of 16, 32 or 64 pixels");
    sps.log2_min_tb = 2 + int(bits.ue(3));
    require(sps.log2_min_tb < sps.log2_min_cb, "a sequence's smallest transform is not smaller than its smallest coding block");
    sps.log2_max_tb = sps.log2_min_tb + int(bits.ue(3));
    require(sps.log2_max_tb <= std::min(sps.log2_ctb, 5), "a sequence's largest transform is too large");
    const auto depths = std::uint32_t(sps.log2_ctb - sps.log2_min_tb);
    sps.max_depth_inter = int(bits.ue(depths));
    sps.max_depth_intra = int(bits.ue(depths));
    const int mask = (1 << sps.log2_min_cb) - 1;
    require(!(sps.width & mask) && !(sps.height & mask), "a sequence's picture size is not a multiple of its smallest coding block");
}

void read_pcm(BitReader& bits, Sps& sps) {
    sps.pcm_depth_luma = int(bits.u(4)) + 1;
    sps.pcm_depth_chroma = int(bits.u(4)) + 1;
    sps.log2_min_pcm = 3 + int(bits.ue(2));
    sps.log2_max_pcm = sps.log2_min_pcm + int(bits.ue(2));
    require(sps.pcm_depth_luma <= sps.bit_depth_luma && sps.pcm_depth_chroma <= sps.bit_depth_chroma,
            "a sequence's PCM samples have more bits than its pictures");
    require(sps.log2_max_pcm <= 5, "a sequence's PCM block sizes are out of range");
    bits.skip(1);  // pcm_loop_filter_disabled_flag
}

void read_references(BitReader& bits, Sps& sps) {
    const std::size_t count = bits.ue(64);
    for (std::size_t index = 0; index < count; ++index) {
        sps.reference_sets.push_back(read_reference_set(bits, sps.reference_sets, index, false));
    }
    sps.long_term_present = bits.flag();
    if (sps.long_term_present) {
        const std::uint32_t candidates = bits.ue(32);
        for (std::uint32_t n = 0; n < candidates; ++n) {
            const std::uint32_t poc_lsb = bits.u(sps.log2_max_poc_lsb);
            sps.long_term.push_back({poc_lsb, bits.flag()});
        }
    }
}

void read_tiles(BitReader& bits, Pps& pps) {
    constexpr std::uint32_t kMaxColumns = 20;  // level 6.2
    constexpr std::uint32_t kMaxRows = 22;
    pps.tile_columns = int(bits.ue(kMaxColumns - 1)) + 1;
    pps.tile_rows = int(bits.ue(kMaxRows - 1)) + 1;
    pps.uniform_tiles = bits.flag();
    if (!pps.uniform_tiles) {
        for (int n = 0; n + 1 < pps.tile_columns; ++n) pps.column_widths.push_back(int(bits.ue(kMaxSide)) + 1);
        for (int n = 0; n + 1 < pps.tile_rows; ++n) pps.row_heights.push_back(int(bits.ue(kMaxSide)) + 1);
    }
    bits.skip(1);  // loop_filter_across_tiles_enabled_flag
}

// First CTB column (or row) of each tile column (or row), and the end (6.5.1).
std::vector<int> boundaries(int count, int length, bool uniform, const std::vector<int>& sizes) {
    std::vector<int> starts(std::size_t(count) + 1, 0);
    for (int n = 0; n < count; ++n) {
        const int size = uniform ? (n + 1) * length / count - n * length / count
                         : n + 1 < count ? sizes[std::size_t(n)]
                                         : length - starts[std::size_t(n)];
        require(size > 0 && size <= length - starts[std::size_t(n)], "a picture's tiles do not fit into it");
        starts[std::size_t(n) + 1] = starts[std::size_t(n)] + size;
    }
    return starts;
}

}  // namespace

std::shared_ptr<const Sps> read_sps(BitReader& bits, int& id) {
    auto sps = std::make_shared<Sps>();
    bits.skip(4);  // VPS
    const int max_sub_layers_minus1 = int(bits.u(3));
    require(max_sub_layers_minus1 < 7, "a sequence has eight temporal sub-layers");
    bits.skip(1);
    skip_profile_tier_level(bits, max_sub_layers_minus1);
    id = int(bits.ue(15));
    read_picture_size(bits, *sps);
    sps->log2_max_poc_lsb = 4 + int(bits.ue(12));
    read_dpb_size(bits, *sps, max_sub_layers_minus1);
    read_block_sizes(bits, *sps);
    sps->scaling_list_enabled = bits.flag();
    if (sps->scaling_list_enabled && bits.flag()) sps->scaling.read(bits);
    sps->amp_enabled = bits.flag();
    sps->sao_enabled = bits.flag();
    sps->pcm_enabled = bits.flag();
    if (sps->pcm_enabled) read_pcm(bits, *sps);
    read_references(bits, *sps);
    sps->temporal_mvp = bits.flag();
    bits.skip(1);  // strong_intra_smoothing_enabled_flag
    if (bits.flag()) skip_vui(bits, max_sub_layers_minus1);
    unsupported_if(bits.flag() && bits.u(8) != 0, "a sequence extension (range, multilayer, 3D or screen content)");
    return sps;
}

std::shared_ptr<const Pps> read_pps(BitReader& bits, int& id) {
    auto pps = std::make_shared<Pps>();
    id = int(bits.ue(63));
    pps->sps_id = int(bits.ue(15));
    pps->dependent_slices = bits.flag();
    pps->output_flag_present = bits.flag();
    pps->extra_slice_header_bits = int(bits.u(3));
    pps->sign_hiding = bits.flag();
    pps->cabac_init_present = bits.flag();
    for (int& active : pps->default_active) active = int(bits.ue(14)) + 1;
    pps->init_qp = 26 + bits.se(-26 - 12, 25);
    bits.skip(1);  // constrained_intra_pred_flag: changes samples, not syntax
    pps->transform_skip = bits.flag();
    pps->cu_qp_delta = bits.flag();
    if (pps->cu_qp_delta) pps->diff_cu_qp_delta_depth = int(bits.ue(3));
    bits.se(-12, 12);  // chroma QP offsets
    bits.se(-12, 12);
    pps->slice_chroma_qp_offsets = bits.flag();
    pps->weighted_pred = bits.flag();
    pps->weighted_bipred = bits.flag();
    pps->transquant_bypass = bits.flag();
    pps->tiles = bits.flag();
    pps->entropy_sync = bits.flag();
    if (pps->tiles) read_tiles(bits, *pps);
    pps->loop_filter_across_slices = bits.flag();
    if (bits.flag()) {
        pps->deblocking_override = bits.flag();
        pps->deblocking_disabled = bits.flag();
        if (!pps->deblocking_disabled) {
            bits.se(-6, 6);
            bits.se(-6, 6);
        }
    }
    pps->scaling_list_present = bits.flag();
    if (pps->scaling_list_present) pps->scaling.read(bits);
    pps->lists_modification = bits.flag();
    pps->log2_parallel_merge = 2 + int(bits.ue(4));
    pps->slice_header_extension = bits.flag();
    unsupported_if(bits.flag() && bits.u(8) != 0, "a picture extension (range, multilayer, 3D or screen content)");
    return pps;
}

Layout::Layout(const Sps& sps, const Pps& pps) {
    require(pps.diff_cu_qp_delta_depth <= sps.log2_ctb - sps.log2_min_cb, "a picture's quantisation groups are smaller than its coding blocks");
    require(pps.log2_parallel_merge <= sps.log2_ctb, "a picture's merge regions are larger than its coding tree blocks");
    const int width = sps.width_ctbs();
    const int height = sps.height_ctbs();
    const auto columns = boundaries(pps.tile_columns, width, pps.uniform_tiles, pps.column_widths);
    const auto rows = boundaries(pps.tile_rows, height, pps.uniform_tiles, pps.row_heights);
    const auto count = std::size_t(width) * std::size_t(height);
    rs_to_ts.resize(count);
    tile_id.resize(count);
    first_in_tile_row.resize(count);
    ts_to_rs.reserve(count);
    int tile = 0;
    for (int row = 0; row < pps.tile_rows; ++row) {
        for (int column = 0; column < pps.tile_columns; ++column, ++tile) {
            for (int y = rows[std::size_t(row)]; y < rows[std::size_t(row) + 1]; ++y) {
                for (int x = columns[std::size_t(column)]; x < columns[std::size_t(column) + 1]; ++x) {
                    const auto address = std::size_t(y * width + x);
                    rs_to_ts[address] = int(ts_to_rs.size());
                    tile_id[address] = tile;
                    first_in_tile_row[address] = x == columns[std::size_t(column)];
                    ts_to_rs.push_back(int(address));
                }
            }
        }
    }
    if (sps.scaling_list_enabled) scaling = std::make_unique<ScalingFactors>(pps.scaling_list_present ? pps.scaling : sps.scaling);
}

}  // namespace hevc
