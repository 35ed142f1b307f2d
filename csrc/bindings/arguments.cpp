#include "arguments.h"

#include <algorithm>
#include <cmath>

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
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has the wrong dtype");
  if (tensor.get() == weight.get()) return;
  STD_TORCH_CHECK(tensor.get_device_index() == weight.get_device_index(), name,
                  " is on another device than weight");
  const auto shape = tensor.sizes(), expected = weight.sizes();
  STD_TORCH_CHECK(std::equal(shape.begin(), shape.end(), expected.begin(), expected.end()), name,
                  " has another shape than weight");
}

void check_range(double value, const char* name) {
  constexpr double kLargest = 1e38;
  STD_TORCH_CHECK(value >= 0 && value <= kLargest, name, " must be in [0, ", kLargest, "], got ", value);
}

Source field_source(const int64_t* row, const double* parameters) {
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

void SourceRows::check(size_t count) const {
  STD_TORCH_CHECK(
      ints.empty() || (ints.size() == 2 * count * kSourceInts && floats.size() == 2 * count * kSourceFloats),
      "sources and parameters need rows of ", kSourceInts, " integers and ", kSourceFloats,
      " numbers for the anchor and the flexibility of each weight");
}

bool SourceRows::is_stored(size_t row) const {
  return ints.empty() || ints[row * kSourceInts] == static_cast<int64_t>(Kind::kStored);
}

Source stored_source(const Tensor& tensor, const char* name, const Tensor& weight, DeviceType device) {
  check_like(tensor, name, weight, device, ScalarType::Float);
  Source source;
  source.data = static_cast<const float*>(tensor.data_ptr());
  return source;
}

Source one_source(const std::optional<Tensor>& stored, const char* name, const Tensor& weight,
                  const SourceRows& sources, size_t row, DeviceType device) {
  const bool is_stored = sources.is_stored(row);
  STD_TORCH_CHECK(stored.has_value() == is_stored, name,
                  " must be given where its source is stored, and only there");
  return is_stored ? stored_source(*stored, name, weight, device) : sources.field(row);
}

namespace {

// The sources of all weights; `stored` has the tensors of stored ones, in order, and `first` is where their rows
// begin.
std::vector<Source> decode_sources(const Tensors& weights, const Tensors& stored, const char* name,
                                   const SourceRows& sources, size_t first, DeviceType device) {
  std::vector<Source> result(weights.size());
  size_t next = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!sources.is_stored(first + i)) {
      result[i] = sources.field(first + i);
      continue;
    }
    STD_TORCH_CHECK(next < stored.size(), name, " has fewer tensors than stored sources");
    result[i] = stored_source(stored[next++], name, weights[i], device);
  }
  STD_TORCH_CHECK(next == stored.size(), name, " has more tensors than stored sources");
  return result;
}

void check_count(const Tensors& tensors, const char* name, size_t count, bool optional) {
  STD_TORCH_CHECK(tensors.size() == count || (optional && tensors.empty()), name, " has ", tensors.size(),
                  " tensors but weight has ", count);
}

// A one-element float32 tensor, or nothing.
const float* number_pointer(const std::optional<Tensor>& tensor, const char* name) {
  if (!tensor.has_value()) return nullptr;
  STD_TORCH_CHECK(tensor->numel() == 1 && tensor->scalar_type() == ScalarType::Float, name,
                  " must be one float32 element");
  return static_cast<const float*>(tensor->data_ptr());
}

const Tensor* item(const Tensors& tensors, size_t i) { return tensors.empty() ? nullptr : &tensors[i]; }

}  // namespace

void MemoryCheck::add(const Tensor& tensor, bool written) {
  const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
  if (bytes == 0) return;
  const char* begin = static_cast<const char*>(tensor.data_ptr());
  extents_.push_back({begin, begin + bytes, written});
}

void MemoryCheck::writes(const Tensors& tensors) {
  for (const Tensor& tensor : tensors) add(tensor, true);
}

void MemoryCheck::reads(const Tensors& tensors) {
  for (const Tensor& tensor : tensors) add(tensor, false);
}

