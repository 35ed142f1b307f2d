#include "flexkern/null.h"
#include "launch.cuh"
#include "vector4.cuh"

namespace flexkern::cuda {

namespace {

__global__ void __launch_bounds__(kThreads)
    null_kernel(const float* x, float factor, float* out, int64_t numel, bool is_aligned) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kTile;
  for (int64_t begin = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector; begin < numel;
       begin += stride) {
    const int count = numel - begin < kVector ? static_cast<int>(numel - begin) : kVector;
    const bool whole = is_aligned && count == kVector;
    float v[4];
    load4(x + begin, whole, count, v);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = null_value(v[i], factor);
    store4(out + begin, whole, count, v);
  }
}

}  // namespace

const char* null(const float* x, float factor, float* out, int64_t numel, int device, Stream stream) {
  if (numel == 0) return nullptr;
  if (const char* error = use_device(device)) return error;
  const bool is_aligned = (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(out)) % 16 == 0;
  null_kernel<<<grid_size<null_kernel>((numel + kTile - 1) / kTile, device), kThreads, 0,
                static_cast<cudaStream_t>(stream)>>>(x, factor, out, numel, is_aligned);
  return launch_error();
}

}  // namespace flexkern::cuda
