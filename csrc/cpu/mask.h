#pragma once

#include "flexkern/synapse.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

void pack_mask(const uint8_t* mask, int32_t* words, int64_t columns, int64_t begin, int64_t end);
void unpack_mask(const int32_t* words, uint8_t* mask, int64_t columns, int64_t begin, int64_t end);

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
