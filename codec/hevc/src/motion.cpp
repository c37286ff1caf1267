#include "motion.h"

#include <algorithm>
#include <cstdlib>

namespace hevc {

namespace {

// 8.5.3.2.7, equations 8-179 to 8-183: a vector over `from` pictures, shortened or stretched to `to` pictures.
Vector scale(Vector vector, std::int64_t from, std::int64_t to) {
    const int td = int(std::clamp<std::int64_t>(from, -128, 127));
    const int tb = int(std::clamp<std::int64_t>(to, -128, 127));
    if (td == 0) return vector;  // no picture refers to itself, but a damaged stream may say so
    const int tx = (16384 + std::abs(td) / 2) / td;
    const int factor = std::clamp((tb * tx + 32) >> 6, -4096, 4095);
    const auto component = [factor](int value) {
        const int product = factor * value;
        const int magnitude = (std::abs(product) + 127) >> 8;
        return std::int16_t(std::clamp(product < 0 ? -magnitude : magnitude, -32768, 32767));
    };
    return {component(vector.x), component(vector.y)};
}

bool second_part_beside(const PredictionBlock& block) {
    return block.part == 1 && (block.part_mode == kNx2N || block.part_mode == knLx2N || block.part_mode == knRx2N);
}

bool second_part_below(const PredictionBlock& block) {
    return block.part == 1 && (block.part_mode == k2NxN || block.part_mode == k2NxnU || block.part_mode == k2NxnD);
}

}  // namespace

// 6.4.2: the motion of a neighbouring prediction block, or null if there is none.
const Motion* MotionPredictor::neighbour(const PredictionBlock& block, int x, int y) const {
    const bool same_cb = x >= block.cb_x && y >= block.cb_y && x < block.cb_x + block.cb_size && y < block.cb_y + block.cb_size;
    if (same_cb) {
        // The third quarter of a coding block is not yet decoded when the second looks for it.
        const bool quarter = block.width * 2 == block.cb_size && block.height * 2 == block.cb_size;
        if (quarter && block.part == 1 && y >= block.cb_y + block.height && x < block.cb_x + block.width) return nullptr;
    } else if (!availability_.available(block.x, block.y, x, y)) {
        return nullptr;
    }
    const Motion& motion = picture_.motion_at(x, y);
    return motion.is_inter() ? &motion : nullptr;
}

Motion MotionPredictor::merge(const PredictionBlock& original, int merge_index) const {
    PredictionBlock block = original;
    if (header_.pps->log2_parallel_merge > 2 && original.cb_size == 8) {
        // All parts of an 8x8 coding block share the candidates of the whole.
        block = {original.cb_x, original.cb_y, 8, original.cb_x, original.cb_y, 8, 8, k2Nx2N, 0};
    }
    Candidates candidates;
    if (!add_spatial(block, merge_index, candidates)) {
        if (candidates.count < header_.max_merge_candidates) add_temporal(block, candidates);
        if (candidates.count <= merge_index && header_.type == kB) add_combined(candidates);
        if (candidates.count <= merge_index) add_zero(candidates);
    }
    Motion motion = candidates.of[std::size_t(merge_index)];
    // 8x4 and 4x8 blocks are predicted from one picture only.
    if (original.width + original.height == 12 && motion.uses(0)) motion.reference[1] = -1;
    return motion;
}

// 8.5.3.2.3; true once the wanted candidate is there.
bool MotionPredictor::add_spatial(const PredictionBlock& block, int wanted, Candidates& candidates) const {
    const int level = header_.pps->log2_parallel_merge;
    const auto find = [&](int x, int y) -> const Motion* {
        const bool same_region = block.x >> level == x >> level && block.y >> level == y >> level;
        return same_region ? nullptr : neighbour(block, x, y);
    };
    const int right = block.x + block.width;
    const int bottom = block.y + block.height;
    const Motion* const a1 = second_part_beside(block) ? nullptr : find(block.x - 1, bottom - 1);
    if (a1) candidates.add(*a1);
    if (candidates.count > wanted) return true;
    const Motion* const b1 = second_part_below(block) ? nullptr : find(right - 1, block.y - 1);
    const bool b1_new = b1 && !(a1 && a1->same_as(*b1));
    if (b1_new) candidates.add(*b1);
    if (candidates.count > wanted) return true;
    const Motion* const b0 = find(right, block.y - 1);
    if (b0 && !(b1 && b1->same_as(*b0))) candidates.add(*b0);
    if (candidates.count > wanted) return true;
    const Motion* const a0 = find(block.x - 1, bottom);
    if (a0 && !(a1 && a1->same_as(*a0))) candidates.add(*a0);
    if (candidates.count > wanted) return true;
    if (candidates.count < 4) {
        const Motion* const b2 = find(block.x - 1, block.y - 1);
        if (b2 && !(a1 && a1->same_as(*b2)) && !(b1 && b1->same_as(*b2))) candidates.add(*b2);
    }
    return candidates.count > wanted;
}

void MotionPredictor::add_temporal(const PredictionBlock& block, Candidates& candidates) const {
    Motion motion;
    for (int list = 0; list < (header_.type == kB ? 2 : 1); ++list) {
        if (temporal(block, list, 0, motion.vector[std::size_t(list)])) motion.reference[std::size_t(list)] = 0;
    }
    if (motion.is_inter()) candidates.add(motion);
}

// 8.5.3.2.4: list 0 of one candidate with list 1 of another.
void MotionPredictor::add_combined(Candidates& candidates) const {
    constexpr int kFirst[12] = {0, 1, 0, 2, 1, 2, 0, 3, 1, 3, 2, 3};
    constexpr int kSecond[12] = {1, 0, 2, 0, 2, 1, 3, 0, 3, 1, 3, 2};
    const int original = candidates.count;
    if (original < 2) return;
    for (int n = 0; n < original * (original - 1) && n < 12 && candidates.count < header_.max_merge_candidates; ++n) {
        const Motion& first = candidates.of[std::size_t(kFirst[n])];
        const Motion& second = candidates.of[std::size_t(kSecond[n])];
        if (!first.uses(0) || !second.uses(1)) continue;
        const auto poc0 = slice_.poc[0][std::size_t(first.reference[0])];
        const auto poc1 = slice_.poc[1][std::size_t(second.reference[1])];
        if (poc0 == poc1 && first.vector[0] == second.vector[1]) continue;
        Motion both;
        both.vector = {first.vector[0], second.vector[1]};
        both.reference = {first.reference[0], second.reference[1]};
        candidates.add(both);
    }
}

// 8.5.3.2.5
void MotionPredictor::add_zero(Candidates& candidates) const {
    const bool both = header_.type == kB;
    const int references = both ? std::min(header_.active[0], header_.active[1]) : header_.active[0];
    for (int n = 0; candidates.count < header_.max_merge_candidates; ++n) {
        Motion zero;
        const auto reference = std::int8_t(n < references ? n : 0);
        zero.reference = {reference, both ? reference : std::int8_t{-1}};
        candidates.add(zero);
    }
}

// 8.5.3.2.8: the collocated block to the lower right, else the one at the centre.
bool MotionPredictor::temporal(const PredictionBlock& block, int list, int reference, Vector& vector) const {
    if (!lists_.collocated) return false;
    const Sps& sps = *header_.sps;
    const int right = block.x + block.width;
    const int bottom = block.y + block.height;
    const bool same_ctb_row = block.cb_y >> sps.log2_ctb == bottom >> sps.log2_ctb;
    if (same_ctb_row && bottom < sps.height && right < sps.width && collocated(right, bottom, list, reference, vector)) return true;
    return collocated(block.x + block.width / 2, block.y + block.height / 2, list, reference, vector);
}

// 8.5.3.2.9; motion is kept for one cell of every 16x16 pixels.
bool MotionPredictor::collocated(int x, int y, int list, int reference, Vector& vector) const {
    const Picture& picture = *lists_.collocated;
    const Motion& motion = picture.motion_at(x & ~15, y & ~15);
    if (!motion.is_inter()) return false;
    int source = 0;
    if (!motion.uses(0)) {
        source = 1;
    } else if (motion.uses(1)) {
        source = lists_.no_backward ? list : int(header_.collocated_from_l0);
    }
    const SliceReferences& slice = picture.slices[motion.slice];
    const auto index = std::size_t(motion.reference[std::size_t(source)]);
    const bool long_term = slice_.long_term[std::size_t(list)][std::size_t(reference)];
    if (long_term != slice.long_term[std::size_t(source)][index]) return false;
    const std::int64_t from = std::int64_t{picture.poc} - slice.poc[std::size_t(source)][index];
    const std::int64_t to = std::int64_t{picture_.poc} - slice_.poc[std::size_t(list)][std::size_t(reference)];
    vector = motion.vector[std::size_t(source)];
    if (!long_term && from != to) vector = scale(vector, from, to);
    return true;
}

// A neighbour's vector to the very picture that is referred to.
bool MotionPredictor::unscaled(const Motion& motion, int list, int reference, Vector& vector) const {
    const auto poc = slice_.poc[std::size_t(list)][std::size_t(reference)];
    for (const int other : {list, 1 - list}) {
        if (!motion.uses(other)) continue;
        const auto index = std::size_t(motion.reference[std::size_t(other)]);
        if (slice_.poc[std::size_t(other)][index] != poc) continue;
        vector = motion.vector[std::size_t(other)];
        return true;
    }
    return false;
}

// A neighbour's vector to another picture, scaled to the one that is referred to.
bool MotionPredictor::scaled(const Motion& motion, int list, int reference, Vector& vector) const {
    const bool long_term = slice_.long_term[std::size_t(list)][std::size_t(reference)];
    for (const int other : {list, 1 - list}) {
        if (!motion.uses(other)) continue;
        const auto index = std::size_t(motion.reference[std::size_t(other)]);
        if (slice_.long_term[std::size_t(other)][index] != long_term) continue;
        vector = motion.vector[std::size_t(other)];
        if (!long_term) {
            const std::int64_t from = std::int64_t{picture_.poc} - slice_.poc[std::size_t(other)][index];
            const std::int64_t to = std::int64_t{picture_.poc} - slice_.poc[std::size_t(list)][std::size_t(reference)];
            vector = scale(vector, from, to);
        }
        return true;
    }
    return false;
}

Vector MotionPredictor::predict(const PredictionBlock& block, int list, int reference, int mvp_flag) const {
    const int right = block.x + block.width;
    const int bottom = block.y + block.height;
    const Motion* const left[2] = {neighbour(block, block.x - 1, bottom), neighbour(block, block.x - 1, bottom - 1)};
    const Motion* const above[3] = {neighbour(block, right, block.y - 1), neighbour(block, right - 1, block.y - 1),
                                    neighbour(block, block.x - 1, block.y - 1)};
    const auto any_unscaled = [&](const Motion* const* from, int count, Vector& vector) {
        return std::any_of(from, from + count, [&](const Motion* m) { return m && unscaled(*m, list, reference, vector); });
    };
    const auto any_scaled = [&](const Motion* const* from, int count, Vector& vector) {
        return std::any_of(from, from + count, [&](const Motion* m) { return m && scaled(*m, list, reference, vector); });
    };
    const bool has_left = left[0] || left[1];
    Vector a;
    Vector b;
    bool found_a = any_unscaled(left, 2, a) || any_scaled(left, 2, a);
    bool found_b = any_unscaled(above, 3, b);
    if (!has_left) {
        if (found_b) {
            a = b;
            found_a = true;
        }
        found_b = any_scaled(above, 3, b);
    }
    Vector candidates[3];
    int count = 0;
    if (found_a) candidates[count++] = a;
    if (found_b && !(found_a && a == b)) candidates[count++] = b;
    if (count < 2 && temporal(block, list, reference, candidates[count])) ++count;
    return mvp_flag < count ? candidates[mvp_flag] : Vector{};
}

}  // namespace hevc
