// Motion vector prediction (H.265, 8.5.3.2): merge candidates and motion vector predictors.

#pragma once

#include "availability.h"
#include "picture.h"

namespace hevc {

enum PartMode : int { k2Nx2N, k2NxN, kNx2N, kNxN, k2NxnU, k2NxnD, knLx2N, knRx2N };

struct PredictionBlock {
    int cb_x;
    int cb_y;
    int cb_size;
    int x;
    int y;
    int width;
    int height;
    PartMode part_mode;
    int part;
};

class MotionPredictor {
public:
    MotionPredictor(const SliceHeader& header, const Picture& picture, const ReferenceLists& lists, const Availability& availability)
        : header_(header), picture_(picture), lists_(lists), availability_(availability), slice_(picture.slices.back()) {}

    // 8.5.3.2.2: the motion that merge_idx selects.
    Motion merge(const PredictionBlock& block, int merge_index) const;

    // 8.5.3.2.6: the predictor that mvp_lX_flag selects, for a reference index of one list.
    Vector predict(const PredictionBlock& block, int list, int reference, int mvp_flag) const;

private:
    struct Candidates {
        std::array<Motion, 6> of;
        int count = 0;

        void add(const Motion& motion) { of[std::size_t(count++)] = motion; }
    };

    const Motion* neighbour(const PredictionBlock& block, int x, int y) const;
    bool add_spatial(const PredictionBlock& block, int wanted, Candidates& candidates) const;
    void add_temporal(const PredictionBlock& block, Candidates& candidates) const;
    void add_combined(Candidates& candidates) const;
    void add_zero(Candidates& candidates) const;
    bool temporal(const PredictionBlock& block, int list, int reference, Vector& vector) const;
    bool collocated(int x, int y, int list, int reference, Vector& vector) const;
    bool unscaled(const Motion& motion, int list, int reference, Vector& vector) const;
    bool scaled(const Motion& motion, int list, int reference, Vector& vector) const;

    const SliceHeader& header_;
    const Picture& picture_;
    const ReferenceLists& lists_;
    const Availability& availability_;
    const SliceReferences& slice_;
};

}  // namespace hevc
