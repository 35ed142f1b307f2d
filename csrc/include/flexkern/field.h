// Procedural fields (docs/design.md): the value of a synapse from its position. flexkern/reference/field.py defines
// the same operations in the same order; results are bit-identical.
#pragma once

#include "flexkern/normal_table.h"
#include "flexkern/philox.h"

namespace flexkern {

// Those of flexkern/spec/kinds.py.
#define FLEXKERN_KIND(name, python_name, number) name = number,
enum class Kind : int32_t { FLEXKERN_KINDS(FLEXKERN_KIND) };
#undef FLEXKERN_KIND
constexpr bool is_computed(int64_t kind) {
  return kind > static_cast<int64_t>(Kind::kStored) && kind <= FLEXKERN_LAST_KIND;
}

// Where the anchor or the flexibility of a tensor comes from.
struct Source {
  const float* data = nullptr;  // kStored
  uint64_t seed = 0;
  uint64_t offset = 0;  // index of the first element in the unsharded tensor
  uint32_t stream = 0;
  uint32_t purpose = 0;
  Kind kind = Kind::kStored;
  float p0 = 0, p1 = 0;  // kConstant: value; kUniform: low, high - low; normal ones: mean, std

  // From the parameters of flexkern.Field, rounded to float32 once.
  void set_parameters(double first, double second) {
    p0 = static_cast<float>(first);
    p1 = static_cast<float>(kind == Kind::kUniform ? second - first : second);
  }
};

inline namespace FLEXKERN_ISA {

template <class F, int N>
FLEXKERN_FN F horner(const float (&coefficients)[N], F t) {
  F p = splat<F>(coefficients[N - 1]);
  FLEXKERN_UNROLL
  for (int i = N - 2; i >= 0; --i) p = p * t + coefficients[i];
  return p;
}

// Natural logarithm of y in (0, 1]: log m = 2 atanh((m - 1) / (m + 1)) with m in [sqrt(.5), sqrt(2)).
template <class F>
FLEXKERN_FN F log_unit(F y) {
  constexpr int32_t kSqrtHalfBits = FLEXKERN_SQRT_HALF_BITS;
  const float series[] = {2.0f, 2.0f / 3, 2.0f / 5, 2.0f / 7, 2.0f / 9};
  const auto bits = bit_cast<ints<F>>(y);
  const auto exponent = (bits - kSqrtHalfBits) >> 23;
  using Bits = unsigned_ints<F>;
  const F m = bit_cast<F>(bit_cast<Bits>(bits) - (bit_cast<Bits>(exponent) << 23));
  const F s = div_rn(m - 1.0f, m + 1.0f);
  return to_float(exponent) * 0.69314718246459961f + s * horner(series, s * s);
}

// Inverse CDF of the standard normal: sqrt(2) erfinv(x) = x P(w), w = -log(1 - x^2). flexkern/spec/constants.py
// says where the coefficients are from.
template <class F>
FLEXKERN_FN F normal_quantile(F u) {
  const float centre[] = FLEXKERN_NORMAL_CENTRE;
  const float tail[] = FLEXKERN_NORMAL_TAIL;
  const F x = u * 2.0f - 1.0f;
  const F w = -log_unit((1.0f - x) * (1.0f + x));
  F factor = horner(centre, w - 2.5f);
  // One value in 300 lies in the tails: skipping them where a vector (or a warp) has none saves a square root and
  // a polynomial, a third of the work.
  const auto far = w >= 5.0f;
  if (any(far)) factor = far ? horner(tail, sqrt_rn(w) - 3.0f) : factor;
  return x * factor;
}

// The value that a random word stands for. `kind` is the same for all lanes.
template <class F>
FLEXKERN_FN F field_value(ints<F> word, Kind kind, float p0, float p1) {
  // First: behind the others ptxas spills a register of the step on sm_100.
  if (kind == Kind::kNormalTable) return normal_by_table<F>(word) * p1 + p0;
  const F u = (to_float((word >> 9) & 0x7fffff) + 0.5f) * 0x1p-23f;  // exact, in (0, 1)
  if (kind == Kind::kUniform) return u * p1 + p0;
  if (kind == Kind::kNormal) return normal_quantile(u) * p1 + p0;
  // CDF x^2/2 + x/2 = u has the root (sqrt(1 + 8u) - 1) / 2, written without its cancellation.
  const F high = div_rn(u * 4.0f, sqrt_rn(u * 8.0f + 1.0f) + 1.0f);
  return kind == Kind::kBiasedHigh ? high : 1.0f - high;
}

// The four values at index 4 * block .. 4 * block + 3 of an unsharded tensor.
FLEXKERN_FN void field_block(const Source& source, uint64_t block, float (&values)[4]) {
  uint32_t c[1][4] = {
      {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), source.stream, source.purpose}};
  philox(c, PhiloxKeys<uint32_t>(source.seed));
  FLEXKERN_UNROLL
  for (int i = 0; i < 4; ++i)
    values[i] = field_value<float>(static_cast<int32_t>(c[0][i]), source.kind, source.p0, source.p1);
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
