// Silent and functional synapses (arXiv 2410.05899; docs/design.md): which convert in a pass over a layer, and what
// they become. flexkern/reference/synapse.py says the same in plain PyTorch.
#pragma once

#include "flexkern/update.h"

namespace flexkern {

// The synapses of one layer, [rows, columns], from presynaptic (column) to postsynaptic units (row).
template <class Rule>
struct SynapseLayer {
  StepTensor<Rule> synapses;
  int64_t rows = 0, columns = 0;
  int32_t* silent = nullptr;  // bit = 1: silent; a row has words_in_row(columns) words. Null: none is silent
  // The coincidence of a synapse: post[row] * pre[column], or coincidence_scale * coincidence[row, column].
  const float* pre = nullptr;
  const float* post = nullptr;
  const float* coincidence = nullptr;
  float coincidence_scale = 1;
  int64_t first_row = 0;          // the row that synapses.grad and coincidence begin with
  const float* thetas = nullptr;  // one for each row, or where `one_theta` one for all; null: threshold
  bool one_theta = true;
  float threshold = 0;
  float* anchor = nullptr;  // Hebbian insertion writes it; null: the inserted weight is the anchor
  float eta = 1;
  float prune = 0;
  int32_t* converted = nullptr;  // for each row, how many converted and how many were pruned
  int32_t* pruned = nullptr;
};

inline namespace FLEXKERN_ISA {

constexpr int kWordBits = 32;

// Also of a number of columns that the largest integer is.
FLEXKERN_FN int64_t words_in_row(int64_t columns) { return columns / kWordBits + (columns % kWordBits != 0); }

// What a unit does: the part of v that is not negative. NaN stays, so that it converts nothing.
template <class F>
FLEXKERN_FN F activity(F v) {
  return v < 0.0f ? splat<F>(0.0f) : v;
}

template <class F, class Rule>
FLEXKERN_FN F inserted_weight(F coincidence, F anchor, const SynapseLayer<Rule>& layer) {
  return layer.anchor != nullptr ? coincidence * layer.eta : anchor;
}

// Of a silent synapse: whether it becomes functional.
template <class F>
FLEXKERN_FN auto converts(F coincidence, F inserted, float theta) {
  return (coincidence >= theta) & is_finite(coincidence) & is_finite(inserted);
}

// Of a functional synapse: whether it goes silent, because its weight stayed under the bound.
template <class F>
FLEXKERN_FN auto prunes(F before, F after, float bound) {
  return (abs(before) < bound) & (abs(after) < bound);
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
