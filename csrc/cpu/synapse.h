#pragma once

#include "flexkern/synapse.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

void synapse(const SynapseLayer& layer, const SgdRule& rule, Dtype weight, Dtype grad, int64_t begin, int64_t end);

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
