// Scaling lists: defaults, scaling_list_data(), and the factors of luma blocks (H.265, 7.3.4, 7.4.5).

#include "parameter_sets.h"
#include "tables.h"

namespace hevc {

namespace {

// Table 7-6, in diagonal scan order.
constexpr std::array<std::uint8_t, 64> kIntra = {
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 17, 16, 17, 16, 17, 18, 17, 18, 18, 17, 18, 21, 19, 20, 21, 20, 19, 21, 24, 22, 22, 24,
    24, 22, 22, 24, 25, 25, 27, 30, 27, 25, 25, 29, 31, 35, 35, 31, 29, 36, 41, 44, 41, 36, 47, 54, 54, 47, 65, 70, 65, 88, 88, 115};
constexpr std::array<std::uint8_t, 64> kInter = {
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 17, 17, 17, 17, 17, 18, 18, 18, 18, 18, 18, 20, 20, 20, 20, 20, 20, 20, 24, 24, 24, 24,
    24, 24, 24, 24, 25, 25, 25, 25, 25, 25, 25, 28, 28, 28, 28, 28, 28, 33, 33, 33, 33, 33, 41, 41, 41, 41, 54, 54, 54, 71, 71, 91};
constexpr std::uint8_t kFlat = 16;

void set_default(ScalingLists& lists, std::size_t size, std::size_t matrix) {
    auto& list = lists.list[size][matrix];
    if (size == 0) {
        list.fill(kFlat);
    } else {
        list = matrix < 3 ? kIntra : kInter;
    }
    lists.dc[size][matrix] = kFlat;
}

}  // namespace

ScalingLists::ScalingLists() {
    for (std::size_t size = 0; size < 4; ++size) {
        for (std::size_t matrix = 0; matrix < 6; ++matrix) set_default(*this, size, matrix);
    }
}

void ScalingLists::read(BitReader& bits) {
    for (std::size_t size = 0; size < 4; ++size) {
        const std::size_t step = size == 3 ? 3 : 1;
        for (std::size_t matrix = 0; matrix < 6; matrix += step) {
            if (!bits.flag()) {  // predicted
                const std::size_t delta = bits.ue(std::uint32_t(matrix / step)) * step;
                if (delta == 0) {
                    set_default(*this, size, matrix);
                } else {
                    list[size][matrix] = list[size][matrix - delta];
                    dc[size][matrix] = dc[size][matrix - delta];
                }
                continue;
            }
            int next = 8;
            if (size > 1) {
                next = bits.se(-7, 247) + 8;
                dc[size][matrix] = std::uint8_t(next);
            }
            for (std::size_t n = 0; n < (size == 0 ? 16 : 64); ++n) {
                next = (next + bits.se(-128, 127) + 256) & 255;
                list[size][matrix][n] = std::uint8_t(next);
            }
        }
    }
}

ScalingFactors::ScalingFactors(const ScalingLists& lists) {
    for (std::size_t size = 0; size < 4; ++size) {
        const std::size_t side = std::size_t{4} << size;
        for (std::size_t inter = 0; inter < 2; ++inter) {
            const auto& list = lists.list[size][3 * inter];
            std::vector<std::uint8_t>& out = factor[size][inter];
            out.resize(side * side);
            const std::size_t list_side = size == 0 ? 4 : 8;
            const std::size_t repeat = side / list_side;
            std::array<std::uint8_t, 64> raster{};
            for (std::size_t n = 0; n < list_side * list_side; ++n) {
                const Point p = size == 0 ? kDiagonal4[n] : kDiagonal8[n];
                raster[p.y * list_side + p.x] = list[n];
            }
            for (std::size_t y = 0; y < side; ++y) {
                for (std::size_t x = 0; x < side; ++x) out[y * side + x] = raster[(y / repeat) * list_side + x / repeat];
            }
            if (size > 1) out[0] = lists.dc[size][3 * inter];
        }
    }
}

}  // namespace hevc
