// The scaled displacement of a list of tensors: checks, and the call of the device's kernel.
#include "flexkern/displacement.h"

#include <algorithm>

#include "device.h"
#include "flexkern/operators.h"

#ifdef FLEXKERN_FOR_CUDA
namespace flexkern::cuda {
const char* displace(const DisplacedTensor* tensors, int count, const Displacement& call, Dtype weight, int device,
                     void* stream);
}  // namespace flexkern::cuda
#else
FLEXKERN_KERNEL(void displace(const DisplacedTensor& tensor, const Displacement& call, Dtype weight, int64_t begin,
                              int64_t end);)
#endif

namespace flexkern::bindings {

namespace {

void check_count(const Tensors& tensors, const char* name, size_t count, bool optional) {
  FLEXKERN_CHECK(tensors.size() == count || (optional && tensors.empty()), name, " has ", tensors.size(),
                 " tensors but weight has ", count);
}

Displacement decode_numbers(const ScaleDisplacement& given) {
  given.check_numbers();
  Displacement call;
  call.scale_pointer = number_pointer(given.scale_tensor, "scale_tensor");
  if (given.alpha.empty()) check_scale(given.scale, call.scale_pointer);
  call.scale = static_cast<float>(given.scale);
  call.skip_nonfinite = given.skip_nonfinite;
  resolve(given.scale_tensor, call.scale, call.scale_pointer);
  return call;
}

DisplacedTensor decode_tensor(const ScaleDisplacement& given, size_t i, bool low) {
  const Tensor& weight = given.weight[i];
  FLEXKERN_CHECK(weight.get_device_index() == given.weight[0].get_device_index(),
                 "weights of one call must be on one device");
  DisplacedTensor tensor;
  check_like(weight, "weight", weight, given.weight[0].scalar_type());
  check_like(given.before[i], "before", weight, weight.scalar_type());
  tensor.numel = weight.numel();
  tensor.weight = weight.data_ptr();
  tensor.before = given.before[i].data_ptr();
  if (!given.alpha.empty()) {
    const Tensor& alpha = given.alpha[i];
    const bool narrow = !kForCuda && alpha.scalar_type() == ScalarType::BFloat16;
    check_like(alpha, "alpha", weight, narrow ? ScalarType::BFloat16 : ScalarType::Float);
    tensor.alpha = alpha.data_ptr();
    tensor.gate = narrow ? Gate::kStoredBFloat16 : Gate::kStored;
  }
  if (low) {
    check_like(given.master[i], "master", weight, ScalarType::Float);
    tensor.master = data<float>(given.master[i]);
  }
  return tensor;
}

std::vector<DisplacedTensor> decode(const ScaleDisplacement& given, bool low) {
  const size_t count = given.weight.size();
  check_count(given.before, "before", count, false);
  check_count(given.alpha, "alpha", count, true);
  check_count(given.master, "master", count, !low);
  const SourceRows sources{given.sources, given.parameters};
  sources.check(count);
  std::vector<DisplacedTensor> tensors(count);
  for (size_t i = 0; i < count; ++i) tensors[i] = decode_tensor(given, i, low);
  if (given.alpha.empty()) {
    const auto anchors = all_sources(given.weight, given.anchor, "anchor", sources, 0);
    const auto flexibilities = all_sources(given.weight, given.flexibility, "flexibility", sources, count);
    for (size_t i = 0; i < count; ++i) {
      tensors[i].anchor = anchors[i];
      tensors[i].flexibility = flexibilities[i];
      if (flexibilities[i].kind == Kind::kConstant && flexibilities[i].p0 == 1.0f) tensors[i].gate = Gate::kFree;
    }
  }
  given.check_dtypes();
  given.check_memory();
  return tensors;
}

void scale_displacement(const ScaleDisplacement& given) {
  if (given.weight.empty()) return;
  const Dtype weight = dtype_of(given.weight[0], "weight");
  const Displacement call = decode_numbers(given);
  const std::vector<DisplacedTensor> tensors = decode(given, weight != Dtype::kFloat32);
#ifdef FLEXKERN_FOR_CUDA
  const Where at(given.weight[0]);
  check_launch(given.kName, cuda::displace(tensors.data(), static_cast<int>(tensors.size()), call, weight,
                                           at.device, at.stream));
#else
  // All tensors are laid end to end, in units, so that one parallel region serves the whole list.
  using cpu::kUnit;
  std::vector<int64_t> first(tensors.size() + 1, 0);
  for (size_t i = 0; i < tensors.size(); ++i) first[i + 1] = first[i] + cpu::units(tensors[i].numel);
  const auto kernel = FLEXKERN_BEST(displace);
  torch::stable::parallel_for(0, first.back(), cpu::step_grain(tensors), [&](int64_t begin, int64_t end) {
    size_t i = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    for (; i < tensors.size() && first[i] < end; ++i)
      kernel(tensors[i], call, weight, std::max<int64_t>(begin - first[i], 0) * kUnit,
             std::min((end - first[i]) * kUnit, tensors[i].numel));
  });
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flexkern, FLEXKERN_DEVICE, m) {
  FLEXKERN_OPERATOR(m, scale_displacement_, scale_displacement);
  FLEXKERN_OVERLOAD(m, scale_displacement_, scale_displacement);
}

}  // namespace flexkern::bindings
