// The gate, and the step of a list of tensors by each rule.
#include <algorithm>

#include "steps.h"

#ifdef FLEXKERN_FOR_CUDA
namespace flexkern::cuda {
template <class Rule>
const char* step(const StepTensor<Rule>* tensors, int count, const Step<Rule>& step, Dtype weight, Dtype grad,
                 int device, void* stream);
const char* gate(const float* weight, const Source& anchor, const Source& flexibility, float scale,
                 const float* scale_pointer, float* alpha, int64_t numel, int device, void* stream);
}  // namespace flexkern::cuda
#else
FLEXKERN_KERNEL(template <class Rule> void step(const StepTensor<Rule>& tensor, const Step<Rule>& step,
                                                Dtype weight, Dtype grad, int64_t begin, int64_t end);
                void gate(const float* weight, const Source& anchor, const Source& flexibility, float scale,
                          float* alpha, int64_t begin, int64_t end);)
#endif

namespace flexkern::bindings {

namespace {

template <class Rule>
struct Call {
  std::vector<StepTensor<Rule>> tensors;
  Step<Rule> step;
  Dtype weight = Dtype::kFloat32;
  Dtype grad = Dtype::kFloat32;
};

void check_count(const Tensors& tensors, const char* name, size_t count, bool optional) {
  FLEXKERN_CHECK(tensors.size() == count || (optional && tensors.empty()), name, " has ", tensors.size(),
                 " tensors but weight has ", count);
}

// The alpha of a weight; null where there is none, and where an empty one says that the weight moves freely.
const Tensor* stored_alpha(const Tensors& alpha, const Tensors& weight, size_t i) {
  return alpha.empty() || (alpha[i].numel() == 0 && weight[i].numel() > 0) ? nullptr : &alpha[i];
}

template <class Given>
Call<typename Given::Rule> decode(const Given& given) {
  using Rule = typename Given::Rule;
  Call<Rule> call;
  const Tensors& weight = given.weight;
  const size_t count = weight.size();
  const int has = Rule::states(given);
  const auto states = given.states();
  check_count(given.grad, "grad", count, false);
  check_count(given.alpha, "alpha", count, true);
  if constexpr (Rule::kCountsSteps) check_count(given.step, "step", count, false);
  for (int i = 0; i < Rule::kStates; ++i) check_count(*states[i], Given::kStates[i], count, (has >> i & 1) == 0);
  call.weight = dtype_of(weight[0], "weight");
  call.grad = dtype_of(given.grad[0], "grad");
  const bool low = call.weight != Dtype::kFloat32, gated = given.alpha.empty();
  check_count(given.master, "master", count, !low);
  check_grad_dtype(call.grad, call.weight);
  const SourceRows sources{given.sources, given.parameters};
  sources.check(count);
  call.step = decode_numbers(given, gated);
  std::vector<Source> anchors, flexibilities;
  if (gated) {
    anchors = all_sources(weight, given.anchor, "anchor", sources, 0);
    flexibilities = all_sources(weight, given.flexibility, "flexibility", sources, count);
  }
  call.tensors.resize(count);
  for (size_t i = 0; i < count; ++i) {
    FLEXKERN_CHECK(weight[i].get_device_index() == weight[0].get_device_index(),
                   "weights of one call must be on one device");
    FLEXKERN_CHECK(weight[i].scalar_type() == weight[0].scalar_type() &&
                       given.grad[i].scalar_type() == given.grad[0].scalar_type(),
                   "weights of one call must have one dtype, and so must their gradients");
    std::array<const Tensor*, Rule::kStates> own{};
    for (int k = 0; k < Rule::kStates; ++k) own[k] = has >> k & 1 ? &(*states[k])[i] : nullptr;
    call.tensors[i] = decode_tensor<Rule>(weight[i], given.grad[i], stored_alpha(given.alpha, weight, i),
                                          low ? &given.master[i] : nullptr, own, Given::kStates);
    if constexpr (Rule::kCountsSteps) set_count(call.tensors[i], &given.step[i], weight[i]);
    if (gated)
      set_sources(call.tensors[i], anchors[i], flexibilities[i]);
    else if (call.tensors[i].alpha == nullptr)
      call.tensors[i].gate = Gate::kFree;
  }
  given.check_dtypes();
  given.check_memory();
  return call;
}

template <class Given>
void step(const Given& given) {
  using Rule = typename Given::Rule;
  if (given.weight.empty()) return;
  const Call<Rule> call = decode(given);
#ifdef FLEXKERN_FOR_CUDA
  const Where at(given.weight[0]);
  check_launch(Given::kName, cuda::step(call.tensors.data(), static_cast<int>(call.tensors.size()), call.step,
                                        call.weight, call.grad, at.device, at.stream));
#else
  // All tensors are laid end to end, in units, so that one parallel region serves the whole list.
  using cpu::kUnit;
  std::vector<int64_t> first(call.tensors.size() + 1, 0);
  for (size_t i = 0; i < call.tensors.size(); ++i) first[i + 1] = first[i] + cpu::units(call.tensors[i].numel);
  const auto kernel = FLEXKERN_BEST(step<Rule>);
  torch::stable::parallel_for(0, first.back(), cpu::step_grain(call.tensors), [&](int64_t begin, int64_t end) {
    size_t i = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    for (; i < call.tensors.size() && first[i] < end; ++i) {
      const StepTensor<Rule>& tensor = call.tensors[i];
      kernel(tensor, call.step, call.weight, call.grad, std::max<int64_t>(begin - first[i], 0) * kUnit,
             std::min((end - first[i]) * kUnit, tensor.numel));
    }
  });
#endif
}

Tensor gate(const MetaplasticGate& given) {
  const SourceRows sources{given.sources, given.parameters};
  sources.check(1);
  check_like(given.weight, "weight", given.weight, ScalarType::Float);
  const float* pointer = number_pointer(given.scale_tensor, "scale_tensor");
  check_scale(given.scale, pointer);
  float scale = static_cast<float>(given.scale);
  resolve(given.scale_tensor, scale, pointer);
  const Source anchor = one_source(given.anchor, "anchor", given.weight, sources, 0);
  const Source flexibility = one_source(given.flexibility, "flexibility", given.weight, sources, 1);
  const int64_t numel = given.weight.numel();
  const float* weight = data<float>(given.weight);
#ifdef FLEXKERN_FOR_CUDA
  const Where at(given.weight);
  Tensor alpha = torch::stable::empty_like(given.weight);
  check_launch(given.kName, cuda::gate(weight, anchor, flexibility, scale, pointer, data<float>(alpha), numel,
                                       at.device, at.stream));
#else
  Tensor alpha = cpu::new_tensor(given.weight.sizes(), ScalarType::Float);
  float* out = data<float>(alpha);
  const auto kernel = FLEXKERN_BEST(gate);
  cpu::parallel_elements(
      numel, [&](int64_t begin, int64_t end) { kernel(weight, anchor, flexibility, scale, out, begin, end); });
#endif
  return alpha;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flexkern, FLEXKERN_DEVICE, m) {
  FLEXKERN_OPERATOR(m, metaplastic_gate, gate);
#define FLEXKERN_STEP(Given, op) FLEXKERN_OPERATOR(m, op, step<Given>);
  FLEXKERN_METAPLASTIC_STEPS(FLEXKERN_STEP)
#define FLEXKERN_ONE(Given, op) FLEXKERN_OVERLOAD(m, op, step<Given>);
  FLEXKERN_METAPLASTIC_STEPS(FLEXKERN_ONE)
}

}  // namespace flexkern::bindings
