// bfloat16 and float16 to float32 and back, rounding to nearest even.
#pragma once

#include "flexkern/update.h"

namespace flexkern {
inline namespace FLEXKERN_ISA {

FLEXKERN_FN float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  // Shifted into place the exponent is 112 too small; multiplying mends it, for subnormal numbers as well.
  const float value = bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(value) | special | sign);
}

FLEXKERN_FN uint16_t float_to_half(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Subnormal results: adding 0.5 makes the float adder round at float16's last bit, 2^-24.
  const uint32_t small = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t result = magnitude < 0x38800000u ? small : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // 65520 and more round to infinity
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return static_cast<uint16_t>(result | sign);
}

FLEXKERN_FN float bfloat16_to_float(uint16_t h) { return bit_cast<float>(static_cast<uint32_t>(h) << 16); }

FLEXKERN_FN uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// The compiler vectorises these loops: they have no branches and no calls.
FLEXKERN_FN void widen(Dtype from, const uint16_t* in, float* out, int64_t n) {
  if (from == Dtype::kBFloat16) {
    for (int64_t i = 0; i < n; ++i) out[i] = bfloat16_to_float(in[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = half_to_float(in[i]);
  }
}

FLEXKERN_FN void round(Dtype to, const float* in, uint16_t* out, int64_t n) {
  if (to == Dtype::kBFloat16) {
    for (int64_t i = 0; i < n; ++i) out[i] = float_to_bfloat16(in[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = float_to_half(in[i]);
  }
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
