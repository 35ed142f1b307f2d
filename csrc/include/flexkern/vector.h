// CPU lanes: GCC/Clang vectors as wide as the instruction set that the file is compiled for, and the few
// operations on them that are not operators. lanes.h includes this before the templates that use it.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace flexkern {
inline namespace FLEXKERN_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE2 on x86-64, NEON on arm64
#endif

typedef float floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t int32s __attribute__((vector_size(4 * kLanes)));
typedef uint64_t words __attribute__((vector_size(4 * kLanes)));  // kLanes / 2 Philox words

template <>
struct Ints<floats> {
  using type = int32s;
};

FLEXKERN_FN floats to_float(int32s i) { return __builtin_convertvector(i, floats); }

FLEXKERN_FN floats sqrt_rn(floats a) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(a);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(a);
#else
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

FLEXKERN_FN floats mul_add(floats a, floats b, floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

FLEXKERN_FN floats reciprocal(floats a) {
#if defined(__AVX512F__)
  // 14 bits, doubled by a Newton step: 4 cycles per vector where a division takes 16.
  const floats r = _mm512_rcp14_ps(a);
  return mul_add(r, _mm512_fnmadd_ps(a, r, _mm512_set1_ps(1.0f)), r);
#else
  return 1.0f / a;
#endif
}

FLEXKERN_FN floats div_rn(floats a, floats b) { return a / b; }

// Bit i says whether lane i of a comparison's result is true; and the other way round.
FLEXKERN_FN uint32_t lane_bits(int32s lanes) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)lanes);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)lanes));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)lanes));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(lanes[i] & 1) << i;
  return bits;
#endif
}

FLEXKERN_FN bool any(int32s lanes) { return lane_bits(lanes) != 0; }

FLEXKERN_FN int32s lanes_of(uint32_t bits) {
  int32s lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = 1 << i;
  return (lane & static_cast<int32_t>(bits)) != 0;
}

// Each 32-bit word sits in the low half of a 64-bit lane, where the multiply instruction takes it; what stands
// in the high half does not matter.
FLEXKERN_FN void multiply(words x, uint32_t m, words& high, words& low) {
#if defined(__AVX512F__)
  low = (words)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(m));
  // Not a shift: it would take the one port that multiplies.
  high = (words)_mm512_shuffle_epi32((__m512i)low, _MM_PERM_DDBB);
#elif defined(__AVX2__)
  low = (words)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(m));
  high = low >> 32;
#else
  low = (x & 0xffffffffu) * static_cast<uint64_t>(m);
  high = low >> 32;
#endif
}

// While it lives, results under 2^-126 become 0 on this thread. A gate that is almost shut makes such steps, and
// each costs a core more than a hundred cycles: with alpha over all of (0, 1) they doubled the time of a step.
class FlushSubnormal {
 public:
#if defined(__SSE2__)
  FlushSubnormal() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | _MM_FLUSH_ZERO_ON); }
  ~FlushSubnormal() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushSubnormal() {}
#endif
};

FLEXKERN_FN floats load(const float* p) {
  floats v;
  memcpy(&v, p, sizeof(v));
  return v;
}

FLEXKERN_FN void store(float* p, floats v) { memcpy(p, &v, sizeof(v)); }

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
