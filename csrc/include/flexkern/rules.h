// The rules by which a synapse steps (docs/design.md, Optimizers): the state and the numbers of each, and the
// direction that the plain optimizer would go. flexkern/spec/rules.py declares their names.
#pragma once

#include "flexkern/lanes.h"

namespace flexkern {

// Sets of states, as bits.
template <int... kSets>
struct Sets {};

// SGD as in torch.optim.SGD; its one state is the momentum buffer.
struct Sgd {
  static constexpr int kStates = 1;
  using States = Sets<0b0, 0b1>;  // that a step may have; kernels are compiled for each

  float weight_decay = 0;
  float momentum = 0;
  float grad_share = 1;  // 1 - dampening: what of the gradient enters the momentum buffer
  float sign = 1;        // -1: maximize
  bool nesterov = false;

  // From the arguments of an operator; `refuse(ok, why)` is called for what does not go together.
  template <class Given, class Refuse>
  static Sgd of(const Given& given, const Refuse& refuse) {
    refuse(!given.nesterov || (given.momentum != 0 && given.dampening == 0),
           "nesterov needs momentum > 0 and dampening = 0");
    Sgd rule;
    rule.weight_decay = static_cast<float>(given.weight_decay);
    rule.momentum = static_cast<float>(given.momentum);
    rule.grad_share = static_cast<float>(1.0 - given.dampening);
    rule.sign = given.maximize ? -1.0f : 1.0f;
    rule.nesterov = given.nesterov;
    return rule;
  }

  // The states, as bits, that a step with these arguments has.
  template <class Given>
  static int states(const Given& given) {
    return given.momentum != 0 ? 0b1 : 0b0;
  }
};

// X(rule) for each of them: what kernels are compiled for.
#define FLEXKERN_RULES(X) X(Sgd)

inline namespace FLEXKERN_ISA {

// The direction of a step at weight w with gradient g; the states that kHas has a bit for become the new ones.
template <int kHas, class F>
FLEXKERN_FN F direction(const Sgd& rule, F w, F (&states)[Sgd::kStates], F g) {
  g = g * rule.sign + w * rule.weight_decay;
  if (kHas == 0) return g;
  states[0] = states[0] * rule.momentum + g * rule.grad_share;
  return rule.nesterov ? g + states[0] * rule.momentum : states[0];
}

// Calls body(Constant<set>{}) for the set of states that a step has, which is one of these.
template <int kFirst, int... kRest, class Body>
FLEXKERN_FN void with_set(Sets<kFirst, kRest...>, int has, const Body& body) {
  if constexpr (sizeof...(kRest) == 0) {
    body(Constant<kFirst>{});
  } else if (has == kFirst) {
    body(Constant<kFirst>{});
  } else {
    with_set(Sets<kRest...>{}, has, body);
  }
}

template <class Rule, class Body>
FLEXKERN_FN void with_states(int has, const Body& body) {
  with_set(typename Rule::States{}, has, body);
}

// The set of states of a tensor.
template <class Tensor>
FLEXKERN_FN int states_of(const Tensor& tensor) {
  int has = 0, bit = 1;
  for (const float* state : tensor.states) {
    if (state != nullptr) has |= bit;
    bit *= 2;
  }
  return has;
}

}  // namespace FLEXKERN_ISA
}  // namespace flexkern
