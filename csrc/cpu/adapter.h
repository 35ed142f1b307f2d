#pragma once

#include "flexkern/adapter.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

void adapter_hidden(const AdapterHidden& pass, Dtype dtype);
void adapter_out(const AdapterOut& pass, Dtype dtype);
void adapter_grad(const AdapterGrad& pass, Dtype dtype);
void column_sums(const void* matrix, Dtype dtype, int64_t rows, int64_t columns, float* sums);

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
