#include "flexkern/displacement.h"

#include "chunk.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

namespace {

// Elements of the weight or of `before`, widened, and back.
template <Dtype kDtype>
struct Elements;
template <>
struct Elements<Dtype::kFloat32> {
  using Word = float;
  static FLEXKERN_FN floats load(const float* p, int64_t count) { return load_some(p, count); }
  static FLEXKERN_FN floats rounded(floats v) { return v; }
  static FLEXKERN_FN void store(float* p, floats v, int64_t count) { store_some(p, v, count); }
};
template <>
struct Elements<Dtype::kBFloat16> {
  using Word = uint16_t;
  static FLEXKERN_FN floats load(const uint16_t* p, int64_t count) {
    return bfloat16_to_float(load_words(p, count));
  }
  static FLEXKERN_FN floats rounded(floats v) { return bfloat16_to_float(float_to_bfloat16(v)); }
  static FLEXKERN_FN void store(uint16_t* p, floats v, int64_t count) {
    store_words(p, float_to_bfloat16(v), count);
  }
};
template <>
struct Elements<Dtype::kFloat16> {
  using Word = uint16_t;
  static FLEXKERN_FN floats load(const uint16_t* p, int64_t count) { return half_to_float(load_words(p, count)); }
  static FLEXKERN_FN floats rounded(floats v) { return half_to_float(float_to_half(v)); }
  static FLEXKERN_FN void store(uint16_t* p, floats v, int64_t count) { store_words(p, float_to_half(v), count); }
};

// Elements [begin, begin + count), count <= kChunk, of a tensor.
template <Gate kGate, Dtype kDtype>
void displace_chunk(const DisplacedTensor& tensor, const Displacement& call, int64_t begin, int64_t count) {
  using Own = Elements<kDtype>;
  using Word = typename Own::Word;
  constexpr bool kLow = kDtype != Dtype::kFloat32;
  alignas(64) FieldBuffer anchor_chunk, flexibility_chunk;
  const float* a = nullptr;
  const float* f = nullptr;
  if (kGate == Gate::kFormula) {
    a = source_values(tensor.anchor, begin, count, anchor_chunk);
    f = source_values(tensor.flexibility, begin, count, flexibility_chunk);
  }
  Word* const w = static_cast<Word*>(tensor.weight) + begin;
  const Word* const before = static_cast<const Word*>(tensor.before) + begin;
  float* const master = kLow ? tensor.master + begin : nullptr;
  const float* const alpha = static_cast<const float*>(tensor.alpha) + begin;
  const uint16_t* const alpha_bfloat16 = static_cast<const uint16_t*>(tensor.alpha) + begin;
  const float rate = gate_rate(call.scale);
  for_each_vector(count, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
    prefetch(w + i, kWeightStream);
    prefetch(before + i, kGradStream);
    if (kLow) prefetch_write(master + i, kFirstStateStream);
    if (kGate == Gate::kFormula) {
      prefetch(a + i, kAnchorStream);
      prefetch(f + i, kFlexibilityStream);
    }
    if (kGate == Gate::kStored) prefetch(alpha + i, kAnchorStream);
    if (kGate == Gate::kStoredBFloat16) prefetch(alpha_bfloat16 + i, kAnchorStream);
    const floats after = Own::load(w + i, lanes), w0 = Own::load(before + i, lanes);
    floats exact = w0;
    if (kLow) {
      const floats kept = load_some(master + i, lanes);
      exact = exact_before(kept, Own::rounded(kept), w0);
    }
    floats scaled = splat<floats>(1.0f);
    if (kGate == Gate::kStored) scaled = load_some(alpha + i, lanes);
    if (kGate == Gate::kStoredBFloat16) scaled = bfloat16_to_float(load_words(alpha_bfloat16 + i, lanes));
    if (kGate == Gate::kFormula) scaled = gate(exact, load_some(a + i, lanes), load_some(f + i, lanes), rate);
    floats new_exact = displaced(exact, after, w0, scaled);
    floats new_w = new_exact;
    if (call.skip_nonfinite) {
      const auto moved = is_finite(Own::rounded(new_exact));
      new_w = moved ? new_exact : w0;
      new_exact = moved ? new_exact : exact;
    }
    Own::store(w + i, new_w, lanes);
    if (kLow) store_some(master + i, new_exact, lanes);
  });
}

template <Dtype kDtype>
auto displace_by(Gate gate) {
  switch (gate) {
    case Gate::kFormula: return &displace_chunk<Gate::kFormula, kDtype>;
    case Gate::kStored: return &displace_chunk<Gate::kStored, kDtype>;
    case Gate::kStoredBFloat16: return &displace_chunk<Gate::kStoredBFloat16, kDtype>;
    default: return &displace_chunk<Gate::kFree, kDtype>;
  }
}

auto choose_displace(Gate gate, Dtype weight) {
  switch (weight) {
    case Dtype::kFloat32: return displace_by<Dtype::kFloat32>(gate);
    case Dtype::kBFloat16: return displace_by<Dtype::kBFloat16>(gate);
    default: return displace_by<Dtype::kFloat16>(gate);
  }
}

}  // namespace

void displace(const DisplacedTensor& tensor, const Displacement& call, Dtype weight, int64_t begin, int64_t end) {
  const FlushSubnormal flush;
  const auto displace_chunk = choose_displace(tensor.gate, weight);
  for (int64_t i = begin; i < end; i += kChunk)
    displace_chunk(tensor, call, i, end - i < kChunk ? end - i : kChunk);
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
