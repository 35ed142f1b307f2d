// How the CPU kernels go through a tensor: a chunk at a time, with all operands in float32, a vector at a time.
#pragma once

#include "field.h"
#include "words.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

// Runs body(offset, count) for whole vectors, then for the rest: count is kLanes except in the last call.
template <class Body>
FLEXKERN_FN void for_each_vector(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, n - i);
}

FLEXKERN_FN floats load_some(const float* p, int64_t count) {
  if (count == kLanes) return load(p);
  floats v = splat<floats>(1.0f);
  memcpy(&v, p, count * sizeof(float));
  return v;
}

FLEXKERN_FN void store_some(float* p, floats v, int64_t count) {
  if (count == kLanes) return store(p, v);
  memcpy(p, &v, count * sizeof(float));
}

// The step is bound by memory: with four streams of loads the hardware prefetcher stops at each 4 KB page, and
// asking 2 KB ahead takes the step on 16.7 M elements from 11.5 ms to 9.1 (2 cores, AVX-512). Tensors begin at the
// same place in their pages, so each stream asks 512 bytes further than the one before: then they do not all come
// to a new page at once, which is worth another 4 % (7 % with huge pages).
constexpr int64_t kAhead = 512, kStagger = 128;
enum Stream { kWeightStream, kGradStream, kAnchorStream, kFlexibilityStream, kFirstStateStream };
template <class T>
FLEXKERN_FN void prefetch(const T* p, int stream) {
  __builtin_prefetch(p + kAhead + stream * kStagger, 0);
}
FLEXKERN_FN void prefetch_write(const float* p, int stream) {
  __builtin_prefetch(p + kAhead + stream * kStagger, 1);
}

FLEXKERN_FN const float* source_values(const Source& source, int64_t begin, int64_t count, FieldBuffer& buffer) {
  return source.kind == Kind::kStored ? source.data + begin : field_values(source, begin, count, buffer);
}

// Where procedural and converted operands of a chunk go.
struct ChunkBuffers {
  alignas(64) FieldBuffer anchor, flexibility;
  alignas(64) float grad[kChunk];
};

// The operands of one chunk. What a step does not need is null.
template <class Rule>
struct Chunk {
  float* w;
  const float* g;
  const float* a = nullptr;
  const float* f = nullptr;
  const float* alpha = nullptr;
  const uint16_t* alpha_bfloat16 = nullptr;
  float* states[Rule::kStates] = {};
  typename Rule::Counted number;
  int64_t count;

  // Elements [begin, begin + count), count <= kChunk; their gradients are at [grad_begin, ...). Anchors are for
  // the gate, or wanted anyway. `number` is what the rule makes of the step's.
  Chunk(const StepTensor<Rule>& tensor, const typename Rule::Counted& number, Dtype weight, Dtype grad,
        int64_t begin, int64_t grad_begin, int64_t count, bool anchors, ChunkBuffers& buffers)
      : number(number), count(count) {
    w = (weight == Dtype::kFloat32 ? static_cast<float*>(tensor.weight) : tensor.master) + begin;
    if (tensor.gate == Gate::kFormula || anchors) a = source_values(tensor.anchor, begin, count, buffers.anchor);
    if (tensor.gate == Gate::kFormula) f = source_values(tensor.flexibility, begin, count, buffers.flexibility);
    if (tensor.gate == Gate::kStored) alpha = static_cast<const float*>(tensor.alpha) + begin;
    if (tensor.gate == Gate::kStoredBFloat16) alpha_bfloat16 = static_cast<const uint16_t*>(tensor.alpha) + begin;
    for (int i = 0; i < Rule::kStates; ++i)
      if (tensor.states[i] != nullptr) states[i] = tensor.states[i] + begin;
    if (grad == Dtype::kFloat32) {
      g = static_cast<const float*>(tensor.grad) + grad_begin;
    } else {
      widen(grad, static_cast<const uint16_t*>(tensor.grad) + grad_begin, buffers.grad, count);
      g = buffers.grad;
    }
  }
};

// Masters of weights that were written from outside take their values: those of which the weight is not the
// rounding. The others, nearly always all, keep theirs. `may(i)`: which of the vector at i are looked at.
template <Dtype kDtype, class May>
FLEXKERN_FN void take_written(const uint16_t* weight, float* master, int64_t n, May may) {
  constexpr bool kBFloat16 = kDtype == Dtype::kBFloat16;
  for_each_vector(n, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    prefetch(weight + i, kWeightStream);
    const uint16s h = load_words(weight + i, count);
    const floats written = kBFloat16 ? bfloat16_to_float(h) : half_to_float(h);
    const floats exact = load_some(master + i, count);
    const floats rounding =
        kBFloat16 ? bfloat16_to_float(float_to_bfloat16(exact)) : half_to_float(float_to_half(exact));
    const int32s differs = (written != rounding) & may(i);
    if (any(differs)) store_some(master + i, differs ? written : exact, count);
  });
}

