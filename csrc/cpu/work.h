// What the CPU operators share: new tensors, no autograd, and how work is shared out over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "flexkern/update.h"

namespace flexkern::cpu {

// An uninitialised contiguous tensor, straight from the allocator: through the dispatcher it takes 1.5 us.
inline torch::stable::Tensor new_tensor(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                        torch::headeronly::ScalarType dtype) {
  const size_t dims = sizes.size();
  std::vector<int64_t> strides(dims, 1);
  for (size_t i = dims; i > 1; --i) strides[i - 2] = strides[i - 1] * std::max<int64_t>(sizes[i - 1], 1);
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(dims), sizes.data(), strides.data(),
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                               aoti_torch_device_type_cpu(), 0, &handle));
  return torch::stable::Tensor(handle);
}

inline torch::stable::Tensor new_tensor(std::initializer_list<int64_t> sizes, torch::headeronly::ScalarType dtype) {
  return new_tensor({sizes.begin(), sizes.size()}, dtype);
}

// While it lives torch's operators record nothing for autograd: the operators here write in place, or have their
// derivatives in Python.
class NoGrad {
 public:
  NoGrad() : enabled_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(enabled_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool enabled_;
};

// Work is shared out in units of 4096 elements (16 KB of each float32 operand), at least kGrain of them for each
// thread: fewer cost less to do than to hand over (a few microseconds while the other threads are awake, 10 when
// they sleep). A step that computes its gate takes three times as long per element as one that does not, and one
// that draws a field takes twice that again: there a second thread pays off earlier.
constexpr int64_t kUnit = 4096;
constexpr int64_t kGrain = 8;

template <class GatedTensor>
inline int64_t step_grain(const std::vector<GatedTensor>& tensors) {
  int64_t grain = kGrain;
  for (const GatedTensor& tensor : tensors) {
    if (tensor.gate != Gate::kFormula) continue;
    const bool drawn = tensor.anchor.kind > Kind::kConstant || tensor.flexibility.kind > Kind::kConstant;
    grain = std::min(grain, drawn ? kGrain / 4 : kGrain / 2);
  }
  return grain;
}

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

}  // namespace flexkern::cpu
