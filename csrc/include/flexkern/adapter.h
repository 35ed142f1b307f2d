// What an adapter does beside its two products (arXiv 2403.12030; docs/design.md): bias, ReLU, dropout, scale and
// residual. flexkern/reference/adapter.py says the same in plain PyTorch.
#pragma once

#include "flexkern/update.h"

namespace flexkern {

constexpr uint32_t kDropoutPurpose = 3;  // flexkern.fields.Purpose has the same number

// Hidden units [rows, columns], in place: from x down to dropout(relu(x down + bias)).
struct AdapterHidden {
  void* hidden = nullptr;
  const void* bias = nullptr;  // [columns]
  int64_t rows = 0, columns = 0;
  int64_t first = 0;  // where `hidden` begins in the whole tensor, which dropout's draws are counted in
  bool dropout = false;
  uint64_t seed = 0;
  float p = 0;
  float factor = 1;  // 1 / (1 - p)
};

// Results [rows, columns], in place: from hidden up to residual + scale (hidden up + bias).
struct AdapterOut {
  void* out = nullptr;
  const void* bias = nullptr;
  const void* residual = nullptr;  // null: 0
  int64_t rows = 0, columns = 0;
  float scale = 1;
};

// The gradient of what enters ReLU, in place: of grad_out up^T what passes dropout and ReLU, times `factor`.
struct AdapterGrad {
  void* grad = nullptr;
  const void* hidden = nullptr;
  int64_t numel = 0;
  float factor = 1;  // scale / (1 - p)
};

inline namespace FLEXKERN_ISA {

// NaN stays.
template <class F>
FLEXKERN_FN F relu(F z) {
  return z < 0.0f ? splat<F>(0.0f) : z;
}

template <class F>
FLEXKERN_FN F adapter_out(F product, F bias, F residual, float scale) {
  return residual + (product + bias) * scale;
}

template <class F>
FLEXKERN_FN F adapter_grad(F grad, F hidden, float factor) {
  return hidden > 0.0f ? grad * factor : splat<F>(0.0f);
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
