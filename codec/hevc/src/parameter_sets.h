// Sequence and picture parameter sets (H.265, 7.3.2.2, 7.3.2.3): what slices refer to.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "bit_reader.h"

namespace hevc {

inline constexpr int kMaxReferences = 16;

// st_ref_pic_set() (7.4.8): POC distances, negative ones nearest first, then positive ones nearest first.
struct ReferenceSet {
    int negative_count = 0;
    int count = 0;
    std::array<std::int32_t, kMaxReferences> delta{};
    std::array<bool, kMaxReferences> used{};
};

ReferenceSet read_reference_set(BitReader& bits, const std::vector<ReferenceSet>& before, std::size_t index, bool in_slice);

// scaling_list_data(): [size][matrix][position in diagonal scan], and the DC factors of 16x16 and 32x32.
struct ScalingLists {
    std::array<std::array<std::array<std::uint8_t, 64>, 6>, 4> list;
    std::array<std::array<std::uint8_t, 6>, 4> dc;

    ScalingLists();
    void read(BitReader& bits);
};

// ScalingFactor of luma: [size][intra, inter], row by row.
struct ScalingFactors {
    std::array<std::array<std::vector<std::uint8_t>, 2>, 4> factor;

    explicit ScalingFactors(const ScalingLists& lists);
};

struct LongTermCandidate {
    std::uint32_t poc_lsb;
    bool used;
};

struct Sps {
    int chroma_format = 1;  // 0: 4:0:0, 1: 4:2:0
    int width = 0;
    int height = 0;
    int crop_left = 0;  // luma samples
    int crop_right = 0;
    int crop_top = 0;
    int crop_bottom = 0;
    int bit_depth_luma = 8;
    int bit_depth_chroma = 8;
    int log2_max_poc_lsb = 4;
    int max_dec_pic_buffering = 1;  // of the highest sub-layer
    int max_num_reorder = 0;
    int log2_min_cb = 3;
    int log2_ctb = 4;
    int log2_min_tb = 2;
    int log2_max_tb = 5;
    int max_depth_inter = 0;
    int max_depth_intra = 0;
    bool scaling_list_enabled = false;
    bool amp_enabled = false;
    bool sao_enabled = false;
    bool pcm_enabled = false;
    int pcm_depth_luma = 8;
    int pcm_depth_chroma = 8;
    int log2_min_pcm = 3;
    int log2_max_pcm = 3;
    bool long_term_present = false;
    bool temporal_mvp = false;
    std::vector<ReferenceSet> reference_sets;
    std::vector<LongTermCandidate> long_term;
    ScalingLists scaling;

    int width_ctbs() const { return (width + (1 << log2_ctb) - 1) >> log2_ctb; }
    int height_ctbs() const { return (height + (1 << log2_ctb) - 1) >> log2_ctb; }
    int qp_offset() const { return 6 * (bit_depth_luma - 8); }
};

struct Pps {
    int sps_id = 0;
    bool dependent_slices = false;
    bool output_flag_present = false;
    int extra_slice_header_bits = 0;
    bool sign_hiding = false;
    bool cabac_init_present = false;
    std::array<int, 2> default_active{1, 1};
    int init_qp = 26;
    bool transform_skip = false;
    bool cu_qp_delta = false;
    int diff_cu_qp_delta_depth = 0;
    bool slice_chroma_qp_offsets = false;
    bool weighted_pred = false;
    bool weighted_bipred = false;
    bool transquant_bypass = false;
    bool tiles = false;
    bool entropy_sync = false;
    int tile_columns = 1;
    int tile_rows = 1;
    bool uniform_tiles = true;
    std::vector<int> column_widths;  // explicit ones, all but the last
    std::vector<int> row_heights;
    bool loop_filter_across_slices = false;
    bool deblocking_override = false;
    bool deblocking_disabled = false;
    bool scaling_list_present = false;
    ScalingLists scaling;
    bool lists_modification = false;
    int log2_parallel_merge = 2;
    bool slice_header_extension = false;
};

// What follows from an SPS and a PPS together (6.5.1, 6.5.2).
struct Layout {
    std::vector<int> rs_to_ts;  // CTB addresses: raster scan to tile scan, and back
    std::vector<int> ts_to_rs;
    std::vector<int> tile_id;  // by raster-scan address
    std::vector<bool> first_in_tile_row;  // by raster-scan address: the first CTB of a row of its tile
    std::unique_ptr<ScalingFactors> scaling;  // null where all factors are 16

    Layout(const Sps& sps, const Pps& pps);
};

// Each reads the payload behind the NAL unit header; the identifier is returned in `id`.
std::shared_ptr<const Sps> read_sps(BitReader& bits, int& id);
std::shared_ptr<const Pps> read_pps(BitReader& bits, int& id);

}  // namespace hevc
