// How the reader fails. Both kinds become Python exceptions in bindings.cpp.

#pragma once

#include <stdexcept>
#include <string>

namespace hevc {

// The bitstream contradicts ITU-T H.265, or ends too early.
struct Damage : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The bitstream uses a feature that this reader does not have.
struct Unsupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* otherwise) {
    if (!holds) throw Damage(otherwise);
}

}  // namespace hevc
