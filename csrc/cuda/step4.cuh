// The flexible step of four consecutive synapses, of which `Then` stores what it wants.
#pragma once

#include <type_traits>

#include "vector4.cuh"

namespace flexkern::cuda {

// Whether element 0 of each operand lies at a multiple of the vector access.
template <class Rule>
inline bool aligned(const StepTensor<Rule>& tensor) {
  const auto bits = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  uintptr_t all = bits(tensor.weight) | bits(tensor.grad) | bits(tensor.master) | bits(tensor.alpha) |
                  bits(tensor.anchor.data) | bits(tensor.flexibility.data);
  for (const float* state : tensor.states) all |= bits(state);
  return all % 16 == 0;
}

// Calls then(old weights, new weights, new states). `whole`: all four exist and every operand is aligned; else the
// first `count` exist.
template <class W, class G, class Rule, class Then>
__device__ __forceinline__ void step4(const StepTensor<Rule>& tensor, int64_t begin, bool whole, int count,
                                      const Step<Rule>& step, float rate, Then then) {
  constexpr bool kHasMaster = !std::is_same_v<W, float>;
  constexpr int kStates = Rule::kStates;
  const float* exact = kHasMaster ? tensor.master : static_cast<const float*>(tensor.weight);
  float w[4], new_w[4], g[4], states[kStates][4] = {};
  float alpha[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  load4(exact + begin, whole, count, w);
  if constexpr (kHasMaster) {
    // A weight that is not the rounding of its master was written from outside, and its master takes its value.
    float written[4];
    load4(static_cast<const W*>(tensor.weight) + begin, whole, count, written);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (written[i] != widen(narrow<W>(w[i]))) w[i] = written[i];
  }
  load4(static_cast<const G*>(tensor.grad) + begin, whole, count, g);
#pragma unroll
  for (int k = 0; k < kStates; ++k)
    if (tensor.states[k] != nullptr) load4(tensor.states[k] + begin, whole, count, states[k]);
  if (tensor.gate == Gate::kStored) {
    load4(static_cast<const float*>(tensor.alpha) + begin, whole, count, alpha);
  } else if (tensor.gate == Gate::kFormula) {
    float a[4], f[4];
    source4(tensor.anchor, begin, whole, count, a);
    source4(tensor.flexibility, begin, whole, count, f);
#pragma unroll
    for (int i = 0; i < 4; ++i) alpha[i] = flexkern::gate(w[i], a[i], f[i], rate);
  }
  const typename Rule::Counted number = counted(step.rule, tensor.count);
  with_states<Rule>(states_of(tensor), [&](auto set) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float of_one[kStates];
#pragma unroll
      for (int k = 0; k < kStates; ++k) of_one[k] = states[k][i];
      new_w[i] = w[i];
      take_step<decltype(set)::value>(new_w[i], of_one, g[i], alpha[i], step, number);
#pragma unroll
      for (int k = 0; k < kStates; ++k) states[k][i] = of_one[k];
    }
  });
  then(w, new_w, states);
}

}  // namespace flexkern::cuda
