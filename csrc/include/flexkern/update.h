// The flexible update (arXiv 2407.07133; docs/design.md): the gate alpha, and the step of any rule that it scales.
#pragma once

#include "flexkern/field.h"
#include "flexkern/rules.h"

namespace flexkern {

enum class Dtype : int32_t { kFloat32, kBFloat16, kFloat16 };

// Where alpha comes from: the formula, a stored tensor (float32, or bfloat16: in the CPU kernels only), or 1 for
// synapses that move freely.
enum class Gate : int32_t { kFormula, kStored, kStoredBFloat16, kFree };

// Where the number of a tensor's step is, on the device: for rules that count steps.
template <bool kCountsSteps>
struct Count {
  static constexpr const float* count = nullptr;
};
template <>
struct Count<true> {
  const float* count = nullptr;
};

// One tensor of a step. All arrays are contiguous and have `numel` elements.
template <class Rule>
struct StepTensor : Count<Rule::kCountsSteps> {
  void* weight = nullptr;
  const void* grad = nullptr;
  float* master = nullptr;  // float32 copy that a low-precision weight is rounded from
  float* states[Rule::kStates] = {};
  const void* alpha = nullptr;  // of the dtype that the gate says
  Source anchor, flexibility;
  int64_t numel = 0;
  Gate gate = Gate::kFormula;
  bool aligned = false;  // on a GPU, set by the launcher: every operand may be read 16 bytes at a time
};

// The numbers of a step.
template <class Rule>
struct Step {
  Rule rule;
  float lr = 0;
  float scale = 1;
  bool skip_nonfinite = true;
  const float* lr_pointer = nullptr;  // on a GPU: where to read lr and scale, so that nothing waits for them
  const float* scale_pointer = nullptr;
};

inline namespace FLEXKERN_ISA {

#if defined(__CUDA_ARCH__) && defined(__NVCC__)
// As exp2f, but results under 2^-126 are 0, which saves three instructions.
FLEXKERN_FN float exp2_nonpositive(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#elif defined(__CUDA_ARCH__)  // on the host, in tests
FLEXKERN_FN float exp2_nonpositive(float x) { return exp2f(x); }
#else
// 2^x for x <= 0, at most 1.5 ulp off (tests/test_native.py measures it); results under 2^-125 are 0.
template <class F>
FLEXKERN_FN F exp2_nonpositive(F x) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const F shifted = x + kRound;
  const F n = shifted - kRound;
  const F r = x - n;
  // 2^r fitted on |r| <= 1/2 for the least relative error, 2^-28; Estrin's scheme, because the latency of the
  // whole gate, not its operation count, is what a core can fail to hide.
  const F low = mul_add(r, splat<F>(0x1.62e43p-1f), splat<F>(1.0f));
  const F middle = mul_add(r, splat<F>(0x1.c6af7ap-5f), splat<F>(0x1.ebfbdcp-3f));
  const F high = mul_add(r, splat<F>(0x1.5f0946p-10f), splat<F>(0x1.3b2dfap-7f));
  const F r2 = r * r;
  const F top = mul_add(r2, splat<F>(0x1.415fb2p-13f), high);
  const F p = mul_add(r2, mul_add(r2, top, middle), low);
  using Bits = unsigned_ints<F>;
  const F scaled = bit_cast<F>(bit_cast<Bits>(p) + (bit_cast<Bits>(shifted) << 23));
  return n < -125.5f ? splat<F>(0.0f) : scaled;
}
#endif

// alpha = sech(k)^2, k = scale (1 - f) / f |w - a|, as 4 e / (1 + e)^2 with e = exp(-2k): no cancellation.
// 1 / f is taken of at least the smallest normal number, and |w - a| is at most the largest number, so that both
// are finite; k may overflow to infinity (alpha = 0) but makes no NaN. f = 0 never moves, also where w = a, and so
// does an f under the smallest normal number; f = 1 always does, also where a is NaN.
// `rate` is gate_rate(scale): the factors of k that are the same for all synapses, for e = 2^(rate ...).
FLEXKERN_FN float gate_rate(float scale) { return scale * -2.885390082f; }  // -2 log2(e)

template <class F>
FLEXKERN_FN F gate(F w, F a, F f, float rate) {
  constexpr float kLargest = 0x1.fffffep127f;
  const F safe = f < 0x1p-126f ? splat<F>(0x1p-126f) : f;
  F displacement = abs(w - a);
  displacement = displacement > kLargest ? splat<F>(kLargest) : displacement;
  const F e = exp2_nonpositive((1.0f - f) * rate * displacement * reciprocal(safe));
  const F r = reciprocal(e + 1.0f);
  const F alpha = (e * 4.0f) * (r * r);
  const F free = f == 1.0f ? f : alpha;
  return abs(f) < 0x1p-126f ? splat<F>(0.0f) : free;
}

// One step of one synapse: w and the states that kHas has a bit for are updated. alpha scales the step, not what
// enters the states. `number` is what counted() makes of the step's.
template <int kHas, class Rule, class F>
FLEXKERN_FN void take_step(F& w, F (&states)[Rule::kStates], F g, F alpha, const Step<Rule>& step,
                           const typename Rule::Counted& number) {
  F next[Rule::kStates];
  FLEXKERN_UNROLL
  for (int i = 0; i < Rule::kStates; ++i) next[i] = states[i];
  const F d = direction<kHas>(step.rule, number, w, next, g);
  const F new_w = w - alpha * step.lr * d;
  if (step.skip_nonfinite) {
    const auto moved = is_finite(new_w);
    w = moved ? new_w : w;
    FLEXKERN_UNROLL
    for (int i = 0; i < Rule::kStates; ++i) states[i] = moved ? next[i] : states[i];
  } else {
    w = new_w;
    FLEXKERN_UNROLL
    for (int i = 0; i < Rule::kStates; ++i) states[i] = next[i];
  }
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
