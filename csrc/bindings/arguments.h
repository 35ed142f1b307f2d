// From operator arguments to the plain structs that kernels take, with the checks that keep memory safe. The
// checks that explain themselves to users are in flexkern/ops; these hold for direct calls of torch.ops too.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "flexkern/update.h"

namespace flexkern::bindings {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// Numbers for each source in the operators' `sources` and `parameters`; flexkern.fields has the same.
constexpr int64_t kSourceInts = 5;
constexpr int64_t kSourceFloats = 2;

Dtype dtype_of(const Tensor& tensor, const char* name);

// Contiguous, on `device`, of `dtype`, with as many elements as the weight.
void check_like(const Tensor& tensor, const char* name, const Tensor& weight, DeviceType device, ScalarType dtype);

// A one-element float32 tensor, or nothing.
void check_number(const std::optional<Tensor>& tensor, const char* name);

Source field_source(const std::vector<int64_t>& row, const std::vector<double>& parameters);

// The sources of `count` tensors. `like` has their weights; `stored` the tensors of stored sources, in order.
// `first` is where their rows begin in `sources` and `parameters`; those are empty if all sources are stored.
std::vector<Source> decode_sources(const Tensors& like, const Tensors& stored, const char* name,
                                   const std::vector<int64_t>& sources, const std::vector<double>& parameters,
                                   size_t first, DeviceType device);

// No written tensor shares memory with another argument.
void check_memory(std::initializer_list<const Tensors*> written, std::initializer_list<const Tensors*> read);

// All arguments of flexkern::metaplastic_sgd_ but what check_memory looks at (see flexkern/ops/metaplastic.py).
struct SgdCall {
  std::vector<SgdTensor> tensors;
  SgdRule rule;
  Dtype weight = Dtype::kFloat32;
  Dtype grad = Dtype::kFloat32;
};

SgdCall decode_sgd(const Tensors& weight, const Tensors& grad, const Tensors& anchor, const Tensors& flexibility,
                   const Tensors& alpha, const std::vector<int64_t>& sources, const std::vector<double>& parameters,
                   const Tensors& momentum_buffer, const Tensors& master, double lr,
                   const std::optional<Tensor>& lr_tensor, double scale, const std::optional<Tensor>& scale_tensor,
                   double weight_decay, double momentum, double dampening, bool nesterov, bool maximize,
                   bool skip_nonfinite, DeviceType device);

// All arguments of flexkern::metaplastic_gate.
struct GateCall {
  Source anchor, flexibility;
  float scale = 1;
  const float* scale_pointer = nullptr;
};

GateCall decode_gate(const Tensor& weight, const Tensors& anchor, const Tensors& flexibility,
                     const std::vector<int64_t>& sources, const std::vector<double>& parameters, double scale,
                     const std::optional<Tensor>& scale_tensor, DeviceType device);

// Check the argument of pack_mask or unpack_mask and return the words a row has.
int64_t check_mask(const Tensor& mask, DeviceType device);
int64_t check_words(const Tensor& words, int64_t columns, DeviceType device);

}  // namespace flexkern::bindings
