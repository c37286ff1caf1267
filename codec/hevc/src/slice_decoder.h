// Slice segment data (H.265, 7.3.8): the coding trees of a slice, read into its picture.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "availability.h"
#include "cabac.h"
#include "motion.h"
#include "picture.h"
#include "residual.h"

namespace hevc {

// What a dependent slice segment takes over from the one before it.
struct SliceState {
    Contexts contexts{};      // at its end
    Contexts row_contexts{};  // after the second coding tree block of the row above
    bool has_row_contexts = false;
    int previous_qp = 0;      // qPY_PREV
};

class SliceDecoder {
public:
    SliceDecoder(const SliceHeader& header, const Layout& layout, Picture& picture, const ReferenceLists& lists, Availability& availability,
                 std::vector<std::uint8_t>& intra_modes, SliceState& state);

    // Reads the segment's data to its end.
    void decode(const std::uint8_t* data, std::size_t size);

private:
    struct CodingUnit {
        int x;
        int y;
        int log2_size;
        Mode mode;
        PartMode part_mode;
        bool bypass;
        int max_depth;
        int chroma_mode;
    };

    struct Cbf {
        bool cb;
        bool cr;
    };

    // slice_decoder.cpp
    void start_substream(const std::uint8_t* data, std::size_t size) { cabac_ = Cabac(data, size); }
    void start_ctb(int ctb, bool first);
    bool finish_ctb(int ctb, int next);
    void init();
    void read_sao();
    void read_sao_component(int component, int& type);
    void read_quadtree(int x, int y, int log2_size, int depth);
    void start_quantisation_group(int x, int y);

    // coding_unit.cpp
    void read_unit(int x, int y, int log2_size, int depth);
    void read_skipped(CodingUnit& unit);
    void read_coded(CodingUnit& unit);
    PartMode read_part_mode(const CodingUnit& unit);
    bool read_pcm(const CodingUnit& unit);
    void read_intra_modes(CodingUnit& unit);
    int intra_mode(int x, int y, bool predicted, int index) const;
    int intra_candidate(int x, int y) const;
    void set_intra_mode(int x, int y, int size, int mode);
    void read_inter(const CodingUnit& unit, bool& merged);
    void store(const CodingUnit& unit, int depth);

    // prediction_unit.cpp
    Motion read_prediction(const PredictionBlock& block, int depth, bool& merged);
    int read_merge_index();
    int read_inter_direction(const PredictionBlock& block, int depth);
    int read_reference_index(int list);
    Vector read_difference();
    int read_difference_magnitude();
    void fill_motion(const PredictionBlock& block, const Motion& motion);

    // transform_tree.cpp
    void read_transform_tree(const CodingUnit& unit, int x, int y, int log2_size, int depth, int block, Cbf parent);
    void read_transform_unit(const CodingUnit& unit, int x, int y, int log2_size, int block, bool cbf_luma, Cbf cbf);
    void read_luma(const CodingUnit& unit, int x, int y, int log2_size);
    void read_chroma(const CodingUnit& unit, int log2_size, Cbf cbf);
    void read_qp_delta();

    bool left_available(int x) const { return (x & ctb_mask_) != 0 || left_ctb_; }
    bool above_available(int y) const { return (y & ctb_mask_) != 0 || above_ctb_; }
    int bin(int context) { return cabac_.bin(contexts_[std::size_t(context)]); }
    std::uint8_t& intra_mode_at(int x, int y) {
        return intra_modes_[std::size_t(y >> 2) * std::size_t(picture_.cell_columns) + std::size_t(x >> 2)];
    }

    const SliceHeader& header_;
    const Sps& sps_;
    const Pps& pps_;
    const Layout& layout_;
    Picture& picture_;
    const ReferenceLists& lists_;
    Availability& availability_;
    std::vector<std::uint8_t>& intra_modes_;  // by cell
    SliceState& state_;
    MotionPredictor predictor_;
    Cabac cabac_;
    Contexts contexts_{};
    Levels levels_;
    const int ctb_mask_;
    bool left_ctb_ = false;   // whether the neighbouring coding tree blocks are available
    bool above_ctb_ = false;
    bool qp_delta_read_ = false;
    int qp_delta_ = 0;
    int predicted_qp_ = 0;
    int qp_ = 0;  // QpY
    double counted_ = 0;     // bits of the substream so far that have found their unit; a unit has those of the splits before it
    double other_bits_ = 0;
    const std::uint8_t* end_ = nullptr;  // of the slice segment data, without zeros that may follow
};

}  // namespace hevc