// The same of a chunk, before its step: in the cache, as the step reads the masters next.
template <class Rule, class May>
FLEXKERN_FN void take_written(const StepTensor<Rule>& tensor, Dtype weight, int64_t begin, int64_t count, May may) {
  const uint16_t* of_chunk = static_cast<const uint16_t*>(tensor.weight) + begin;
  if (weight == Dtype::kBFloat16) take_written<Dtype::kBFloat16>(of_chunk, tensor.master + begin, count, may);
  if (weight == Dtype::kFloat16) take_written<Dtype::kFloat16>(of_chunk, tensor.master + begin, count, may);
}
template <class Rule>
FLEXKERN_FN void take_written(const StepTensor<Rule>& tensor, Dtype weight, int64_t begin, int64_t count) {
  take_written(tensor, weight, begin, count, [](int64_t) { return ~int32s{}; });
}

// A low-precision weight becomes the rounding of its master.
template <class Rule>
FLEXKERN_FN void round_weight(const StepTensor<Rule>& tensor, Dtype weight, int64_t begin, int64_t count) {
  if (weight == Dtype::kFloat32) return;
  round(weight, tensor.master + begin, static_cast<uint16_t*>(tensor.weight) + begin, count);
}

// Loads, gates and steps the synapses [i, i + count) of a chunk; `then` gets the weight and the states as they were
// and as they are, and stores what it wants of them.
template <Gate kGate, int kHas, class Rule, class Then>
FLEXKERN_FN void step_vector(const Chunk<Rule>& c, int64_t i, int64_t count, const Step<Rule>& step, float rate,
                             Then then) {
  constexpr int kStates = Rule::kStates;
  prefetch_write(c.w + i, kWeightStream);
  prefetch(c.g + i, kGradStream);
  if (kGate == Gate::kFormula) {
    prefetch(c.a + i, kAnchorStream);
    prefetch(c.f + i, kFlexibilityStream);
  }
  if (kGate == Gate::kStored) prefetch(c.alpha + i, kAnchorStream);
  if (kGate == Gate::kStoredBFloat16) prefetch(c.alpha_bfloat16 + i, kAnchorStream);
  const floats w = load_some(c.w + i, count);
  floats states[kStates], new_states[kStates];
  FLEXKERN_UNROLL
  for (int k = 0; k < kStates; ++k) {
    if (kHas >> k & 1) prefetch_write(c.states[k] + i, kFirstStateStream + k);
    states[k] = kHas >> k & 1 ? load_some(c.states[k] + i, count) : w;
    new_states[k] = states[k];
  }
  floats alpha = splat<floats>(1.0f);
  if (kGate == Gate::kStored) alpha = load_some(c.alpha + i, count);
  if (kGate == Gate::kStoredBFloat16) alpha = bfloat16_to_float(load_words(c.alpha_bfloat16 + i, count));
  if (kGate == Gate::kFormula) alpha = gate(w, load_some(c.a + i, count), load_some(c.f + i, count), rate);
  floats new_w = w;
  take_step<kHas>(new_w, new_states, load_some(c.g + i, count), alpha, step, c.number);
  then(w, states, new_w, new_states);
}

template <int kHas, class Rule>
FLEXKERN_FN void store_states(const Chunk<Rule>& c, int64_t i, int64_t count,
                              const floats (&states)[Rule::kStates]) {
  FLEXKERN_UNROLL
  for (int k = 0; k < Rule::kStates; ++k)
    if (kHas >> k & 1) store_some(c.states[k] + i, states[k], count);
}

// All synapses of a chunk are functional.
template <Gate kGate, int kHas, class Rule>
void step_chunk(const Chunk<Rule>& c, const Step<Rule>& step) {
  using States = const floats(&)[Rule::kStates];
  const float rate = gate_rate(step.scale);
  for_each_vector(c.count, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    step_vector<kGate, kHas>(c, i, count, step, rate,
                             [&](floats, States, floats w, States states) __attribute__((always_inline)) {
                               store_some(c.w + i, w, count);
                               store_states<kHas>(c, i, count, states);
                             });
  });
}

template <int kHas, class Rule>
auto step_of_gate(Gate gate) {
  switch (gate) {
    case Gate::kFormula: return &step_chunk<Gate::kFormula, kHas, Rule>;
    case Gate::kStored: return &step_chunk<Gate::kStored, kHas, Rule>;
    case Gate::kStoredBFloat16: return &step_chunk<Gate::kStoredBFloat16, kHas, Rule>;
    default: return &step_chunk<Gate::kFree, kHas, Rule>;
  }
}

// The step of a tensor's chunks.
template <class Rule>
auto choose_step(const StepTensor<Rule>& tensor) {
  decltype(&step_chunk<Gate::kFree, 0, Rule>) step = nullptr;
  with_states<Rule>(states_of(tensor),
                    [&](auto set) { step = step_of_gate<decltype(set)::value, Rule>(tensor.gate); });
  return step;
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
