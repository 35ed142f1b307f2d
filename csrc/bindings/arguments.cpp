#include "arguments.h"

#include <algorithm>

namespace flexkern::bindings {

Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Half: return Dtype::kFloat16;
    default: STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}

void check_like(const Tensor& tensor, const char* name, const Tensor& weight, DeviceType device, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.device().type() == device, name, " is on another device than the operator");
  STD_TORCH_CHECK(tensor.get_device_index() == weight.get_device_index(), name,
                  " is on another device than weight");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.numel() == weight.numel(), name, " has ", tensor.numel(), " elements but weight has ",
                  weight.numel());
}

void check_number(const std::optional<Tensor>& tensor, const char* name) {
  if (!tensor.has_value()) return;
  STD_TORCH_CHECK(tensor->numel() == 1 && tensor->scalar_type() == ScalarType::Float, name,
                  " must be one float32 element");
}

Source field_source(const std::vector<int64_t>& row, const std::vector<double>& parameters) {
  STD_TORCH_CHECK(row.size() == kSourceInts && parameters.size() == kSourceFloats, "a source is ", kSourceInts,
                  " integers and ", kSourceFloats, " numbers");
  STD_TORCH_CHECK(row[0] > static_cast<int64_t>(Kind::kStored) && row[0] <= static_cast<int64_t>(Kind::kBiasedLow),
                  "kind ", row[0], " is not a procedural source");
  Source source;
  source.kind = static_cast<Kind>(row[0]);
  source.seed = static_cast<uint64_t>(row[1]);
  source.stream = static_cast<uint32_t>(row[2]);
  source.offset = static_cast<uint64_t>(row[3]);
  source.purpose = static_cast<uint32_t>(row[4]);
  source.set_parameters(parameters[0], parameters[1]);
  return source;
}

std::vector<Source> decode_sources(const Tensors& like, const Tensors& stored, const char* name,
                                   const std::vector<int64_t>& sources, const std::vector<double>& parameters,
                                   size_t first, DeviceType device) {
  std::vector<Source> result(like.size());
  size_t next = 0;
  for (size_t i = 0; i < like.size(); ++i) {
    const auto ints = sources.begin() + static_cast<int64_t>(first + i) * kSourceInts;
    if (!sources.empty() && *ints != static_cast<int64_t>(Kind::kStored)) {
      const auto floats = parameters.begin() + static_cast<int64_t>(first + i) * kSourceFloats;
      result[i] = field_source({ints, ints + kSourceInts}, {floats, floats + kSourceFloats});
      continue;
    }
    STD_TORCH_CHECK(next < stored.size(), name, " has fewer tensors than stored sources");
    const Tensor& tensor = stored[next++];
    check_like(tensor, name, like[i], device, ScalarType::Float);
    result[i].data = static_cast<const float*>(tensor.data_ptr());
  }
  STD_TORCH_CHECK(next == stored.size(), name, " has more tensors than stored sources");
  return result;
}

namespace {

struct Extent {
  const char* begin;
  const char* end;
  bool written;
};

void add_extents(std::vector<Extent>& extents, const Tensors& tensors, bool written) {
  for (const Tensor& tensor : tensors) {
    if (tensor.numel() == 0) continue;
    const char* begin = static_cast<const char*>(tensor.data_ptr());
    extents.push_back({begin, begin + tensor.numel() * tensor.element_size(), written});
  }
}

void check_count(const Tensors& tensors, const char* name, size_t count, bool optional) {
  STD_TORCH_CHECK(tensors.size() == count || (optional && tensors.empty()), name, " has ", tensors.size(),
                  " tensors but weight has ", count);
}

}  // namespace

void check_memory(std::initializer_list<const Tensors*> written_tensors,
                  std::initializer_list<const Tensors*> read_tensors) {
  std::vector<Extent> extents;
  for (const Tensors* tensors : written_tensors) add_extents(extents, *tensors, true);
  for (const Tensors* tensors : read_tensors) add_extents(extents, *tensors, false);
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  const char* any = nullptr;
  const char* written = nullptr;
  for (const Extent& extent : extents) {
    STD_TORCH_CHECK(
        extent.begin >= (extent.written ? any : written),
        "a tensor that is updated in place shares memory with another argument; pass a .clone() of one");
    any = std::max(any, extent.end);
    if (extent.written) written = std::max(written, extent.end);
  }
}