void MemoryCheck::finish() {
  std::sort(extents_.begin(), extents_.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  const char* any = nullptr;
  const char* written = nullptr;
  for (const Extent& extent : extents_) {
    STD_TORCH_CHECK(
        extent.begin >= (extent.written ? any : written),
        "a tensor that is updated in place shares memory with another argument; pass a .clone() of one");
    any = std::max(any, extent.end);
    if (extent.written) written = std::max(written, extent.end);
  }
}

SgdRule decode_rule(const RuleArguments& given, bool needs_scale) {
  SgdRule rule;
  rule.lr_pointer = number_pointer(given.lr_tensor, "lr_tensor");
  rule.scale_pointer = number_pointer(given.scale_tensor, "scale_tensor");
  check_range(given.lr, "lr");
  if (needs_scale && rule.scale_pointer == nullptr) {
    check_range(given.scale, "scale");
    STD_TORCH_CHECK(given.scale > 0, "scale must be > 0");
  }
  check_range(given.weight_decay, "weight_decay");
  check_range(given.momentum, "momentum");
  check_range(std::abs(given.dampening), "the size of dampening");
  STD_TORCH_CHECK(!given.nesterov || (given.momentum != 0 && given.dampening == 0),
                  "nesterov needs momentum > 0 and dampening = 0");
  rule.lr = static_cast<float>(given.lr);
  rule.scale = static_cast<float>(given.scale);
  rule.weight_decay = static_cast<float>(given.weight_decay);
  rule.momentum = static_cast<float>(given.momentum);
  rule.grad_share = static_cast<float>(1.0 - given.dampening);
  rule.sign = given.maximize ? -1.0f : 1.0f;
  rule.nesterov = given.nesterov;
  rule.skip_nonfinite = given.skip_nonfinite;
  return rule;
}

SgdTensor decode_tensor(const TensorArguments& given, ScalarType weight, ScalarType grad, DeviceType device) {
  SgdTensor tensor;
  check_like(given.weight, "weight", given.weight, device, weight);
  check_like(given.grad, "grad", given.weight, device, grad);
  tensor.numel = given.weight.numel();
  tensor.weight = given.weight.data_ptr();
  tensor.grad = given.grad.data_ptr();
  if (given.alpha != nullptr && device == DeviceType::CPU && given.alpha->scalar_type() == ScalarType::BFloat16) {
    check_like(*given.alpha, "alpha", given.weight, device, ScalarType::BFloat16);
    tensor.alpha = given.alpha->data_ptr();
    tensor.gate = Gate::kStoredBFloat16;
  } else if (given.alpha != nullptr) {
    check_like(*given.alpha, "alpha", given.weight, device, ScalarType::Float);
    tensor.alpha = given.alpha->data_ptr();
    tensor.gate = Gate::kStored;
  }
  if (given.momentum_buffer != nullptr) {
    check_like(*given.momentum_buffer, "momentum_buffer", given.weight, device, ScalarType::Float);
    tensor.momentum = static_cast<float*>(given.momentum_buffer->data_ptr());
  }
  if (given.master != nullptr) {
    check_like(*given.master, "master", given.weight, device, ScalarType::Float);
    tensor.master = static_cast<float*>(given.master->data_ptr());
  }
  return tensor;
}

void set_sources(SgdTensor& tensor, const Source& anchor, const Source& flexibility) {
  tensor.anchor = anchor;
  tensor.flexibility = flexibility;
  if (flexibility.kind == Kind::kConstant && flexibility.p0 == 1.0f) tensor.gate = Gate::kFree;
}

void check_grad_dtype(Dtype grad, Dtype weight) {
  STD_TORCH_CHECK(grad == Dtype::kFloat32 || grad == weight, "grad must be float32 or of weight's dtype");
}

SgdCall decode_sgd(const SgdArguments& given, DeviceType device) {
  SgdCall call;
  const Tensors& weight = given.weight;
  const size_t count = weight.size();
  if (count == 0) return call;
  check_count(given.grad, "grad", count, false);
  check_count(given.alpha, "alpha", count, true);
  check_count(given.momentum_buffer, "momentum_buffer", count, given.momentum == 0);
  call.weight = dtype_of(weight[0], "weight");
  call.grad = dtype_of(given.grad[0], "grad");
  check_count(given.master, "master", count, call.weight == Dtype::kFloat32);
  check_grad_dtype(call.grad, call.weight);
  given.sources.check(count);
  const bool held = !given.alpha.empty();
  call.rule = decode_rule({given.lr, given.lr_tensor, given.scale, given.scale_tensor, given.weight_decay,
                           given.momentum, given.dampening, given.nesterov, given.maximize, given.skip_nonfinite},
                          !held);

  std::vector<Source> anchors, flexibilities;
  if (!held) {
    anchors = decode_sources(weight, given.anchor, "anchor", given.sources, 0, device);
    flexibilities = decode_sources(weight, given.flexibility, "flexibility", given.sources, count, device);
  }
  const ScalarType weight_type = weight[0].scalar_type(), grad_type = given.grad[0].scalar_type();
  const bool has_momentum = given.momentum != 0, has_master = call.weight != Dtype::kFloat32;
  call.tensors.resize(count);
  for (size_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(weight[i].get_device_index() == weight[0].get_device_index(),
                    "weights of one call must be on one device");
    call.tensors[i] =
        decode_tensor({weight[i], given.grad[i], item(given.alpha, i),
                       has_momentum ? &given.momentum_buffer[i] : nullptr, has_master ? &given.master[i] : nullptr},
                      weight_type, grad_type, device);
    if (!held) set_sources(call.tensors[i], anchors[i], flexibilities[i]);
  }
  MemoryCheck memory;
  memory.writes(weight);
  memory.writes(given.momentum_buffer);
  memory.writes(given.master);
  memory.reads(given.grad);
  memory.reads(given.anchor);
  memory.reads(given.flexibility);
  memory.reads(given.alpha);
  memory.finish();
  return call;
}

GateCall decode_gate(const Tensor& weight, const std::optional<Tensor>& anchor,
                     const std::optional<Tensor>& flexibility, double scale, const SourceRows& sources,
                     const std::optional<Tensor>& scale_tensor, DeviceType device) {
  sources.check(1);
  check_like(weight, "weight", weight, device, ScalarType::Float);
  GateCall call;
  call.scale_pointer = number_pointer(scale_tensor, "scale_tensor");
  call.scale = static_cast<float>(scale);
  if (call.scale_pointer == nullptr) {
    check_range(scale, "scale");
    STD_TORCH_CHECK(scale > 0, "scale must be > 0");
  }
  call.anchor = one_source(anchor, "anchor", weight, sources, 0, device);
  call.flexibility = one_source(flexibility, "flexibility", weight, sources, 1, device);
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
