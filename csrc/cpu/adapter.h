// The gated adapter on the CPU: the library's products on a few rows at a time, with everything else done to those
// rows while they are in the cache (docs/design.md, Artsy).
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "flexkern/adapter.h"

namespace flexkern::cpu {

using torch::stable::Tensor;

struct AdapterSizes {
  int64_t samples, positions, d, r, tasks;
};

struct AdapterBank {
  const Tensor& down;
  const Tensor& down_bias;
  const Tensor& up;
  const Tensor& up_bias;
};

// out and hidden; `dropout` has its part of the numbers set. Refuses an index outside the bank before it writes.
std::tuple<Tensor, Tensor> adapter_forward(const Tensor& x, const AdapterBank& bank, const Tensor& index,
                                           const std::optional<Tensor>& residual, const AdapterHidden& dropout,
                                           float scale, const AdapterSizes& sizes, Dtype dtype);

// The gradients by x and by the tensors of the bank; [0] for what is not needed.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> adapter_backward(const Tensor& grad_out, const Tensor& x,
                                                                    const Tensor& hidden, const Tensor& down,
                                                                    const Tensor& up, const Tensor& index,
                                                                    double scale, double dropout_p, bool need_x,
                                                                    bool need_bank, const AdapterSizes& sizes,
                                                                    Dtype dtype);

}  // namespace flexkern::cpu
