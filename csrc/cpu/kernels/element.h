// Vectors of a tensor of any dtype, converted to float32 and back in registers.
#pragma once

#include "chunk.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

// Elements [i, i + count) of a tensor; count is kLanes except at the end of a row.
template <Dtype kDtype>
FLEXKERN_FN floats read(const void* data, int64_t i, int64_t count) {
  if constexpr (kDtype == Dtype::kFloat32) {
    return load_some(static_cast<const float*>(data) + i, count);
  } else {
    const uint16s h = load_words(static_cast<const uint16_t*>(data) + i, count);
    return kDtype == Dtype::kBFloat16 ? bfloat16_to_float(h) : half_to_float(h);
  }
}

template <Dtype kDtype>
FLEXKERN_FN void write(void* data, int64_t i, floats v, int64_t count) {
  if constexpr (kDtype == Dtype::kFloat32) {
    store_some(static_cast<float*>(data) + i, v, count);
  } else {
    const uint16s h = kDtype == Dtype::kBFloat16 ? float_to_bfloat16(v) : float_to_half(v);
    store_words(static_cast<uint16_t*>(data) + i, h, count);
  }
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
