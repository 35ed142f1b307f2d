// What the steps of any rule share: from an operator's arguments to the tensors and the numbers of a step.
#pragma once

#include "device.h"
#include "flexkern/operators.h"

namespace flexkern::bindings {

// Of the arguments of an operator, whose states and numbers are those of its rule.
template <class Given>
Step<typename Given::Rule> decode_numbers(const Given& given, bool needs_scale) {
  using Rule = typename Given::Rule;
  static_assert(Given::kCountsSteps == Rule::kCountsSteps, "flexkern/spec/rules.py and rules.h do not agree");
  given.check_numbers();
  Step<Rule> step;
  step.rule = Rule::of(given, [](bool ok, const char* why) { FLEXKERN_CHECK(ok, why); });
  step.lr_pointer = number_pointer(given.lr_tensor, "lr_tensor");
  step.scale_pointer = number_pointer(given.scale_tensor, "scale_tensor");
  if (needs_scale) check_scale(given.scale, step.scale_pointer);
  step.lr = static_cast<float>(given.lr);
  step.scale = static_cast<float>(given.scale);
  step.skip_nonfinite = given.skip_nonfinite;
  resolve(given.lr_tensor, step.lr, step.lr_pointer);
  resolve(given.scale_tensor, step.scale, step.scale_pointer);
  return step;
}

// A weight with its gradient, gate and state; null: not given. `alpha` in bfloat16 is for the CPU.
template <class Rule>
StepTensor<Rule> decode_tensor(const Tensor& weight, const Tensor& grad, const Tensor* alpha, const Tensor* master,
                               const std::array<const Tensor*, Rule::kStates>& states, const char* const* names) {
  StepTensor<Rule> tensor;
  check_like(weight, "weight", weight, weight.scalar_type());
  check_like(grad, "grad", weight, grad.scalar_type());
  tensor.numel = weight.numel();
  tensor.weight = weight.data_ptr();
  tensor.grad = grad.data_ptr();
  if (alpha != nullptr) {
    const bool narrow = !kForCuda && alpha->scalar_type() == ScalarType::BFloat16;
    check_like(*alpha, "alpha", weight, narrow ? ScalarType::BFloat16 : ScalarType::Float);
    tensor.alpha = alpha->data_ptr();
    tensor.gate = narrow ? Gate::kStoredBFloat16 : Gate::kStored;
  }
  for (int i = 0; i < Rule::kStates; ++i) {
    if (states[i] == nullptr) continue;
    check_like(*states[i], names[i], weight, ScalarType::Float);
    tensor.states[i] = data<float>(*states[i]);
  }
  if (master != nullptr) {
    check_like(*master, "master", weight, ScalarType::Float);
    tensor.master = data<float>(*master);
  }
  return tensor;
}

// The number of the step of a weight, for rules that count; null: not given.
template <class Rule>
void set_count(StepTensor<Rule>& tensor, const Tensor* step, const Tensor& weight) {
  if constexpr (Rule::kCountsSteps) {
    FLEXKERN_CHECK(step != nullptr, "step is missing");
    FLEXKERN_CHECK(step->numel() == 1 && step->scalar_type() == ScalarType::Float &&
                       step->device().type() == kDevice && step->get_device_index() == weight.get_device_index(),
                   "step must be one float32 element for each weight, on its device");
    tensor.count = data<float>(*step);
  }
}

template <class Rule>
void set_sources(StepTensor<Rule>& tensor, const Source& anchor, const Source& flexibility) {
  tensor.anchor = anchor;
  tensor.flexibility = flexibility;
  if (flexibility.kind == Kind::kConstant && flexibility.p0 == 1.0f) tensor.gate = Gate::kFree;
}

inline void check_grad_dtype(Dtype grad, Dtype weight) {
  FLEXKERN_CHECK(grad == Dtype::kFloat32 || grad == weight, "grad must be float32 or of weight's dtype");
}

}  // namespace flexkern::bindings
