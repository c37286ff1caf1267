// Skipping what stands between an SPS's coding tools and its extension flags: VUI and HRD parameters (H.265, Annex E).

#pragma once

#include "bit_reader.h"

namespace hevc {

inline void skip_sub_layer_hrd(BitReader& bits, std::uint32_t cpb_count, bool sub_picture) {
    for (std::uint32_t cpb = 0; cpb < cpb_count; ++cpb) {
        for (int value = 0; value < (sub_picture ? 4 : 2); ++value) bits.ue(0xFFFFFFFEU);
        bits.skip(1);
    }
}

inline void skip_hrd(BitReader& bits, int max_sub_layers_minus1) {
    const bool nal = bits.flag();
    const bool vcl = bits.flag();
    bool sub_picture = false;
    if (nal || vcl) {
        sub_picture = bits.flag();
        if (sub_picture) bits.skip(8 + 5 + 1 + 5);
        bits.skip(4 + 4);
        if (sub_picture) bits.skip(4);
        bits.skip(5 + 5 + 5);
    }
    for (int layer = 0; layer <= max_sub_layers_minus1; ++layer) {
        const bool fixed_general = bits.flag();
        const bool fixed_within_cvs = fixed_general || bits.flag();
        bool low_delay = false;
        if (fixed_within_cvs) {
            bits.ue(2047);
        } else {
            low_delay = bits.flag();
        }
        const std::uint32_t cpb_count = low_delay ? 1 : bits.ue(31) + 1;
        if (nal) skip_sub_layer_hrd(bits, cpb_count, sub_picture);
        if (vcl) skip_sub_layer_hrd(bits, cpb_count, sub_picture);
    }
}

inline void skip_vui(BitReader& bits, int max_sub_layers_minus1) {
    constexpr std::uint32_t kAny = 0xFFFFFFFEU;
    constexpr std::uint32_t kExtendedSar = 255;
    if (bits.flag() && bits.u(8) == kExtendedSar) bits.skip(16 + 16);
    if (bits.flag()) bits.skip(1);  // overscan
    if (bits.flag()) {              // video signal type
        bits.skip(3 + 1);
        if (bits.flag()) bits.skip(8 + 8 + 8);
    }
    if (bits.flag()) {  // chroma sample location
        bits.ue(5);
        bits.ue(5);
    }
    bits.skip(3);  // neutral chroma, field sequence, frame field info
    if (bits.flag()) {
        for (int side = 0; side < 4; ++side) bits.ue(kAny);  // default display window
    }
    if (bits.flag()) {  // timing
        bits.skip(32 + 32);
        if (bits.flag()) bits.ue(kAny);
        if (bits.flag()) skip_hrd(bits, max_sub_layers_minus1);
    }
    if (bits.flag()) {  // bitstream restriction
        bits.skip(3);
        for (int value = 0; value < 5; ++value) bits.ue(kAny);
    }
}

}  // namespace hevc
