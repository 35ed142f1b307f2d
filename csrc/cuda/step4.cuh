// The flexible step of four consecutive synapses, of which `Then` stores what it wants.
#pragma once

#include <type_traits>

#include "vector4.cuh"

namespace flexkern::cuda {

// Whether element 0 of each operand lies at a multiple of the vector access.
inline bool aligned(const SgdTensor& tensor) {
  const auto bits = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  return ((bits(tensor.weight) | bits(tensor.grad) | bits(tensor.master) | bits(tensor.momentum) |
           bits(tensor.alpha) | bits(tensor.anchor.data) | bits(tensor.flexibility.data)) %
          16) == 0;
}

// Calls then(old weights, new weights, new momenta). `whole`: all four exist and every operand is aligned; else the
// first `count` exist.
template <class W, class G, class Then>
__device__ __forceinline__ void step4(const SgdTensor& tensor, int64_t begin, bool whole, int count,
                                      const SgdRule& rule, float rate, Then then) {
  constexpr bool kHasMaster = !std::is_same_v<W, float>;
  const float* exact = kHasMaster ? tensor.master : static_cast<const float*>(tensor.weight);
  float w[4], new_w[4], g[4], m[4] = {};
  float alpha[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  load4(exact + begin, whole, count, w);
  load4(static_cast<const G*>(tensor.grad) + begin, whole, count, g);
  if (tensor.momentum != nullptr) load4(tensor.momentum + begin, whole, count, m);
  if (tensor.gate == Gate::kStored) {
    load4(static_cast<const float*>(tensor.alpha) + begin, whole, count, alpha);
  } else if (tensor.gate == Gate::kFormula) {
    float a[4], f[4];
    source4(tensor.anchor, begin, whole, count, a);
    source4(tensor.flexibility, begin, whole, count, f);
#pragma unroll
    for (int i = 0; i < 4; ++i) alpha[i] = flexkern::gate(w[i], a[i], f[i], rate);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) new_w[i] = w[i];
  if (tensor.momentum != nullptr) {
#pragma unroll
    for (int i = 0; i < 4; ++i) flexkern::sgd<true>(new_w[i], m[i], g[i], alpha[i], rule);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) flexkern::sgd<false>(new_w[i], m[i], g[i], alpha[i], rule);
  }
  then(w, new_w, m);
}

}  // namespace flexkern::cuda
