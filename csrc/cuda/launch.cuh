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

// Makes `device` current in this library's CUDA runtime while it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ == cudaSuccess && previous_ != device) error_ = cudaSetDevice(device);
    changed_ = error_ == cudaSuccess && previous_ != device;
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(previous_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int previous_ = 0;
  bool changed_ = false;
  cudaError_t error_ = cudaSuccess;
};

// Blocks that fill the device: eight of 256 threads are a multiprocessor's 2048. Kernels stride over the rest.
inline unsigned grid_size(int64_t tiles, int device) {
  constexpr int kMaxDevices = 64;
  static std::atomic<int> processors[kMaxDevices];
  const bool known = device >= 0 && device < kMaxDevices;
  int count = known ? processors[device].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) count = 128;
    if (known) processors[device].store(count, std::memory_order_relaxed);
  }
  const int64_t full = static_cast<int64_t>(count) * 8;
  return static_cast<unsigned>(tiles < full ? tiles : full);
}

inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace flexkern::cuda
