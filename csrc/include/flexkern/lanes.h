// The types that the mathematics is written over. Every formula in these headers is a template of its float
// type F: `float` on a GPU and in plain C++, a GCC/Clang vector on the CPU. Such vectors have the operators of
// numbers (also `condition ? a : b`), so one source serves all.
//
// Each +, -, *, / and sqrt rounds once: the build forbids contraction to fused multiply-add (-ffp-contract=off,
// --fmad=false). That makes procedural fields bit-identical everywhere, and all CPU instruction sets agree.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define FLEXKERN_FN __host__ __device__ __forceinline__
#else
#define FLEXKERN_FN inline __attribute__((always_inline))
#endif
#ifdef __CUDA_ARCH__
#define FLEXKERN_UNROLL _Pragma("unroll")
#else
#define FLEXKERN_UNROLL _Pragma("GCC unroll 16")
#endif

// The CPU kernels are compiled once for each instruction set. Their copies of these templates must not be
// merged by the linker, so each lives in a namespace of its own.
#ifndef FLEXKERN_ISA
#define FLEXKERN_ISA scalar
#endif

namespace flexkern {

// A number as a type, for what is compiled once for each of a few.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

inline namespace FLEXKERN_ISA {

// Integer lanes that go with float lanes. What may wrap around or shift a negative number is written over unsigned
// ones: of signed ones C++ leaves it undefined.
template <class F>
struct Ints;
template <>
struct Ints<float> {
  using type = int32_t;
  using unsigned_type = uint32_t;
};
template <class F>
using ints = typename Ints<F>::type;
template <class F>
using unsigned_ints = typename Ints<F>::unsigned_type;

// Whether the comparison holds in any lane.
FLEXKERN_FN bool any(bool lane) { return lane; }

FLEXKERN_FN float to_float(int32_t i) { return static_cast<float>(i); }

// 32 x 32 -> 64 bit product, as its two halves.
FLEXKERN_FN void multiply(uint32_t x, uint32_t m, uint32_t& high, uint32_t& low) {
  const uint64_t p = static_cast<uint64_t>(x) * m;
  high = static_cast<uint32_t>(p >> 32);
  low = static_cast<uint32_t>(p);
}

// mul_add(a, b, c) = a * b + c, fused where the processor can: its last bit differs between instruction sets.
// reciprocal(a) = 1 / a, at most 1 ulp off, for normal a with a normal reciprocal. Neither is used in fields. What
// comes of both is in docs/determinism.md.
#if defined(__CUDA_ARCH__)
FLEXKERN_FN float mul_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
#else
FLEXKERN_FN float mul_add(float a, float b, float c) { return a * b + c; }
#endif
#if defined(__CUDA_ARCH__) && defined(__NVCC__)
// As 1.0f / a, without the four instructions for subnormal numbers.
FLEXKERN_FN float reciprocal(float a) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}
#else
FLEXKERN_FN float reciprocal(float a) { return 1.0f / a; }
#endif

#if defined(__CUDA_ARCH__)
// The build makes a plain `/` fast and 2 ulp (--prec-div=false); fields need the correctly rounded ones.
FLEXKERN_FN float div_rn(float a, float b) { return __fdiv_rn(a, b); }
FLEXKERN_FN float sqrt_rn(float a) { return __fsqrt_rn(a); }
#else
FLEXKERN_FN float div_rn(float a, float b) { return a / b; }
FLEXKERN_FN float sqrt_rn(float a) { return __builtin_sqrtf(a); }
#endif

}  // namespace FLEXKERN_ISA
}  // namespace flexkern

#ifdef FLEXKERN_VECTORS  // the CPU kernels
#include "flexkern/vector.h"
#endif

namespace flexkern {
inline namespace FLEXKERN_ISA {

template <class To, class From>
FLEXKERN_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class F>
FLEXKERN_FN F splat(float value) {
  return F{} + value;
}

template <class F>
FLEXKERN_FN F abs(F x) {
  return bit_cast<F>(bit_cast<ints<F>>(x) & 0x7fffffff);
}

// True lanes are not infinite and not NaN: their exponent bits are not all ones.
template <class F>
FLEXKERN_FN auto is_finite(F x) {
  return (bit_cast<ints<F>>(x) & 0x7f800000) != 0x7f800000;
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
