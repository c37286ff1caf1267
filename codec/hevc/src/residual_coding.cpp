#include <algorithm>

#include "residual.h"

namespace hevc {

namespace {

// ctxIdxMap of 9.3.4.2.5 for 4x4 blocks.
constexpr std::uint8_t kContextMap4[16] = {0, 1, 4, 5, 2, 3, 4, 5, 6, 6, 8, 8, 7, 7, 8, 8};

using SignificanceMap = std::array<std::uint8_t, 16>;

struct SignificanceMaps {
    SignificanceMap small[3];         // 4x4 blocks, by scan
    SignificanceMap pattern[3][4];    // larger ones, by scan and prevCsbf
};

constexpr SignificanceMaps make_maps() {
    SignificanceMaps maps{};
    for (int scan = 0; scan < 3; ++scan) {
        for (std::size_t n = 0; n < 16; ++n) {
            const Point p = kScan4[std::size_t(scan)][n];
            maps.small[scan][n] = kContextMap4[p.y * 4 + p.x];
            const int sum = p.x + p.y;
            maps.pattern[scan][0][n] = sum == 0 ? 2 : sum < 3 ? 1 : 0;
            maps.pattern[scan][1][n] = p.y == 0 ? 2 : p.y == 1 ? 1 : 0;
            maps.pattern[scan][2][n] = p.x == 0 ? 2 : p.x == 1 ? 1 : 0;
            maps.pattern[scan][3][n] = 2;
        }
    }
    return maps;
}

constexpr SignificanceMaps kMaps = make_maps();

// Position in the scan of the 4x4 block of positions at (x, y).
struct Inverse {
    std::uint8_t of[16][16];
};

template <std::size_t N>
constexpr void invert(const std::array<Point, N>& scan, Inverse& inverse) {
    for (std::size_t n = 0; n < N; ++n) inverse.of[scan[n].y][scan[n].x] = std::uint8_t(n);
}

constexpr Inverse make_inverse4(std::size_t scan) {
    Inverse inverse{};
    invert(kScan4[scan], inverse);
    return inverse;
}

constexpr Inverse kInverse4[3] = {make_inverse4(0), make_inverse4(1), make_inverse4(2)};

constexpr std::array<Point, 1> kOne{};

// Scan of the sub-blocks of a block. Only blocks of up to 8x8 are scanned other than diagonally; an 8x8 block's four sub-blocks
// are scanned horizontally in 6.5.4 by rows, and vertically by columns.
const Point* sub_block_scan(int log2_size, Scan scan) {
    switch (log2_size) {
        case 2: return kOne.data();
        case 3: return kScan2[std::size_t(scan)].data();
        case 4: return kDiagonal4.data();
        default: return kDiagonal8.data();
    }
}

HEVC_INLINE int read_last_prefix(Cabac& cabac, std::uint16_t* contexts, int log2_size, bool luma) {
    const int offset = luma ? 3 * (log2_size - 2) + ((log2_size - 1) >> 2) : 15;
    const int shift = luma ? (log2_size + 1) >> 2 : log2_size - 2;
    const int limit = 2 * log2_size - 1;
    int prefix = 0;
    while (prefix < limit && cabac.bin(contexts[offset + (prefix >> shift)])) ++prefix;
    return prefix;
}

HEVC_INLINE int read_last_suffix(Cabac& cabac, int prefix) {
    if (prefix < 4) return prefix;
    const int length = (prefix >> 1) - 1;
    return (1 << length) * (2 + (prefix & 1)) + int(cabac.bypass_bits(length));
}

// coeff_abs_level_remaining (9.3.3.11).
HEVC_INLINE int read_remaining(Cabac& cabac, int rice) {
    int prefix = 0;
    while (prefix < 32 && cabac.bypass()) ++prefix;
    if (prefix <= 3) return (prefix << rice) + int(cabac.bypass_bits(rice));
    const int length = prefix - 3 + rice;
    // Longer codes than any 16-bit level needs appear in damaged streams only.
    if (length > 20) throw Damage("a transform coefficient is out of range");
    return int((((1U << (prefix - 3)) + 3 - 1) << rice) + cabac.bypass_bits(length));
}

struct LastPosition {
    int sub_block;  // index in the scan of sub-blocks
    int position;   // index in the scan of the sub-block
};

LastPosition read_last(Cabac& cabac, Contexts& contexts, const TransformBlock& block) {
    const int prefix_x = read_last_prefix(cabac, &contexts[kLastX], block.log2_size, block.luma);
    const int prefix_y = read_last_prefix(cabac, &contexts[kLastY], block.log2_size, block.luma);
    int x = read_last_suffix(cabac, prefix_x);
    int y = read_last_suffix(cabac, prefix_y);
    if (block.scan == kVertical) std::swap(x, y);
    const Point* sub_blocks = sub_block_scan(block.log2_size, block.scan);
    int sub_block = 0;
    while (sub_blocks[sub_block].x != x >> 2 || sub_blocks[sub_block].y != y >> 2) ++sub_block;
    return {sub_block, kInverse4[block.scan].of[y & 3][x & 3]};
}

// Significant positions of a sub-block, in coding order.
struct Significant {
    int count = 0;
    std::uint8_t position[16];
};

template <bool Luma>
HEVC_INLINE void read_significance(Cabac& cabac, std::uint16_t* contexts, const TransformBlock& block, int sub_block, int start, bool coded,
                                   unsigned neighbours, Significant& out) {
    const bool small = block.log2_size == 2;
    const SignificanceMap& map = small ? kMaps.small[block.scan] : kMaps.pattern[block.scan][neighbours];
    int base = Luma ? 0 : 27;
    if (!small) {
        if (Luma) {
            base += (sub_block > 0 ? 3 : 0) + (block.log2_size == 3 ? (block.scan == kDiagonal ? 9 : 15) : 21);
        } else {
            base += block.log2_size == 3 ? 9 : 12;
        }
    }
    std::uint16_t* const from = contexts + kSignificant + base;
    int count = out.count;
    for (int n = start; n > 0; --n) {
        // Written always, kept if significant: no branch that the predictor would miss.
        out.position[count] = std::uint8_t(n);
        count += cabac.bin(from[map[std::size_t(n)]]);
    }
    if (start >= 0) {
        bool dc = true;  // inferred: a sub-block marked as coded has a level somewhere
        if (!(coded && count == 0)) {
            std::uint16_t& context = sub_block == 0 ? contexts[kSignificant + (Luma ? 0 : 27)] : from[map[0]];
            dc = cabac.bin(context) != 0;
        }
        if (dc) out.position[count++] = 0;
    }
    out.count = count;
}

// Absolute levels of one sub-block (9.3.4.2.6, 9.3.4.2.7): greater1, greater2, signs, remainders.
template <bool Luma>
HEVC_INLINE void read_levels(Cabac& cabac, std::uint16_t* contexts, const TransformBlock& block, const Significant& significant, int context_set,
                             int& greater1_context, int* level) {
    const int count = significant.count;
    std::uint16_t* const greater1 = contexts + kGreater1 + (Luma ? 0 : 16) + 4 * context_set;
    const int flagged = std::min(count, 8);
    int first_greater = -1;
    int state = 1;
    for (int n = 0; n < flagged; ++n) {
        const int greater = cabac.bin(greater1[state]);
        level[n] = 1 + greater;
        if (greater) {
            state = 0;
            if (first_greater < 0) first_greater = n;
        } else if (state > 0 && state < 3) {
            ++state;
        }
    }
    greater1_context = state;
    for (int n = flagged; n < count; ++n) level[n] = 1;
    if (first_greater >= 0) level[first_greater] += cabac.bin(contexts[kGreater2 + (Luma ? 0 : 4) + context_set]);

    const bool hidden = block.sign_hiding && !block.bypass && significant.position[0] - significant.position[count - 1] > 3;
    const int sign_count = count - int(hidden);
    const std::uint32_t signs = cabac.bypass_bits(sign_count) << (16 - sign_count);
    int rice = 0;
    int sum = 0;
    for (int n = 0; n < count; ++n) {
        const int base = n >= 8 ? 1 : first_greater < 0 || n < first_greater ? 2 : n == first_greater ? 3 : 2;
        int value = level[n];
        if (value == base) {
            value += read_remaining(cabac, rice);
            if (value > 3 << rice) rice = std::min(rice + 1, 4);
        }
        if (Luma) {
            sum += value;
            level[n] = signs >> (15 - n) & 1 ? -value : value;
        }
    }
    if (Luma && hidden && sum & 1) level[count - 1] = -level[count - 1];
}

template <bool Luma>
void read_block(Cabac& shared, Contexts& context_array, const TransformBlock& block, Levels& levels) {
    Cabac cabac = shared;  // in registers while the block is read
    std::uint16_t* const contexts = context_array.data();
    levels.count = 0;
    levels.transform_skip = false;
    if (block.transform_skip_enabled && !block.bypass && block.log2_size == 2) {
        levels.transform_skip = cabac.bin(contexts[kTransformSkip + (Luma ? 0 : 1)]) != 0;
    }
    const LastPosition last = read_last(cabac, context_array, block);
    const Point* const sub_blocks = sub_block_scan(block.log2_size, block.scan);
    const auto& scan = kScan4[std::size_t(block.scan)];
    std::uint8_t coded_map[9][9] = {};  // coded_sub_block_flag by [y][x], with zeros to the right and below
    int greater1_context = 1;
    int level[16];
    for (int sub_block = last.sub_block; sub_block >= 0; --sub_block) {
        const Point at = sub_blocks[sub_block];
        const unsigned neighbours = coded_map[at.y][at.x + 1] | unsigned(coded_map[at.y + 1][at.x]) << 1;
        const bool is_last = sub_block == last.sub_block;
        const bool flagged = !is_last && sub_block > 0;
        if (flagged && !cabac.bin(contexts[kCodedSubBlock + (neighbours ? 1 : 0) + (Luma ? 0 : 2)])) continue;
        coded_map[at.y][at.x] = 1;
        Significant significant;
        int start = 15;
        if (is_last) {
            significant.position[0] = std::uint8_t(last.position);
            significant.count = 1;
            start = last.position - 1;
        }
        read_significance<Luma>(cabac, contexts, block, sub_block, start, flagged, neighbours, significant);
        if (significant.count == 0) continue;
        const int context_set = (sub_block == 0 || !Luma ? 0 : 2) + (!is_last && greater1_context == 0 ? 1 : 0);
        read_levels<Luma>(cabac, contexts, block, significant, context_set, greater1_context, level);
        if (Luma) {
            for (int n = 0; n < significant.count; ++n) {
                const Point p = scan[significant.position[n]];
                levels.of[std::size_t(levels.count++)] = {std::uint8_t(at.x * 4 + p.x), std::uint8_t(at.y * 4 + p.y),
                                                          std::int16_t(std::clamp(level[n], -32768, 32767))};
            }
        }
    }
    shared = cabac;
}

}  // namespace

void read_residual(Cabac& cabac, Contexts& contexts, const TransformBlock& block, Levels& levels) {
    if (block.luma) {
        read_block<true>(cabac, contexts, block, levels);
    } else {
        read_block<false>(cabac, contexts, block, levels);
    }
}

}  // namespace hevc
