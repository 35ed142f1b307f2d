#pragma once

#include "flexkern/update.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

void sgd(const SgdTensor& tensor, const SgdRule& rule, Dtype weight, Dtype grad, int64_t begin, int64_t end);
void gate(const float* weight, const Source& anchor, const Source& flexibility, float scale, float* alpha,
          int64_t begin, int64_t end);
void exp2_nonpositive(const float* x, float* y, int64_t n);

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
