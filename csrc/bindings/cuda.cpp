// The CUDA operators, in a library of their own: aoti_torch_get_current_cuda_stream is missing in CPU builds of
// torch, so flexkern loads it only where torch has CUDA.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "../cuda/kernels.h"
#include "layer_arguments.h"

namespace flexkern::bindings {

namespace {

constexpr DeviceType kCuda = DeviceType::CUDA;

struct Where {
  int device;
  cuda::Stream stream;
};

// The device of the tensor and torch's current stream on it.
Where where(const Tensor& tensor) {
  Where w{tensor.get_device_index(), nullptr};
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(w.device, &w.stream));
  return w;
}

void check_launch(const char* op, const char* error) {
  STD_TORCH_CHECK(error == nullptr, op, ": the CUDA launch failed: ", error);
}

// A one-element tensor on the GPU is read by the kernel; one on the CPU is read here.
void resolve(const std::optional<Tensor>& tensor, float& value, const float*& pointer) {
  if (!tensor.has_value() || tensor->device().type() == kCuda) return;
  value = *static_cast<const float*>(tensor->data_ptr());
  pointer = nullptr;
}

void sgd(FLEXKERN_SGD_PARAMETERS(Tensors)) {
  const SgdArguments given = FLEXKERN_SGD_ARGUMENTS;
  SgdCall call = decode_sgd(given, kCuda);
  if (call.tensors.empty()) return;
  resolve(lr_tensor, call.rule.lr, call.rule.lr_pointer);
  resolve(scale_tensor, call.rule.scale, call.rule.scale_pointer);
  const Where at = where(given.weight[0]);
  check_launch("metaplastic_sgd_", cuda::sgd(call.tensors.data(), static_cast<int>(call.tensors.size()), call.rule,
                                             call.weight, call.grad, at.device, at.stream));
}

Tensor gate(Tensor weight, std::optional<Tensor> anchor, std::optional<Tensor> flexibility, double scale,
            OptionalInts sources, OptionalFloats parameters, std::optional<Tensor> scale_tensor) {
  GateCall call =
      decode_gate(weight, anchor, flexibility, scale, {listed(sources), listed(parameters)}, scale_tensor, kCuda);
  resolve(scale_tensor, call.scale, call.scale_pointer);
  const Where at = where(weight);
  Tensor alpha = torch::stable::empty_like(weight);
  check_launch(
      "metaplastic_gate",
      cuda::gate(static_cast<const float*>(weight.data_ptr()), call.anchor, call.flexibility, call.scale,
                 call.scale_pointer, static_cast<float*>(alpha.data_ptr()), weight.numel(), at.device, at.stream));
  return alpha;
}

Tensor synapse(Tensor weight, Tensor grad, FLEXKERN_LAYER_PARAMETERS) {
  const LayerArguments arguments = FLEXKERN_LAYER_ARGUMENTS;
  LayerCall call = decode_layer(weight, grad, arguments, kCuda);
  STD_TORCH_CHECK(arguments.silent.has_value(), "silent is missing");
  decode_drive(call.layer, weight, arguments.drive, kCuda);
  check_layer_memory(weight, {&grad}, arguments);
  resolve(lr_tensor, call.rule.lr, call.rule.lr_pointer);
  resolve(scale_tensor, call.rule.scale, call.rule.scale_pointer);
  const Where at = where(weight);
  Tensor counts = torch::stable::new_zeros(weight, {2, call.layer.rows}, ScalarType::Int);
  set_counts(call.layer, counts);
  check_launch("synapse_step_", cuda::synapse(call.layer, call.rule, call.weight, call.grad, at.device, at.stream));
  return counts;
}

void fill_field(Tensor out, std::vector<int64_t> source, std::vector<double> parameters) {
  check_like(out, "out", out, kCuda, ScalarType::Float);
  STD_TORCH_CHECK(source.size() == kSourceInts && parameters.size() == kSourceFloats, "a source is ", kSourceInts,
                  " integers and ", kSourceFloats, " numbers");
  const Where at = where(out);
  check_launch("fill_field_",
               cuda::fill_field(field_source(source.data(), parameters.data()), static_cast<float*>(out.data_ptr()),
                                out.numel(), at.device, at.stream));
}

Tensor pack_mask(Tensor mask) {
  const int64_t per_row = check_mask(mask, kCuda);
  const Where at = where(mask);
  Tensor words = torch::stable::new_empty(mask, {mask.size(0), per_row}, ScalarType::Int);
  check_launch("pack_mask", cuda::pack_mask(static_cast<const uint8_t*>(mask.data_ptr()),
                                            static_cast<int32_t*>(words.data_ptr()), mask.size(0), mask.size(1),
                                            at.device, at.stream));
  return words;
}

Tensor unpack_mask(Tensor words, int64_t columns) {
  check_words(words, columns, kCuda);
  const Where at = where(words);
  Tensor mask = torch::stable::new_empty(words, {words.size(0), columns}, ScalarType::Bool);
  check_launch("unpack_mask", cuda::unpack_mask(static_cast<const int32_t*>(words.data_ptr()),
                                                static_cast<uint8_t*>(mask.data_ptr()), words.size(0), columns,
                                                at.device, at.stream));
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flexkern, CUDA, m) {
  m.impl("metaplastic_sgd_", TORCH_BOX(&sgd));
  m.impl("metaplastic_gate", TORCH_BOX(&gate));
  m.impl("synapse_step_", TORCH_BOX(&synapse));
  m.impl("fill_field_", TORCH_BOX(&fill_field));
  m.impl("pack_mask", TORCH_BOX(&pack_mask));
  m.impl("unpack_mask", TORCH_BOX(&unpack_mask));
}

}  // namespace flexkern::bindings
