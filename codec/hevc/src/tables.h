// Tables of H.265 that headers and slice data share.

#pragma once

#include <array>
#include <cstdint>

namespace hevc {

// Scans of 4x4 and 8x8 blocks (6.5.3 to 6.5.5): position n -> (x, y).
struct Point {
    std::uint8_t x;
    std::uint8_t y;
};

enum Scan : int { kDiagonal = 0, kHorizontal = 1, kVertical = 2 };

template <int Side>
constexpr std::array<Point, Side * Side> diagonal_scan() {
    std::array<Point, Side * Side> scan{};
    int n = 0;
    for (int sum = 0; sum < 2 * Side - 1; ++sum) {
        for (int x = 0; x < Side; ++x) {  // from the lower left to the upper right
            const int y = sum - x;
            if (y >= 0 && y < Side) scan[std::size_t(n++)] = {std::uint8_t(x), std::uint8_t(y)};
        }
    }
    return scan;
}

template <int Side>
constexpr std::array<Point, Side * Side> raster_scan(bool transposed) {
    std::array<Point, Side * Side> scan{};
    for (int n = 0; n < Side * Side; ++n) {
        const auto fast = std::uint8_t(n % Side);
        const auto slow = std::uint8_t(n / Side);
        scan[std::size_t(n)] = transposed ? Point{slow, fast} : Point{fast, slow};
    }
    return scan;
}

inline constexpr auto kDiagonal2 = diagonal_scan<2>();
inline constexpr auto kDiagonal4 = diagonal_scan<4>();
inline constexpr auto kDiagonal8 = diagonal_scan<8>();
inline constexpr std::array<std::array<Point, 16>, 3> kScan4 = {diagonal_scan<4>(), raster_scan<4>(false), raster_scan<4>(true)};
inline constexpr std::array<std::array<Point, 4>, 3> kScan2 = {diagonal_scan<2>(), raster_scan<2>(false), raster_scan<2>(true)};

// levelScale of 8.6.4.2.
inline constexpr std::array<int, 6> kLevelScale = {40, 45, 51, 57, 64, 72};

}  // namespace hevc
