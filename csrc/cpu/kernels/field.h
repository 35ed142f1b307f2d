// Procedural values for a range of positions, a chunk at a time.
#pragma once

#include "flexkern/update.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

// Elements worked on at a time: procedural or converted operands of a chunk stay in the first-level cache.
constexpr int64_t kChunk = 1024;

// Holds kChunk values, up to three before them, and what the generator's last pass writes past them.
constexpr int64_t kOverhang = 4 * kLanes;
using FieldBuffer = float[kChunk + 4 + kOverhang];

// Values [begin, begin + count), count <= kChunk, of a source that is not stored; valid until buffer changes.
const float* field_values(const Source& source, int64_t begin, int64_t count, FieldBuffer& buffer);

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
