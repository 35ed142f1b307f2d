// What the CPU operators share: numbers that are tensors, and how work is shared out over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "flexkern/update.h"

namespace flexkern::bindings {

// lr and scale that were given as tensors.
inline void read_numbers(SgdRule& rule) {
  if (rule.lr_pointer != nullptr) rule.lr = *rule.lr_pointer;
  if (rule.scale_pointer != nullptr) rule.scale = *rule.scale_pointer;
}

// Work is shared out in units of 4096 elements (16 KB of each float32 operand), at least 8 of them a thread:
// fewer cost less to do than to hand over.
constexpr int64_t kUnit = 4096;
constexpr int64_t kGrain = 8;

inline int64_t units(int64_t numel) { return (numel + kUnit - 1) / kUnit; }

// body(begin, end) over the elements of one tensor.
template <class Body>
void parallel_elements(int64_t numel, const Body& body) {
  torch::stable::parallel_for(0, units(numel), kGrain, [&](int64_t begin, int64_t end) {
    body(begin * kUnit, std::min(end * kUnit, numel));
  });
}

// Rows a thread takes at least, so that it gets as many elements as a thread of an elementwise operator.
inline int64_t row_grain(int64_t columns) {
  return std::max<int64_t>(kGrain * kUnit / std::max<int64_t>(columns, 1), 1);
}

}  // namespace flexkern::bindings
