// Luma sample interpolation of ITU-T H.264, 8.4.2.2.1: half samples by the six-tap filter (1, -5, 20, 20, -5, 1) / 32, quarter
// samples by the rounded mean of two neighbours among integer and half samples. Every second line alone, see codec/h264.py.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace compensate {

constexpr int kMacroblock = 16;  // pixels per side
constexpr int kLine = 2;         // every second line is predicted and compared
constexpr int kBefore = 2;       // samples that the six taps read before and after a position
constexpr int kAfter = 3;
constexpr int kWindow = kMacroblock + kBefore + kAfter;

using Pixels = std::array<std::uint8_t, kMacroblock * kMacroblock / kLine>;  // every second line of a block, rows of 16

// Sixteen samples at a time, in the vector extensions of GCC and Clang; blocks of eight waste half of them.
template <typename Scalar, int Lanes>
struct Vectorised {
    using Type __attribute__((vector_size(sizeof(Scalar) * Lanes))) = Scalar;
};
template <typename Scalar, int Lanes>
using Vec = typename Vectorised<Scalar, Lanes>::Type;

template <typename Wide, typename Narrow, int Lanes>
Vec<Wide, Lanes> load(const Narrow* at) {
    Vec<Narrow, Lanes> narrow;
    std::memcpy(&narrow, at, sizeof narrow);
    return __builtin_convertvector(narrow, Vec<Wide, Lanes>);
}

template <typename Wide, int Lanes>
void store_clipped(std::uint8_t* to, Vec<Wide, Lanes> samples) {
    using V = Vec<Wide, Lanes>;
    samples = samples < 0 ? V{} : samples;
    samples = samples > 255 ? V{} + 255 : samples;
    const auto bytes = __builtin_convertvector(samples, Vec<std::uint8_t, Lanes>);
    std::memcpy(to, &bytes, sizeof bytes);
}

// Unrounded half samples: a - 5 b + 20 c, by shifts because SSE2 cannot multiply words. From bytes, between -2550 and 10710.
template <typename Wide, int Lanes, typename Narrow>
Vec<Wide, Lanes> six_taps(const Narrow* at, std::ptrdiff_t step) {
    const auto pair = [&](std::ptrdiff_t one, std::ptrdiff_t other) __attribute__((always_inline)) {
        return load<Wide, Narrow, Lanes>(at + one * step) + load<Wide, Narrow, Lanes>(at + other * step);
    };
    const auto inner = (pair(0, 1) << 2) - pair(-1, 2);
    return pair(-2, 3) + (inner << 2) + inner;
}

// Six taps of sums that six taps gave, rounded: (a - 5 b + 20 c + 512) >> 10, in words. The sum of products does not fit, but
// floors nest: it is floor((floor((floor((a - b) / 4) - b + c) / 4) + c + 32) / 64), and a mean never overflows.
template <int Lanes>
Vec<std::int16_t, Lanes> six_taps_again(const std::int16_t* at, std::ptrdiff_t step) {
    const auto pair = [&](std::ptrdiff_t one, std::ptrdiff_t other) __attribute__((always_inline)) {
        return load<std::int16_t, std::int16_t, Lanes>(at + one * step) + load<std::int16_t, std::int16_t, Lanes>(at + other * step);
    };
    const auto outer = pair(-2, 3), middle = pair(-1, 2), inner = pair(0, 1);
    const auto quarter = (outer - middle) >> 2, rest = inner - middle;
    const auto mean = (quarter & rest) + ((quarter ^ rest) >> 1);
    return ((mean >> 1) + inner + 32) >> 6;
}

enum Half { kFull, kRight, kDown, kBoth };

// Samples at integer positions, half a pixel to the right, half a pixel down, or both.
template <int Width>
void interpolate(Half half, const std::uint8_t* from, std::ptrdiff_t stride, int height, std::uint8_t* to) {
    if (half == kFull) {
        for (int y = 0; y < height; y += kLine, to += kMacroblock) std::memcpy(to, from + y * stride, Width);
    } else if (half != kBoth) {
        const std::ptrdiff_t step = half == kRight ? 1 : stride;
        for (int y = 0; y < height; y += kLine, to += kMacroblock)
            store_clipped<std::int16_t, Width>(to, (six_taps<std::int16_t, Width>(from + y * stride, step) + 16) >> 5);
    } else {
        std::int16_t across[kWindow * Width];
        for (int y = 0; y < height + kBefore + kAfter; ++y) {
            const auto sums = six_taps<std::int16_t, Width>(from + (y - kBefore) * stride, 1);
            std::memcpy(across + y * Width, &sums, sizeof sums);
        }
        for (int y = 0; y < height; y += kLine, to += kMacroblock)
            store_clipped<std::int16_t, Width>(to, six_taps_again<Width>(across + (y + kBefore) * Width, Width));
    }
}

// Every second line of a predicted block: in the picture it comes from where it lies there as it is, else in room of its own.
struct Lines {
    const std::uint8_t* data;
    std::ptrdiff_t stride;
};

template <int Width>
Lines average(const Lines& one, const Lines& other, int height, Pixels& room) {
    for (int line = 0; line < height / kLine; ++line) {
        const auto a = load<std::uint8_t, std::uint8_t, Width>(one.data + line * one.stride);
        const auto b = load<std::uint8_t, std::uint8_t, Width>(other.data + line * other.stride);
        const Vec<std::uint8_t, Width> mean = (a | b) - ((a ^ b) >> 1);  // rounded up
        std::memcpy(room.data() + line * kMacroblock, &mean, sizeof mean);
    }
    return {room.data(), kMacroblock};
}

struct Sample {
    Half half;
    int y, x;
};

// For each quarter position, y * 4 + x: the two samples whose rounded mean it is (H.264, figure 8-4).
constexpr Sample kQuarters[16][2] = {
    {{kFull, 0, 0}, {kFull, 0, 0}},   {{kFull, 0, 0}, {kRight, 0, 0}},  {{kRight, 0, 0}, {kRight, 0, 0}}, {{kRight, 0, 0}, {kFull, 0, 1}},
    {{kFull, 0, 0}, {kDown, 0, 0}},   {{kRight, 0, 0}, {kDown, 0, 0}},  {{kRight, 0, 0}, {kBoth, 0, 0}},  {{kRight, 0, 0}, {kDown, 0, 1}},
    {{kDown, 0, 0}, {kDown, 0, 0}},   {{kDown, 0, 0}, {kBoth, 0, 0}},   {{kBoth, 0, 0}, {kBoth, 0, 0}},   {{kBoth, 0, 0}, {kDown, 0, 1}},
    {{kDown, 0, 0}, {kFull, 1, 0}},   {{kDown, 0, 0}, {kRight, 1, 0}},  {{kBoth, 0, 0}, {kRight, 1, 0}},  {{kDown, 0, 1}, {kRight, 1, 0}},
};

// `count` samples of a line from position `first`, which may lie outside of it.
void copy_repeating_edges(const std::uint8_t* line, int length, int first, int count, std::uint8_t* to) {
    const int left = std::clamp(-first, 0, count), right = std::clamp(first + count - length, 0, count - left);
    std::memset(to, line[0], std::size_t(left));
    std::memcpy(to + left, line + first + left, std::size_t(count - left - right));
    std::memset(to + count - right, line[length - 1], std::size_t(right));
}

}  // namespace compensate
