// coding_unit() (H.265, 7.3.8.5), PCM samples and intra prediction modes.

#include <algorithm>
#include <utility>

#include "bit_reader.h"
#include "slice_decoder.h"

namespace hevc {

namespace {

constexpr int kPlanar = 0;
constexpr int kDc = 1;
constexpr int kHorizontalMode = 10;
constexpr int kVerticalMode = 26;

}  // namespace

void SliceDecoder::read_unit(int x, int y, int log2_size, int depth) {
    CodingUnit unit{x, y, log2_size, kIntra, k2Nx2N, false, 0, 0};
    if (pps_.transquant_bypass) unit.bypass = bin(kTransquantBypass) != 0;
    bool skipped = false;
    if (header_.type != kI) {
        const int beside = int(left_available(x) && picture_.unit_at(x - 1, y).mode == kSkipped) +
                           int(above_available(y) && picture_.unit_at(x, y - 1).mode == kSkipped);
        skipped = bin(kSkip + beside) != 0;
    }
    if (skipped) {
        read_skipped(unit);
    } else {
        read_coded(unit);
    }
    require(!cabac_.overrun(), "slice data end too early");
    state_.previous_qp = qp_;
    store(unit, depth);
}

void SliceDecoder::store(const CodingUnit& unit, int depth) {
    const int size = 1 << unit.log2_size;
    Unit stored;
    stored.log2_size = std::uint8_t(unit.log2_size);
    stored.mode = unit.mode;
    stored.qp = std::int8_t(qp_);
    stored.depth = std::uint8_t(depth);
    const double spent = cabac_.spent();
    stored.bits = float(spent - counted_);
    counted_ = spent;
    const int side = size >> sps_.log2_min_cb;
    Unit* row = &picture_.unit_at(unit.x, unit.y);
    for (int n = 0; n < side; ++n, row += picture_.unit_columns) std::fill_n(row, side, stored);
}

void SliceDecoder::read_skipped(CodingUnit& unit) {
    unit.mode = kSkipped;
    const int size = 1 << unit.log2_size;
    const PredictionBlock block{unit.x, unit.y, size, unit.x, unit.y, size, size, k2Nx2N, 0};
    fill_motion(block, predictor_.merge(block, read_merge_index()));
}

void SliceDecoder::read_coded(CodingUnit& unit) {
    if (header_.type != kI && !bin(kPredMode)) unit.mode = kInter;
    const bool smallest = unit.log2_size == sps_.log2_min_cb;
    if (unit.mode == kInter || smallest) unit.part_mode = read_part_mode(unit);
    bool root_cbf = true;
    if (unit.mode == kIntra) {
        if (unit.part_mode == k2Nx2N && read_pcm(unit)) return;
        read_intra_modes(unit);
        unit.max_depth = sps_.max_depth_intra + int(unit.part_mode == kNxN);
    } else {
        bool merged = false;
        read_inter(unit, merged);
        if (!(unit.part_mode == k2Nx2N && merged)) root_cbf = bin(kRootCbf) != 0;
        unit.max_depth = sps_.max_depth_inter;
    }
    if (root_cbf) read_transform_tree(unit, unit.x, unit.y, unit.log2_size, 0, 0, {true, true});
}

PartMode SliceDecoder::read_part_mode(const CodingUnit& unit) {
    if (bin(kPartMode)) return k2Nx2N;
    if (unit.mode == kIntra) return kNxN;
    const bool smallest = unit.log2_size == sps_.log2_min_cb;
    const bool horizontal = bin(kPartMode + 1) != 0;
    if (smallest) {
        if (horizontal) return k2NxN;
        if (unit.log2_size == 3) return kNx2N;
        return bin(kPartMode + 2) ? kNx2N : kNxN;
    }
    if (!sps_.amp_enabled || bin(kPartMode + 3)) return horizontal ? k2NxN : kNx2N;
    const bool second = cabac_.bypass() != 0;
    if (horizontal) return second ? k2NxnD : k2NxnU;
    return second ? knRx2N : knLx2N;
}

// PCM samples: their residual is taken to be what differs from the mean of the block.
bool SliceDecoder::read_pcm(const CodingUnit& unit) {
    if (!sps_.pcm_enabled || unit.log2_size < sps_.log2_min_pcm || unit.log2_size > sps_.log2_max_pcm) return false;
    if (!cabac_.terminate()) return false;
    const std::uint8_t* data = cabac_.finish();
    const int size = 1 << unit.log2_size;
    const auto samples = std::size_t(size) * std::size_t(size);
    BitReader bits(data, std::size_t(cabac_.end() - data));
    std::array<float, 1024> luma;
    float mean = 0;
    const float grey = 256.0F / float(1 << sps_.pcm_depth_luma);
    for (std::size_t n = 0; n < samples; ++n) mean += luma[n] = grey * float(bits.u(sps_.pcm_depth_luma));
    mean /= float(samples);
    float* cells = picture_.energy_at(unit.x, unit.y);
    for (std::size_t n = 0; n < samples; ++n) {
        const std::size_t y = n >> unit.log2_size;
        const std::size_t x = n & std::size_t(size - 1);
        const float difference = luma[n] - mean;
        cells[(y >> 2) * std::size_t(picture_.cell_columns) + (x >> 2)] += difference * difference * (1.0F / 16);
    }
    if (sps_.chroma_format != 0) bits.skip(samples / 2 * std::size_t(sps_.pcm_depth_chroma));
    set_intra_mode(unit.x, unit.y, size, kDc);
    // The arithmetic decoder starts again behind the samples, which fill whole bytes; its count of bits goes on.
    cabac_.restart(data + (bits.position() + 7) / 8);
    return true;
}

void SliceDecoder::set_intra_mode(int x, int y, int size, int mode) {
    std::uint8_t* row = &intra_mode_at(x, y);
    for (int n = 0; n < size / 4; ++n, row += picture_.cell_columns) std::fill_n(row, size / 4, std::uint8_t(mode));
}

// The mode of a neighbour (8.4.2, candIntraPredModeX); blocks that are not intra coded, or hold PCM samples, count as DC.
int SliceDecoder::intra_candidate(int x, int y) const {
    const Mode mode = picture_.unit_at(x, y).mode;  // not stored yet where the neighbour is a part of the same unit
    if (mode != kIntra && mode != kNotDecoded) return kDc;
    return intra_modes_[std::size_t(y >> 2) * std::size_t(picture_.cell_columns) + std::size_t(x >> 2)];
}

void SliceDecoder::read_intra_modes(CodingUnit& unit) {
    const bool parted = unit.part_mode == kNxN;
    const int parts = parted ? 4 : 1;
    const int size = (1 << unit.log2_size) >> int(parted);
    std::array<bool, 4> predicted{};
    std::array<int, 4> index{};
    for (int n = 0; n < parts; ++n) predicted[std::size_t(n)] = bin(kPrevIntraLuma) != 0;
    for (int n = 0; n < parts; ++n) {
        int& value = index[std::size_t(n)];
        if (predicted[std::size_t(n)]) {
            value = cabac_.bypass() ? 1 + cabac_.bypass() : 0;
        } else {
            value = int(cabac_.bypass_bits(5));
        }
    }
    int first_mode = 0;
    for (int n = 0; n < parts; ++n) {
        const int x = unit.x + (n & 1) * size;
        const int y = unit.y + (n >> 1) * size;
        const int mode = intra_mode(x, y, predicted[std::size_t(n)], index[std::size_t(n)]);
        if (n == 0) first_mode = mode;
        set_intra_mode(x, y, size, mode);
    }
    unit.chroma_mode = first_mode;
    if (sps_.chroma_format == 0 || !bin(kIntraChroma)) return;
    constexpr int kModes[4] = {kPlanar, kVerticalMode, kHorizontalMode, kDc};
    constexpr int kInstead = 34;  // where luma has that mode already
    const int mode = kModes[cabac_.bypass_bits(2)];
    unit.chroma_mode = mode == first_mode ? kInstead : mode;
}

// 8.4.2
int SliceDecoder::intra_mode(int x, int y, bool predicted, int index) const {
    const int left = left_available(x) ? intra_candidate(x - 1, y) : kDc;
    // Modes of the row of coding tree blocks above are not kept.
    const int above = y & ctb_mask_ ? intra_candidate(x, y - 1) : kDc;
    std::array<int, 3> candidates{};
    if (left == above) {
        if (left < 2) {
            candidates = {kPlanar, kDc, kVerticalMode};
        } else {
            candidates = {left, 2 + (left + 29) % 32, 2 + (left - 2 + 1) % 32};
        }
    } else {
        const bool has_planar = left == kPlanar || above == kPlanar;
        const bool has_dc = left == kDc || above == kDc;
        candidates = {left, above, !has_planar ? kPlanar : !has_dc ? kDc : kVerticalMode};
    }
    if (predicted) return candidates[std::size_t(index)];
    std::sort(candidates.begin(), candidates.end());
    int mode = index;
    for (const int candidate : candidates) mode += int(mode >= candidate);
    return mode;
}

void SliceDecoder::read_inter(const CodingUnit& unit, bool& merged) {
    struct Part {
        int x, y, width, height;  // in quarters of the unit
    };
    constexpr Part kParts[8][4] = {
        {{0, 0, 4, 4}},                                            // 2Nx2N
        {{0, 0, 4, 2}, {0, 2, 4, 2}},                              // 2NxN
        {{0, 0, 2, 4}, {2, 0, 2, 4}},                              // Nx2N
        {{0, 0, 2, 2}, {2, 0, 2, 2}, {0, 2, 2, 2}, {2, 2, 2, 2}},  // NxN
        {{0, 0, 4, 1}, {0, 1, 4, 3}},                              // 2NxnU
        {{0, 0, 4, 3}, {0, 3, 4, 1}},                              // 2NxnD
        {{0, 0, 1, 4}, {1, 0, 3, 4}},                              // nLx2N
        {{0, 0, 3, 4}, {3, 0, 1, 4}},                              // nRx2N
    };
    const int size = 1 << unit.log2_size;
    const int quarter = size / 4;
    const int depth = sps_.log2_ctb - unit.log2_size;
    const int parts = unit.part_mode == k2Nx2N ? 1 : unit.part_mode == kNxN ? 4 : 2;
    for (int n = 0; n < parts; ++n) {
        const Part& p = kParts[unit.part_mode][n];
        const PredictionBlock block{unit.x,          unit.y,            size,           unit.x + p.x * quarter, unit.y + p.y * quarter,
                                    p.width * quarter, p.height * quarter, unit.part_mode, n};
        fill_motion(block, read_prediction(block, depth, merged));
    }
}

}  // namespace hevc
