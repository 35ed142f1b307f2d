// The quantile of the normal distribution by a table of cubics: flexkern/spec/normal_table.py says of what.
// Multiplications and additions only, and a row for each of them: the same bits everywhere.
#pragma once

#include "flexkern/constants.h"
#include "flexkern/lanes.h"

namespace flexkern {

constexpr int kNormalRows = FLEXKERN_NORMAL_ROWS;
constexpr int32_t kNormalFirst = FLEXKERN_NORMAL_FIRST, kNormalShift = FLEXKERN_NORMAL_SHIFT;
alignas(64) constexpr float kNormalTable[kNormalRows][4] = FLEXKERN_NORMAL_TABLE;
#if defined(__CUDACC__)
// In global memory: constant memory serves lanes with different rows one after the other, and shared memory every
// kernel would have to fill. Half of the values have their rows in one line of the first-level cache, and all but a
// thousandth in ten.
static __device__ const float4 kNormalTableOnDevice[kNormalRows] = FLEXKERN_NORMAL_TABLE;
#endif

inline namespace FLEXKERN_ISA {

template <class F>
FLEXKERN_FN F cubic(const F (&c)[4], F v) {
  return ((c[3] * v + c[2]) * v + c[1]) * v + c[0];
}

// The x that a normal value exceeds in size with the probability v / 2^31, for v in [1, 2^31].
FLEXKERN_FN float half_normal(float v) {
  const int32_t row = (bit_cast<int32_t>(v) >> kNormalShift) - kNormalFirst;
#if defined(__CUDA_ARCH__)
  const float4 of_row = __ldg(kNormalTableOnDevice + row);
  const float c[4] = {of_row.x, of_row.y, of_row.z, of_row.w};
  return cubic(c, v);
#else
  return cubic(kNormalTable[row], v);
#endif
}

#if defined(FLEXKERN_VECTORS) && defined(__AVX512F__)
// The rows of the eight octaves under 2^31, where 255 values of 256 are: 64 of each coefficient, in four registers,
// at the lower six bits of their number.
constexpr int kNearOctaves = 8, kNear = kNearOctaves << (23 - kNormalShift);
constexpr int32_t kNearBits = (127 + 31 - kNearOctaves) << 23;  // of the float where they begin
struct NearRows {
  alignas(64) float of[4][kNear] = {};
  constexpr NearRows() {
    for (int row = kNormalRows - 1 - kNear; row < kNormalRows - 1; ++row)
      for (int k = 0; k < 4; ++k) of[k][(row + kNormalFirst) % kNear] = kNormalTable[row][k];
  }
};
static_assert(kNear == 64);
constexpr NearRows kNearRows;

// x, in which the lanes of `far` are those of rows further off. Apart, so that it takes no registers where nearly
// all vectors have none.
[[gnu::noinline, gnu::cold]] static floats with_far(floats x, floats v, uint32_t far) {
  for (; far != 0; far &= far - 1) {
    const int i = __builtin_ctz(far);
    x = _mm512_mask_broadcastss_ps(x, static_cast<__mmask16>(1 << i), _mm_set_ss(half_normal(v[i])));
  }
  return x;
}

FLEXKERN_FN floats half_normal(floats v) {
  const __m512i bits = _mm512_castps_si512(v), row = _mm512_srli_epi32(bits, kNormalShift);
  const __mmask16 upper = _mm512_test_epi32_mask(row, _mm512_set1_epi32(kNear / 2));
  floats c[4];
  FLEXKERN_UNROLL
  for (int k = 0; k < 4; ++k) {
    const float* of = kNearRows.of[k];
    const __m512 low = _mm512_permutex2var_ps(_mm512_load_ps(of), row, _mm512_load_ps(of + 16));
    const __m512 high = _mm512_permutex2var_ps(_mm512_load_ps(of + 32), row, _mm512_load_ps(of + 48));
    c[k] = _mm512_mask_blend_ps(upper, low, high);
  }
  const floats x = cubic(c, v);
  const __m512i above = _mm512_sub_epi32(bits, _mm512_set1_epi32(kNearBits));
  const __mmask16 far = _mm512_cmpge_epu32_mask(above, _mm512_set1_epi32(kNearOctaves << 23));
  return __builtin_expect(far != 0, 0) ? with_far(x, v, far) : x;
}
#elif defined(FLEXKERN_VECTORS)
// Rows are loaded whole: four and a transposition for four lanes, where gathers would load 16 numbers.
typedef float four __attribute__((vector_size(16)));
#if defined(__AVX2__)
FLEXKERN_FN floats low(floats a, floats b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13); }
FLEXKERN_FN floats high(floats a, floats b) { return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15); }
FLEXKERN_FN floats join(const four* p) { return __builtin_shufflevector(p[0], p[4], 0, 1, 2, 3, 4, 5, 6, 7); }
#else
FLEXKERN_FN floats low(floats a, floats b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
FLEXKERN_FN floats high(floats a, floats b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
FLEXKERN_FN floats join(const four* p) { return p[0]; }
#endif

FLEXKERN_FN floats half_normal(floats v) {
  const int32s row = (bit_cast<int32s>(v) >> kNormalShift) - kNormalFirst;
  int32_t at[kLanes];
  memcpy(at, &row, sizeof(at));
  four rows[kLanes];
  FLEXKERN_UNROLL
  for (int i = 0; i < kLanes; ++i) memcpy(&rows[i], kNormalTable[at[i]], sizeof(four));
  const floats even = join(rows), odd = join(rows + 1), even2 = join(rows + 2), odd2 = join(rows + 3);
  const floats c01 = low(even, even2), c01_odd = low(odd, odd2), c23 = high(even, even2), c23_odd = high(odd, odd2);
  const floats c[4] = {low(c01, c01_odd), high(c01, c01_odd), low(c23, c23_odd), high(c23, c23_odd)};
  return cubic(c, v);
}
#endif

// The standard normal value of a random word: the quantile of its lower 31 bits, the last of which is set, so that
// they are not 0; its top bit is the sign.
template <class F>
FLEXKERN_FN F normal_by_table(ints<F> word) {
  const F x = half_normal(to_float((word | 1) & 0x7fffffff));
  return bit_cast<F>(bit_cast<ints<F>>(x) ^ (word & INT32_MIN));
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
