// residual_coding() (H.265, 7.3.8.11) and what its luma levels amount to in grey levels.

#pragma once

#include <array>
#include <cstdint>

#include "cabac.h"
#include "tables.h"

namespace hevc {

// One transform block, as its coding unit describes it.
struct TransformBlock {
    int log2_size;
    Scan scan;
    bool luma;
    bool transform_skip_enabled;
    bool sign_hiding;
    bool bypass;                         // cu_transquant_bypass_flag
    bool sine;                           // intra 4x4 luma: DST instead of DCT
    int qp;                              // Qp'Y
    int bit_depth;
    const std::uint8_t* scaling;  // ScalingFactor, row by row; null where all are 16
};

struct Coefficient {
    std::uint8_t x;
    std::uint8_t y;
    std::int16_t level;
};

// The levels of a block in coding order, last first.
struct Levels {
    int count = 0;
    bool transform_skip = false;
    std::array<Coefficient, 1024> of;
};

// Reads one block; fills `levels` for luma only.
void read_residual(Cabac& cabac, Contexts& contexts, const TransformBlock& block, Levels& levels);

// Adds mean squared grey levels (of 8-bit pictures) to `cells`, one per 4x4 pixels, `stride` cells from row to row: the residual's
// own samples, squared, for the transform is inverted (8.6.2 to 8.6.4) but for the rounding between its two passes.
void add_energy(const TransformBlock& block, const Levels& levels, float* cells, int stride);

}  // namespace hevc
