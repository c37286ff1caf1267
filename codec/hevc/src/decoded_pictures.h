// The decoded picture buffer: reference picture sets and lists (H.265, 8.3.2 to 8.3.4), and the order of output (C.5.2).

#pragma once

#include <memory>
#include <vector>

#include "picture.h"

namespace hevc {

class DecodedPictures {
public:
    // Forgets all references, at the start of a coded video sequence; pictures still awaiting output are output, or dropped.
    void start_sequence(bool drop);

    // Marks what the current picture's reference picture set keeps. Throws Damage if a picture that it uses is missing.
    void update_references(const SliceHeader& header, const Picture& current);

    // The reference lists of a slice of the current picture; also fills the slice's record in the picture.
    ReferenceLists lists(const SliceHeader& header, Picture& current) const;

    void add(std::shared_ptr<Picture> picture);

    // Outputs what need not wait any longer for pictures that precede it; `make_room` for another picture, if there is none.
    void bump(const Sps& sps, bool make_room);

    // Outputs everything that precedes a POC; the rest is dropped.
    void drain(std::int64_t before);

    // Pictures in output order, since the last call.
    std::vector<std::shared_ptr<Picture>> take();

private:
    std::shared_ptr<Picture> find(std::int32_t poc, std::int32_t mask) const;
    std::shared_ptr<Picture> reference(std::int32_t poc, std::int32_t mask) const;
    bool output_first(std::int64_t before);
    void remove_unused();

    std::vector<std::shared_ptr<Picture>> pictures_;
    std::vector<std::shared_ptr<Picture>> output_;
    std::vector<std::shared_ptr<Picture>> before_;     // RefPicSetStCurrBefore, StCurrAfter, LtCurr
    std::vector<std::shared_ptr<Picture>> after_;
    std::vector<std::shared_ptr<Picture>> long_term_;
};

}  // namespace hevc
