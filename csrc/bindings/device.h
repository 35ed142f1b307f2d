// Each file of a family here is compiled into the CPU library and, where csrc/cuda has a file of its name, with
// FLEXKERN_FOR_CUDA into the CUDA library. This says what differs for all of them.
#pragma once

#include "arguments.h"

#ifdef FLEXKERN_FOR_CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#ifndef FLEXKERN_DEVICE  // tests/native/cuda_on_host runs the CUDA kernels on tensors of the CPU
#define FLEXKERN_DEVICE CUDA
#endif
#else
#include "cpu/dispatch.h"
#include "cpu/work.h"
#define FLEXKERN_DEVICE CPU
#endif

namespace flexkern::bindings {

constexpr DeviceType kDevice = DeviceType::FLEXKERN_DEVICE;
constexpr const char* kOnDevice = kDevice == DeviceType::CPU ? "on the CPU" : "on the GPU";

#ifdef FLEXKERN_FOR_CUDA
constexpr bool kForCuda = true;
#else
constexpr bool kForCuda = false;
#endif

#ifdef FLEXKERN_FOR_CUDA

// The device of a tensor, which is the current one while this lives, and torch's current stream on it (a
// cudaStream_t). torch's own guard, because a device that torch has not used yet must not be made current again:
// that would make a context on it.
struct Where {
  explicit Where(const Tensor& tensor) : Where(tensor.get_device_index()) {}
  explicit Where(int device) : device(device) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_cuda_guard(device, &guard));
    if (aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS) return;
    aoti_torch_delete_cuda_guard(guard);
    STD_TORCH_CHECK(false, "torch has no current stream on GPU ", device);
  }
  ~Where() { aoti_torch_delete_cuda_guard(guard); }
  Where(const Where&) = delete;
  Where& operator=(const Where&) = delete;
  int device;
  CUDAGuardHandle guard = nullptr;
  void* stream = nullptr;
};

inline void check_launch(const char* op, const char* error) {
  STD_TORCH_CHECK(error == nullptr, op, ": the CUDA launch failed: ", error);
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, std::vector<int64_t>(sizes), dtype);
}

#else

inline Tensor new_tensor(const Tensor&, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return cpu::new_tensor(sizes, dtype);
}

#endif

// A one-element tensor on the CPU is read here, one on a GPU by the kernel.
inline void resolve(const std::optional<Tensor>& tensor, float& value, const float*& pointer) {
  if (!tensor.has_value() || (kForCuda && tensor->device().type() == kDevice)) return;
  value = *pointer;
  pointer = nullptr;
}

}  // namespace flexkern::bindings
