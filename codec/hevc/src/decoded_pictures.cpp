#include "decoded_pictures.h"

#include <algorithm>
#include <limits>

namespace hevc {

namespace {

constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max();

}  // namespace

void DecodedPictures::start_sequence(bool drop) {
    if (!drop) {
        while (output_first(kAll)) {}
    }
    pictures_.clear();
}

std::shared_ptr<Picture> DecodedPictures::find(std::int32_t poc, std::int32_t mask) const {
    for (const auto& picture : pictures_) {
        if (picture->marking != Marking::kUnused && (picture->poc & mask) == (poc & mask)) return picture;
    }
    return nullptr;
}

// A picture that the current one is predicted from. Only leading pictures that are skipped anyway may lack one (8.3.3).
std::shared_ptr<Picture> DecodedPictures::reference(std::int32_t poc, std::int32_t mask) const {
    auto found = find(poc, mask);
    require(found != nullptr, "it refers to a picture that is missing");
    return found;
}

void DecodedPictures::update_references(const SliceHeader& header, const Picture& current) {
    before_.clear();
    after_.clear();
    long_term_.clear();
    std::vector<std::shared_ptr<Picture>> kept;
    const std::int32_t lsb_mask = (1 << header.sps->log2_max_poc_lsb) - 1;
    for (const LongTermReference& entry : header.long_term) {
        // Equation 7-52: with the most significant bits, an entry counts from the current picture's.
        const auto high = std::uint32_t(current.poc) & ~std::uint32_t(lsb_mask);
        const auto poc = entry.has_msb ? std::int32_t(std::uint32_t(entry.poc) + high) : entry.poc;
        const std::int32_t mask = entry.has_msb ? -1 : lsb_mask;
        if (entry.used) {
            kept.push_back(reference(poc, mask));
            long_term_.push_back(kept.back());
        } else if (auto found = find(poc, mask)) {
            kept.push_back(found);
        }
    }
    const std::vector<std::shared_ptr<Picture>> long_term = kept;
    for (int n = 0; n < header.reference_set.count; ++n) {
        const auto poc = std::int32_t(std::uint32_t(current.poc) + std::uint32_t(header.reference_set.delta[std::size_t(n)]));
        if (header.reference_set.used[std::size_t(n)]) {
            kept.push_back(reference(poc, -1));
            (n < header.reference_set.negative_count ? before_ : after_).push_back(kept.back());
        } else if (auto found = find(poc, -1)) {
            kept.push_back(found);
        }
    }
    for (const auto& picture : pictures_) picture->marking = Marking::kUnused;
    for (const auto& picture : kept) picture->marking = Marking::kShortTerm;
    for (const auto& picture : long_term) picture->marking = Marking::kLongTerm;
    remove_unused();
}

ReferenceLists DecodedPictures::lists(const SliceHeader& header, Picture& current) const {
    ReferenceLists lists;
    SliceReferences record;
    using Set = std::vector<std::shared_ptr<Picture>>;
    const Set* const first[2] = {&before_, &after_};
    for (std::size_t list = 0; list < 2; ++list) {
        if (header.active[list] == 0) continue;
        std::vector<const Picture*> candidates;  // RefPicListTempX (8-8, 8-10)
        for (const Set* set : {first[list], first[1 - list], &long_term_}) {
            for (const auto& picture : *set) candidates.push_back(picture.get());
        }
        require(!candidates.empty(), "a P or B slice has no reference picture");
        for (std::size_t n = 0; n < std::size_t(header.active[list]); ++n) {
            const std::size_t entry = header.modified[list] ? header.list_entry[list][n] : n % candidates.size();
            require(entry < candidates.size(), "a slice's reference list names a picture beyond its reference picture set");
            const Picture* const picture = candidates[entry];
            lists.picture[list][n] = picture;
            record.poc[list][n] = picture->poc;
            record.long_term[list][n] = entry >= before_.size() + after_.size();
            if (picture->poc > current.poc) lists.no_backward = false;
        }
    }
    if (header.temporal_mvp && header.type != kI) {
        lists.collocated = lists.picture[header.collocated_from_l0 ? 0 : 1][std::size_t(header.collocated_index)];
        require(lists.collocated->sps->width == current.sps->width && lists.collocated->sps->height == current.sps->height,
                "a picture refers to one of another size");
    }
    require(current.slices.size() < 0xFFFF, "a picture has too many slices");
    current.slices.push_back(record);
    return lists;
}

void DecodedPictures::add(std::shared_ptr<Picture> picture) {
    require(find(picture->poc, -1) == nullptr, "two pictures of a sequence have the same picture order count");
    pictures_.push_back(std::move(picture));
}

bool DecodedPictures::output_first(std::int64_t before) {
    std::shared_ptr<Picture> first;
    for (const auto& picture : pictures_) {
        if (picture->wanted && picture->poc < before && (!first || picture->poc < first->poc)) first = picture;
    }
    if (!first) return false;
    first->wanted = false;
    output_.push_back(first);
    return true;
}

void DecodedPictures::bump(const Sps& sps, bool make_room) {
    for (;;) {
        remove_unused();
        const auto waiting = std::count_if(pictures_.begin(), pictures_.end(), [](const auto& picture) { return picture->wanted; });
        const bool full = make_room && int(pictures_.size()) >= sps.max_dec_pic_buffering;
        if (waiting == 0 || (waiting <= sps.max_num_reorder && !full)) return;
        output_first(kAll);
    }
}

void DecodedPictures::drain(std::int64_t before) {
    while (output_first(before)) {}
    pictures_.clear();
}

void DecodedPictures::remove_unused() {
    const auto unused = [](const auto& picture) { return !picture->wanted && picture->marking == Marking::kUnused; };
    pictures_.erase(std::remove_if(pictures_.begin(), pictures_.end(), unused), pictures_.end());
}

std::vector<std::shared_ptr<Picture>> DecodedPictures::take() {
    std::vector<std::shared_ptr<Picture>> taken;
    taken.swap(output_);
    return taken;
}

}  // namespace hevc
