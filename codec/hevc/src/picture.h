// What is known of one picture: blocks, motion and residual on grids, kept for output and for temporal motion candidates.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "slice_header.h"

namespace hevc {

struct Vector {
    std::int16_t x = 0;
    std::int16_t y = 0;

    bool operator==(const Vector& other) const { return x == other.x && y == other.y; }
};

// Motion of one cell of 4x4 pixels; a reference index of -1 means that its list is not used.
struct Motion {
    std::array<Vector, 2> vector{};
    std::array<std::int8_t, 2> reference{-1, -1};
    std::uint16_t slice = 0;  // index into Picture::slices

    bool uses(int list) const { return reference[std::size_t(list)] >= 0; }
    bool is_inter() const { return uses(0) || uses(1); }
    bool same_as(const Motion& other) const {
        return reference == other.reference && (!uses(0) || vector[0] == other.vector[0]) && (!uses(1) || vector[1] == other.vector[1]);
    }
};

enum Mode : std::uint8_t { kNotDecoded = 0, kIntra = 1, kInter = 2, kSkipped = 3 };

// A smallest coding block's share of its coding unit.
struct Unit {
    std::uint8_t log2_size = 0;
    Mode mode = kNotDecoded;
    std::int8_t qp = 0;
    std::uint8_t depth = 0;        // cqtDepth
    float bits = 0;            // of the whole coding unit
};

// The references of a slice, by list and index.
struct SliceReferences {
    std::array<std::array<std::int32_t, kMaxReferences>, 2> poc{};
    std::array<std::array<bool, kMaxReferences>, 2> long_term{};
};

enum class Marking { kUnused, kShortTerm, kLongTerm };

struct Picture {
    std::shared_ptr<const Sps> sps;
    std::int32_t poc = 0;
    int nal_type = 0;
    int type = kI;           // B if any slice is, else P if any is
    std::int64_t order = 0;  // in decoding order, as numbered by the caller
    bool key_frame = false;
    Marking marking = Marking::kShortTerm;
    bool wanted = false;     // awaits output
    std::int64_t slice_data_bits = 0;
    double other_bits = 0;   // of slice data, outside coding units: SAO, ends of slices
    int decoded_ctbs = 0;

    int cell_columns = 0;  // of 4x4 pixels, uncropped
    int cell_rows = 0;
    int unit_columns = 0;  // of smallest coding blocks
    std::vector<Motion> motion;
    std::vector<float> energy;  // mean squared residual by cell
    std::vector<Unit> units;
    std::vector<SliceReferences> slices;

    Motion& motion_at(int x, int y) { return motion[std::size_t(y >> 2) * std::size_t(cell_columns) + std::size_t(x >> 2)]; }
    const Motion& motion_at(int x, int y) const {
        return motion[std::size_t(y >> 2) * std::size_t(cell_columns) + std::size_t(x >> 2)];
    }
    float* energy_at(int x, int y) { return &energy[std::size_t(y >> 2) * std::size_t(cell_columns) + std::size_t(x >> 2)]; }
    const float* energy_at(int x, int y) const {
        return &energy[std::size_t(y >> 2) * std::size_t(cell_columns) + std::size_t(x >> 2)];
    }
    Unit& unit_at(int x, int y) {
        return units[std::size_t(y >> sps->log2_min_cb) * std::size_t(unit_columns) + std::size_t(x >> sps->log2_min_cb)];
    }
    const Unit& unit_at(int x, int y) const {
        return units[std::size_t(y >> sps->log2_min_cb) * std::size_t(unit_columns) + std::size_t(x >> sps->log2_min_cb)];
    }

    // Makes room for the grids, reset.
    void allocate() {
        const int side = 1 << sps->log2_min_cb;
        cell_columns = sps->width / 4;
        cell_rows = sps->height / 4;
        unit_columns = sps->width / side;
        const auto cells = std::size_t(cell_columns) * std::size_t(cell_rows);
        motion.assign(cells, Motion{});
        energy.assign(cells, 0.0F);
        units.assign(std::size_t(unit_columns) * std::size_t(sps->height / side), Unit{});
    }
};

// Forward references of a slice, as pictures.
struct ReferenceLists {
    std::array<std::array<const Picture*, kMaxReferences>, 2> picture{};
    const Picture* collocated = nullptr;  // null where temporal candidates are off
    bool no_backward = true;              // NoBackwardPredFlag: no reference follows the picture in output order
};

}  // namespace hevc
