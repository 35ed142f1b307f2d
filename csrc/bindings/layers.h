// The synapses of one layer as the operators of any rule have them: what synapse.cpp and linear.cpp share.
#pragma once

#include "flexkern/synapse.h"
#include "steps.h"

namespace flexkern::bindings {

template <class Rule>
struct LayerCall {
  SynapseLayer<Rule> layer;
  Step<Rule> step;
  Dtype weight = Dtype::kFloat32;
  Dtype grad = Dtype::kFloat32;
};

// Words of a packed mask.
inline void check_words(const Tensor& words, int64_t rows, int64_t columns) {
  FLEXKERN_CHECK(words.dim() == 2 && words.scalar_type() == ScalarType::Int && words.is_contiguous() &&
                     columns >= 0 && words.size(0) == rows && words.size(1) == words_in_row(columns) &&
                     words.device().type() == kDevice,
                 "words must be a contiguous int32 matrix of ceil(columns / 32) words a row, ", kOnDevice);
}

template <class Given>
void decode_silent(SynapseLayer<typename Given::Rule>& layer, const Given& given) {
  check_words(*given.silent, layer.rows, layer.columns);
  layer.silent = data<int32_t>(*given.silent);
  if (given.hebbian) {
    FLEXKERN_CHECK(layer.synapses.anchor.kind == Kind::kStored, "Hebbian insertion needs a stored anchor");
    layer.anchor = data<float>(*given.anchor);
  }
  if (given.threshold_tensor.has_value()) {
    const Tensor& theta = *given.threshold_tensor;
    FLEXKERN_CHECK(theta.scalar_type() == ScalarType::Float && theta.is_contiguous() &&
                       theta.device().type() == kDevice && (theta.numel() == 1 || theta.numel() == layer.rows),
                   "threshold_tensor must be contiguous float32, one element or one for each row, ", kOnDevice);
    layer.thetas = data<float>(theta);
    layer.one_theta = theta.numel() == 1;
  }
  layer.threshold = static_cast<float>(given.threshold);
  layer.eta = static_cast<float>(given.eta);
  layer.prune = static_cast<float>(given.prune);
}

inline const Tensor* pointer(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? &*tensor : nullptr;
}

// Everything but the gradient (for linear_step_ pass the weight in its place), the activities and the counts.
template <class Given>
LayerCall<typename Given::Rule> decode_layer(const Given& given, const Tensor& grad) {
  using Rule = typename Given::Rule;
  const Tensor& weight = given.weight;
  FLEXKERN_CHECK(weight.dim() == 2, "weight must be a matrix");
  LayerCall<Rule> call;
  call.weight = dtype_of(weight, "weight");
  call.grad = dtype_of(grad, "grad");
  check_grad_dtype(call.grad, call.weight);
  const SourceRows sources{given.sources, given.parameters};
  sources.check(1);
  const bool gated = !given.alpha.has_value(), low = call.weight != Dtype::kFloat32;
  call.step = decode_numbers(given, gated);
  FLEXKERN_CHECK(!low || given.master.has_value(), "master is missing");
  const int has = Rule::states(given);
  const auto states = given.states();
  std::array<const Tensor*, Rule::kStates> own{};
  for (int k = 0; k < Rule::kStates; ++k) {
    if ((has >> k & 1) == 0) continue;
    FLEXKERN_CHECK(states[k]->has_value(), Given::kStates[k], " is missing");
    own[k] = &**states[k];
  }
  SynapseLayer<Rule>& layer = call.layer;
  layer.rows = weight.size(0);
  layer.columns = weight.size(1);
  layer.synapses = decode_tensor<Rule>(weight, grad, pointer(given.alpha), low ? pointer(given.master) : nullptr,
                                       own, Given::kStates);
  if constexpr (Rule::kCountsSteps) set_count(layer.synapses, pointer(given.step), weight);
  FLEXKERN_CHECK(layer.synapses.gate != Gate::kStoredBFloat16, "alpha of a layer must be float32");
  // A gate that does not look at the anchor (stored, or f = 1) needs it none the less, for what converts.
  layer.synapses.anchor = one_source(given.anchor, "anchor", weight, sources, 0);
  if (gated) {
    set_sources(layer.synapses, layer.synapses.anchor,
                one_source(given.flexibility, "flexibility", weight, sources, 1));
  } else if (given.flexibility.has_value()) {  // the gate is stored: nothing reads it
    check_like(*given.flexibility, "flexibility", weight, ScalarType::Float);
  }
  if (given.silent.has_value()) decode_silent(layer, given);
  return call;
}

// A coincidence matrix, or mean activities pre and post.
template <class Rule>
void decode_activities(SynapseLayer<Rule>& layer, const Tensor& weight, const Tensors& activities) {
  FLEXKERN_CHECK(activities.size() == 1 || activities.size() == 2,
                 "activities must be a coincidence matrix, or pre and post");
  const bool rate = activities.size() == 2;
  for (size_t i = 0; i < activities.size(); ++i) {
    const bool fits =
        rate ? activities[i].dim() == 1 && activities[i].size(0) == (i == 0 ? layer.columns : layer.rows)
             : activities[i].dim() == 2 && activities[i].size(0) == layer.rows &&
                   activities[i].size(1) == layer.columns;
    FLEXKERN_CHECK(fits && activities[i].scalar_type() == ScalarType::Float && activities[i].is_contiguous() &&
                       activities[i].device().type() == kDevice &&
                       activities[i].get_device_index() == weight.get_device_index(),
                   "activities must be contiguous float32 on the weight's device, a coincidence of its size or one "
                   "activity for each column and each row");
  }
  if (rate) {
    layer.pre = data<float>(activities[0]);
    layer.post = data<float>(activities[1]);
  } else {
    layer.coincidence = data<float>(activities[0]);
  }
}

// int32 [2, rows], converted and pruned, which the pass adds to.
template <class Rule>
Tensor new_counts(SynapseLayer<Rule>& layer, const Tensor& weight) {
#ifdef FLEXKERN_FOR_CUDA
  Tensor counts = torch::stable::new_zeros(weight, {2, layer.rows}, ScalarType::Int);
#else
  Tensor counts = new_tensor(weight, {2, layer.rows}, ScalarType::Int);
  std::fill_n(data<int32_t>(counts), 2 * layer.rows, 0);
#endif
  layer.converted = data<int32_t>(counts);
  layer.pruned = layer.converted + layer.rows;
  return counts;
}

}  // namespace flexkern::bindings
