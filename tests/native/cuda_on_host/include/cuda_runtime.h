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
#define __shared__ static  // a block runs after the other

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
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
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
// One processor that holds eight blocks, so that small tensors already make kernels go round.
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = 1;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = 8;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "the emulator does not take this grid"; }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t by) {
  return by % 32 == 0 ? high : high << by % 32 | low >> (32 - by % 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t by) {
  return by % 32 == 0 ? low : low >> by % 32 | high << (32 - by % 32);
}
inline int atomicAdd(int* address, int value) {
  const int before = *address;
  *address += value;
  return before;
}
inline float4 __ldg(const float4* address) { return *address; }
inline void __stwb(float4* address, float4 value) { *address = value; }
inline void __stwb(uint2* address, uint2 value) { *address = value; }
inline float4 __ldca(const float4* address) { return *address; }
inline uint2 __ldca(const uint2* address) { return *address; }

namespace emulator {

// Runs `thread` once for each thread of a one-dimensional grid. `together`: threads of a warp or a block meet.
// `launcher`: the function that launches, with its template arguments.
void launch(const char* kernel, const char* launcher, unsigned grid, unsigned block, bool together,
            const std::function<void()>& thread);

// Of the threads of a warp, or a block: what each gives to an operation of all of them, and what it gets.
enum class Operation { kBallot, kExchange, kBarrier };
uint32_t together(Operation operation, uint32_t mask, uint32_t value, unsigned other);

}  // namespace emulator

inline unsigned __ballot_sync(unsigned mask, bool bit) {
  return emulator::together(emulator::Operation::kBallot, mask, bit, 0);
}
inline void __syncthreads() { emulator::together(emulator::Operation::kBarrier, 0xffffffffu, 0, 0); }
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits) {
  static_assert(sizeof(T) == sizeof(uint32_t));
  uint32_t word;
  memcpy(&word, &value, sizeof(word));
  word = emulator::together(emulator::Operation::kExchange, mask, word, bits);
  memcpy(&value, &word, sizeof(word));
  return value;
}
