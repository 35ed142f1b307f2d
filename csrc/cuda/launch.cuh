// What every launcher needs: the device made current, the grid, and the error of the launch.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

namespace flexkern::cuda {

// Launchers run on `device`, do not wait, and return nullptr or what went wrong. Who calls one declares it
// (csrc/bindings): these files see no torch headers, and the bindings none of CUDA's.
using Stream = void*;  // a cudaStream_t

constexpr int kThreads = 256;
// A thread takes four consecutive elements: one 16-byte access of each float32 operand.
constexpr int kVector = 4;
constexpr int64_t kTile = kThreads * kVector;

// Makes `device` current in this library's own copy of the CUDA runtime. Nothing is put back here: torch's guard,
// which the bindings hold meanwhile, does that, and it alone knows of devices that nobody has used yet, on which
// to set one would make a context of some 500 MB.
inline const char* use_device(int device) {
  int now = 0;
  cudaError_t error = cudaGetDevice(&now);
  if (error == cudaSuccess && now != device) error = cudaSetDevice(device);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Blocks of kThreads of this kernel that a device holds at once. More would begin when others have ended, each
// with the start of a kernel that goes round anyway; fewer would leave room.
template <auto kKernel>
int64_t resident_blocks(int device) {
  constexpr int kMaxDevices = 64;
  static std::atomic<int> known[kMaxDevices];
  const bool has_place = device >= 0 && device < kMaxDevices;
  int count = has_place ? known[device].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    int processors = 0, each = 0;
    const bool asked = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
                       cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kKernel, kThreads, 0) == cudaSuccess;
    if (!asked || each == 0) {
      cudaGetLastError();  // the launch will say what is wrong
      return 1024;
    }
    count = processors * each;
    if (has_place) known[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

// Blocks of a launch: kernels stride over the tiles that are more than the device holds at once.
template <auto kKernel>
unsigned grid_size(int64_t tiles, int device) {
  const int64_t most = resident_blocks<kKernel>(device);
  return static_cast<unsigned>(tiles < most ? tiles : most);
}

inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace flexkern::cuda
