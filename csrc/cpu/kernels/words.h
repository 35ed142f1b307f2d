// Vectors of bfloat16 and float16 numbers, converted to float32 and back in registers.
#pragma once

#include "half.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

typedef uint16_t uint16s __attribute__((vector_size(2 * kLanes)));

// GCC makes several instructions of a conversion that AVX-512 has one for.
FLEXKERN_FN uint32s widen_words(uint16s h) {
#if defined(__AVX512F__)
  return (uint32s)_mm512_cvtepu16_epi32((__m256i)h);
#else
  return __builtin_convertvector(h, uint32s);
#endif
}

FLEXKERN_FN uint16s narrow_words(uint32s w) {
#if defined(__AVX512F__)
  return (uint16s)_mm512_cvtepi32_epi16((__m512i)w);
#else
  return __builtin_convertvector(w, uint16s);
#endif
}

FLEXKERN_FN floats bfloat16_to_float(uint16s h) { return (floats)(widen_words(h) << 16); }

FLEXKERN_FN uint16s float_to_bfloat16(floats x) {
  const uint32s bits = (uint32s)x;
  const uint32s rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32s not_a_number = uint32s{} + 0x7fc0u;
  return narrow_words((bits & 0x7fffffffu) > 0x7f800000u ? not_a_number : rounded);
}

FLEXKERN_FN floats half_to_float(uint16s h) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  return _mm256_cvtph_ps((__m128i)h);
#else
  floats x;
  for (int i = 0; i < kLanes; ++i) x[i] = half_to_float(h[i]);
  return x;
#endif
}

FLEXKERN_FN uint16s float_to_half(floats x) {
#if defined(__AVX512F__)
  return (uint16s)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (uint16s)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  uint16s h;
  for (int i = 0; i < kLanes; ++i) h[i] = float_to_half(x[i]);
  return h;
#endif
}

// As load_some and store_some.
FLEXKERN_FN uint16s load_words(const uint16_t* p, int64_t count) {
  uint16s h = {};
  if (count == kLanes) {
    memcpy(&h, p, sizeof(h));
    return h;
  }
  for (int64_t i = 0; i < count; ++i) h[i] = p[i];
  return h;
}

FLEXKERN_FN void store_words(uint16_t* p, uint16s h, int64_t count) {
  if (count == kLanes) {
    memcpy(p, &h, sizeof(h));
    return;
  }
  for (int64_t i = 0; i < count; ++i) p[i] = h[i];
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
