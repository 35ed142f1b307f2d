// The pass over a layer inside the product that makes its gradient, a block of rows at a time: the block is made by
// the library, stepped with while it is in the cache, and then overwritten (docs/design.md, One pass).
#pragma once

#include "synapse.h"

namespace flexkern::cpu {

using torch::stable::Tensor;

// x [batch, columns] and grad_out [batch, rows], of one dtype; `post`, of the same, for the Hebbian rule: [batch,
// rows], null where the layer has another coincidence or none. The layer's gradient and coincidence are set here.
template <class Rule>
void linear(SynapseLayer<Rule>& layer, const Step<Rule>& step, Dtype weight, const Tensor& x,
            const Tensor& grad_out, const Tensor* post);

}  // namespace flexkern::cpu
