#include "launch.cuh"
#include "vector4.cuh"

namespace flexkern::cuda {

namespace {

__global__ void __launch_bounds__(kThreads) fill_kernel(Source source, float* out, int64_t numel, bool aligned) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kTile;
  for (int64_t begin = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector; begin < numel;
       begin += stride) {
    const int count = numel - begin < kVector ? static_cast<int>(numel - begin) : kVector;
    float v[4];
    source4(source, begin, false, count, v);
    store4(out + begin, aligned && count == kVector, count, v);
  }
}

}  // namespace

const char* fill_field(const Source& source, float* out, int64_t numel, int device, Stream stream) {
  if (numel == 0) return nullptr;
  if (const char* error = use_device(device)) return error;
  const bool aligned = reinterpret_cast<uintptr_t>(out) % 16 == 0;
  fill_kernel<<<grid_size<fill_kernel>((numel + kTile - 1) / kTile, device), kThreads, 0,
                static_cast<cudaStream_t>(stream)>>>(source, out, numel, aligned);
  return launch_error();
}

}  // namespace flexkern::cuda
