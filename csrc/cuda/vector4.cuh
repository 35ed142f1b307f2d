// Four consecutive elements at a time, in float32: from memory of any of the dtypes, or procedural.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "flexkern/update.h"

namespace flexkern::cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}

// `whole`: all four exist and p is aligned, so that one access serves; else the first `count` one by one.
template <class T>
__device__ __forceinline__ void load4(const T* p, bool whole, int count, float (&v)[4]) {
  if (whole) {
    struct alignas(4 * sizeof(T)) Pack {
      T x[4];
    };
    const Pack pack = *reinterpret_cast<const Pack*>(p);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = widen(pack.x[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = i < count ? widen(p[i]) : 1.0f;
  }
}

// By intrinsics, because from plain stores ptxas merges the two branches of store4 into four narrow ones.
__device__ __forceinline__ void store_whole(float* p, const float (&v)[4]) {
  __stwb(reinterpret_cast<float4*>(p), make_float4(v[0], v[1], v[2], v[3]));
}
template <class T>
__device__ __forceinline__ void store_whole(T* p, const float (&v)[4]) {
  alignas(8) const T x[4] = {narrow<T>(v[0]), narrow<T>(v[1]), narrow<T>(v[2]), narrow<T>(v[3])};
  __stwb(reinterpret_cast<uint2*>(p), *reinterpret_cast<const uint2*>(x));
}

template <class T>
__device__ __forceinline__ void store4(T* p, bool whole, int count, const float (&v)[4]) {
  if (whole) {
    store_whole(p, v);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) p[i] = narrow<T>(v[i]);
  }
}

// Values [begin, begin + 4) of a procedural source. One Philox block gives four values; where the tensor does
// not start at a multiple of four, the next block is needed too.
__device__ __forceinline__ void field4(const Source& source, int64_t begin, float (&v)[4]) {
  const uint64_t index = source.offset + static_cast<uint64_t>(begin);
  field_block(source, index / 4, v);
  const int lead = static_cast<int>(index % 4);
  if (lead == 0) return;
  float next[4];
  field_block(source, index / 4 + 1, next);
  // Selects and not an index: a register array must be indexed by constants.
#pragma unroll
  for (int shift = 1; shift < 4; ++shift) {
    if (shift > lead) break;
    v[0] = v[1];
    v[1] = v[2];
    v[2] = v[3];
    v[3] = next[shift - 1];
  }
}

__device__ __forceinline__ void source4(const Source& source, int64_t begin, bool whole, int count, float (&v)[4]) {
  if (source.kind == Kind::kStored) {
    load4(source.data + begin, whole, count, v);
  } else if (source.kind == Kind::kConstant) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = source.p0;
  } else {
    field4(source, begin, v);
  }
}

}  // namespace flexkern::cuda
