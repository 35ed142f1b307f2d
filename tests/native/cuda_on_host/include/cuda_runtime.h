// What csrc/cuda uses of CUDA, for the host: see ../emulator.cpp. What it does not use is left out, so that code
// which needs more does not compile here and says so.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct Dimensions {
  unsigned x = 0, y = 0, z = 0;
};
extern Dimensions threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
constexpr int cudaDevAttrMultiProcessorCount = 16;
cudaError_t cudaGetLastError();
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
// One: eight blocks, so that small tensors already make kernels go round.
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = 1;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "the emulator does not take this grid"; }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int atomicAdd(int* address, int value) {
  const int before = *address;
  *address += value;
  return before;
}
inline void __stwb(float4* address, float4 value) { *address = value; }
inline void __stwb(uint2* address, uint2 value) { *address = value; }
inline float4 __ldca(const float4* address) { return *address; }
inline uint2 __ldca(const uint2* address) { return *address; }

namespace emulator {

// Runs `thread` once for each thread of a one-dimensional grid. `together`: the threads of a warp meet.
void launch(unsigned grid, unsigned block, bool together, const std::function<void()>& thread);

// Of the threads of a warp: what each gives to an operation of all of them, and what it gets.
enum class Operation { kBallot, kExchange };
uint32_t together(Operation operation, uint32_t mask, uint32_t value, unsigned other);

}  // namespace emulator

inline unsigned __ballot_sync(unsigned mask, bool bit) {
  return emulator::together(emulator::Operation::kBallot, mask, bit, 0);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits) {
  static_assert(sizeof(T) == sizeof(uint32_t));
  uint32_t word;
  memcpy(&word, &value, sizeof(word));
  word = emulator::together(emulator::Operation::kExchange, mask, word, bits);
  memcpy(&value, &word, sizeof(word));
  return value;
}
