// The pass over rows of a layer, on torch's threads.
#pragma once

#include "dispatch.h"
#include "flexkern/synapse.h"
#include "work.h"

FLEXKERN_KERNEL(template <class Rule> void synapse(const SynapseLayer<Rule>& layer, const Step<Rule>& step,
                                                   Dtype weight, Dtype grad, int64_t begin, int64_t end);)

namespace flexkern::cpu {

template <class Rule>
void step_rows(const SynapseLayer<Rule>& layer, const Step<Rule>& step, Dtype weight, Dtype grad, int64_t begin,
               int64_t end) {
  const auto kernel = FLEXKERN_BEST(synapse<Rule>);
  torch::stable::parallel_for(begin, end, row_grain(layer.columns),
                              [&](int64_t first, int64_t last) { kernel(layer, step, weight, grad, first, last); });
}

}  // namespace flexkern::cpu
