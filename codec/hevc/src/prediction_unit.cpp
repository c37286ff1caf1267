// prediction_unit() and mvd_coding() (H.265, 7.3.8.6, 7.3.8.9).

#include <algorithm>

#include "slice_decoder.h"

namespace hevc {

namespace {

enum Direction : int { kList0 = 0, kList1 = 1, kBoth = 2 };

Vector sum(Vector a, Vector b) {
    // Modulo 2^16 (8-94).
    return {std::int16_t(std::uint16_t(a.x + b.x)), std::int16_t(std::uint16_t(a.y + b.y))};
}

}  // namespace

Motion SliceDecoder::read_prediction(const PredictionBlock& block, int depth, bool& merged) {
    merged = bin(kMerge) != 0;
    if (merged) return predictor_.merge(block, read_merge_index());
    const int direction = header_.type == kB ? read_inter_direction(block, depth) : kList0;
    Motion motion;
    for (int list = 0; list < 2; ++list) {
        if (direction != kBoth && direction != list) continue;
        const int reference = read_reference_index(list);
        Vector difference;
        if (!(list == 1 && header_.mvd_l1_zero && direction == kBoth)) difference = read_difference();
        const int flag = bin(kMvp);
        motion.reference[std::size_t(list)] = std::int8_t(reference);
        motion.vector[std::size_t(list)] = sum(predictor_.predict(block, list, reference, flag), difference);
    }
    return motion;
}

int SliceDecoder::read_merge_index() {
    const int limit = header_.max_merge_candidates - 1;
    if (limit == 0 || !bin(kMergeIndex)) return 0;
    int index = 1;
    while (index < limit && cabac_.bypass()) ++index;
    return index;
}

int SliceDecoder::read_inter_direction(const PredictionBlock& block, int depth) {
    const bool small = block.width + block.height == 12;
    if (!small && bin(kInterPred + depth)) return kBoth;
    return bin(kInterPred + 4) ? kList1 : kList0;
}

int SliceDecoder::read_reference_index(int list) {
    const int limit = header_.active[std::size_t(list)] - 1;
    int index = 0;
    while (index < limit && (index < 2 ? bin(kRefIndex + index) : cabac_.bypass())) ++index;
    return index;
}

Vector SliceDecoder::read_difference() {
    const bool x = bin(kMvdGreater0) != 0;
    const bool y = bin(kMvdGreater0) != 0;
    const bool x_greater = x && bin(kMvdGreater1);
    const bool y_greater = y && bin(kMvdGreater1);
    const auto component = [this](bool present, bool greater) {
        if (!present) return 0;
        const int magnitude = greater ? read_difference_magnitude() + 2 : 1;
        return cabac_.bypass() ? -magnitude : magnitude;
    };
    Vector difference;
    difference.x = std::int16_t(component(x, x_greater));
    difference.y = std::int16_t(component(y, y_greater));
    return difference;
}

// abs_mvd_minus2: Exp-Golomb of order 1.
int SliceDecoder::read_difference_magnitude() {
    int order = 1;
    int value = 0;
    while (cabac_.bypass()) {
        value += 1 << order;
        require(++order <= 16, "a motion vector difference is out of range");
    }
    return value + int(cabac_.bypass_bits(order));
}

void SliceDecoder::fill_motion(const PredictionBlock& block, const Motion& motion) {
    require(!(motion.uses(0) && motion.reference[0] >= header_.active[0]) && !(motion.uses(1) && motion.reference[1] >= header_.active[1]),
            "a block refers to a picture outside its slice's lists");
    Motion stored = motion;
    stored.slice = std::uint16_t(picture_.slices.size() - 1);
    const int width = block.width / 4;
    Motion* const first = &picture_.motion_at(block.x, block.y);
    std::fill_n(first, width, stored);
    Motion* row = first;
    for (int y = 1; y < block.height / 4; ++y) std::copy_n(first, width, row += picture_.cell_columns);
}

}  // namespace hevc
