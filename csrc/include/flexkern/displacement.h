// The scaled displacement (docs/design.md): the step of any optimizer, from w0 to w, scaled by the gate at w0.
#pragma once

#include "flexkern/update.h"

namespace flexkern {

// One tensor of a call. All arrays are contiguous and have `numel` elements.
struct DisplacedTensor {
  void* weight = nullptr;
  const void* before = nullptr;  // of the weight's dtype
  float* master = nullptr;       // float32 copy that a low-precision weight is rounded from
  const void* alpha = nullptr;   // of the dtype that the gate says
  Source anchor, flexibility;
  int64_t numel = 0;
  Gate gate = Gate::kFormula;
  bool aligned = false;  // on a GPU, set by the launcher: every operand may be read 16 bytes at a time
};

// The numbers of a call.
struct Displacement {
  float scale = 1;
  bool skip_nonfinite = true;
  const float* scale_pointer = nullptr;  // on a GPU: where to read the scale, so that nothing waits for it
};

inline namespace FLEXKERN_ISA {

// w0 as exactly as it is known: the master, unless its rounding is not w0; then somebody wrote the weight. The bits
// are compared, because 0 is not the rounding of -0.
template <class F>
FLEXKERN_FN F exact_before(F master, F rounded_master, F w0) {
  return bit_cast<ints<F>>(rounded_master) == bit_cast<ints<F>>(w0) ? master : w0;
}

// The new weight, or the new master. Selected where alpha is 0 or 1, because w0 + (w - w0) is not always w, and a w
// that is not finite would make NaN of 0 (w - w0).
template <class F>
FLEXKERN_FN F displaced(F exact, F w, F w0, F alpha) {
  const F moved = exact + alpha * (w - w0);
  const F at_most = alpha == 1.0f ? w : moved;
  return alpha == 0.0f ? exact : at_most;
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
