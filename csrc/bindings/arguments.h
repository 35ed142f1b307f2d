// From operator arguments to the plain structs that kernels take, with the checks that keep memory safe. The
// checks that explain themselves to users are in flexkern/ops; these hold for direct calls of torch.ops too.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <utility>
#include <vector>

#include "flexkern/update.h"

namespace flexkern::bindings {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using OptionalTensors = std::optional<Tensors>;
using OptionalInts = std::optional<std::vector<int64_t>>;
using OptionalFloats = std::optional<std::vector<double>>;

// Numbers for each source in the operators' `sources` and `parameters`; flexkern.fields has the same.
constexpr int64_t kSourceInts = 5;
constexpr int64_t kSourceFloats = 2;

Dtype dtype_of(const Tensor& tensor, const char* name);

// Contiguous, on `device`, of `dtype`, with the shape of the weight.
void check_like(const Tensor& tensor, const char* name, const Tensor& weight, DeviceType device, ScalarType dtype);

// A number in [0, 1e38]: kernels compute in float32, and with a few times the scale. NaN is not.
void check_range(double value, const char* name);

Source field_source(const int64_t* row, const double* parameters);

// Anchors and flexibilities that are not stored: a row for the anchor of each of `count` weights, then one for the
// flexibility of each; both are empty if all are stored.
struct SourceRows {
  std::vector<int64_t> ints;
  std::vector<double> floats;
  void check(size_t count) const;
  bool is_stored(size_t row) const;
  Source field(size_t row) const { return field_source(&ints[row * kSourceInts], &floats[row * kSourceFloats]); }
};

// A stored source.
Source stored_source(const Tensor& tensor, const char* name, const Tensor& weight, DeviceType device);

// Looks for a written tensor that shares memory with another argument.
class MemoryCheck {
 public:
  void writes(const Tensor& tensor) { add(tensor, true); }
  void reads(const Tensor& tensor) { add(tensor, false); }
  void writes(const Tensors& tensors);
  void reads(const Tensors& tensors);
  void writes(const std::optional<Tensor>& tensor) {
    if (tensor.has_value()) add(*tensor, true);
  }
  void reads(const std::optional<Tensor>& tensor) {
    if (tensor.has_value()) add(*tensor, false);
  }
  void finish();

 private:
  struct Extent {
    const char* begin;
    const char* end;
    bool written;
  };
  void add(const Tensor& tensor, bool written);
  std::vector<Extent> extents_;
};

// The numbers of a step. A tensor takes the place of its number; `needs_scale`: the gate's formula is used.
struct RuleArguments {
  double lr;
  const std::optional<Tensor>& lr_tensor;
  double scale;
  const std::optional<Tensor>& scale_tensor;
  double weight_decay, momentum, dampening;
  bool nesterov, maximize, skip_nonfinite;
};
SgdRule decode_rule(const RuleArguments& given, bool needs_scale);

// What a step knows of one weight; null: not given.
struct TensorArguments {
  const Tensor& weight;
  const Tensor& grad;
  const Tensor* alpha;
  const Tensor* momentum_buffer;
  const Tensor* master;
};
// Everything but the sources.
SgdTensor decode_tensor(const TensorArguments& given, ScalarType weight, ScalarType grad, DeviceType device);
void set_sources(SgdTensor& tensor, const Source& anchor, const Source& flexibility);
void check_grad_dtype(Dtype grad, Dtype weight);

// All arguments of flexkern::metaplastic_sgd_ (see flexkern/ops/metaplastic.py). A list that is not given is empty.
struct SgdArguments {
  Tensors weight, grad, anchor, flexibility;
  double lr, scale;
  Tensors alpha;
  SourceRows sources;
  Tensors momentum_buffer, master;
  std::optional<Tensor> lr_tensor, scale_tensor;
  double weight_decay, momentum, dampening;
  bool nesterov, maximize, skip_nonfinite;
};

// The dispatcher passes arguments one by one. `Some` is Tensors, or Tensor where there is one weight.
#define FLEXKERN_SGD_PARAMETERS(Some)                                                                            \
  Some weight, Some grad, std::optional<Some> anchor, std::optional<Some> flexibility, double lr, double scale,  \
      std::optional<Some> alpha, OptionalInts sources, OptionalFloats parameters,                                \
      std::optional<Some> momentum_buffer, std::optional<Some> master, std::optional<Tensor> lr_tensor,          \
      std::optional<Tensor> scale_tensor, double weight_decay, double momentum, double dampening, bool nesterov, \
      bool maximize, bool skip_nonfinite
#define FLEXKERN_SGD_ARGUMENTS            \
  {listed(weight),                        \
   listed(grad),                          \
   listed(anchor),                        \
   listed(flexibility),                   \
   lr,                                    \
   scale,                                 \
   listed(alpha),                         \
   {listed(sources), listed(parameters)}, \
   listed(momentum_buffer),               \
   listed(master),                        \
   lr_tensor,                             \
   scale_tensor,                          \
   weight_decay,                          \
   momentum,                              \
   dampening,                             \
   nesterov,                              \
   maximize,                              \
   skip_nonfinite}

inline Tensors listed(Tensors& list) { return std::move(list); }
inline Tensors listed(Tensor& tensor) { return {tensor}; }
template <class T>
std::vector<T> listed(std::optional<std::vector<T>>& list) {
  return list.has_value() ? std::move(*list) : std::vector<T>{};
}
inline Tensors listed(std::optional<Tensor>& tensor) { return tensor.has_value() ? Tensors{*tensor} : Tensors{}; }

struct SgdCall {
  std::vector<SgdTensor> tensors;
  SgdRule rule;
  Dtype weight = Dtype::kFloat32;
  Dtype grad = Dtype::kFloat32;
};

SgdCall decode_sgd(const SgdArguments& given, DeviceType device);

// All arguments of flexkern::metaplastic_gate.
struct GateCall {
  Source anchor, flexibility;
  float scale = 1;
  const float* scale_pointer = nullptr;
};

GateCall decode_gate(const Tensor& weight, const std::optional<Tensor>& anchor,
                     const std::optional<Tensor>& flexibility, double scale, const SourceRows& sources,
                     const std::optional<Tensor>& scale_tensor, DeviceType device);

// The anchor and the flexibility of one weight, of which those that are stored are given.
Source one_source(const std::optional<Tensor>& stored, const char* name, const Tensor& weight,
                  const SourceRows& sources, size_t row, DeviceType device);

// Check the argument of pack_mask or unpack_mask and return the words a row has.
int64_t check_mask(const Tensor& mask, DeviceType device);
int64_t check_words(const Tensor& words, int64_t columns, DeviceType device);

}  // namespace flexkern::bindings
