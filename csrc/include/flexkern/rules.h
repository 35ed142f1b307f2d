// The rules by which a synapse steps (docs/design.md, Optimizers): the state and the numbers of each, and the
// direction that the plain optimizer would go. flexkern/spec/rules.py declares their names.
#pragma once

#include "flexkern/lanes.h"

namespace flexkern {

// Sets of states, as bits.
template <int... kSets>
struct Sets {};

// What a rule that counts no steps makes of their number.
struct Uncounted {};

// SGD as in torch.optim.SGD; its one state is the momentum buffer.
struct Sgd {
  static constexpr int kStates = 1;
  static constexpr bool kCountsSteps = false;
  using Counted = Uncounted;
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

// AdamW as in torch.optim.AdamW; its states are the running means of g and of g^2, and with amsgrad the largest
// of the second that ever was.
struct AdamW {
  static constexpr int kStates = 3;
  static constexpr bool kCountsSteps = true;
  using States = Sets<0b011, 0b111>;

  // The means begin at 0, so after t steps they are 1 - beta^t of what they stand for: what divides that out.
  struct Counted {
    float of_mean, of_root;
  };

  float beta1 = 0, beta2 = 0;
  float mean_share = 0, square_share = 0;  // 1 - beta; maximize: the first one's sign is turned
  float eps = 0;
  float weight_decay = 0;
  double log_beta1 = 0, log_beta2 = 0;

  template <class Given, class Refuse>
  static AdamW of(const Given& given, const Refuse& refuse) {
    refuse(given.beta1 < 1 && given.beta2 < 1, "beta1 and beta2 must be at least 0 and less than 1");
    AdamW rule;
    rule.beta1 = static_cast<float>(given.beta1);
    rule.beta2 = static_cast<float>(given.beta2);
    rule.mean_share = static_cast<float>(given.maximize ? given.beta1 - 1.0 : 1.0 - given.beta1);
    rule.square_share = static_cast<float>(1.0 - given.beta2);
    rule.eps = static_cast<float>(given.eps);
    rule.weight_decay = static_cast<float>(given.weight_decay);
    rule.log_beta1 = std::log(given.beta1);
    rule.log_beta2 = std::log(given.beta2);
    return rule;
  }

  template <class Given>
  static int states(const Given& given) {
    return given.amsgrad ? 0b111 : 0b011;
  }
};

// X(rule) for each of them: what kernels are compiled for.
#define FLEXKERN_RULES(X) X(Sgd) X(AdamW)

inline namespace FLEXKERN_ISA {

// What a rule makes of the number of a step, once for each tensor.
FLEXKERN_FN Uncounted counted(const Sgd&, const float*) { return {}; }

// 1 - beta^t without the cancellation: as -expm1(t log beta).
FLEXKERN_FN AdamW::Counted counted(const AdamW& rule, const float* step) {
#if defined(__CUDA_ARCH__)
  // In float32, as a GPU has few units for double: the product and the logarithm round once each, which moves the
  // result by less than the same share of it, and expm1f is 1 ulp off.
  const float mean = -expm1f(*step * static_cast<float>(rule.log_beta1));
  const float square = -expm1f(*step * static_cast<float>(rule.log_beta2));
  return {div_rn(1.0f, mean), div_rn(1.0f, sqrt_rn(square))};
#else
  const double t = *step;
  return {static_cast<float>(-1.0 / std::expm1(t * rule.log_beta1)),
          static_cast<float>(1.0 / std::sqrt(-std::expm1(t * rule.log_beta2)))};
#endif
}

// The direction of a step at weight w with gradient g; the states that kHas has a bit for become the new ones.
template <int kHas, class F>
FLEXKERN_FN F direction(const Sgd& rule, const Uncounted&, F w, F (&states)[Sgd::kStates], F g) {
  g = g * rule.sign + w * rule.weight_decay;
  if (kHas == 0) return g;
  states[0] = states[0] * rule.momentum + g * rule.grad_share;
  return rule.nesterov ? g + states[0] * rule.momentum : states[0];
}

template <int kHas, class F>
FLEXKERN_FN F direction(const AdamW& rule, const AdamW::Counted& counted, F w, F (&states)[AdamW::kStates], F g) {
  states[0] = states[0] * rule.beta1 + g * rule.mean_share;
  states[1] = states[1] * rule.beta2 + g * g * rule.square_share;
  F square = states[1];
  if (kHas & 0b100) {
    square = states[2] > square ? states[2] : square;
    states[2] = square;
  }
  return states[0] * counted.of_mean / (sqrt_rn(square) * counted.of_root + rule.eps) + w * rule.weight_decay;
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
