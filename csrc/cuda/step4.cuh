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

// Four elements as they lie in memory: what is widened waits for its load.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T x[4];
};

// By intrinsics, as in store_whole: from plain loads ptxas merges both branches of read4 into four narrow ones, or
// moves them to where they are used first.
__device__ __forceinline__ void read_whole(const float* p, Four<float>& four) {
  *reinterpret_cast<float4*>(four.x) = __ldca(reinterpret_cast<const float4*>(p));
}
template <class T>
__device__ __forceinline__ void read_whole(const T* p, Four<T>& four) {
  *reinterpret_cast<uint2*>(four.x) = __ldca(reinterpret_cast<const uint2*>(p));
}

template <class T>
__device__ __forceinline__ Four<T> read4(const T* p, bool whole, int count) {
  Four<T> four;
  if (whole) {
    read_whole(p, four);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) four.x[i] = i < count ? p[i] : narrow<T>(1.0f);
  }
  return four;
}

// What a step of four synapses reads from memory, all asked for before any of it is used.
template <class W, class G, class Rule>
struct Operands4 {
  Four<float> exact, gate, flexibility;  // gate: alpha, or the anchor
  Four<W> written;
  Four<G> grad;
  Four<float> states[Rule::kStates];
};

template <class W, class G, class Rule>
__device__ __forceinline__ Operands4<W, G, Rule> load_operands4(const StepTensor<Rule>& tensor, int64_t begin,
                                                                bool whole, int count) {
  constexpr bool kHasMaster = !std::is_same_v<W, float>;
  const float* exact = kHasMaster ? tensor.master : static_cast<const float*>(tensor.weight);
  Operands4<W, G, Rule> o = {};
  o.exact = read4(exact + begin, whole, count);
  if constexpr (kHasMaster) o.written = read4(static_cast<const W*>(tensor.weight) + begin, whole, count);
  o.grad = read4(static_cast<const G*>(tensor.grad) + begin, whole, count);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k)
    if (tensor.states[k] != nullptr) o.states[k] = read4<float>(tensor.states[k] + begin, whole, count);
  if (tensor.gate == Gate::kStored) {
    o.gate = read4(static_cast<const float*>(tensor.alpha) + begin, whole, count);
  } else if (tensor.gate == Gate::kFormula) {
    if (tensor.anchor.kind == Kind::kStored) o.gate = read4(tensor.anchor.data + begin, whole, count);
    if (tensor.flexibility.kind == Kind::kStored)
      o.flexibility = read4(tensor.flexibility.data + begin, whole, count);
  }
  return o;
}

// The values of a source: those that were loaded, where it is stored.
__device__ __forceinline__ void source_or4(const Source& source, int64_t begin, const Four<float>& loaded,
                                           float (&v)[4]) {
  if (source.kind == Kind::kStored) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = loaded.x[i];
  } else {
    source4(source, begin, false, 0, v);
  }
}

// Calls then(old weights, new weights, new states) with what load_operands4 has loaded.
template <class W, class G, class Rule, class Then>
__device__ __forceinline__ void step4(const StepTensor<Rule>& tensor, const Operands4<W, G, Rule>& o, int64_t begin,
                                      const Step<Rule>& step, float rate, Then then) {
  constexpr bool kHasMaster = !std::is_same_v<W, float>;
  constexpr int kStates = Rule::kStates;
  float w[4], new_w[4], states[kStates][4] = {};
  float alpha[4] = {1.0f, 1.0f, 1.0f, 1.0f};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    w[i] = o.exact.x[i];
    // A weight that is not the rounding of its master was written from outside, and its master takes its value.
    if constexpr (kHasMaster)
      if (widen(o.written.x[i]) != widen(narrow<W>(w[i]))) w[i] = widen(o.written.x[i]);
#pragma unroll
    for (int k = 0; k < kStates; ++k) states[k][i] = o.states[k].x[i];
  }
  if (tensor.gate == Gate::kStored) {
#pragma unroll
    for (int i = 0; i < 4; ++i) alpha[i] = o.gate.x[i];
  } else if (tensor.gate == Gate::kFormula) {
    float a[4], f[4];
    source_or4(tensor.anchor, begin, o.gate, a);
    source_or4(tensor.flexibility, begin, o.flexibility, f);
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
      take_step<decltype(set)::value>(new_w[i], of_one, widen(o.grad.x[i]), alpha[i], step, number);
#pragma unroll
      for (int k = 0; k < kStates; ++k) states[k][i] = of_one[k];
    }
  });
  then(w, new_w, states);
}

// The same, loads included. `whole`: all four exist and every operand is aligned; else the first `count` exist.
template <class W, class G, class Rule, class Then>
__device__ __forceinline__ void step4(const StepTensor<Rule>& tensor, int64_t begin, bool whole, int count,
                                      const Step<Rule>& step, float rate, Then then) {
  const auto operands = load_operands4<W, G>(tensor, begin, whole, count);
  step4(tensor, operands, begin, step, rate, then);
}

}  // namespace flexkern::cuda
