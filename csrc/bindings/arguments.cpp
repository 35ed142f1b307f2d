#include "arguments.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "device.h"

namespace flexkern::bindings {

Dtype dtype_of(const Tensor& tensor, const char* name) {
  FLEXKERN_CHECK(tensor.defined(), name, " is missing");
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Half: return Dtype::kFloat16;
    default: FLEXKERN_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}

namespace {

// How many elements of its storage a tensor reaches over; -1: more than there can be.
int64_t reach(const Tensor& tensor) {
  int64_t last = 0;
  if (aoti_torch_get_storage_offset(tensor.get(), &last) != AOTI_TORCH_SUCCESS || last < 0) return -1;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    int64_t step = 0;
    if (__builtin_mul_overflow(sizes[i] - 1, strides[i], &step) || __builtin_add_overflow(last, step, &last))
      return -1;
  }
  return last < std::numeric_limits<int64_t>::max() ? last + 1 : -1;
}

}  // namespace

void check_memory_of(const Tensor& tensor, const char* name) {
  if (!tensor.defined()) return;
  int32_t layout = -1;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  FLEXKERN_CHECK(layout == aoti_torch_layout_strided(), name, " must be a dense tensor");
  if (tensor.numel() == 0) return;
  int64_t has = 0, needs = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &has));
  const int64_t elements = reach(tensor);
  const bool fits = elements > 0 &&
                    !__builtin_mul_overflow(elements, static_cast<int64_t>(tensor.element_size()), &needs) &&
                    needs <= has;
  FLEXKERN_CHECK(fits, name, " has a storage of ", has, " bytes, less than its elements need");
  const void* data = nullptr;
  FLEXKERN_CHECK(torch_get_const_data_ptr(tensor.get(), &data) == AOTI_TORCH_SUCCESS && data != nullptr, name,
                 " has no memory, as zero tensors and fake tensors have none; pass a .clone()");
}

void check_memory_of(const Tensors& tensors, const char* name) {
  for (const Tensor& tensor : tensors) check_memory_of(tensor, name);
}

void check_dtype_of(const Tensor& tensor, const char* name, Dtypes allowed) {
  if (!tensor.defined()) return;
  FLEXKERN_CHECK((dtypes(tensor.scalar_type()) & allowed) != 0, name, " has the wrong dtype");
}

void check_dtype_of(const Tensors& tensors, const char* name, Dtypes allowed) {
  for (const Tensor& tensor : tensors) check_dtype_of(tensor, name, allowed);
}

void check_like(const Tensor& tensor, const char* name, const Tensor& weight, ScalarType dtype) {
  FLEXKERN_CHECK(tensor.defined(), name, " is missing");
  FLEXKERN_CHECK(tensor.device().type() == kDevice, name, " must be ", kOnDevice);
  FLEXKERN_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  FLEXKERN_CHECK(tensor.scalar_type() == dtype, name, " has the wrong dtype");
  if (tensor.get() == weight.get()) return;
  FLEXKERN_CHECK(tensor.get_device_index() == weight.get_device_index(), name, " is on another device than weight");
  const auto shape = tensor.sizes(), expected = weight.sizes();
  FLEXKERN_CHECK(std::equal(shape.begin(), shape.end(), expected.begin(), expected.end()), name,
                 " has another shape than weight");
}

void check_range(double value, const char* name, double low, double high) {
  FLEXKERN_CHECK(value >= low && value <= high, name, " must be in [", low, ", ", high, "], got ", value);
}

void check_not_lost(double value, const char* name) {
  FLEXKERN_CHECK(value == 0 || static_cast<float>(value) != 0, name, " is 0 in float32, got ", value);
}

void check_scale(double scale, const float* pointer) {
  FLEXKERN_CHECK(pointer != nullptr || (static_cast<float>(scale) > 0 && scale <= 1e38),
                 "scale must be > 0 in float32 and at most 1e38, got ", scale);
}

const float* number_pointer(const std::optional<Tensor>& tensor, const char* name) {
  if (!tensor.has_value()) return nullptr;
  FLEXKERN_CHECK(tensor->numel() == 1 && tensor->scalar_type() == ScalarType::Float, name,
                 " must be one float32 element");
  return static_cast<const float*>(tensor->data_ptr());
}

Source field_source(const int64_t* row, const double* parameters) {
  FLEXKERN_CHECK(is_computed(row[0]), "kind ", row[0], " is not a procedural source");
  Source source;
  source.kind = static_cast<Kind>(row[0]);
  source.seed = static_cast<uint64_t>(row[1]);
  source.stream = static_cast<uint32_t>(row[2]);
  source.offset = static_cast<uint64_t>(row[3]);
  source.purpose = static_cast<uint32_t>(row[4]);
  source.set_parameters(parameters[0], parameters[1]);
  FLEXKERN_CHECK(std::isfinite(source.p0) && std::isfinite(source.p1),
                 "parameters of a source overflow float32: ", parameters[0], " and ", parameters[1]);
  return source;
}

void SourceRows::check(size_t count) const {
  FLEXKERN_CHECK(
      ints.empty() || (ints.size() == 2 * count * kSourceInts && floats.size() == 2 * count * kSourceFloats),
      "sources and parameters need rows of ", kSourceInts, " integers and ", kSourceFloats,
      " numbers for the anchor and the flexibility of each weight");
}

bool SourceRows::is_stored(size_t row) const {
  return ints.empty() || ints[row * kSourceInts] == static_cast<int64_t>(Kind::kStored);
}

Source stored_source(const Tensor& tensor, const char* name, const Tensor& weight) {
  check_like(tensor, name, weight, ScalarType::Float);
  Source source;
  source.data = data<float>(tensor);
  return source;
}

Source one_source(const std::optional<Tensor>& stored, const char* name, const Tensor& weight,
                  const SourceRows& sources, size_t row) {
  const bool is_stored = sources.is_stored(row);
  FLEXKERN_CHECK(stored.has_value() == is_stored, name,
                 " must be given where its source is stored, and only there");
  return is_stored ? stored_source(*stored, name, weight) : sources.field(row);
}

std::vector<Source> all_sources(const Tensors& weights, const Tensors& stored, const char* name,
                                const SourceRows& sources, size_t first) {
  std::vector<Source> result(weights.size());
  size_t next = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!sources.is_stored(first + i)) {
      result[i] = sources.field(first + i);
      continue;
    }
    FLEXKERN_CHECK(next < stored.size(), name, " has fewer tensors than stored sources");
    result[i] = stored_source(stored[next++], name, weights[i]);
  }
  FLEXKERN_CHECK(next == stored.size(), name, " has more tensors than stored sources");
  return result;
}

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
    FLEXKERN_CHECK(extent.begin >= (extent.written ? any : written),
                   "a tensor that is updated in place shares memory with another argument; pass a .clone() of one");
    any = std::max(any, extent.end);
    if (extent.written) written = std::max(written, extent.end);
  }
}

}  // namespace flexkern::bindings