SgdCall decode_sgd(const Tensors& weight, const Tensors& grad, const Tensors& anchor, const Tensors& flexibility,
                   const Tensors& alpha, const std::vector<int64_t>& sources, const std::vector<double>& parameters,
                   const Tensors& momentum_buffer, const Tensors& master, double lr,
                   const std::optional<Tensor>& lr_tensor, double scale, const std::optional<Tensor>& scale_tensor,
                   double weight_decay, double momentum, double dampening, bool nesterov, bool maximize,
                   bool skip_nonfinite, DeviceType device) {
  SgdCall call;
  const size_t count = weight.size();
  if (count == 0) return call;
  check_count(grad, "grad", count, false);
  check_count(alpha, "alpha", count, true);
  check_count(momentum_buffer, "momentum_buffer", count, momentum == 0);
  call.weight = dtype_of(weight[0], "weight");
  call.grad = dtype_of(grad[0], "grad");
  check_count(master, "master", count, call.weight == Dtype::kFloat32);
  STD_TORCH_CHECK(call.grad == Dtype::kFloat32 || call.grad == call.weight,
                  "grad must be float32 or of weight's dtype");
  STD_TORCH_CHECK(sources.empty() ||
                      (sources.size() == 2 * count * kSourceInts && parameters.size() == 2 * count * kSourceFloats),
                  "sources and parameters need rows for the anchor and the flexibility of each weight");
  check_number(lr_tensor, "lr_tensor");
  check_number(scale_tensor, "scale_tensor");

  std::vector<Source> anchors(count), flexibilities(count);
  if (alpha.empty()) {
    anchors = decode_sources(weight, anchor, "anchor", sources, parameters, 0, device);
    flexibilities = decode_sources(weight, flexibility, "flexibility", sources, parameters, count, device);
  }
  call.tensors.resize(count);
  for (size_t i = 0; i < count; ++i) {
    SgdTensor& tensor = call.tensors[i];
    check_like(weight[i], "weight", weight[i], device, weight[0].scalar_type());
    STD_TORCH_CHECK(weight[i].get_device_index() == weight[0].get_device_index(),
                    "weights of one call must be on one device");
    check_like(grad[i], "grad", weight[i], device, grad[0].scalar_type());
    tensor.numel = weight[i].numel();
    tensor.weight = weight[i].data_ptr();
    tensor.grad = grad[i].data_ptr();
    tensor.anchor = anchors[i];
    tensor.flexibility = flexibilities[i];
    const bool free = tensor.flexibility.kind == Kind::kConstant && tensor.flexibility.p0 == 1.0f;
    tensor.gate = !alpha.empty() ? Gate::kStored : free ? Gate::kFree : Gate::kFormula;
    if (!alpha.empty()) {
      check_like(alpha[i], "alpha", weight[i], device, ScalarType::Float);
      tensor.alpha = static_cast<const float*>(alpha[i].data_ptr());
    }
    if (momentum != 0) {
      check_like(momentum_buffer[i], "momentum_buffer", weight[i], device, ScalarType::Float);
      tensor.momentum = static_cast<float*>(momentum_buffer[i].data_ptr());
    }
    if (call.weight != Dtype::kFloat32) {
      check_like(master[i], "master", weight[i], device, ScalarType::Float);
      tensor.master = static_cast<float*>(master[i].data_ptr());
    }
  }
  SgdRule& rule = call.rule;
  rule.lr = static_cast<float>(lr);
  rule.scale = static_cast<float>(scale);
  rule.weight_decay = static_cast<float>(weight_decay);
  rule.momentum = static_cast<float>(momentum);
  rule.grad_share = static_cast<float>(1.0 - dampening);
  rule.sign = maximize ? -1.0f : 1.0f;
  rule.nesterov = nesterov;
  rule.skip_nonfinite = skip_nonfinite;
  if (lr_tensor.has_value()) rule.lr_pointer = static_cast<const float*>(lr_tensor->data_ptr());
  if (scale_tensor.has_value()) rule.scale_pointer = static_cast<const float*>(scale_tensor->data_ptr());
  return call;
}

GateCall decode_gate(const Tensor& weight, const Tensors& anchor, const Tensors& flexibility,
                     const std::vector<int64_t>& sources, const std::vector<double>& parameters, double scale,
                     const std::optional<Tensor>& scale_tensor, DeviceType device) {
  STD_TORCH_CHECK(sources.empty() || (sources.size() == 2 * kSourceInts && parameters.size() == 2 * kSourceFloats),
                  "sources and parameters need a row for the anchor and one for the flexibility");
  check_like(weight, "weight", weight, device, ScalarType::Float);
  check_number(scale_tensor, "scale_tensor");
  GateCall call;
  call.anchor = decode_sources({weight}, anchor, "anchor", sources, parameters, 0, device)[0];
  call.flexibility = decode_sources({weight}, flexibility, "flexibility", sources, parameters, 1, device)[0];
  call.scale = static_cast<float>(scale);
  if (scale_tensor.has_value()) call.scale_pointer = static_cast<const float*>(scale_tensor->data_ptr());
  return call;
}

int64_t check_mask(const Tensor& mask, DeviceType device) {
  STD_TORCH_CHECK(mask.dim() == 2 && mask.scalar_type() == ScalarType::Bool && mask.is_contiguous() &&
                      mask.device().type() == device,
                  "mask must be a contiguous bool matrix on the operator's device");
  return (mask.size(1) + 31) / 32;
}

int64_t check_words(const Tensor& words, int64_t columns, DeviceType device) {
  STD_TORCH_CHECK(words.dim() == 2 && words.scalar_type() == ScalarType::Int && words.is_contiguous() &&
                      columns >= 0 && words.size(1) == (columns + 31) / 32 && words.device().type() == device,
                  "words must be a contiguous int32 matrix of ceil(columns / 32) words a row, on the operator's "
                  "device");
  return words.size(1);
}

}  // namespace flexkern::bindings
